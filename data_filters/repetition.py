"""Gopher's repetition rules for prose (arXiv 2112.11446, table A1): repeated lines, paragraphs and word n-grams.

In: a document. Out: the decision and reason of datatrove's `GopherRepetitionFilter` with white-space words. Its n-gram
loops are the slowest part of that chain. Here a text is first shown to have too few repeats, by bounds that cost a few
vector operations; only a text that fails them is counted as datatrove counts:

- top n-grams: a phrase is no more frequent than the rarest of its words.
- duplicate n-grams: two equal n-grams begin with the same 16 (32, 48) bytes. Only places whose first bytes occur before
  can repeat anything, and what they could cover at most is the bound. Words are joined without spaces, so "ab c" equals
  "a bc", as in datatrove.
"""

from collections import Counter
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from datatrove.data import Document

from data_filters.rule import PROSE, Decision, Drop, Rule, check_grams, check_range
from data_filters.words import Words, words_of

WINDOWS = (8, 16, 24, 32, 48, 64)  # bytes; a 5-gram of English prose is about 25 long
NO_LIMIT = 1 << 40
_MIX = np.uint64(0x9E3779B97F4A7C15)  # odd, 2**64 over the golden ratio: the upper bits of a product are well mixed
_HEADS = np.array([(1 << 8 * n) - 1 for n in range(9)], np.uint64)  # keeps the first n bytes

Grams = Sequence[Sequence[float]]


class GopherRepetition(Rule):
    """Gopher's repetition rules on prose: repeated lines, paragraphs and word n-grams, at the paper's thresholds."""

    kinds, of_sentences = (PROSE,), True

    def __init__(
        self,
        dup_line_frac: float | None = 0.3,
        dup_para_frac: float | None = 0.3,
        dup_line_char_frac: float | None = 0.2,
        dup_para_char_frac: float | None = 0.2,
        top_n_grams: Grams = ((2, 0.2), (3, 0.18), (4, 0.16)),
        dup_n_grams: Grams = ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10)),
    ):
        for name in ("dup_line_frac", "dup_para_frac", "dup_line_char_frac", "dup_para_char_frac"):
            check_range(name, locals()[name], 0, 1)
        self.dup_line_frac, self.dup_line_char_frac = dup_line_frac, dup_line_char_frac
        self.dup_para_frac, self.dup_para_char_frac = dup_para_frac, dup_para_char_frac
        self.top_n_grams = check_grams("top_n_grams", top_n_grams)
        self.dup_n_grams = check_grams("dup_n_grams", dup_n_grams)

    def filter(self, doc: Document) -> Decision:
        if not doc.text:
            return False, Drop("empty", 0, 1)
        view = words_of(doc.text)
        drop = self._by_parts(view)
        if drop is None and view.n_words:
            drop = self._by_top_phrases(view) or self._by_repeated_phrases(view)
        return True if drop is None else (False, drop)

    def _by_parts(self, view: Words) -> Drop | None:
        text, size = view.text, len(view.text)
        paragraphs = text.strip().split("\n\n")
        if "\n\n\n" in text:  # a paragraph ends at a run of newlines; what is left of a run begins the next piece
            paragraphs = [p[1:] if p[0] == "\n" else p for p in paragraphs if p] or [""]
        n, unique = len(paragraphs), set(paragraphs)
        if len(unique) < n:
            characters = sum(map(len, paragraphs)) - sum(map(len, unique))
            limits = self.dup_para_frac, self.dup_para_char_frac
            if drop := _repeated("para", (n - len(unique)) / n, characters / size, *limits):
                return drop
        # Lines end at runs of newlines too: of the empty ones only those before the first and after the last count.
        lines, unique = view.lines, view.unique_lines
        edges, n_empty = (text[0] == "\n") + (text[-1] == "\n"), lines.count("") if "" in unique else 0
        n = len(lines) - n_empty + edges
        n_unique = len(unique) - (n_empty > 0) + (edges > 0)
        if n_unique == n:
            return None
        characters = size - (len(lines) - 1) - sum(map(len, unique))
        return _repeated("line", (n - n_unique) / n, characters / size, self.dup_line_frac, self.dup_line_char_frac)

    def _by_top_phrases(self, view: Words) -> Drop | None:
        n_words, starts, size = view.n_words, view.starts, len(view.text)
        if not self.top_n_grams or not n_words:
            return None
        # Words by length and first eight bytes: those that share them are counted together, so no count is too small.
        heads = _eights(view.joined_bytes)[starts[:-1]] & _HEADS[np.minimum(view.lengths, 8)]
        heads = (heads * _MIX ^ view.lengths.astype(np.uint64)) * _MIX
        often = _counts(heads, n_words)  # each word; below, the rarest word of each phrase
        rarest, width = often, 1
        for n, limit in self.top_n_grams:
            if n_words < n:
                continue
            if n < width:
                rarest, width = often, 1
            for shift in range(width, n):
                rarest = np.minimum(rarest[: n_words - shift], often[shift:])
            width = n
            lengths = starts[n:] - starts[:-n] + (n - 1)
            if int((lengths * rarest).max()) / size <= limit:
                continue
            hashes = heads[: n_words - n + 1]
            for shift in range(1, n):
                hashes = (hashes ^ heads[shift : n_words - n + 1 + shift]) * _MIX
            if int((lengths * _counts(hashes, n_words)).max()) / size <= limit:
                continue
            phrases = zip(*(view.words[shift:] for shift in range(n)), strict=False)
            phrase, times = Counter(phrases).most_common(1)[0]
            share = (sum(map(len, phrase)) + n - 1) * times / size
            if share > limit:
                return Drop(f"top_{n}_gram", round(share, 4), limit)
        return None

    def _by_repeated_phrases(self, view: Words) -> Drop | None:
        if not self.dup_n_grams:
            return None
        size, numbers = len(view.text), [n for n, _ in self.dup_n_grams]
        phrases = _Phrases(view, max(numbers), min(limit for _, limit in self.dup_n_grams) * size)
        most = phrases.could_cover(min(numbers), max(numbers)) / size  # settles most texts, for every n at once
        for n, limit in self.dup_n_grams:
            if most <= limit or view.n_words < n or phrases.could_cover(n, n) / size <= limit:
                continue
            share = phrases.repeated_characters(n) / size
            if share > limit:
                return Drop(f"duplicated_{n}_n_grams", round(share, 4), limit)
        return None


