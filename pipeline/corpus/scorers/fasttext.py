"""fastText's supervised classifiers (`.bin`), read and applied with numpy alone.

In: a file that `fasttext supervised` wrote (DCLM's classifier is one). Out: the probability of a label for a text. Only
inference: training is left out on purpose, as it differs from run to run (DATA.md section 3). Format and arithmetic are
those of fastText 0.9 (Joulin et al. 2016, arXiv 1607.01759): words and hashed word n-grams, optional character n-grams,
a mean of rows, softmax or one-against-all.
"""

import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pipeline.system.errors import UserError

MAGIC, VERSION = 793712314, 12
SUPERVISED = 3
HIERARCHICAL, NEGATIVE_SAMPLING, SOFTMAX, ONE_AGAINST_ALL = 1, 2, 3, 4
LABEL_PREFIX, END_OF_LINE = "__label__", "</s>"
_WHITE_SPACE = re.compile("[ \\t\\n\\v\\f\\r\\0]+")
_NGRAM_FACTOR = 116049371
_MASK = (1 << 64) - 1


@dataclass
class FastTextModel:
    """`words`: word -> row of `rows`; buckets of n-grams follow the words. `output`: one row a label."""

    words: dict[str, int]
    labels: list[str]
    rows: np.ndarray
    output: np.ndarray
    loss: int
    word_ngrams: int
    buckets: int
    min_characters: int
    max_characters: int

    def probability(self, text: str, label: str) -> float:
        """Of one label; newlines count as spaces. 0 for a text without a single known word or n-gram."""
        ids = self._ids(text)
        if not ids:
            return 0.0
        logits = self.output @ self.rows[ids].mean(axis=0, dtype=np.float64)
        at = self.labels.index(label)
        if self.loss == SOFTMAX:
            odds = np.exp(logits - logits.max())
            return float(odds[at] / odds.sum())
        return float(1 / (1 + np.exp(-logits[at])))

    def _ids(self, text: str) -> list[int]:
        tokens = _tokens(text)
        ids: list[int] = []
        for token in tokens:
            known = self.words.get(token)
            if known is not None:
                ids.append(known)
            if self.max_characters > 0 and token != END_OF_LINE:
                ids.extend(self._character_ngrams(f"<{token}>"))
        if self.word_ngrams > 1 and self.buckets:
            hashes = [_signed(hash_bytes(token.encode("utf-8", "replace"))) for token in tokens]
            for start, value in enumerate(hashes):
                for other in hashes[start + 1 : start + self.word_ngrams]:
                    value = (value * _NGRAM_FACTOR + other) & _MASK
                    ids.append(len(self.words) + value % self.buckets)
        return ids

    def _character_ngrams(self, word: str) -> list[int]:
        found = []
        for start in range(len(word)):
            for length in range(max(1, self.min_characters), self.max_characters + 1):
                piece = word[start : start + length]
                at_an_end = start == 0 or start + length == len(word)
                if len(piece) == length and not (length == 1 and at_an_end):
                    found.append(len(self.words) + hash_bytes(piece.encode("utf-8", "replace")) % self.buckets)
        return found


def _tokens(text: str) -> list[str]:
    """Words as fastText's `readWord` cuts them: at ASCII white space and NUL, never at the spaces of Unicode. An end of
    line that is written out ends the text; a word that begins like a label is none."""
    words = list(filter(None, _WHITE_SPACE.split(text)))
    if END_OF_LINE in words:
        del words[words.index(END_OF_LINE) :]
    return [word for word in words if not word.startswith(LABEL_PREFIX)] + [END_OF_LINE]


def hash_bytes(word: bytes) -> int:
    """fastText's 32-bit FNV-1a, which takes bytes as signed numbers."""
    value = 2166136261
    for byte in word:
        value = ((value ^ (byte if byte < 128 else byte | 0xFFFFFF00)) * 16777619) & 0xFFFFFFFF
    return value


def read_fasttext(path: Path) -> FastTextModel:
    """Raises `UserError` for a file that is none, is cut off, or is of a kind that cannot be applied here."""
    try:
        with open(path, "rb") as file:
            return _read(file, path)
    except (struct.error, ValueError, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no fastText model or is cut off ({error}); expected a .bin file") from None


def _read(file: BinaryIO, path: Path) -> FastTextModel:
    magic, version = _numbers(file, "ii")
    if (magic, version) != (MAGIC, VERSION):
        raise UserError(f"{path} is no fastText model of version {VERSION} (its head is {magic}, {version})")
    dim, _, _, _, _, word_ngrams, loss, kind, buckets, least, most, _ = _numbers(file, "12i")
    _numbers(file, "d")
    if kind != SUPERVISED:
        raise UserError(f"{path} holds word vectors; expected a classifier (`fasttext supervised`)")
    if loss == HIERARCHICAL:
        raise UserError(f"{path} was trained with loss hs, which is not read here; expected softmax, ova or ns")
    size, n_words, n_labels = _numbers(file, "iii")
    _, pruned = _numbers(file, "qq")
    words, labels = {}, []
    for number in range(size):
        name = _text(file)
        _, is_label = _numbers(file, "qb")
        if is_label:
            labels.append(name)
        else:
            words[name] = number
    if (len(words), len(labels)) != (n_words, n_labels) or pruned >= 0:
        raise UserError(f"{path} has a pruned or inconsistent dictionary, which is not read here; expected a .bin file")
    rows, output = _matrix(file, path), _matrix(file, path)
    if rows.shape != (n_words + buckets, dim) or output.shape != (n_labels, dim):
        raise ValueError(f"its tables are {rows.shape} and {output.shape}")
    return FastTextModel(words, labels, rows, output, loss, word_ngrams, buckets, least, most)


def _matrix(file: BinaryIO, path: Path) -> np.ndarray:
    if _numbers(file, "?")[0]:
        raise UserError(f"{path} is quantized (.ftz), which is not read here; expected a .bin file")
    m, n = _numbers(file, "qq")
    if m < 0 or n < 0:
        raise ValueError(f"a table of {m} x {n}")
    values = np.fromfile(file, dtype="<f4", count=m * n)
    return values.reshape(m, n)


def _numbers(file: BinaryIO, form: str) -> tuple:
    return struct.unpack(f"<{form}", file.read(struct.calcsize(f"<{form}")))


def _text(file: BinaryIO) -> str:
    found = bytearray()
    while (byte := file.read(1)) != b"\0":
        if not byte:
            raise ValueError("its dictionary has no end")
        found += byte
    return found.decode("utf-8", "replace")


def _signed(value: int) -> int:
    """As C++ widens a 32-bit hash that it keeps as a signed number."""
    return value - (1 << 32) if value >= 1 << 31 else value
