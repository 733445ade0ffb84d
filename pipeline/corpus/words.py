"""Words of a text as 64-bit hashes, and hashes of their n-grams: what near dedup and decontamination compare.

In: a text. Out: one uint64 a word. Text repeats its words, so each distinct word is normalised and hashed once and
remembered; what is left per word is one dictionary look-up, and n-grams are combined in numpy (60 MB/s on one core,
where hashing joined strings in Python makes 10).
"""

import hashlib
import re
import string
import unicodedata
from collections.abc import Callable

import numpy as np

REMEMBERED_WORDS = 1_000_000  # about 150 MB at worst; real text of one shard has a tenth

_BREAKS = bytes.maketrans(
    string.ascii_uppercase.encode() + string.punctuation.encode() + bytes(range(32)) + b"\x7f",
    string.ascii_lowercase.encode() + b" " * (len(string.punctuation) + 33),
)
# Quotes, dashes, wide punctuation and spaces of other scripts break words; scripts without spaces are taken a
# character at a time.
_WIDE_BREAKS = re.compile(
    "[\u0080-\u00a9\u00ab-\u00b4\u00b6-\u00b9\u00bb-\u00bf\u2000-\u206f\u3000-\u303f\uff00-\uff0f]+"
)
_INVISIBLE = re.compile("\u00ad\n?|[\u200b-\u200f\u2060\ufeff]")  # soft hyphens, joiners: what PDF and web text carry
_NO_SPACES = re.compile("([\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff])")
_DIGITS = re.compile(rb"\d+")
_SYMBOLS = re.compile(rb"[A-Za-z0-9_\x80-\xff]+|[^\sA-Za-z0-9_\x80-\xff]")
_MIX = [np.uint64(x) for x in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)]


def plain_words(text: str) -> list[bytes]:
    """UTF-8 words in lower case without punctuation: `Don't (really)` is `don t really`. Wide letters and ligatures are
    the plain ones, invisible characters are not there."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", _INVISIBLE.sub("", text)).lower()
        text = _NO_SPACES.sub(r" \1 ", _WIDE_BREAKS.sub(" ", text))
    return text.encode().translate(_BREAKS).split()


def symbols(text: str) -> list[bytes]:
    """Words as they are and each punctuation mark alone: what generated exercises differ by."""
    return _SYMBOLS.findall(text.encode())


def without_numbers(word: bytes) -> bytes:
    """Every number is the same number, and no accents: the normalisation of near dedup."""
    word = _DIGITS.sub(b"0", word)
    if not word.isascii():
        letters = unicodedata.normalize("NFD", word.decode("utf-8", "replace"))
        word = "".join(c for c in letters if unicodedata.category(c) != "Mn").encode()
    return word


class WordHashes(dict[bytes, int]):
    """`hashes(words)`: one uint64 a word, of `normalise(word)`."""

    def __init__(self, normalise: Callable[[bytes], bytes] | None = None):
        super().__init__()
        self._normalise = normalise

    def __missing__(self, word: bytes) -> int:
        normal = word if self._normalise is None else self._normalise(word)
        number = self[word] = int.from_bytes(hashlib.blake2b(normal, digest_size=8).digest(), "little")
        return number

    def hashes(self, words: list[bytes]) -> np.ndarray:
        if len(self) > REMEMBERED_WORDS:
            self.clear()
        return np.fromiter(map(self.__getitem__, words), dtype=np.uint64, count=len(words))


def ngrams(hashes: np.ndarray, n: int) -> np.ndarray:
    """One uint64 per run of `n` words; of a shorter text one for all of it; nothing of an empty one."""
    n = min(n, len(hashes))
    if n == 0:
        return hashes
    count = len(hashes) - n + 1
    with np.errstate(over="ignore"):
        mixed = hashes[:count] * _MIX[0]
        for i in range(1, n):
            mixed = (mixed ^ (mixed >> np.uint64(29))) * _MIX[1] + hashes[i : count + i]
        mixed = (mixed ^ (mixed >> np.uint64(32))) * _MIX[2]
    return mixed ^ (mixed >> np.uint64(29))
