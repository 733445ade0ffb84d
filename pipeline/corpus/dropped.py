"""Everything that was dropped or set aside: how much for which reason, and samples of it for people to read.

In: the decisions of every step and what the sources set aside. Out: a `Survey` of the counts, and the sample files
`dropped/<filter>/<reason>.jsonl.zst` and `kept/<source>.jsonl.zst`, chosen by a seeded hash, with shorter examples for
the report. The samples are not part of the stage's content hash: `data.keep_dropped` changes what one can read, not
what is trained on. Memory does not grow with the corpus.
"""

import heapq
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from pipeline.corpus.text.documents import Table, hash_key, in_drawn_order, read_records, shard_name
from pipeline.pages.private import OWN
from pipeline.storage.steps import Folder

PER_REASON, NEAR_MISSES = 20, 2
UNREADABLE, CONTAMINATION = "unreadable", "contamination"
# Their number is no distance from a limit that could have been set otherwise.
NO_LIMIT = ("exact_dedup", "empty", "verification", UNREADABLE)

Reason = tuple[str, str]  # filter, reason

SAMPLE_CHARACTERS, EXAMPLE_CHARACTERS, EXAMPLES = 4_000, 400, 2
SCORED = "quality"
GATHERED_BYTES = 32_000_000
_PROVENANCE = ("source", "path", "license", "version", "kind", "record", "synthetic")


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


@dataclass
class Examples:
    """For the report: by reason those drawn and those that missed by least, and by mark (see `Gallery`) those that were
    asked for. `sampled`: texts of the drawn ones, to count tokens on."""

    drawn: dict[Reason, list[dict[str, Any]]] = field(default_factory=dict)
    near: dict[Reason, list[dict[str, Any]]] = field(default_factory=dict)
    marked: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    sampled: dict[Reason, list[str]] = field(default_factory=dict)


class Gallery:
    """Takes its texts as they come by: `wanted(shard)` says which positions it needs, `add` gets them, `close` writes.

    `keep`: "sample" (20 a reason), "all" (whole texts of everything dropped) or "none". `marked`: document -> mark, for
    examples of another kind. `private`: names of sources that hold private text.
    """

    def __init__(
        self, path: Path, candidates: Candidates, survey: Survey, kept: np.ndarray, marked: Mapping[int, str],
        private: Sequence[str], *, keep: str,
    ):  # fmt: skip
        self.candidates, self.survey, self.marked, self.keep = candidates, survey, marked, keep
        self.examples, self._private = Examples(), frozenset(private)
        self._files = _Files(path)
        self._kept: set[int] = set()
        if keep != "none":  # the first few of each source, in drawn order
            drawn = in_drawn_order(candidates.table, kept, candidates.seed, "kept")
            sources = candidates.table.rows["source"][drawn]
            for number in range(len(candidates.table.sources)):
                self._kept |= set(drawn[sources == number][:PER_REASON].tolist())
        self._here: dict[int, list[Candidate]] = {}
        self._start, self._shard = 0, 0

    def wanted(self, shard: int) -> set[int]:
        table = self.candidates.table
        self._shard, self._start, self._here = shard, int(table.starts[shard]), {}
        for c in self.candidates.of_shard(shard):
            if c.at is None:
                self._set_aside(c)
            elif self._drawn(c) or self._near(c) or self.keep == "all":
                self._here.setdefault(c.at, []).append(c)
        part = table.shard(shard)
        shown = {i - self._start for i in (*self._kept, *self.marked) if part.start <= i < part.stop}
        return shown | self._here.keys()

    def add(self, at: int, record: Mapping[str, Any]) -> None:
        """`record`: the document as it lies on disk."""
        text, metadata = record["text"], record["metadata"]
        provenance = {k: metadata[k] for k in _PROVENANCE if metadata.get(k) is not None}
        for c in self._here.get(at, ()):
            full = {**c.record, **provenance}
            if self.keep == "all" or (self.keep == "sample" and self._drawn(c)):
                whole = text if self.keep == "all" else text[:SAMPLE_CHARACTERS]
                self._files.dropped(c.reason, {**full, "text": whole})
            part = inner_part(text) if c.reason[0] == SCORED else text
            if self._drawn(c):
                self.examples.sampled.setdefault(c.reason, []).append(text[:SAMPLE_CHARACTERS])
                self._show(self.examples.drawn, c.reason, full, part)
            if self._near(c):
                self._show(self.examples.near, c.reason, full, part)
        index = self._start + at
        if index in self._kept:
            self._files.kept(metadata["source"], {**provenance, "text": text[:SAMPLE_CHARACTERS]})
        if index in self.marked:
            self._show(self.examples.marked, self.marked[index], provenance, inner_part(text))

    def close(self) -> Examples:
        self._files.write()
        return self.examples

    def _set_aside(self, c: Candidate) -> None:
        if self._drawn(c) or self.keep == "all":
            if self.keep != "none":
                self._files.dropped(c.reason, c.record)
            self.examples.sampled.setdefault(c.reason, []).append(c.record["text"])
            self._show(self.examples.drawn, c.reason, c.record, c.record["text"])

    def _drawn(self, c: Candidate) -> bool:
        return c.lot <= self.survey.lots[c.reason]

    def _near(self, c: Candidate) -> bool:
        return (self._shard, c.at) in self.survey.near.get(c.reason, ())

    def _show(self, place: dict, key: Any, record: Mapping[str, Any], text: str) -> None:
        shown = place.setdefault(key, [])
        if self.keep != "none" and len(shown) < EXAMPLES:
            shown.append(example_of(record, text, self._private))


