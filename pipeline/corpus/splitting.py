"""Train and validation, split by whole groups (packages, domains, ideas of exercises).

Two files of one package share style, names and licence header; a random split would let the model be asked what it
has read. Deterministic by a hash of (seed, source, group), so that another source or worker changes nothing.
"""

from typing import Any

import numpy as np

from pipeline.artifacts import Folder
from pipeline.corpus.documents import Table, count_documents, draw, read_all_alive, write_masks

LARGEST_GROUP = 3.0  # a group larger than this many times the wanted text is not held out: it would be the corpus
NAMED_GROUPS = 200  # of a source, in the manifest
_NO_KEYS = np.zeros(0, dtype=np.uint64)


def split_groups(folder: Folder, before: str, share: float, seed: int) -> dict[str, Any]:
    """Writes `validation/00003.npy`, which documents are held out. Facts: what is on each side, which groups."""
    table = Table.load(folder.input("repair"))
    alive = read_all_alive(folder.input(before), table.tasks)
    chosen = np.zeros(len(table), dtype=bool)
    groups: dict[str, list[str]] = {}
    keys: list[np.ndarray] = []
    held_keys: list[np.ndarray] = []
    for number, source in enumerate(table.sources):
        own = np.flatnonzero(alive & (table.rows["source"] == number))
        names = table.rows["group"][own]
        single = len(np.unique(names)) < 2
        if single:  # a source with one group is split by document
            names = table.rows["digest"][own, 0]
        held = own[held_out(names, table.rows["bytes"][own], share, seed)]
        chosen[held] = True
        groups[source] = _names(table, held, single)
        if not single:
            keys.append(np.unique(names))
            held_keys.append(np.unique(table.rows["group"][held]))
    # A rewrite has the group of its document, in another source: both are held out, or neither.
    found, sources = np.unique(np.concatenate([*keys, _NO_KEYS]), return_counts=True)
    shared = np.intersect1d(found[sources > 1], np.concatenate([*held_keys, _NO_KEYS]))
    chosen |= alive & np.isin(table.rows["group"], shared)
    write_masks(folder.path / "validation", table, chosen)
    return {
        "dropped": {},
        **count_documents(table, alive),
        "validation": {"documents": int(chosen.sum()), "bytes": int(table.rows["bytes"][chosen].sum(dtype=np.int64))},
        "validation_groups": groups,
    }


def _names(table: Table, held: np.ndarray, single: bool) -> list[str]:
    """The groups that are held out, by name; the first of them where there are many."""
    keys = table.rows["digest"][held, 0] if single else table.rows["group"][held]
    _, first = np.unique(keys, return_index=True)
    named = table.names(held[np.sort(first)[:NAMED_GROUPS]])
    return sorted(f"{n.group}/{n.path}" if single else n.group for n in named.values())


def held_out(groups: np.ndarray, n_bytes: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Which documents of one source are held out: whole groups whose text adds up to about `share` of it, at least
    one group and never all.

    Groups come in the order of their hash; one that is larger than three times the wanted text is passed over, unless
    there are only such: then the smallest is taken.
    """
    names, member = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        return np.zeros(len(groups), dtype=bool)
    sizes = np.bincount(member, weights=n_bytes)
    wanted = share * sizes.sum()
    order = np.argsort(draw(names, seed, "split"), kind="stable")
    order = order[sizes[order] <= LARGEST_GROUP * wanted]
    enough = int(np.searchsorted(np.cumsum(sizes[order]), wanted, side="left")) + 1
    chosen = order[: min(enough, len(names) - 1)]
    if not len(chosen):
        chosen = np.lexsort((names, sizes))[:1]
    return np.isin(member, chosen)
