"""What a linear scorer sees of a document: hashed words and pairs of words, and some thirty cheap columns of structure.

In: text, path and kind of each document. Out: `Sparse` rows. Only the first 8,000 characters are looked at: a longer
head made the scorer 0.002 better on the gold labels and costs in proportion. Nothing here depends on a run's tokenizer.
Whether the code parses is not a column: it costs 5 MB/s, and nearly all library code does; the rule `parses` drops
what does not.

Words are hashed with numpy alone (some 30 MB/s, the same on every machine). A word in documentation and the same word
in code are different features: "return" explains nothing in code. Runs of letters are words (case does not count), a
run of digits is one word, as is a line's end; spaces are none.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from datatrove.data import Document

from data_filters.rule import PROSE
from pipeline.corpus.text.documents import mix_bits

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

VERSION = 1  # raised when the same text gets other features: scorers that were trained before are then refused
HEAD_CHARACTERS = 8_000
BATCH_DOCUMENTS = 64  # whose features are made in one call: 130 kB of memory each
LONG_LINE_BYTES, SHORT_TEXT_BYTES, TITLE_BYTES = 100, 300, 600

_IMPORT = re.compile(
    rb"^(?:from[ \t]+[\w.]+[ \t]+import[ \t]*\([^)]*\)|from[ \t][^\n]*|import[ \t][^\n]*"
    rb"|__all__[ \t]*=[ \t]*[\[(][^\])]*[\])])",
    re.MULTILINE,
)
_MADE_BY_A_PROGRAM = re.compile(rb"generated|do not edit")
_TEST = re.compile(r"(^|/)(tests?|testing|_testing|benchmarks?)(/|$)|(^|/)(test_[^/]*|[^/]*_test|conftest)\.py")
_VENDORED = re.compile(r"(^|/)(_?vendor(ed)?|extern(als?)?|_vendored_[^/]*|third_party)/")
_PRIVATE = re.compile(r"/_[^/_][^/]*\.py$")

_COMMON_WORDS = (
    b"the a an of to in is are that this for and or be by with as it if not from on which can will when at have has "
    b"but so because then than there these such may must only how what where what you we"
)
# Words and signs that are counted per 1,000 bytes, as log(1 + n); in documentation and in code alike.
_MARKS = {
    "definitions": b"def class",
    "doctest": b">>>",
    "code_blocks": b"``` ::",
    "formulas": b"math",
    "parameters": b"param Args Parameters Returns",
    "badges": b"shields badge",
    "links": b"http https",
    "asserts": b"assert assertEqual assertTrue assertRaises assert_equal assert_",
    "self": b"self",
    "deprecated": b"deprecated versionadded versionchanged",
    "errors": b"raise except",
    "returns": b"return",
    "versions": b"version",
}
_SIGNS = {"commas": b",", "full_stops": b".", "quotes": b"'\"", "underscores": b"_", "backticks": b"`", "rules": b"-=*",
          "brackets": b"([{", "dollars": b"$"}  # fmt: skip

STRUCTURE = (
    "is_prose", "is_test", "is_vendored", "is_init", "is_private", "size", "is_short",
    "docstring_share", "comment_share", "documentation_size", "import_share", "made_by_a_program",
    "letter_share", "digit_share", "line_length", "long_lines", *_SIGNS,
    "common_words", "explaining_words", "documentation_words", *_MARKS,
)  # fmt: skip


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
    return Words(mix_bits(hashes), text, flags[starts], kind == LETTERS, len(texts))


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
    return text * BUCKETS + (mix_bits(hashes) >> _SHIFT).astype(np.int64)


@lru_cache(maxsize=4)
def _powers(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Powers of the prime and of its inverse, modulo 2^64."""
    factors = np.full((2, n), (_PRIME,), dtype=np.uint64)
    factors[1] = pow(_PRIME, -1, 1 << 64)
    factors[:, 0] = 1
    powers, inverse = np.cumprod(factors, axis=1)
    return powers, inverse


_TABLE = WordTable([_COMMON_WORDS.split(), *(words.split() for words in _MARKS.values())])


@dataclass(frozen=True)
class Sparse:
    """Rows of hashed features in one piece (CSR) beside the dense structure columns."""

    ids: np.ndarray
    values: np.ndarray
    starts: np.ndarray  # n + 1
    structure: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def take(self, rows: np.ndarray) -> "Sparse":
        lengths = np.diff(self.starts)[rows]
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        at = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths) + np.repeat(self.starts[:-1][rows], lengths)
        return Sparse(self.ids[at], self.values[at], starts, self.structure[rows])

    @classmethod
    def stack(cls, parts: Sequence["Sparse"]) -> "Sparse":
        lengths = np.concatenate([np.diff(part.starts) for part in parts])
        return cls(
            np.concatenate([part.ids for part in parts]),
            np.concatenate([part.values for part in parts]),
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            np.concatenate([part.structure for part in parts]),
        )


