"""The one place that loads a `tokenizer.json`, so that a text has the same ids in every stage; and fast encoding.

`load_tokenizer` removes what other programs left in the file: transformers stores truncation and padding when it
encodes a batch, and training code leaves dropout; each would silently change ids. The file itself is never changed.

`Encoder` gives the same ids as `tokenizer.encode`, several times as fast for the byte-level BPE that we train and that
the GPT-2 family uses. Byte-level BPE first cuts a text into words and then encodes each word alone, so each distinct
word is encoded once and remembered. Cutting is Python's `re`, and only for ASCII, where its character classes are
certain to be those of the tokenizer's own engine. Other lines, and tokenizers that cut differently, go through
`tokenizers`. No word reaches over a place where a printing ASCII character is followed by white space, so a text may be
split there. Imports no torch.
"""

import json
import re
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from model.special_tokens import (
    FILES,
    KNOWN_ENDS,
    MAX_TOKENIZER_BYTES,
    SpecialTokens,
    UnreadableTokenizer,
    read_special_tokens,
)
from pipeline.system.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# GPT-2's pattern with single digits. The ASCII form must cut ASCII text in the same way; a test compares them.
WORD_PATTERN = r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def load_tokenizer(path: Path, key: str = "") -> "Tokenizer":
    """The tokenizer of a file, in the state in which text is encoded: no truncation, no padding, nothing random.

    `key`: of the config, for the message. Raises `UserError` where there is no tokenizer that can be read.
    """
    from tokenizers import Tokenizer

    start = f"{key}: " if key else ""
    if not path.is_file():
        raise UserError(f"{start}there is no file {path}; expected a tokenizer.json")
    if path.stat().st_size > MAX_TOKENIZER_BYTES:
        raise UserError(
            f"{start}{path} has {path.stat().st_size:,} bytes; expected at most {MAX_TOKENIZER_BYTES:,}: the largest "
            "in use have a tenth of that"
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except BaseException as error:  # the Rust side raises plain Exception, and a BaseException where it panics
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(
            f"{start}{path} is no tokenizer.json that can be read ({error!s:.200}); save or download it again"
        ) from None
    if not tokenizer.get_vocab_size(with_added_tokens=True):
        raise UserError(f"{start}{path} has an empty vocabulary; save or download it again")
    clear_state(tokenizer)
    return tokenizer


def clear_state(tokenizer: "Tokenizer") -> None:
    """Takes out what other programs left: for `load_tokenizer`, and for tokenizers that transformers has loaded."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = False
    for sampling in ("dropout", "alpha"):  # of BPE, of Unigram
        if getattr(tokenizer.model, sampling, None) is not None:
            setattr(tokenizer.model, sampling, None)


def tokenizer_file(given: Path) -> Path:
    """The `tokenizer.json` behind `tokenizer.path`: itself, or in the folder. `UserError` where there is none."""
    path = given.expanduser()
    path = path / "tokenizer.json" if path.is_dir() else path
    if not path.is_file():
        raise UserError(
            f"tokenizer.path: there is no file {path}; expected a tokenizer.json or a folder that holds one "
            "(tokenizer.path=null trains one)"
        )
    return path


def check_given_tokenizer(given: Path, vocab_size: int) -> None:
    """`UserError` where a named tokenizer does not fit the model or has no end-of-text."""
    path = tokenizer_file(given)
    tokenizer = load_tokenizer(path, "tokenizer.path")
    size = len_tokenizer(tokenizer)
    if size > vocab_size:
        raise UserError(
            f"tokenizer.path: {path} has {size:,} entries, model.vocab_size is {vocab_size:,}: the model would have no "
            f"row for some tokens; set model.vocab_size to at least {size:,} or name a smaller tokenizer"
        )
    special_tokens(path, "tokenizer.path")
    try:
        tokenizer.encode(PROBE, add_special_tokens=False)
    except Exception as error:  # the Rust side raises plain Exception
        raise UserError(
            f"tokenizer.path: {path} cannot encode every text ({error!s:.200}); expected a byte-level one, or one "
            "with a token for what it does not know; tokenizer.path=null trains one"
        ) from None


def len_tokenizer(tokenizer: "Tokenizer") -> int:
    """Rows that ids need: like `len(tokenizer)` of transformers, with added tokens and gaps."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def tokenizer_files(tokenizer_json: Path) -> list[Path]:
    """The file and those beside it that say which of its tokens are special."""
    return [tokenizer_json, *(path for pattern in FILES for path in sorted(tokenizer_json.parent.glob(pattern)))]


def special_tokens(tokenizer_json: Path, key: str = "", need_end: bool = True) -> SpecialTokens:
    """What the files beside a `tokenizer.json` say (model/special_tokens.py).

    `key`: of the config, for the message. Raises `UserError` where a file is not readable and, with `need_end`, where
    there is no end of text.
    """
    start = f"{key}: " if key else ""
    try:
        found = read_special_tokens(tokenizer_json)
    except UnreadableTokenizer as error:
        raise UserError(f"{start}{error}") from None
    if need_end and (found.eos_token_id is None or found.eos_token is None):
        raise UserError(
            f"{start}{tokenizer_json} has none of {', '.join(KNOWN_ENDS)}, and no tokenizer_config.json or "
            "generation_config.json beside it names an eos_token that it has; documents could not be told apart. Name "
            "one there"
        )
    return found


def _ascii_words(numbers: str) -> re.Pattern[str]:
    """The alternatives in the order of how often they come, and possessive: `re` never needs to go back."""
    other = r"[^\sA-Za-z0-9]"
    return re.compile(
        rf"[A-Za-z][A-Za-z]*+| [A-Za-z]++|{numbers}|'(?:s|t|re|ve|m|ll|d)|{other}{other}*+| {other}++|\s+(?!\S)|\s++",
        re.ASCII,
    )


_ASCII_WORDS, _ASCII_GPT2 = _ascii_words("[0-9]"), _ascii_words("[0-9][0-9]*+| [0-9]++")
_LINE_ENDS = re.compile(r"(?<=[!-~])(?=\n)")
_SPACE = re.compile(r"[!-~](?=[ \n])")
# Byte-level BPE writes bytes as printing characters; of ASCII, those up to the space and DEL are moved behind U+0100.
_BYTE_LEVEL = {byte: 0x100 + byte for byte in range(33)} | {127: 0x100 + 33}
PROBE = "Größe 12: \u4e16\U0001f642\u2028\x00\n\t"  # of several scripts; a vocabulary that lacks one of them may fail
REMEMBERED_WORDS, REMEMBERED_BYTES = 400_000, 64_000_000  # about 130 MB together
PIECE_CHARACTERS = 500_000  # a longer text is encoded piece by piece


def ids_around(tokenizer: "Tokenizer") -> tuple[list[int], list[int]]:
    """Ids that the tokenizer's post-processor puts before and after every text: Llama's and TinyLlama's bos, for one,
    which every document began with that the model has read."""
    plain, whole = (tokenizer.encode("a", add_special_tokens=special).ids for special in (False, True))
    start = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), 0)
    return whole[:start], whole[start + len(plain) :]


