"""Samples for a person's eyes: what was kept, and what each filter dropped with the measured value and threshold.

`dropped/<filter>/<reason>.jsonl.zst` and `kept/<source>.jsonl.zst`, chosen by a seeded hash. Not part of the stage's
content hash: `data.keep_dropped` changes what one can read, not what is trained on. One pass chooses, one writes, shard
by shard, so that millions of dropped documents need no memory.
"""

import heapq
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from data_filters.rule import Drop
from pipeline.artifacts import Folder
from pipeline.corpus.documents import DocumentReader, Table, draw, hash_key, read_records, shard_name

PER_REASON = 20
SAMPLE_CHARACTERS = 4_000
GATHERED_BYTES = 32_000_000
REPORTS = ("kept/*.zst", "dropped/*/*.zst")  # globs of these files, for `Step.reports`
_PROVENANCE = ("source", "path", "license", "version", "kind", "record")

Reason = tuple[str, str]  # filter, reason


def write_gallery(
    folder: Folder, table: Table, deciding: Sequence[str], more: Mapping[int, tuple[str, Drop]], kept: np.ndarray,
    *, seed: int, keep: str,
) -> None:  # fmt: skip
    """Writes the samples; `keep`: "sample" (20 a reason), "all" (whole texts of everything dropped) or "none".
    `more`: what this step itself drops."""
    if keep == "none":
        return
    candidates = _Candidates(folder, table, deciding, more, seed)
    limits = None if keep == "all" else candidates.limits()
    shown = _sample_kept(table, kept, seed)
    files = _Files(folder.path)
    for shard in range(table.tasks):
        texts: dict[int, list[tuple[Reason, dict[str, Any]]]] = {}
        for reason, lot, at, record in candidates.of_shard(shard):
            if limits is not None and lot > limits[reason]:
                continue
            if at is None:
                files.dropped(reason, record)
            else:
                texts.setdefault(at, []).append((reason, record))
        start = int(table.starts[shard])
        here = {i - start for i in shown if start <= i < int(table.starts[shard + 1])}
        if not texts and not here:
            continue
        for doc in DocumentReader(folder.input("repair")).run(rank=shard):
            at = doc.metadata["at"]
            if at in texts or at in here:
                provenance = {k: doc.metadata.get(k) for k in _PROVENANCE if doc.metadata.get(k) is not None}
                text = doc.text if keep == "all" else doc.text[:SAMPLE_CHARACTERS]
                for reason, record in texts.get(at, ()):
                    files.dropped(reason, {**record, **provenance, "text": text})
                if at in here:
                    files.kept(doc.metadata["source"], {**provenance, "text": doc.text[:SAMPLE_CHARACTERS]})
    files.write()


def _sample_kept(table: Table, kept: np.ndarray, seed: int) -> set[int]:
    lots = draw(table.rows["digest"][kept, 0], seed, "kept")
    chosen: list[np.ndarray] = []
    for number in range(len(table.sources)):
        own = table.rows["source"][kept] == number
        chosen.append(kept[own][np.argsort(lots[own], kind="stable")[:PER_REASON]])
    return set(np.concatenate(chosen).tolist())


class _Candidates:
    """Everything that was dropped or set aside, shard by shard, with a lot drawn for each."""

    def __init__(
        self, folder: Folder, table: Table, deciding: Sequence[str], more: Mapping[int, tuple[str, Drop]], seed: int
    ):
        self.folder, self.table, self.deciding, self.more, self.seed = folder, table, deciding, more, seed

    def of_shard(self, shard: int) -> Iterator[tuple[Reason, int, int | None, dict[str, Any]]]:
        """(reason, lot, position or None for what never became a document, record)."""
        for source in self.table.sources:
            path = self.folder.input(f"read-{source}") / "set_aside" / shard_name(shard)
            for i, record in enumerate(read_records(path)):
                reason = record["filter"] or "unreadable", record["cause"]
                lot = hash_key(self.seed, "aside", source, shard, i)
                yield reason, lot, None, {**record, "text": record["sample"]}
        for step in self.deciding:
            for record in read_records(self.folder.input(step) / "decisions" / shard_name(shard)):
                lot = hash_key(self.seed, "gallery", shard, record["at"])
                yield (record["filter"], record["reason"]), lot, record["at"], record
        part = self.table.shard(shard)
        for index, (name, drop) in self.more.items():
            if part.start <= index < part.stop:
                at = index - part.start
                yield (name, drop.reason), hash_key(self.seed, "gallery", shard, at), at, {
                    "at": at, "filter": name, **asdict(drop),
                }  # fmt: skip

    def limits(self) -> dict[Reason, int]:
        """The lot up to which each reason's samples are taken: its `PER_REASON` lowest."""
        lowest: dict[Reason, list[int]] = {}
        for shard in range(self.table.tasks):
            for reason, lot, _, _ in self.of_shard(shard):
                heap = lowest.setdefault(reason, [])
                if len(heap) < PER_REASON:
                    heapq.heappush(heap, -lot)
                elif -lot > heap[0]:
                    heapq.heapreplace(heap, -lot)
        return {reason: -heap[0] for reason, heap in lowest.items()}


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