def features(documents: Sequence[Document]) -> Sparse:
    """The rows of some documents, `BATCH_DOCUMENTS` or so. Values are log counts, of length 1 in a row."""
    heads = [doc.text[:HEAD_CHARACTERS].encode("utf-8", "replace") for doc in documents]
    shares = [_documentation(head, doc.metadata["kind"] != PROSE) for doc, head in zip(documents, heads, strict=True)]
    words = split_words(heads, [flags for flags, _, _ in shares])
    ids, counts, starts = words.counts()
    values = np.log1p(counts)
    lengths = np.sqrt(np.add.reduceat(values * values, starts[:-1]))  # no row is empty: every text ends a line
    values /= np.repeat(lengths, np.diff(starts))
    of_document = np.array([_of_document(*of) for of in zip(documents, heads, shares, strict=True)], dtype=np.float64)
    return Sparse(ids, values, starts, np.column_stack([of_document, _of_bytes(heads), _of_words(words, heads)]))


def docstring_share(document: Document) -> float:
    """Share of the looked-at text that stands in triple quotes; 1 for prose, which is nothing but explanation."""
    if document.metadata["kind"] == PROSE:
        return 1.0
    head = document.text[:HEAD_CHARACTERS].encode("utf-8", "replace")
    return _documentation(head, True)[1] / max(1, len(head))


def _documentation(head: bytes, is_code: bool) -> tuple[np.ndarray, int, int]:
    """(which bytes are documentation, bytes in triple quotes, bytes in comments); of prose every byte is."""
    if not is_code:
        return np.ones(len(head), dtype=bool), 0, 0
    flags = np.zeros(len(head), dtype=bool)
    at, quoted = 0, 0
    while (found := min((i for i in (head.find(b'"""', at), head.find(b"'''", at)) if i >= 0), default=-1)) >= 0:
        end = head.find(head[found : found + 3], found + 3)
        end = end if end >= 0 else len(head)  # the head may end inside
        flags[found + 3 : end] = True
        quoted += end - found - 3
        at = end + 3
    at, commented = head.find(b"#"), 0
    while at >= 0:
        end = head.find(b"\n", at)
        end = end if end >= 0 else len(head)
        if not head[head.rfind(b"\n", 0, at) + 1 : at].strip():  # a comment line, not one after code
            flags[at:end] = True
            commented += end - at
        at = head.find(b"#", end)
    return flags, quoted, commented


def _of_document(doc: Document, head: bytes, share: tuple[np.ndarray, int, int]) -> list[float]:
    path, is_code = doc.metadata["path"], doc.metadata["kind"] != PROSE
    n, (_, quoted, commented) = max(1, len(head)), share
    imported = sum(map(len, _IMPORT.findall(head))) if is_code else 0
    return [
        not is_code, bool(_TEST.search(path)), bool(_VENDORED.search(path)), path.endswith("__init__.py"),
        bool(_PRIVATE.search(path)), np.log1p(len(doc.text)) / 12, len(head) < SHORT_TEXT_BYTES,
        quoted / n, commented / n, np.log1p(quoted if is_code else n) / 10, imported / n,
        bool(_MADE_BY_A_PROGRAM.search(head[:TITLE_BYTES].lower())),
    ]  # fmt: skip


def _of_bytes(heads: Sequence[bytes]) -> np.ndarray:
    """Letters, digits, lines and signs of each text, from how often it has each byte."""
    per_byte = np.array([np.bincount(np.frombuffer(head, dtype=np.uint8), minlength=256) for head in heads])
    n = np.maximum(1, per_byte.sum(axis=1))
    letters, digits, other = (per_byte[:, kind == KIND_OF_BYTE].sum(axis=1) for kind in (LETTERS, DIGITS, OTHER))

    joined = np.frombuffer(b"".join(head + b"\n" for head in heads), dtype=np.uint8)
    line_ends = np.flatnonzero(joined == ord("\n"))
    text = np.searchsorted(np.cumsum([len(head) + 1 for head in heads]), line_ends, side="right")
    is_long = np.diff(line_ends, prepend=-1) - 1 > LONG_LINE_BYTES
    lines = np.bincount(text, minlength=len(heads))
    long_lines = np.bincount(text[is_long], minlength=len(heads))

    signs = [np.log1p(1_000 / n * per_byte[:, list(signs)].sum(axis=1)) for signs in _SIGNS.values()]
    visible = np.maximum(1, letters + digits + other)
    return np.column_stack([letters / visible, digits / n, np.minimum(2.0, n / lines / 50), long_lines / lines, *signs])


def _of_words(words: Words, heads: Sequence[bytes]) -> np.ndarray:
    """Common words' share of the words of documentation and of all, how many words document, and the marks."""
    found = _TABLE.counts(words)
    spoken, all_words = words.per_text(words.letters & words.documentation), words.per_text(words.letters)
    common = found[:, 0, 1]
    per_thousand = 1_000 / np.maximum(1, [len(head) for head in heads])
    return np.column_stack([
        common / np.maximum(1, spoken), common / np.maximum(1, all_words), np.log1p(spoken) / 10,
        np.log1p(found[:, 1:].sum(axis=2) * per_thousand[:, None]),
    ])  # fmt: skip
