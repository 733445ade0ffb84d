"""Decontamination: train documents that share a run of words with an evaluation item are dropped, offline.

In: the user's own files of evaluation items (JSON lines, JSON, text), and what is left of the corpus. Out: decisions
with the item and the matched span. Method: n-grams of words (GPT-3, arXiv 2005.14165, appendix C, used 13), compared
as 64-bit hashes and then word by word, so that a chance collision never drops a document. Ours: numbers count (items
of arithmetic differ by nothing else), and an item shorter than n words is looked for whole, down to `min_words`.
"""

import glob
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document

from data_filters.repair import mend_surrogates
from data_filters.rule import Drop
from pipeline.config.schema import DecontaminationConfig
from pipeline.corpus.duplicates import WordHashes, ngrams, plain_words
from pipeline.corpus.execute import Executor
from pipeline.corpus.text.documents import DocumentReader, ShardDecisions, ShardStep, Table, read_alive, step_facts
from pipeline.corpus.text.user_files import Found, Unreadable, decode_utf8, plain_ending, read_bytes, records
from pipeline.storage.steps import Folder
from pipeline.system.errors import UserError

KEY = "data.decontamination.files"
RECORD_ENDINGS = (".jsonl", ".ndjson", ".json")
SPAN_CHARACTERS = 400
_BLOOM_BITS = 22  # a table of 4 MB answers most look-ups without a search


@dataclass(frozen=True)
class Item:
    """One evaluation item: where it stands, and its words."""

    name: str
    words: tuple[bytes, ...]


class Index:
    """All n-grams of some items. `match(text)`: the first shared run of words, or None."""

    def __init__(self, items: Sequence[Item], ngram_words: int, min_words: int):
        self.items, self._hashes = list(items), WordHashes()
        by_length: dict[int, list[tuple[int, int, int]]] = {}
        self.too_short = 0
        for number, item in enumerate(self.items):
            n = min(ngram_words, len(item.words))
            if n < min(min_words, ngram_words):
                self.too_short += 1
                continue
            grams = ngrams(self._hashes.hashes(list(item.words)), n)
            by_length.setdefault(n, []).extend((int(g), number, at) for at, g in enumerate(grams))
        self._lengths = {n: _Grams(rows) for n, rows in sorted(by_length.items(), reverse=True)}

    def match(self, text: str) -> tuple[Item, list[bytes], int] | None:
        """(item, the shared words, n of the n-gram that found them). Longer n-grams are tried first."""
        words = plain_words(text)
        hashes = self._hashes.hashes(words)
        for n, grams in self._lengths.items():
            if len(words) < n:
                continue
            for place, number, at in grams.find(ngrams(hashes, n)):
                item = self.items[number]
                if tuple(words[place : place + n]) == item.words[at : at + n]:
                    return item, self._whole_run(words, place, item.words, at), n
        return None

    @staticmethod
    def _whole_run(words: list[bytes], place: int, item: tuple[bytes, ...], at: int) -> list[bytes]:
        end = 0
        while place + end < len(words) and at + end < len(item) and words[place + end] == item[at + end]:
            end += 1
        return words[place : place + end]


class _Grams:
    """Hashes of one length of n-gram, sorted, with the item and place of each."""

    def __init__(self, rows: list[tuple[int, int, int]]):
        rows.sort()
        self.hashes = np.array([r[0] for r in rows], dtype=np.uint64)
        self.places = [(r[1], r[2]) for r in rows]
        self.seen = np.zeros(1 << _BLOOM_BITS, dtype=bool)
        self.seen[self._slots(self.hashes)] = True

    @staticmethod
    def _slots(hashes: np.ndarray) -> np.ndarray:
        return (hashes >> np.uint64(64 - _BLOOM_BITS)).astype(np.int64)

    def find(self, hashes: np.ndarray) -> Iterator[tuple[int, int, int]]:
        """(place in the document, item, place in the item) of every equal hash."""
        for place in np.flatnonzero(self.seen[self._slots(hashes)]).tolist():
            at = int(np.searchsorted(self.hashes, hashes[place]))
            while at < len(self.hashes) and self.hashes[at] == hashes[place]:
                yield place, *self.places[at]
                at += 1


