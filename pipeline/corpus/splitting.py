"""Train and validation, split by whole groups (packages, domains, ideas of exercises).

Two files of one package share style, names and licence header; a random split would let the model be asked what it
has read. Held out of a source is at most `data.validation.share` of its bytes and of its documents, and of that only
what validation needs: the beginnings of documents (`HEAD_TOKENS`), up to `data.validation.max_bytes`. Everything else
is train text, and goes through every later step as such. A group that is larger than the limit is not held out, unless
too little is left to choose from: then such groups are split by document, and the facts say so. Deterministic by a hash
of (seed, source, group), so that another worker changes nothing.

Letters: D documents, S sources, P pairs of a group and a source.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.corpus.text.documents import Table, count_documents, draw, read_all_alive, write_masks
from pipeline.corpus.text.shards import head_bytes
from pipeline.storage.steps import Folder

UNIT_SHARES = (1 / 8, 1 / 2, 1.0)  # of the limit: small units come first, so that a set spans many of them
FULL = 7 / 8  # of the limit: what is left then is too little to look for a unit that fits
# Groups beyond the limit are skipped where the others have so many times the limit, or half of the source's text:
# out of less, the set would say little about the source.
ENOUGH_LIMITS, ENOUGH_SHARE = 5, 1 / 2
NAMED_GROUPS = 200  # of a source, in the manifest


@dataclass(frozen=True)
class Chosen:
    """`held_D`; of each source the groups that are too large to hold out whole, of how many, and the share of its text
    in the smallest of them. Only sources that are split by document for it are named."""

    held_D: np.ndarray
    too_large: dict[int, tuple[int, int, float]]


def split_groups(folder: Folder, share: float, max_bytes: int, seed: int) -> dict[str, Any]:
    """Writes `validation/00003.npy`, which documents are held out. Facts: what is on each side, which groups."""
    table = Table.load(folder.input("repair"))
    alive = np.flatnonzero(read_all_alive(folder.input("exact_dedup"), table.tasks))
    rows, count = table.rows[alive], len(table.sources)
    limits_S, documents_S = share * _sums(rows, rows["bytes"], count), share * _sums(rows, None, count)
    by_share = choose(rows, rows["bytes"], limits_S, documents_S, seed)
    needed = alive[by_share.held_D]
    heads = np.minimum(table.rows["bytes"][needed], head_bytes(max_bytes))
    any_number, most = np.full(count, np.inf), np.full(count, float(max_bytes))
    by_need = choose(table.rows[needed], heads, most, any_number, seed, whole=True)
    chosen, returned = np.zeros(len(table), dtype=bool), np.zeros(len(table), dtype=bool)
    chosen[needed[by_need.held_D]] = True
    returned[needed[~by_need.held_D]] = True
    write_masks(folder.path / "validation", table, chosen)
    mixed = set(by_share.too_large) | set(by_need.too_large)
    return {
        "dropped": {},
        **count_documents(table, np.isin(np.arange(len(table)), alive)),
        "validation": count_documents(table, chosen),
        "returned": count_documents(table, returned),
        "validation_groups": {
            source: _names(table, np.flatnonzero(chosen & (table.rows["source"] == number)), number in mixed)
            for number, source in enumerate(table.sources)
        },
        "by_document": [table.sources[number] for number in sorted(mixed)],
        "warnings": [*_warnings(table, alive, chosen, by_share, by_need, share, max_bytes)],
    }


def _warnings(
    table: Table, alive: np.ndarray, chosen: np.ndarray, by_share: Chosen, by_need: Chosen, share: float, max_bytes: int
) -> Iterator[str]:
    end = "it is held out by document, so that documents of one group are on both sides"
    for number, name in enumerate(table.sources):
        key, own = f"data.sources.{name}", alive[table.rows["source"][alive] == number]
        if number in by_share.too_large:
            n, of, smallest = by_share.too_large[number]
            which = "the only group is" if of == 1 else f"each of the {of:,} groups is" if n == of else ""
            too_large = which or f"{n:,} of the {of:,} groups {'is' if n == 1 else 'are'}"
            beside = ", and the others hold too little" if n < of else ""
            raised = f", or data.validation.share of at least {smallest:.2g}" if smallest <= 0.5 else ""
            yield (
                f"{key}: {too_large} larger than the {100 * share:g}% of the source that may be held out"
                f"{beside}: {end}. Expected smaller groups{raised}"
            )
        elif number in by_need.too_large:
            n, of, _ = by_need.too_large[number]
            yield (
                f"{key}: {n:,} of {of:,} groups that could be held out are larger than data.validation.max_bytes="
                f"{max_bytes:,}: {end}. Expected smaller groups or a higher limit"
            )
        if len(own) and not chosen[own].any():
            yield f"{key} has {len(own):,} document{'s' * (len(own) > 1)}: nothing of it is held out"


def _names(table: Table, held: np.ndarray, mixed: bool) -> list[str]:
    """The groups that are held out, by name; the first of them where there are many."""
    keys = table.rows["origin" if mixed else "group"][held]
    _, first = np.unique(keys, return_index=True)
    named = table.names(held[np.sort(first)[:NAMED_GROUPS]])
    return sorted(f"{n.group}/{n.path}" if mixed else n.group for n in named.values())


def _sums(rows: np.ndarray, sizes_D: np.ndarray | None, sources: int) -> np.ndarray:
    return np.bincount(rows["source"], weights=sizes_D, minlength=sources)


def choose(
    rows: np.ndarray, sizes_D: np.ndarray, limits_S: np.ndarray, documents_S: np.ndarray, seed: int, whole: bool = False
) -> Chosen:
    """Which documents (rows of `ROW`) are held out: of every source whole units whose sizes add up to at most its
    limit, and whose documents to at most `documents_S`; nearly that much where they fit, and at least one document.

    A unit is a group, or of a group that is too large a document. It takes in what was made of its text in other
    sources, whose limits hold too. Units come in the order of their hash, first those that are small beside the limit.
    Where none fits, one document does: of median size, and never the last of its source; with `whole` (all of a source
    may be taken) the smallest.
    """
    groups = _Units(rows["group"], rows["source"], sizes_D)
    totals_S = _sums(rows, sizes_D, len(limits_S))
    beyond_P = (groups.sizes > limits_S[groups.sources]) | (groups.documents > documents_S[groups.sources])
    too_large_P = beyond_P & (groups.different(rows["origin"]) > 1)
    beyond_S = np.bincount(groups.sources, weights=groups.sizes * too_large_P, minlength=len(limits_S))
    few_S = totals_S - beyond_S < np.minimum(ENOUGH_LIMITS * limits_S, ENOUGH_SHARE * totals_S)
    apart_P = too_large_P & few_S[groups.sources]
    is_apart_D = np.isin(rows["group"], groups.keys[groups.units[apart_P]])
    units = _Units(np.where(is_apart_D, rows["origin"], rows["group"]), rows["source"], sizes_D)
    found = {}
    for number in np.unique(groups.sources[apart_P]).tolist():
        own = groups.sources == number
        smallest = float(groups.sizes[apart_P & own].min() / totals_S[number])
        found[number] = (int((apart_P & own).sum()), int(own.sum()), smallest)
    return Chosen(_Selection(units, limits_S, documents_S, totals_S, whole).fill(seed)[units.units[units.of_D]], found)


class _Units:
    """Documents by unit: `keys` of the units; of each pair of a unit and a source that has documents of it, in order:
    `units` (numbers of keys), `sources`, `sizes`, `documents`; `of_D`: the pair of each document; the pairs of unit u
    are `first[u]` to `first[u + 1]`."""

    def __init__(self, keys_D: np.ndarray, sources_D: np.ndarray, sizes_D: np.ndarray):
        order = np.lexsort((sources_D, keys_D))
        keys, sources = keys_D[order], sources_D[order]
        new_key = np.ones(len(order), dtype=bool)
        new_key[1:] = keys[1:] != keys[:-1]
        new_pair = new_key.copy()
        new_pair[1:] |= sources[1:] != sources[:-1]
        self.keys, self.sources = keys[new_key], sources[new_pair].astype(np.int64)
        self.units = (np.cumsum(new_key) - 1)[new_pair]
        self.first = np.append(np.flatnonzero(new_key[new_pair]), len(self.units))
        self.of_D = np.empty(len(order), dtype=np.int64)
        self.of_D[order] = np.cumsum(new_pair) - 1
        self.sizes = np.bincount(self.of_D, weights=sizes_D, minlength=len(self.units))
        self.documents = np.bincount(self.of_D, minlength=len(self.units))

    def different(self, values_D: np.ndarray) -> np.ndarray:
        """How many different values each pair has."""
        order = np.lexsort((values_D, self.of_D))
        pairs, values = self.of_D[order], values_D[order]
        new = np.ones(len(order), dtype=bool)
        new[1:] = (pairs[1:] != pairs[:-1]) | (values[1:] != values[:-1])
        return np.bincount(pairs[new], minlength=len(self.units))


class _Selection:
    """The units that are taken, while the limits of all sources hold."""

    def __init__(self, units: _Units, limits_S: np.ndarray, documents_S: np.ndarray, totals_S: np.ndarray, whole: bool):
        self.units, self.limits_S, self.documents_S, self.whole = units, limits_S, documents_S, whole
        self.enough_S = np.where(totals_S > limits_S, FULL * limits_S, np.inf)
        self.taken = np.zeros(len(units.keys), dtype=bool)
        self.filled_S, self.held_S = np.zeros(len(limits_S)), np.zeros(len(limits_S))
        self.left_S = np.bincount(units.sources, weights=units.documents, minlength=len(limits_S))

    def fill(self, seed: int) -> np.ndarray:
        """A mask over the units."""
        units, lots = self.units, draw(self.units.keys, seed, "split")
        present = np.unique(units.sources).tolist()
        for source in present:
            own = np.flatnonzero(units.sources == source)
            own = own[np.argsort(lots[units.units[own]], kind="stable")]
            for share in UNIT_SHARES:
                self._take_in_order(source, own[units.sizes[own] <= share * self.limits_S[source]])
        for source in present:
            own = units.sources == source
            if not self.taken[units.units[own]].any():
                self._take_one(np.flatnonzero(own))
        return self.taken

    def _take_in_order(self, source: int, pairs: np.ndarray) -> None:
        for unit in self.units.units[pairs].tolist():
            enough = self.filled_S[source] >= self.enough_S[source]
            if enough or self.held_S[source] >= FULL * self.documents_S[source]:
                return
            at = self._pairs(unit)
            sources = self.units.sources[at]
            fits = self.filled_S[sources] + self.units.sizes[at] <= self.limits_S[sources]
            few = self.held_S[sources] + self.units.documents[at] <= self.documents_S[sources]
            if not self.taken[unit] and (fits & few).all() and self._leaves_some(at):
                self._take(unit)

    def _take_one(self, pairs: np.ndarray) -> None:
        """Of one source's pairs, without regard to the limits."""
        units = self.units
        fewest = pairs[units.documents[pairs] == units.documents[pairs].min()]
        by_size = units.units[fewest[np.lexsort((units.keys[units.units[fewest]], units.sizes[fewest]))]].tolist()
        first = 0 if self.whole else (len(by_size) - 1) // 2
        for unit in [*reversed(by_size[: first + 1]), *by_size[first + 1 :]]:
            if self._leaves_some(self._pairs(unit)):
                return self._take(unit)

    def _pairs(self, unit: int) -> slice:
        return slice(self.units.first[unit], self.units.first[unit + 1])

    def _leaves_some(self, at: slice) -> bool:
        """Every source keeps a document to train on."""
        return self.whole or bool((self.units.documents[at] < self.left_S[self.units.sources[at]]).all())

    def _take(self, unit: int) -> None:
        at = self._pairs(unit)
        self.taken[unit] = True
        self.filled_S[self.units.sources[at]] += self.units.sizes[at]
        self.held_S[self.units.sources[at]] += self.units.documents[at]
        self.left_S[self.units.sources[at]] -= self.units.documents[at]
