"""Samples for a person's eyes: what was kept, and what each filter dropped with the measured value and threshold.

`dropped/<filter>/<reason>.jsonl.zst` and `kept/<source>.jsonl.zst`, chosen by a seeded hash. Not part of the stage's
content hash: `data.keep_dropped` changes what one can read, not what is trained on.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from data_filters.rule import Drop
from pipeline.artifacts import Folder
from pipeline.corpus.documents import DocumentReader, Place, decision, read_records, shard_name
from pipeline.corpus.splitting import hash_key

PER_REASON = 20
SAMPLE_CHARACTERS = 4_000
REPORTS = ("kept/*.zst", "dropped/*/*.zst")  # globs of these files, for `Step.reports`


def write_gallery(
    folder: Folder, deciding: Sequence[str], sources: Sequence[str], more: Mapping[Place, tuple[str, Drop]],
    kept: Iterable[Place], *, seed: int, tasks: int, keep: str,
) -> None:  # fmt: skip
    """Writes the samples; `keep`: "sample" (20 a reason), "all" (whole texts of everything dropped) or "none"."""
    if keep == "none":
        return
    limit = PER_REASON if keep == "sample" else None
    reasons = _by_reason(folder, deciding, more, tasks)
    for source in sources:
        for shard in range(tasks):
            for i, record in enumerate(read_records(folder.input(f"read-{source}") / "set_aside" / shard_name(shard))):
                name = record["filter"] or "unreadable", record["cause"]
                reasons.setdefault(name, []).append((("aside", source, shard, i), {**record, "text": record["sample"]}))
    chosen = {
        name: sorted(items, key=lambda item: hash_key(seed, "gallery", *map(str, item[0])))[:limit]
        for name, items in reasons.items()
    }
    kept_sample = sorted(kept, key=lambda place: hash_key(seed, "kept", *place))[: PER_REASON * max(1, len(sources))]
    places = {place for items in chosen.values() for place, _ in items if len(place) == 2} | set(kept_sample)
    texts = _texts(folder.input("repair"), places, tasks, None if keep == "all" else SAMPLE_CHARACTERS)
    for (name, reason), items in chosen.items():
        records = [{**why, **texts.get(place, {})} for place, why in items]  # type: ignore[call-overload]
        _write(folder.path / "dropped" / _word(name) / f"{_word(reason)}.jsonl.zst", records)
    by_source: dict[str, list[dict[str, Any]]] = {}
    for place in kept_sample:
        by_source.setdefault(texts[place]["source"], []).append(texts[place])
    for source, records in by_source.items():
        _write(folder.path / "kept" / f"{_word(source)}.jsonl.zst", records[:PER_REASON])


def _by_reason(
    folder: Folder, deciding: Sequence[str], more: Mapping[Place, tuple[str, Drop]], tasks: int
) -> dict[tuple[str, str], list[tuple[tuple, dict[str, Any]]]]:
    reasons: dict[tuple[str, str], list[tuple[tuple, dict[str, Any]]]] = {}
    for step in deciding:
        for shard in range(tasks):
            for record in read_records(folder.input(step) / "decisions" / shard_name(shard)):
                reasons.setdefault((record["filter"], record["reason"]), []).append(((shard, record["at"]), record))
    for place, (name, drop) in sorted(more.items()):
        reasons.setdefault((name, drop.reason), []).append((place, decision(place[1], name, drop)))
    return reasons


def _texts(repaired: Path, places: set, tasks: int, characters: int | None) -> dict[tuple, dict[str, Any]]:
    """Text and provenance of the chosen documents, in one pass over the shards that hold any."""
    found: dict[tuple, dict[str, Any]] = {}
    for shard in range(tasks):
        wanted = {at for s, at in places if s == shard}
        if not wanted:
            continue
        for doc in DocumentReader(repaired).run(rank=shard):
            if doc.metadata["at"] in wanted:
                provenance = {k: doc.metadata.get(k) for k in ("source", "path", "license", "version", "kind")}
                found[shard, doc.metadata["at"]] = {**provenance, "text": doc.text[:characters]}
    return found


def _write(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    import zstandard

    path.parent.mkdir(parents=True, exist_ok=True)
    lines = b"".join(orjson.dumps(r, option=orjson.OPT_APPEND_NEWLINE) for r in records)
    path.write_bytes(zstandard.ZstdCompressor(level=9).compress(lines))


def _word(name: str) -> str:
    """A safe file name from a filter's or a reason's name."""
    return re.sub(r"[^\w.-]+", "_", name)[:80]
