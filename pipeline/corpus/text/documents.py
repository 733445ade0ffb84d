"""How documents travel between the steps of the data stage.

The text is written twice only: by `read` and by `repair`. Every later step adds small files beside it (who was
dropped, why, who is validation), so a changed rule or cut rewrites kilobytes. A document is named for good by its
shard and its position there (`at`); `tasks` fixed shards make the order the same for any number of workers.

Files of a step: `documents/00003.jsonl` (read, repair: texts), `table/00003.bin` and `table/00003.jsonl` (repair: one
fixed-size row and the names of each text), `decisions/00003.jsonl` (every deciding step: what it dropped and why) and
`alive/00003.npy` (every deciding step: who is left after it). Whole-corpus steps work on the rows and masks alone, 43
bytes a document, so that ten million documents fit in a small machine.
"""

import hashlib
import json
import mmap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from data_filters.rule import KINDS, Drop
from pipeline.storage.steps import Folder

WHERE = "where"  # the filter by which records outside a source's `where` are counted

# `group`: hash of source and group; `origin`: of the document too, the same for what was made of it in other sources;
# `digest`: of the lower-case words, the same for exact duplicates.
ROW = np.dtype(
    [("source", "<u2"), ("kind", "u1"), ("bytes", "<u4"), ("group", "<u8"), ("origin", "<u8"), ("digest", "<u8", (2,))]
)
ROWS_PER_WRITE = 4_096


@dataclass(frozen=True, slots=True)
class Names:
    """What a document is called, for reports and decisions."""

    path: str
    group: str
    license: str


@dataclass(frozen=True)
class SetAside:
    """An input that never became a document. `filter` None: it could not be read (counted as unreadable by
    `cause`); else it was made and refused by that filter (an exercise whose tests fail, a record outside `where`).
    `bytes`: of its text, where that is known; of a `file` that is lost, its size on disk. `records`: what was read of
    that file before the place of its damage."""

    path: str
    cause: str
    sample: str = ""
    filter: str | None = None
    bytes: int = 0
    file: str = ""
    records: int = 0


class DocumentReader(PipelineStep):
    """Reads the texts of one shard that are left after the step in `before`; sets `metadata["at"]`.

    `only`: a folder of `<shard>.npy` masks over the shard's documents; others are skipped unread.
    """

    name, type = "documents", "📖 - READER"

    def __init__(self, repaired: Path, before: Path | None = None, only: Path | None = None):
        super().__init__()
        self.repaired, self.before, self.only = repaired, before, only

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:  # type: ignore[override]
        masks = [] if self.before is None else [read_alive(self.before, rank)]
        masks += [] if self.only is None else [np.load(self.only / f"{rank:05d}.npy", allow_pickle=False)]
        wanted = np.logical_and.reduce(masks).tobytes() if masks else None
        for at, line in enumerate(read_lines(self.repaired / "documents" / shard_name(rank))):
            if wanted is None or wanted[at]:
                record = orjson.loads(line)
                record["metadata"]["at"] = at
                yield Document(text=record["text"], id=record["id"], metadata=record["metadata"])


class ShardStep(PipelineStep):
    """A step of ours: `work(documents, shard)` takes the documents of a shard and passes on those that it yields. A
    function of a module or a `partial` of one, because clusters pickle it."""

    type = "hornbook"

    def __init__(self, name: str, work: Callable[[Iterable[Document], int], Iterable[Document] | None]):
        self.name = name
        super().__init__()
        self.work = work

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:  # type: ignore[override]
        yield from self.work(data or (), rank) or ()


def document_writer(folder: Path) -> PipelineStep:
    """datatrove's JSON lines writer, one plain file per shard, with every field of every document."""
    from datatrove.pipeline.writers.jsonl import JsonlWriter

    return JsonlWriter(str(folder), "${rank}.jsonl", compression=None, adapter=_as_record)


def _as_record(writer: Any, doc: Document) -> dict[str, Any]:
    """datatrove's own adapter leaves out empty fields, so an empty text would have none, and copies deeply."""
    return {"text": doc.text, "id": doc.id, "metadata": doc.metadata}


def shard_name(shard: int) -> str:
    return f"{shard:05d}.jsonl"


