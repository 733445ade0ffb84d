"""The one place that loads a `tokenizer.json`, so that the same text has the same ids in every stage.

In: a file that any program may have written last. Out: a tokenizer without what such a program left in it. transformers
and others store truncation and padding in the file when they encode a batch, and training code leaves dropout there;
each would silently cut, lengthen or shuffle ids. The file itself is never changed. Imports no torch.
"""

from pathlib import Path
from typing import TYPE_CHECKING

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
