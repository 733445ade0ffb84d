"""A Hugging Face dataset, by hub name or local folder, streamed through `datasets`: nothing is downloaded whole.

Tested on local folders of the same layouts. The hub path is the same code with another first argument and is
**unmeasured** (no network where this was written).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.artifacts import hash_files, hash_json
from pipeline.corpus.compressed import Unreadable
from pipeline.corpus.records import RecordReader
from pipeline.corpus.source import Item, RecordOptions, Source, missing, set_aside
from pipeline.errors import UserError


class HuggingFace(Source):
    """A dataset of the Hugging Face hub (unmeasured) or a local folder of its layout (Parquet, JSON lines). `config`,
    `split`, `revision`: as in `datasets.load_dataset`; pin `revision` to a commit: the fingerprint of hub data is its
    name with these three. Other options as for `jsonl`: `text_key`, `group_key`, `metadata_keys`, `where`
    (`int_score >= 3`), limits.
    """

    version = 2
    options = RecordOptions

    def __init__(
        self, dataset: str, config: str | None = None, split: str = "train", revision: str | None = None, **common: Any
    ):
        self.dataset, self.config, self.split, self.revision = dataset, config, split, revision
        self.limits = options = RecordOptions(**common)
        self.reader = RecordReader(options)

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

    def items(self, task: int, tasks: int) -> Iterator[Item]:
        """By part (a file, or a part of one) where there are enough of them; else each shard takes every `tasks`-th
        record. A damaged local file is set aside and the others go on; an error of the hub is raised, as the rest
        would be missing."""
        stream = self._stream()
        parts = stream.num_shards
        by_part = parts >= tasks
        for part in range(parts):
            if by_part and part % tasks != task:
                continue
            for number, record in self._records(stream, part):
                broken = isinstance(record, Unreadable)
                if not by_part and (part if broken else number + part) % tasks != task:
                    continue
                place = f"{Path(self.dataset).name}/{part}:{number + 1}"
                yield set_aside(place, record) if isinstance(record, Unreadable) else self.reader.read(record, place)

    def _records(self, stream: Any, part: int) -> Iterator[tuple[int, Any]]:
        number = 0
        records = iter(stream.shard(stream.num_shards, part))
        while True:
            try:
                record = next(records)
            except StopIteration:
                return
            except Exception as error:  # whatever pyarrow or json raise on a damaged file
                if self.local_folder is None or isinstance(error, UserError):
                    raise
                yield number, Unreadable("damaged_file", f"{type(error).__name__}: {error}")
                return
            yield number, record
            number += 1

    def _stream(self) -> Any:
        import datasets

        folder = self.local_folder
        try:
            return datasets.load_dataset(
                str(folder) if folder else self.dataset,
                self.config,
                split=self.split,
                revision=None if folder else self.revision,
                streaming=True,
            )
        except ValueError as error:  # how datasets says that a config or split does not exist
            raise UserError(f"dataset {self.dataset}, config {self.config}, split {self.split}: {error}") from None
        except OSError as error:  # no such dataset, no connection, no right to it
            raise UserError(
                f"dataset {self.dataset}: there is no local folder of this name here, and the hub did not give it "
                f"({str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}); expected a "
                "folder, or a hub name owner/name and a network"
            ) from None