def read_lines(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        yield from file


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    return map(orjson.loads, read_lines(path))


class RecordWriter(AbstractContextManager):
    """JSON lines, written as they come: `with RecordWriter(path) as records: records.add({...})`."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "wb", buffering=1 << 20)  # noqa: SIM115 - closed by `__exit__`

    def add(self, record: Any) -> None:
        self._file.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))

    def __exit__(self, *_: object) -> None:
        self._file.close()


class RowWriter(AbstractContextManager):
    """Fixed-size rows of `dtype`, written as they come, in flat memory; `read_rows` maps them."""

    def __init__(self, path: Path, dtype: np.dtype):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file, self._dtype, self._rows = open(path, "wb"), dtype, []  # noqa: SIM115 - closed by `__exit__`

    def add(self, row: tuple | np.generic) -> None:
        self._rows.append(row)
        if len(self._rows) >= ROWS_PER_WRITE:
            self._flush()

    def _flush(self) -> None:
        self._file.write(np.array(self._rows, dtype=self._dtype).tobytes())
        self._rows.clear()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._flush()
        self._file.close()


def read_rows(path: Path, dtype: np.dtype) -> np.ndarray:
    """The rows of a file, mapped and not read."""
    return np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.zeros(0, dtype=dtype)


def forget_pages(rows: np.ndarray) -> None:
    """Releases the pages of mapped rows that were read, which would else count as this process's memory. (Linux;
    elsewhere the system takes them back when it needs them.)"""
    base: Any = rows
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)


@dataclass(frozen=True)
class Table:
    """All documents of the corpus in order. `rows`: of `ROW`; shard i has rows `starts[i]` to `starts[i + 1]`."""

    folder: Path
    rows: np.ndarray
    starts: np.ndarray
    sources: tuple[str, ...]

    @classmethod
    def load(cls, repaired: Path) -> "Table":
        sources, tasks = json.loads((repaired / "table" / "sources.json").read_text(encoding="utf-8"))
        parts = [read_rows(repaired / "table" / f"{shard:05d}.bin", ROW) for shard in range(tasks)]
        starts = np.concatenate([[0], np.cumsum([len(p) for p in parts])]).astype(np.int64)
        return cls(repaired, np.concatenate(parts), starts, tuple(sources))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def tasks(self) -> int:
        return len(self.starts) - 1

    @cached_property
    def kinds(self) -> np.ndarray:
        return np.array(KINDS)[self.rows["kind"]]

    def shard(self, shard: int) -> slice:
        return slice(int(self.starts[shard]), int(self.starts[shard + 1]))

    def names(self, indices: Iterable[int]) -> dict[int, Names]:
        """Path, group and licence of some documents, in one pass over the shards that hold any."""
        chosen = np.zeros(len(self), dtype=bool)
        chosen[[int(i) for i in indices]] = True
        return dict(self.each_names(chosen))

    def each_names(self, chosen: np.ndarray) -> Iterator[tuple[int, Names]]:
        """The same for a mask over the corpus, one document at a time."""
        for shard in range(self.tasks):
            part = self.shard(shard)
            wanted = chosen[part]
            if wanted.any():
                for at, line in enumerate(read_lines(self.folder / "table" / shard_name(shard))):
                    if wanted[at]:
                        yield part.start + at, Names(*orjson.loads(line))


class ShardDecisions(AbstractContextManager):
    """What one step decides about one shard: `drop` as it goes; the masks are written at the end.

    `before`: who was left before the step; None: documents are announced one by one with `add`.
    """

    def __init__(self, folder: Path, shard: int, before: np.ndarray | None = None):
        self._folder, self._shard = folder, shard
        self._alive = bytearray() if before is None else bytearray(before.tobytes())
        self._records = RecordWriter(folder / "decisions" / shard_name(shard))

    def add(self) -> int:
        """A new document, kept so far; returns its position."""
        self._alive.append(1)
        return len(self._alive) - 1

    def drop(self, at: int, filter: str, drop: Drop) -> None:
        self._alive[at] = 0
        self._records.add({"at": at, "filter": filter, **asdict(drop)})

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._records.__exit__()
        if kind is None:
            alive = self._folder / "alive" / f"{self._shard:05d}.npy"
            alive.parent.mkdir(parents=True, exist_ok=True)
            np.save(alive, np.frombuffer(self._alive, dtype=bool), allow_pickle=False)


def read_alive(folder: Path, shard: int) -> np.ndarray:
    """Who of a shard is left after the step: one bool a document."""
    return np.load(folder / "alive" / f"{shard:05d}.npy", allow_pickle=False)


def read_all_alive(folder: Path, tasks: int) -> np.ndarray:
    """The same over the whole corpus."""
    return np.concatenate([read_alive(folder, shard) for shard in range(tasks)])


def read_validation(split: Path, tasks: int) -> np.ndarray:
    """Which documents of the corpus the split step holds out."""
    return np.concatenate([np.load(split / "validation" / f"{s:05d}.npy", allow_pickle=False) for s in range(tasks)])


def write_decisions(folder: Path, table: Table, before: np.ndarray, drops: Iterable[tuple[int, str, Drop]]) -> None:
    """For steps that decide over the whole corpus: `(index, filter, why)` in the order of the corpus."""
    remaining = iter(drops)
    ahead = next(remaining, None)
    for shard in range(table.tasks):
        part = table.shard(shard)
        with ShardDecisions(folder, shard, before[part]) as decisions:
            while ahead is not None and ahead[0] < part.stop:
                index, name, drop = ahead
                decisions.drop(index - part.start, name, drop)
                ahead = next(remaining, None)


def read_decisions(folder: Path, tasks: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """(shard, record) of everything that a step dropped."""
    for shard in range(tasks):
        for record in read_records(folder / "decisions" / shard_name(shard)):
            yield shard, record


def filtered(folder: Folder) -> Path:
    """The folder of the last step that drops documents before the tokenizer."""
    return folder.inputs.get("contamination") or folder.input("near_dedup")


def step_facts(folder: Path, table: Table) -> dict[str, Any]:
    """What every deciding step puts into its manifest: what it dropped, by filter and reason, and what is left."""
    reasons: dict[str, Counter[str]] = {}
    for _, record in read_decisions(folder, table.tasks):
        reasons.setdefault(record["filter"], Counter())[record["reason"]] += 1
    return {
        "dropped": {name: sum(counts.values()) for name, counts in sorted(reasons.items())},
        "reasons": {name: dict(sorted(counts.items())) for name, counts in sorted(reasons.items())},
        **count_documents(table, read_all_alive(folder, table.tasks)),
    }


def count_documents(table: Table, chosen: np.ndarray) -> dict[str, Any]:
    """`{documents, bytes, sources {name: {documents, bytes}}}` of a mask: a row of the funnel."""
    rows = table.rows[chosen]
    documents = np.bincount(rows["source"], minlength=len(table.sources))
    n_bytes = np.bincount(rows["source"], weights=rows["bytes"], minlength=len(table.sources)).astype(np.int64)
    sources = {
        name: {"documents": int(documents[i]), "bytes": int(n_bytes[i])}
        for i, name in enumerate(table.sources)
        if documents[i]
    }
    return {"documents": int(documents.sum()), "bytes": int(n_bytes.sum()), "sources": sources}


def draw(digests: np.ndarray, *key: Any) -> np.ndarray:
    """Uniform 64-bit numbers that depend on `key` and on each document's content alone: the same on every machine,
    and another source or worker changes none of them."""
    return mix_bits(digests.astype(np.uint64) + np.uint64(hash_key(*key)))


def mix_bits(x: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64: every bit of the result depends on every bit of `x`."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def in_drawn_order(table: Table, documents: np.ndarray, *key: Any) -> np.ndarray:
    """Some documents in an order that depends on `key` and their content alone."""
    return documents[np.argsort(draw(table.rows["digest"][documents, 0], *key), kind="stable")]


def hash_key(*parts: Any) -> int:
    """A 64-bit number from anything printable: the same in every process and on every machine."""
    digest = hashlib.blake2b("\0".join(map(str, parts)).encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def write_masks(folder: Path, table: Table, chosen: np.ndarray) -> None:
    """One `<shard>.npy` mask a shard, for `DocumentReader(only=...)`."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(table.tasks):
        np.save(folder / f"{shard:05d}.npy", chosen[table.shard(shard)], allow_pickle=False)


def sum_mappings(mappings: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Counts added up by name."""
    total: Counter[str] = Counter()
    for mapping in mappings:
        total.update(mapping)
    return dict(sorted(total.items()))