def item_files(patterns: Sequence[str]) -> list[Path]:
    """The files behind `data.decontamination.files`; `UserError` where a pattern matches none."""
    found: set[Path] = set()
    for pattern in patterns:
        paths = [Path(p) for p in glob.glob(str(Path(pattern).expanduser()), recursive=True)]
        paths = [p for p in paths if p.is_file()]
        if not paths:
            raise UserError(
                f"{KEY}: nothing matches {pattern}; expected files of evaluation items: .jsonl or .json (every text in "
                "a record counts, or those under data.decontamination.keys), or .txt (items apart by empty lines)"
            )
        found.update(paths)
    return sorted(found)


def read_items(paths: Sequence[Path], keys: Sequence[str] | None) -> Found[list[Item]]:
    """Every text of every item, by record; records that cannot be read are counted. `UserError` for a file that gives
    nothing though it can be read."""
    found: Found[list[Item]] = Found(KEY)
    for path in paths:
        found.total_bytes += path.stat().st_size
        before, lost = sum(map(len, found.made)), found.causes.total()
        name = mend_surrogates(path.name)
        parts = records(path) if plain_ending(path) in RECORD_ENDINGS else _paragraphs(path)
        make = partial(_items, keys, name)
        for place, value in parts:
            found.add(path, place, value, make)
        if sum(map(len, found.made)) == before and found.causes.total() == lost:
            what = f" under {', '.join(keys)}" if keys else ""
            raise UserError(f"{KEY}: {path} holds no text{what}; expected evaluation items, see data.decontamination")
    return found


def _items(keys: Sequence[str] | None, file: str, value: Any, place: str) -> list[Item]:
    name = f"{file}:{place.split()[-1]}"
    try:
        return [Item(name, tuple(plain_words(text))) for text in _strings(value, keys)]
    except RecursionError:
        raise Unreadable("broken_json", "nested too deep") from None


def _paragraphs(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        data = read_bytes(path)
    except Unreadable as problem:
        yield "", problem
        return
    for number, part in enumerate(data.replace(b"\r\n", b"\n").split(b"\n\n"), 1):
        if part.strip():
            try:
                yield f"item {number}", decode_utf8(part)
            except Unreadable as problem:
                yield f"item {number}", problem


def _strings(value: Any, keys: Sequence[str] | None) -> Iterator[str]:
    """The texts inside a record; with `keys` those of its top level that have one of these names."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for part in value:
            yield from _strings(part, None)
    elif isinstance(value, dict):
        for key, part in value.items():
            if keys is None or key in keys:
                yield from _strings(part, None)


def drop_contaminated(
    folder: Folder, wanted: DecontaminationConfig, executor: Executor, max_unreadable: float
) -> dict[str, Any]:
    """Drops train documents that share a run of words with an item. Validation stays: nothing is trained on it. Raises
    `UserError` where more than the share `max_unreadable` of the items' records cannot be read."""
    found = read_items(item_files(wanted.files), wanted.keys).check(max_unreadable)
    items = [item for of_record in found.made for item in of_record]
    index = Index(items, wanted.ngram_words, wanted.min_words)
    repaired, previous = folder.input("repair"), folder.input("near_dedup")
    match = ShardStep("decontaminate", partial(_match_items, index, folder.path, previous, folder.input("split")))
    executor.run(folder, [DocumentReader(repaired, previous), match], description="decontaminate")
    return {
        **step_facts(folder.path, Table.load(repaired)),
        "items": len(items),
        "items_too_short": index.too_short,
        "items_unreadable": found.causes.total(),
        "ngram_words": wanted.ngram_words,
    }


def _match_items(
    index: Index, folder: Path, before: Path, split: Path, documents: Iterable[Document], shard: int
) -> None:
    """Writes the decisions of one shard."""
    held_out = np.load(split / "validation" / f"{shard:05d}.npy", allow_pickle=False)
    with ShardDecisions(folder, shard, read_alive(before, shard)) as decisions:
        for doc in documents:
            at = doc.metadata["at"]
            found = None if held_out[at] else index.match(doc.text)
            if found is not None:
                item, span, n = found
                shared = b" ".join(span).decode("utf-8", "replace")[:SPAN_CHARACTERS]
                decisions.drop(at, "contamination", Drop("shared_words", len(span), n, f"{item.name}: {shared}"))