@lru_cache(maxsize=2)
def encoder(path: Path, dtype: str) -> "Encoder":
    """The encoder of a `tokenizer.json`; one a process, so that the shards of a worker share what it remembers."""
    return Encoder(load_tokenizer(path), np.dtype(dtype))


class Encoder:
    """`encode(text)` gives ids as bytes of `dtype`, without a special token at either end; `begin`: those that every
    document starts with."""

    def __init__(self, tokenizer: "Tokenizer", dtype: np.dtype):
        self._tokenizer, self.dtype = tokenizer, dtype
        added = tokenizer.get_added_tokens_decoder()
        self._added_ids = {t.content: np.array([i], dtype=dtype).tobytes() for i, t in added.items()}
        self._pattern = _ascii_pattern(tokenizer)
        longest_first = sorted(self._added_ids, key=len, reverse=True)
        self._added = re.compile(f"({'|'.join(map(re.escape, longest_first))})") if longest_first else None
        self._words = _Words(tokenizer, dtype)
        self.begin = np.array(ids_around(tokenizer)[0], dtype=dtype).tobytes()

    @property
    def remembers(self) -> bool:
        """Whether this tokenizer cuts words in a way that we know."""
        return self._pattern is not None

    def encode(self, text: str) -> bytes:
        if self._pattern is None:
            return b"".join(self._by_library([text]))
        if text.isascii() and len(text) <= PIECE_CHARACTERS:
            return self._ascii(text)
        parts = []
        for ascii_lines, lines in groupby(_LINE_ENDS.split(text), key=str.isascii):
            if ascii_lines:
                parts += [self._ascii(piece) for piece in _pieces("".join(lines))]
            else:
                parts += self._by_library(list(lines))
        return b"".join(parts)

    def _ascii(self, text: str) -> bytes:
        if self._added is None or self._added.search(text) is None:
            return self._cut(text)
        parts = self._added.split(text)  # text and added tokens in turn
        return b"".join(self._added_ids[p] if i % 2 else self._cut(p) for i, p in enumerate(parts))

    def _cut(self, text: str) -> bytes:
        assert self._pattern is not None
        self._words.forget_if_many()
        return b"".join(map(self._words.__getitem__, self._pattern.findall(text)))

    def _by_library(self, texts: list[str]) -> list[bytes]:
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(e.ids, dtype=self.dtype).tobytes() for e in encodings]


