"""Everything that did not get in, in one pass: how much of it for which reason, and which of it is worth showing.

In: the decisions of every step and what the sources set aside. Out: a `Survey`. Memory does not grow with the corpus.
"""

import heapq
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.corpus.text.documents import Table, hash_key, read_records, shard_name
from pipeline.storage.steps import Folder

PER_REASON, NEAR_MISSES = 20, 2
UNREADABLE, CONTAMINATION = "unreadable", "contamination"
# Their number is no distance from a limit that could have been set otherwise.
NO_LIMIT = ("exact_dedup", "empty", "verification", UNREADABLE)

Reason = tuple[str, str]  # filter, reason


@dataclass(frozen=True)
class Candidate:
    """One text that did not get in. `at`: its position in the shard, None for what never became a document; `lot`: a
    seeded number that samples are drawn by."""

    step: str
    reason: Reason
    lot: int
    at: int | None
    record: dict[str, Any]

    @property
    def margin(self) -> float | None:
        """How far it was from staying, as a share of the limit; None where there is no such limit."""
        value, limit = self.record.get("value"), self.record.get("threshold")
        if self.reason[0] in NO_LIMIT or not all(isinstance(x, int | float) for x in (value, limit)):
            return None
        return abs(value - limit) / max(abs(limit), 1e-9)  # type: ignore[operator]


@dataclass
class Survey:
    """`counts`: (step, filter, reason) -> [documents, bytes, tokens], tokens of those that were encoded; `lots`: up to
    which lot each reason's samples are taken; `near`: (shard, position) of those that missed by least."""

    counts: dict[tuple[str, str, str], list[int]] = field(default_factory=dict)
    lots: dict[Reason, int] = field(default_factory=dict)
    near: dict[Reason, set[tuple[int, int]]] = field(default_factory=dict)
    items: Counter[str] = field(default_factory=Counter)


class Candidates:
    """`of_shard(shard)`: what was dropped or set aside there."""

    def __init__(self, folder: Folder, table: Table, deciding: Sequence[str], seed: int):
        self.folder, self.table, self.deciding, self.seed = folder, table, deciding, seed

    def of_shard(self, shard: int) -> Iterator[Candidate]:
        for source in self.table.sources:
            path = self.folder.input(f"read-{source}") / "set_aside" / shard_name(shard)
            for i, record in enumerate(read_records(path)):
                reason = record["filter"] or UNREADABLE, record["cause"]
                lot = hash_key(self.seed, "aside", source, shard, i)
                yield Candidate("read", reason, lot, None, {**record, "text": record["sample"]})
        for step in self.deciding:
            for record in read_records(self.folder.input(step) / "decisions" / shard_name(shard)):
                lot = hash_key(self.seed, "gallery", shard, record["at"])
                yield Candidate(step, (record["filter"], record["reason"]), lot, record["at"], record)


def survey(candidates: Candidates, lengths: np.ndarray) -> Survey:
    """One pass over all of it. `lengths`: tokens of every document, 0 for those that were never encoded."""
    table, found = candidates.table, Survey()
    lowest: dict[Reason, list[int]] = {}
    nearest: dict[Reason, list[tuple[float, int, int, int]]] = {}
    for shard in range(table.tasks):
        start = int(table.starts[shard])
        for c in candidates.of_shard(shard):
            count = found.counts.setdefault((c.step, *c.reason), [0, 0, 0])
            _push(lowest.setdefault(c.reason, []), -c.lot, PER_REASON)
            if c.at is None:
                count[0] += c.record["documents"]
                count[1] += c.record["bytes"]
                continue
            count[0] += 1
            count[1] += int(table.rows["bytes"][start + c.at])
            count[2] += int(lengths[start + c.at])
            if c.margin is not None:
                _push(nearest.setdefault(c.reason, []), (-c.margin, -c.lot, shard, c.at), NEAR_MISSES)
            if c.reason[0] == CONTAMINATION:
                found.items[str(c.record["detail"]).partition(": ")[0]] += 1
    found.lots = {reason: -heap[0] for reason, heap in lowest.items()}
    found.near = {reason: {(shard, at) for _, _, shard, at in heap} for reason, heap in nearest.items()}
    return found


def _push(heap: list, entry: Any, most: int) -> None:
    """Keeps the `most` greatest entries."""
    if len(heap) < most:
        heapq.heappush(heap, entry)
    elif entry > heap[0]:
        heapq.heapreplace(heap, entry)
