"""Words and pairs of words of many texts as hash buckets, with numpy alone: the same on every machine and for any
tokenizer, some 30 MB/s.

In: texts as bytes, and which bytes of each are documentation. Out: one row of bucket counts a text. A word in
documentation and the same word in code are different features: "return" explains nothing in one of them. Runs of
letters are words (case does not count), a run of digits is one word of its own, as is a line's end; spaces are none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

BUCKETS = 1 << 14
_SHIFT = np.uint64(64 - 14)

OTHER, LETTERS, DIGITS, SPACE, LINE_END = range(5)
KIND_OF_BYTE = np.zeros(256, dtype=np.uint8)
KIND_OF_BYTE[list(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_")] = LETTERS
KIND_OF_BYTE[128:] = LETTERS  # UTF-8 of everything else
KIND_OF_BYTE[list(b"0123456789")] = DIGITS
KIND_OF_BYTE[list(b" \t\r\x0b\x0c\0")] = SPACE
KIND_OF_BYTE[ord("\n")] = LINE_END

_LOWER = np.arange(1, 257, dtype=np.uint64)  # from 1: a zero would not change the hash
_LOWER[ord("A") : ord("Z") + 1] += np.uint64(32)

_PRIME = 0x100000001B3  # FNV's; odd, so it has an inverse modulo 2^64
_DOCUMENTATION = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Words:
    """The words of a batch in order: hash, number of its text, whether it stands in documentation, and whether it
    is made of letters."""

    hashes: np.ndarray
    text: np.ndarray
    documentation: np.ndarray
    letters: np.ndarray
    texts: int

    def counts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(bucket, count, number of texts + 1 starts) of single words and pairs, as the rows of a CSR matrix."""
        hashes = self.hashes ^ np.where(self.documentation, _DOCUMENTATION, np.uint64(0))
        together = np.flatnonzero(self.text[1:] == self.text[:-1])
        pairs = hashes[together] * np.uint64(31) + hashes[together + 1]
        cells = np.concatenate([_place(self.text, hashes), _place(self.text[together], pairs)])
        counts = np.bincount(cells, minlength=self.texts * BUCKETS)
        filled = np.flatnonzero(counts)
        starts = np.searchsorted(filled, np.arange(self.texts + 1) * BUCKETS)
        return filled & (BUCKETS - 1), counts[filled], starts

    def per_text(self, chosen: np.ndarray) -> np.ndarray:
        """How many of the chosen words each text has."""
        return np.bincount(self.text[chosen], minlength=self.texts)


def split_words(texts: Sequence[bytes], documentation: Sequence[np.ndarray]) -> Words:
    """All words of the texts. `documentation`: a bool for every byte of each text."""
    lengths = np.array([len(text) + 1 for text in texts], dtype=np.int64)
    joined = np.frombuffer(b"".join(text + b"\n" for text in texts), dtype=np.uint8)
    kinds = KIND_OF_BYTE[joined]
    changes = np.empty(len(joined), dtype=bool)
    changes[:1] = True
    np.not_equal(kinds[1:], kinds[:-1], out=changes[1:])
    ends_of_text = np.cumsum(lengths)
    changes[ends_of_text[:-1]] = True  # texts never share a word
    starts = np.flatnonzero(changes)
    stops = np.append(starts[1:], len(joined))
    kept = kinds[starts] != SPACE
    starts, stops = starts[kept], stops[kept]
    kind = kinds[starts]

    # A hash of every prefix of the whole batch: a word's hash is the difference of two, moved to its start.
    powers, inverse = _powers(1 << max(16, (len(joined) - 1).bit_length()))
    prefixes = np.empty(len(joined) + 1, dtype=np.uint64)
    prefixes[0] = 0
    np.cumsum(_LOWER[joined] * powers[: len(joined)], out=prefixes[1:])
    hashes = (prefixes[stops] - prefixes[starts]) * inverse[starts]
    hashes[kind == DIGITS], hashes[kind == LINE_END] = DIGITS, LINE_END

    flags = np.concatenate([np.append(flags, False) for flags in documentation])
    text = np.searchsorted(ends_of_text, starts, side="right")
    return Words(_mix(hashes), text, flags[starts], kind == LETTERS, len(texts))


class WordTable:
    """Finds words of some lists by one look-up each. A word of another list with the same 14 bits is taken for one:
    one in some hundred."""

    def __init__(self, lists: Sequence[Sequence[bytes]]):
        self.lists = len(lists)
        self._list_of = np.zeros(BUCKETS, dtype=np.int64)
        for number, words in enumerate(lists, 1):
            made = split_words(words, [np.zeros(len(word), dtype=bool) for word in words])
            ends_line = made.hashes == made.hashes[-1]
            self._list_of[(made.hashes[~ends_line] >> _SHIFT).astype(np.int64)] = number

    def counts(self, words: Words) -> np.ndarray:
        """(texts, lists, 2): how often the words of each list stand in each text, outside documentation and in it."""
        found = self._list_of[(words.hashes >> _SHIFT).astype(np.int64)]
        cells = (words.text * (self.lists + 1) + found) * 2 + words.documentation
        counts = np.bincount(cells, minlength=words.texts * (self.lists + 1) * 2)
        return counts.reshape(words.texts, self.lists + 1, 2)[:, 1:]


def _place(text: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    return text * BUCKETS + (_mix(hashes) >> _SHIFT).astype(np.int64)


@lru_cache(maxsize=4)
def _powers(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Powers of the prime and of its inverse, modulo 2^64."""
    factors = np.full((2, n), (_PRIME,), dtype=np.uint64)
    factors[1] = pow(_PRIME, -1, 1 << 64)
    factors[:, 0] = 1
    powers, inverse = np.cumprod(factors, axis=1)
    return powers, inverse


def _mix(x: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64: every bit of the result depends on every bit of `x`."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