def example_of(record: Mapping[str, Any], text: str, private: Collection[str]) -> dict[str, Any]:
    """An example for the report of its owner. `private`: names of sources that hold private text; the mark tells what
    no page to pass on may show (pipeline/pages/private.py)."""
    mark = {"private": True} if record.get("license") == OWN or record["source"] in private else {}
    kept = {key: record[key] for key in ("source", "path", "value", "threshold") if record.get(key) is not None}
    detail = {"detail": str(record["detail"])} if record.get("detail") else {}
    return {**mark, **kept, **detail, "text": text.rstrip()[:EXAMPLE_CHARACTERS]}


def inner_part(text: str) -> str:
    """A long text from the line that begins after its first third on: a file's head, its licence and imports, says
    little about what it is worth."""
    if len(text) < 3 * EXAMPLE_CHARACTERS:
        return text
    start = text.find("\n", len(text) // 3) + 1
    return f"[...]\n{text[start:].strip(chr(10))}" if 0 < start <= len(text) // 2 else text


class _Files:
    """The sample files, one per reason and source. Records are gathered and compressed a piece at a time (a zstd file
    may hold several frames): an open compressor for each file would take 10 MB each."""

    def __init__(self, folder: Path):
        self._folder, self._gathered, self._bytes = folder, dict[Path, list[bytes]](), 0

    def dropped(self, reason: Reason, record: Mapping[str, Any]) -> None:
        self._add(self._folder / "dropped" / _word(reason[0]) / f"{_word(reason[1])}.jsonl.zst", record)

    def kept(self, source: str, record: Mapping[str, Any]) -> None:
        self._add(self._folder / "kept" / f"{_word(source)}.jsonl.zst", record)

    def _add(self, path: Path, record: Mapping[str, Any]) -> None:
        line = orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)
        self._gathered.setdefault(path, []).append(line)
        self._bytes += len(line)
        if self._bytes > GATHERED_BYTES:
            self.write()

    def write(self) -> None:
        """Appends what was gathered; the folder holds nothing of an earlier run."""
        import zstandard

        compressor = zstandard.ZstdCompressor(level=9)
        for path, lines in self._gathered.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "ab") as file:
                file.write(compressor.compress(b"".join(lines)))
        self._gathered, self._bytes = {}, 0


def _word(name: str) -> str:
    """A safe file name from a filter's or a reason's name."""
    return re.sub(r"[^\w.-]+", "_", name)[:80]
