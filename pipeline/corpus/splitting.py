"""Train and validation, split by whole groups (packages, domains, ideas of exercises).

Two files of one package share style, names and licence header; a random split would let the model be asked what it
has read. Deterministic by a hash of (seed, source, group), so that another source or worker changes nothing.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

from pipeline.artifacts import Folder
from pipeline.corpus.documents import (
    Place,
    Row,
    count_remaining,
    load_table,
    shard_name,
    survivors,
    write_records,
)

LARGEST_GROUP = 3.0  # a group larger than this many times the wanted text is not held out: it would be the corpus


def split_groups(folder: Folder, share: float, seed: int, tasks: int) -> dict[str, Any]:
    """Writes `validation/00003.jsonl`, the positions that are held out. Facts: what is on each side, which groups."""
    repaired = folder.input("repair")
    decided = [repaired, folder.input("rules"), folder.input("exact_dedup")]
    table = load_table(repaired, tasks)
    by_source: dict[str, list[tuple[Place, Row]]] = {}
    for place, row in survivors(table, decided):
        by_source.setdefault(row.source, []).append((place, row))
    chosen: set[Place] = set()
    groups: dict[str, list[str]] = {}
    for source, documents in sorted(by_source.items()):
        names = held_out_groups(source, documents, share, seed)
        single = len({row.group for _, row in documents}) < 2
        for (shard, at), row in documents:
            if (f"{row.group}/{row.path}" if single else row.group) in names:
                chosen.add((shard, at))
        groups[source] = sorted(names)
    for shard in range(tasks):
        write_records(
            folder.path / "validation" / shard_name(shard),
            ({"at": at} for _, at in sorted(p for p in chosen if p[0] == shard)),
        )
    remaining = count_remaining(table, decided)
    n_bytes = sum(row.bytes for documents in by_source.values() for place, row in documents if place in chosen)
    return {
        "dropped": {},
        **remaining,
        "validation": {"documents": len(chosen), "bytes": n_bytes},
        "validation_groups": {name: g[:200] for name, g in groups.items()},
    }


def held_out_groups(source: str, documents: Sequence[tuple[Place, Row]], share: float, seed: int) -> set[str]:
    """Groups of one source whose text adds up to about `share` of it, at least one and never all.

    A source with one group is split by document. Groups come in the order of their hash; one that is larger than
    three times the wanted text is passed over, unless there are only such: then the smallest is taken.
    """
    sizes: dict[str, int] = {}
    single = len({row.group for _, row in documents}) < 2
    for _, row in documents:
        name = f"{row.group}/{row.path}" if single else row.group
        sizes[name] = sizes.get(name, 0) + row.bytes
    if len(sizes) < 2:
        return set()
    wanted = share * sum(sizes.values())
    chosen, held = set(), 0
    for name in sorted(sizes, key=lambda g: hash_key(seed, source, g)):
        if held >= wanted:
            break
        if sizes[name] <= LARGEST_GROUP * wanted and len(chosen) < len(sizes) - 1:
            chosen.add(name)
            held += sizes[name]
    return chosen or {min(sizes, key=lambda g: (sizes[g], g))}


def hash_key(*parts: Any) -> int:
    """A 64-bit number from anything printable: the same in every process and on every machine."""
    digest = hashlib.blake2b("\0".join(map(str, parts)).encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "big")
