"""What a model is tuned on: text, prompts with completions, conversations, or a ready task.

In: `finetune.sources`, a tokenizer. Out: training and held-out sets for the batches that pretraining uses. Every line
is looked at before anything is loaded: one that is no example is set aside, and the first is named with its place.
"""

import glob
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from pipeline.config import nearest
from pipeline.corpus.sources.records import shown
from pipeline.corpus.text.shards import INDEX_DTYPE, TokenSet
from pipeline.corpus.text.user_files import (
    MAX_UNREADABLE,
    Found,
    Unreadable,
    decode_utf8,
    plain_ending,
    read_bytes,
    read_files,
)
from pipeline.system.errors import UserError
from pipeline.training.packing import Examples
from pipeline.tuning.chat import ROLES, pieces

TYPES = ("text", "completion", "chat")
RECORD_ENDINGS = (".jsonl", ".ndjson", ".json")
ROUND_TO = 8  # windows are as long as the longest example, rounded up to this
Pieces = list[tuple[str, bool]]  # text, and whether it is learnt


@dataclass(frozen=True)
class TuningData:
    """`length`: tokens of a window."""

    train: dict[str, Any]
    val: dict[str, Any]
    length: int
    cut: int  # examples that were longer than a window


def read_sources(sources: Mapping[str, Any], max_unreadable: float = MAX_UNREADABLE) -> dict[str, list[Pieces]]:
    """Examples by source, an end of text as None where the tokenizer's own is to stand. A line that is no example is
    set aside. Raises `UserError` for an unknown type, a missing file, too few examples, and where more than the share
    `max_unreadable` of a source is set aside."""
    found = {}
    for name, options in sources.items():
        key, paths = f"finetune.sources.{name}", source_files(name, options)
        found[name] = _read(paths, options.get("type", "completion"), key).check(max_unreadable).made
        if len(found[name]) < 2:
            raise UserError(f"{key}: {len(found[name])} examples; expected at least 2 (one is held out)")
    return found


def source_files(name: str, options: Any) -> list[Path]:
    """The files of one of `finetune.sources`. Raises `UserError` for options of another form, and for no file."""
    key = f"finetune.sources.{name}"
    if not isinstance(options, Mapping) or "path" not in options or set(options) - {"type", "path"}:
        raise UserError(f"{key} is {options!r}; expected {{type: {' | '.join(TYPES)}, path: file or glob}}")
    kind, pattern = options.get("type", "completion"), options["path"]
    if kind not in TYPES:
        raise UserError(f"{key}.type is '{kind}'{nearest(str(kind), TYPES)}; expected of {', '.join(TYPES)}")
    if not isinstance(pattern, str):
        raise UserError(f"{key}.path is {pattern!r}; expected the text of a file's path or a glob")
    found = [Path(path) for path in sorted(glob.glob(str(Path(pattern).expanduser()), recursive=True))]
    paths = [path for path in found if path.is_file()]
    if not paths:
        hint = f"; it is a folder: write {pattern.rstrip('/')}/*.jsonl" if found else ""
        raise UserError(f"{key}.path: no file matches '{pattern}'{hint}")
    return paths


def _read(paths: Sequence[Path], kind: str, key: str) -> Found[Pieces]:
    whole = [path for path in paths if kind == "text" and plain_ending(path) not in RECORD_ENDINGS]
    found = read_files([path for path in paths if path not in whole], lambda record, _: _example(record, kind), key)
    for path in whole:
        found.total_bytes += path.stat().st_size
        found.add(path, "", path, lambda path, _: [(_clean(decode_utf8(read_bytes(path))), True)])
    return found


def _example(record: Any, kind: str) -> Pieces:
    """Raises `Unreadable` for a record that is no example of this kind."""
    if not isinstance(record, dict):
        raise Unreadable("not_a_record", f"is {type(record).__name__}; expected an object with fields")
    if kind == "text":
        return [(_field(record, "text"), True)]
    if kind == "completion":
        return [(_field(record, "prompt"), False), (_field(record, "completion"), True), ("", True)]
    messages = record.get("messages")
    if not isinstance(messages, list) or not messages:
        raise Unreadable("no_messages", f"has no 'messages' with entries; it has {_names(record)}")
    for message in messages:
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise Unreadable("no_role", f"has a message whose role must be of {', '.join(ROLES)}: {shown(message, 80)}")
    said = [{**message, "content": _field(message, "content")} for message in messages]
    if not any(message["role"] == "assistant" for message in messages):
        raise Unreadable("no_answer", "has no message of the assistant: there is nothing to learn in it")
    return pieces(said, "\0")


def _field(record: Mapping[str, Any], name: str) -> str:
    value = record.get(name)
    if not isinstance(value, str) or not _clean(value):
        raise Unreadable("no_text", f"has no text in '{name}'; it has {_names(record)}")
    return _clean(value)


def _clean(text: str) -> str:
    """Without NUL, which stands for the end of text here."""
    return text.replace("\0", "")


def _names(record: Mapping[str, Any]) -> str:
    return ", ".join(record)[:200] or "no fields"


def encode(
    sources: Mapping[str, Sequence[Pieces]], text_sources: Sequence[str], tokenizer: Tokenizer, end_id: int,
    most_tokens: int, validation_share: float, seed: int,
) -> TuningData:  # fmt: skip
    """Sets to train on and held-out ones. `text_sources`: names that become one stream of windows; of the others each
    example is a window."""
    rows = {n: [_ids(e, tokenizer, end_id) for e in examples] for n, examples in sources.items()}
    longest = max((len(ids) for n, all_rows in rows.items() if n not in text_sources for ids, _ in all_rows), default=0)
    length = (
        most_tokens if set(rows) & set(text_sources) else min(most_tokens, -(-(longest - 1) // ROUND_TO) * ROUND_TO)
    )
    train, val, cut = {}, {}, 0
    for name, examples in sources.items():
        held_out = max(1, round(validation_share * len(examples)))
        order = random.Random(f"{seed}/{name}").sample(range(len(examples)), len(examples))
        for target, chosen in ((val, order[:held_out]), (train, order[held_out:])):
            part = [rows[name][i] for i in chosen]
            sizes = [sum(len(text.encode()) for text, learnt in examples[i] if learnt) for i in chosen]
            if name in text_sources:
                target[name] = _stream(name, [ids for ids, _ in part], sizes)
            else:
                cut += sum(len(ids) > length + 1 for ids, _ in part)
                target[name] = Examples.of(name, part, length, sum(sizes))
    return TuningData(train, val, length, cut)


def _ids(example: Pieces, tokenizer: Tokenizer, end_id: int) -> tuple[list[int], list[bool]]:
    """Ids and which of them are learnt. "" and "\\0" stand for the end of text."""
    ids, learnt = [], []
    for text, mark in example:
        part = tokenizer.encode(text.rstrip("\0"), add_special_tokens=False).ids
        part += [end_id] if not text or text.endswith("\0") else []
        ids += part
        learnt += [mark] * len(part)
    return ids, learnt


def _stream(name: str, documents: Sequence[list[int]], sizes: Sequence[int]) -> TokenSet:
    tokens = np.array([i for ids in documents for i in ids], np.uint32)
    index = np.zeros(len(documents), INDEX_DTYPE)
    index["length"] = [len(ids) for ids in documents]
    index["offset"] = np.cumsum(index["length"]) - index["length"]
    index["bytes"] = sizes
    return TokenSet(name, tokens, index)
