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
# Quotes, dashes, wide punctuation and spaces of other scripts break words, as do the marks between the syllables of
# Tibetan and the stops of Burmese and Khmer.
_WIDE_BREAKS = re.compile(
    "[\u0080-\u00a9\u00ab-\u00b4\u00b6-\u00b9\u00bb-\u00bf\u0f01-\u0f14\u104a-\u104f\u17d4-\u17da\u2000-\u206f"
    "\u3000-\u3004\u3008-\u3020\u3030\u303d\uff00-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65]+"
)
# Soft hyphens, joiners, variation selectors: what PDF and web text carry.
_INVISIBLE = re.compile("\u00ad\n?|[\u200b-\u200f\u2060\ufe00-\ufe0f\ufeff\U000e0100-\U000e01ef]")
# Scripts that put no spaces between words are taken a letter at a time, with the signs written around it.
_UNSPACED = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f"  # Burmese and its neighbours
    "\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\uaa80-\uaadf"  # Khmer, Tai Le, New Tai Lue, Tai Tham, Tai Viet
    "\u1b00-\u1b7f\ua980-\ua9df"  # Balinese, Javanese
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u302f\u3031-\u303c\u3040-\u312f\u31a0-\u31bf\u31f0-\u31ff"  # kana, bopomofo
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Chinese characters, all extensions
    "\ua000-\ua4cf\U00016fe0-\U00018dff\U0001aff0-\U0001b2ff"  # Yi, Tangut, kana supplements, Nushu
    "\U00012000-\U0001345f"  # cuneiform, hieroglyphs
)
_SIGNS = "".join(
    chr(point) for point in (*range(0x0E00, 0x1B80), *range(0x3000, 0x3100), *range(0xA980, 0xAAE0))
    if unicodedata.category(chr(point)).startswith("M")
)  # fmt: skip
_STACKERS = "\u17d2\u1039"  # the letter after one of these stands under the letter before it
_NO_SPACES = re.compile(f"([{_UNSPACED}](?:[{_STACKERS}][{_UNSPACED}]|[{_SIGNS}])*)")
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
    return without_accents(_DIGITS.sub(b"0", word))


def without_accents(word: bytes) -> bytes:
    """The letters of a word alone."""
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