class _Words(dict[str, bytes]):
    """Ids of ASCII words, encoded by the tokenizer's own BPE when first asked for."""

    def __init__(self, tokenizer: "Tokenizer", dtype: np.dtype):
        super().__init__()
        self._model, self._dtype, self._bytes = tokenizer.model, dtype, 0

    def __missing__(self, word: str) -> bytes:
        tokens = self._model.tokenize(word.translate(_BYTE_LEVEL))
        ids = self[word] = np.array([t.id for t in tokens], dtype=self._dtype).tobytes()
        self._bytes += len(word) + len(ids)
        return ids

    def forget_if_many(self) -> None:
        if len(self) > REMEMBERED_WORDS or self._bytes > REMEMBERED_BYTES:
            self.clear()
            self._bytes = 0


def _pieces(text: str) -> list[str]:
    """The text in pieces of about `PIECE_CHARACTERS`, cut where no word can reach over."""
    pieces, start = [], 0
    while len(text) - start > PIECE_CHARACTERS:
        found = _SPACE.search(text, start + PIECE_CHARACTERS)
        if found is None:
            break
        pieces.append(text[start : found.end()])
        start = found.end()
    return [*pieces, text[start:]]


def _ascii_pattern(tokenizer: "Tokenizer") -> re.Pattern[str] | None:
    """How the tokenizer cuts ASCII, where it is one of the two ways that we know, with plain BPE behind and nothing
    before; else None."""
    parts = json.loads(tokenizer.to_str())
    if parts["normalizer"] is not None or parts["truncation"] is not None or parts["padding"] is not None:
        return None
    if parts["model"]["type"] != "BPE" or parts["model"].get("dropout") or parts["model"].get("ignore_merges"):
        return None
    for token in parts["added_tokens"]:
        plain = not (token["lstrip"] or token["rstrip"] or token["single_word"])
        if not plain or _SPACE.search(token["content"]) or "\n" in token["content"]:
            return None
    cutting = parts["pre_tokenizer"] or {}
    if _byte_level(cutting, use_regex=True):
        return _ASCII_GPT2
    cut, *rest = cutting.get("pretokenizers", [None])
    ours = {"type": "Split", "pattern": {"Regex": WORD_PATTERN}, "behavior": "Isolated", "invert": False}
    return _ASCII_WORDS if cut == ours and len(rest) == 1 and _byte_level(rest[0], use_regex=False) else None


def _byte_level(part: dict, *, use_regex: bool) -> bool:
    return (part.get("type"), part.get("add_prefix_space"), part.get("use_regex", True)) == (
        "ByteLevel", False, use_regex,
    )  # fmt: skip
