"""A Hugging Face dataset, by hub name or local folder, streamed through `datasets`: nothing is downloaded whole.

Tested on a local folder of Parquet files. The hub path is the same code with another first argument and has not been
measured (no network where this was written).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_filters.rule import PROSE
from pipeline.artifacts import hash_files, hash_json
from pipeline.corpus.documents import SetAside
from pipeline.corpus.source import Item, RecordReader, Source, check_limits, limited, missing, task_limit
from pipeline.errors import UserError

BYTES_PER_TOKEN = 4.0  # `limit_tokens` is an estimate: the tokenizer does not exist yet when text is read


class HuggingFace(Source):
    """A dataset of the Hugging Face hub or a local folder of its layout (Parquet, JSON lines).

    `config`, `split`, `revision`: as in `datasets.load_dataset`; pin `revision` to a commit, the fingerprint of hub
    data is the name with these three. `where`: one comparison, such as `int_score >= 3`. `limit_tokens` is estimated
    at 4 bytes per token.
    """

    def __init__(
        self,
        dataset: str,
        config: str | None = None,
        split: str = "train",
        revision: str | None = None,
        text_key: str = "text",
        group_key: str | None = None,
        license: str = "unknown",
        kind: str = PROSE,
        where: str | None = None,
        limit_documents: int | None = None,
        limit_bytes: int | None = None,
        limit_tokens: int | None = None,
    ):
        check_limits(limit_documents=limit_documents, limit_bytes=limit_bytes, limit_tokens=limit_tokens)
        self.dataset, self.config, self.split, self.revision = dataset, config, split, revision
        self.reader = RecordReader(text_key, group_key, license, kind, where)
        self.limit_documents = limit_documents
        token_bytes = None if limit_tokens is None else int(limit_tokens * BYTES_PER_TOKEN)
        limits = [n for n in (limit_bytes, token_bytes) if n is not None]
        self.limit_bytes = min(limits) if limits else None

    @property
    def local_folder(self) -> Path | None:
        path = Path(self.dataset).expanduser()
        return path if path.is_dir() else None

    def libraries(self) -> tuple[str, ...]:
        return ("datasets",)

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

    def documents(self, task: int, tasks: int) -> Iterator[Item]:
        limits = task_limit(self.limit_documents, task, tasks), task_limit(self.limit_bytes, task, tasks)
        yield from limited(self._items(task, tasks), *limits)

    def _items(self, task: int, tasks: int) -> Iterator[Item]:
        """Shards are files where they divide evenly, else each shard takes every `tasks`-th record.

        A damaged local file is set aside by name; an error of the hub is raised, as the rest would be missing.
        """
        stream, number = self._stream(task, tasks), 0
        name = self.dataset.rstrip("/").rpartition("/")[2]
        while True:
            try:
                record = next(stream)
            except StopIteration:
                return
            except Exception as error:
                if self.local_folder is None or isinstance(error, UserError):
                    raise
                yield SetAside(f"{name}/{task}:{number}", "damaged_file", f"{type(error).__name__}: {error}"[:500])
                return
            item = self.reader.read(record, f"{name}/{task}:{number}")
            number += 1
            if item is not None:
                yield item

    def _stream(self, task: int, tasks: int) -> Iterator[dict[str, Any]]:
        import datasets
        from datasets.distributed import split_dataset_by_node

        folder = self.local_folder
        try:
            stream = datasets.load_dataset(
                str(folder) if folder else self.dataset,
                self.config,
                split=self.split,
                revision=None if folder else self.revision,
                streaming=True,
            )
        except ValueError as error:  # how datasets says that a config or split does not exist
            raise UserError(f"dataset {self.dataset}, config {self.config}, split {self.split}: {error}") from None
        yield from split_dataset_by_node(stream, rank=task, world_size=tasks)