def _repeated(
    what: str, share: float, characters: float, max_share: float | None, max_characters: float | None
) -> Drop | None:
    """Parts that occurred before, as a share of parts and of characters."""
    if max_share and share > max_share:
        return Drop(f"dup_{what}_frac", round(share, 4), max_share)
    if max_characters and characters > max_characters:
        return Drop(f"dup_{what}_char_frac", round(characters, 4), max_characters)
    return None


class _Phrases:
    """Where n-grams may repeat. Places are word numbers; `again` and `member` bound the length of what starts there:
    an n-gram that occurs before is shorter than `again`, one that occurs twice at all is shorter than `member`."""

    def __init__(self, view: Words, longest: int, harmless: float):
        """`harmless`: what so few places cover even with `longest` words each need not be known any better."""
        self.view, self.n_words = view, view.n_words
        self.again = np.full(self.n_words, WINDOWS[0], np.int64)
        self.member = self.again.copy()
        eights = _eights(view.joined_bytes)
        places, starts = np.arange(self.n_words), view.starts[:-1]
        hashes, done = np.zeros(self.n_words, np.uint64), 0
        for window, following in zip(WINDOWS, (*WINDOWS[1:], NO_LIMIT), strict=True):
            for offset in range(done, window, 8):
                hashes = (hashes ^ eights[starts + offset]) * _MIX
            done = window
            again, member = _shared(hashes)
            repeated = places[again]
            few = len(repeated) * longest <= harmless
            if few:
                most = view.starts[np.minimum(repeated + longest, self.n_words)] - view.starts[repeated]
                few = int(most.sum()) <= harmless
                following = NO_LIMIT if few else following
            self.again[repeated] = following
            places = places[member]
            self.member[places] = following
            if few:
                break
            starts, hashes = starts[member], hashes[member]

    def could_cover(self, shortest: int, longest: int) -> int:
        """Characters under all places where `shortest` to `longest` words may repeat: no less than really do."""
        starts = self.view.starts
        last = max(0, self.n_words - shortest + 1)
        begins = starts[:last]
        reach = begins + self.again[:last]
        places = np.flatnonzero(starts[shortest:][:last] < reach)
        if not len(places):
            return 0
        begins, reach = begins[places], reach[places]
        ends = np.minimum(starts[np.minimum(places + longest, self.n_words)], reach - 1)
        np.maximum.accumulate(ends, out=ends)
        np.maximum(begins[1:], ends[:-1], out=begins[1:])
        return int((ends - begins).sum())

    def repeated_characters(self, n: int) -> int:
        """datatrove's count: left to right, a repeated n-gram is counted and jumped over, a new one remembered."""
        starts = self.view.starts
        last = max(0, self.n_words - n + 1)
        places = np.flatnonzero(starts[n:][:last] - starts[:last] < self.member[:last])
        begins, ends = starts[places].tolist(), starts[places + n].tolist()
        joined, seen, characters, free = self.joined, set(), 0, 0
        for place, begin, end in zip(places.tolist(), begins, ends, strict=True):
            if place < free:
                continue
            phrase = joined[begin:end]
            if phrase in seen:
                characters += end - begin
                free = place + n
            else:
                seen.add(phrase)
        return characters

    @cached_property
    def joined(self) -> str | bytes:
        return self.view.joined_bytes if self.view.text.isascii() else "".join(self.view.words)


def _shared(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Masks: whose bucket was met before, whose bucket is met twice. Too many is harmless, too few is not."""
    order = np.arange(len(hashes))
    buckets, n_buckets = _buckets(hashes, len(hashes), 3)
    first = np.empty(n_buckets, np.intp)
    first[buckets[::-1]] = order[::-1]  # the last write stays: the first place of each bucket
    firsts = first[buckets]
    again = firsts != order
    member = again.copy()
    member[firsts[again]] = True
    return again, member


def _counts(hashes: np.ndarray, n: int) -> np.ndarray:
    """How often each hash's bucket occurs: at least as often as the hash."""
    buckets, n_buckets = _buckets(hashes, n, 1)
    return np.bincount(buckets, minlength=n_buckets)[buckets]


def _buckets(hashes: np.ndarray, n: int, spare_bits: int) -> tuple[np.ndarray, int]:
    """The upper bits of each hash: 2 to 4 buckets per place with one spare bit, 8 to 16 with three."""
    bits = n.bit_length() + spare_bits
    return (hashes >> np.uint64(64 - bits)).astype(np.intp), 1 << bits


def _eights(data: bytes) -> np.ndarray:
    """Eight bytes from any byte on, as one number each: a view that overlaps itself, nothing is copied."""
    padded = np.frombuffer(data + bytes(WINDOWS[-1] + 8), np.uint8)
    return np.ndarray((len(padded) - 7,), np.uint64, padded, strides=(1,))
