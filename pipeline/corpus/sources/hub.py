"""A Hugging Face dataset, by hub name or local folder, streamed through `datasets`: nothing is downloaded whole.

The files of a local folder are read one by one, each with its own columns: `datasets` decides which they are, tables
and JSON lines are read as the sources `parquet` and `jsonl` read them, and other formats through `datasets`.

Tested on local folders of the same layouts. The hub path is **unmeasured** (no network where this was written).
"""

from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from pipeline.corpus.sources.input_files import FileSource, InputFile, Inputs
from pipeline.corpus.sources.jsonl import ENDINGS as JSON_ENDINGS
from pipeline.corpus.sources.jsonl import Jsonl
from pipeline.corpus.sources.parquet import ENDINGS as TABLE_ENDINGS
from pipeline.corpus.sources.parquet import Parquet
from pipeline.corpus.sources.records import RecordReader
from pipeline.corpus.sources.source import Item, RecordOptions, missing
from pipeline.corpus.text.compressed import Unreadable
from pipeline.storage.files import hash_files, hash_json
from pipeline.system.errors import UserError


class HuggingFace(FileSource):
    """A dataset of the Hugging Face hub (unmeasured) or a local folder of its layout (Parquet, JSON lines). `config`,
    `split`, `revision`: as in `datasets.load_dataset`; pin `revision` to a commit: the fingerprint of hub data is its
    name with these three. Other options as for `jsonl`: `text_key`, `group_key`, `metadata_keys`, `where`
    (`int_score >= 3`), limits.
    """

    version = 3
    options = RecordOptions

    def __init__(
        self, dataset: str, config: str | None = None, split: str = "train", revision: str | None = None, **common: Any
    ):
        self.dataset, self.config, self.split, self.revision = dataset, config, split, revision
        self.limits = options = RecordOptions(**common)
        self.reader = RecordReader(options)
        self._tables, self._lines = Parquet(dataset, **common), Jsonl(dataset, **common)

    @property
    def local_folder(self) -> Path | None:
        path = Path(self.dataset).expanduser()
        return path if path.is_dir() else None

    def libraries(self) -> tuple[str, ...]:
        return ("datasets", "pyarrow")

    def content_hash(self) -> str:
        folder = self.local_folder
        if folder is None:
            if self.dataset.startswith(("/", ".", "~")):
                raise missing(f"{self.dataset} is not a folder", "a local folder or a hub name owner/name", "dataset")
            return hash_json([self.dataset, self.config, self.split, self.revision])
        files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
        if not files:
            raise missing(f"{self.dataset} is an empty folder", "Parquet or JSON lines files", "dataset")
        return hash_files(files, folder)

    def find(self) -> Inputs:
        """The files of the split, as `datasets` finds them. Empty for a hub name, and for archives and parts of splits,
        which `datasets` streams."""
        folder = self.local_folder
        if folder is None:
            return Inputs([])
        found = self._asked(lambda load: load.load_dataset_builder(str(folder), self.config)).config.data_files or {}
        paths = [Path(str(path)) for path in found.get(self.split, ())]
        base = folder.resolve()
        files = [InputFile(p, p.resolve().relative_to(base).as_posix()) for p in paths if p.is_file()]
        return Inputs(sorted(files, key=lambda f: f.name.split("/")) if len(files) == len(paths) else [])

    def items(self, task: int, tasks: int) -> Iterator[Item]:
        """A damaged local file is set aside and the others are read; an error of the hub is raised, as the rest would
        be missing."""
        if self.find().files:
            yield from super().items(task, tasks)
            return
        stream = self._asked(
            lambda load: load.load_dataset(
                str(self.local_folder or self.dataset),
                self.config,
                split=self.split,
                revision=None if self.local_folder else self.revision,
                streaming=True,
            )
        )
        parts = stream.num_shards
        for part in range(parts):
            if parts >= tasks and part % tasks != task:
                continue
            for number, record in enumerate(stream.shard(parts, part)):
                if parts >= tasks or (number + part) % tasks == task:
                    yield self.reader.read(record, f"{Path(self.dataset).name}/{part}:{number + 1}")

    def raw_records(self, file: InputFile) -> Iterator[Any]:
        if self._reader(file) is not self:
            return self._reader(file).raw_records(file)
        return self._streamed(file)

    def item(self, raw: Any, file: InputFile, place: str) -> Item | None:
        reader = self._reader(file)
        return self.reader.read(raw, place) if reader is self else reader.item(raw, file, place)

    def _reader(self, file: InputFile) -> FileSource:
        return self._tables if file.ending in TABLE_ENDINGS else self._lines if file.ending in JSON_ENDINGS else self

    def _streamed(self, file: InputFile) -> Iterator[Any]:
        """The records of one file of another format, with the options that the folder's card gives."""
        import datasets

        whole = self._asked(lambda load: load.load_dataset_builder(str(self.local_folder), self.config))
        module, default = whole.__class__.__module__.rpartition(".")[2], whole.BUILDER_CONFIG_CLASS()
        kept = {f.name for f in fields(default)} - {
            "name",
            "version",
            "data_dir",
            "data_files",
            "description",
            "features",
        }
        options = {n: v for n in sorted(kept) if (v := getattr(whole.config, n)) != getattr(default, n)}
        try:
            yield from datasets.load_dataset(
                module, data_files={"train": [str(file.path)]}, split="train", streaming=True, **options
            )
        except Exception as error:  # whatever pyarrow, pandas or json raise on a damaged file
            raise Unreadable("damaged_file", f"{type(error).__name__}: {error}") from None

    def _asked(self, load: Callable[[Any], Any]) -> Any:
        """What `datasets` gives for this dataset, its errors in the user's words."""
        import datasets

        try:
            return load(datasets)
        except ValueError as error:  # how datasets says that a config or split does not exist
            raise UserError(f"dataset {self.dataset}, config {self.config}, split {self.split}: {error}") from None
        except OSError as error:  # no such dataset, no connection, no right to it
            raise UserError(
                f"dataset {self.dataset}: there is no local folder of this name here, and the hub did not give it "
                f"({str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}); expected a "
                "folder, or a hub name owner/name and a network"
            ) from None
