"""How documents travel between the steps of the data stage.

The text is written twice only: by `read` and by `repair`. Every later step adds small decision files beside it (who
was dropped, why, who is validation), so a changed rule or cut rewrites kilobytes. A document is named for good by its
shard and its position there (`at`); `tasks` fixed shards make the order the same for any number of workers.

Files of a step: `documents/00003.jsonl` (repair: texts), `table/00003.jsonl` (repair: one light row per text),
`decisions/00003.jsonl` (every deciding step: `{at, filter, reason, value, threshold}` of what it dropped).
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from data_filters.rule import Drop

MAX_TEXT_BYTES = 32_000_000  # a longer text or line is set aside unread: it would take a worker's whole memory

Place = tuple[int, int]  # shard, position in the shard


@dataclass(frozen=True, slots=True)
class Row:
    """What the whole-corpus steps need of a document: everything but its text."""

    source: str
    group: str
    kind: str
    path: str
    bytes: int
    license: str


@dataclass(frozen=True)
class SetAside:
    """An input that never became a document. `filter` None: it could not be read (counted as unreadable by
    `cause`); else it was made and refused by that filter (an exercise whose tests fail)."""

    path: str
    cause: str
    sample: str = ""
    filter: str | None = None


class DocumentReader(PipelineStep):
    """Reads the texts of one shard and leaves out what the `decided` steps dropped; sets `metadata["at"]`."""

    name, type = "documents", "📖 - READER"

    def __init__(self, repaired: Path, decided: Sequence[Path] = ()):
        super().__init__()
        self.repaired, self.decided = repaired, list(decided)

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:  # type: ignore[override]
        dropped = dropped_places(self.decided, rank)
        for at, line in enumerate(read_lines(self.repaired / "documents" / shard_name(rank))):
            if at not in dropped:
                record = orjson.loads(line)
                record["metadata"]["at"] = at
                yield Document(text=record["text"], id=record["id"], metadata=record["metadata"])


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


def read_records(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in read_lines(path)]


def write_records(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        for record in records:
            file.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))


def load_table(repaired: Path, tasks: int) -> list[list[Row]]:
    """All rows, by shard and position."""
    return [[Row(**r) for r in read_records(repaired / "table" / shard_name(shard))] for shard in range(tasks)]


def dropped_places(decided: Sequence[Path], shard: int) -> set[int]:
    """Positions in `shard` that any of the steps dropped."""
    return {r["at"] for folder in decided for r in read_records(folder / "decisions" / shard_name(shard))}


def survivors(table: list[list[Row]], decided: Sequence[Path]) -> Iterator[tuple[Place, Row]]:
    """Every document that none of the steps dropped, in corpus order."""
    for shard, rows in enumerate(table):
        dropped = dropped_places(decided, shard)
        for at, row in enumerate(rows):
            if at not in dropped:
                yield (shard, at), row


def decision(at: int, filter: str, drop: Drop) -> dict[str, Any]:
    return {"at": at, "filter": filter, **asdict(drop)}


def write_decisions(folder: Path, tasks: int, drops: Mapping[Place, tuple[str, Drop]]) -> None:
    """One file per shard from `{place: (filter, why)}`, for steps that decide over the whole corpus."""
    by_shard: list[list[dict[str, Any]]] = [[] for _ in range(tasks)]
    for (shard, at), (name, drop) in sorted(drops.items()):
        by_shard[shard].append(decision(at, name, drop))
    for shard, records in enumerate(by_shard):
        write_records(folder / "decisions" / shard_name(shard), records)


def count_decisions(folder: Path, tasks: int) -> dict[str, int]:
    """`{filter: documents dropped}` of one step."""
    counts: Counter[str] = Counter()
    for shard in range(tasks):
        counts.update(r["filter"] for r in read_records(folder / "decisions" / shard_name(shard)))
    return dict(sorted(counts.items()))


def count_remaining(table: list[list[Row]], decided: Sequence[Path]) -> dict[str, Any]:
    """`{documents, bytes, sources {name: {documents, bytes}}}` after the given steps: a row of the funnel."""
    sources: dict[str, dict[str, int]] = {}
    for _, row in survivors(table, decided):
        entry = sources.setdefault(row.source, {"documents": 0, "bytes": 0})
        entry["documents"] += 1
        entry["bytes"] += row.bytes
    return {
        "documents": sum(s["documents"] for s in sources.values()),
        "bytes": sum(s["bytes"] for s in sources.values()),
        "sources": dict(sorted(sources.items())),
    }
