"""Token ids of a text, the same as `tokenizer.encode`, several times as fast for the tokenizers we train.

Byte-level BPE first cuts a text into words and then encodes each word alone. Text repeats its words, so each distinct
word is encoded once by `tokenizers` and remembered; cutting is Python's `re`, and only for ASCII, where its character
classes are surely those of the tokenizer's own engine. Any other text, a text with a special token in it, and any
tokenizer that cuts differently go through `tokenizers` itself.
"""

import json
import re
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# GPT-2's pattern with single digits. The ASCII form must cut ASCII text in the same way; a test compares them.
WORD_PATTERN = r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_ASCII_WORDS = re.compile(r"'(?:s|t|re|ve|m|ll|d)| ?[A-Za-z]+|[0-9]| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+", re.ASCII)
REMEMBERED_WORDS = 400_000  # about 60 MB


class Encoder:
    """`encode(text)` gives ids as bytes of `dtype`, without a special token at either end."""

    def __init__(self, tokenizer: "Tokenizer", dtype: np.dtype):
        self._tokenizer, self._dtype = tokenizer, dtype
        self._words = _Words(tokenizer, dtype)
        self._specials = [t.content for t in tokenizer.get_added_tokens_decoder().values()]
        self._cuts_alike = _cuts_alike(tokenizer)

    def encode(self, text: str) -> bytes:
        if not self._cuts_alike or not text.isascii() or any(s in text for s in self._specials):
            return _encode(self._tokenizer, text, self._dtype)
        if len(self._words) > REMEMBERED_WORDS:
            self._words.clear()
        return b"".join(map(self._words.__getitem__, _ASCII_WORDS.findall(text)))


class _Words(dict[str, bytes]):
    """Ids of words, encoded when first asked for."""

    def __init__(self, tokenizer: "Tokenizer", dtype: np.dtype):
        super().__init__()
        self._tokenizer, self._dtype = tokenizer, dtype

    def __missing__(self, word: str) -> bytes:
        ids = self[word] = _encode(self._tokenizer, word, self._dtype)
        return ids


def _encode(tokenizer: "Tokenizer", text: str, dtype: np.dtype) -> bytes:
    (encoding,) = tokenizer.encode_batch_fast([text], add_special_tokens=False)
    return np.array(encoding.ids, dtype=dtype).tobytes()


def _cuts_alike(tokenizer: "Tokenizer") -> bool:
    """True for a tokenizer with exactly our cutting, no normaliser and plain BPE."""
    parts = json.loads(tokenizer.to_str())
    if parts["normalizer"] is not None or parts["truncation"] is not None or parts["padding"] is not None:
        return False
    cut, *rest = (parts["pre_tokenizer"] or {}).get("pretokenizers", [None])
    split = {"type": "Split", "pattern": {"Regex": WORD_PATTERN}, "behavior": "Isolated", "invert": False}
    byte_level = [(p.get("type"), p.get("add_prefix_space"), p.get("use_regex")) for p in rest]
    return cut == split and byte_level == [("ByteLevel", False, False)] and parts["model"]["type"] == "BPE"
