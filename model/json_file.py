"""JSON that a stranger wrote: an object whose fields have the types that the reader names, or one sentence.

In: `config.json`, `tokenizer_config.json`, an index of shards and the like. Out: plain values. Whatever stands where
another type belongs raises `UnreadableModel`, never an AttributeError further on. Imports no torch.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
WORDS: dict[type, str] = {
    str: "text", bool: "true or false", int: "a whole number", float: "a number", list: "a list", dict: "an object",
}  # fmt: skip


class UnreadableModel(ValueError):
    """A folder does not hold a model that hornbook can read; the message says why and what to do."""


def read_object(file: Path) -> dict[str, Any]:
    """The object in a file. Raises `UnreadableModel` where there is none, whatever a stranger wrote instead."""
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError, OSError) as error:
        raise UnreadableModel(f"{file} is not readable as JSON ({error}); write or download it again.") from error
    if not isinstance(content, dict):
        raise UnreadableModel(f"{file} holds no JSON object; write or download it again.")
    return content


def read_field(content: Mapping[str, Any], name: str, kind: type[T], where: Path | str) -> T | None:
    """The value of a field, or None where it is absent or null. Raises `UnreadableModel` for another type than `kind`:
    true is no number, a whole number is a number, and neither NaN nor infinity is one."""
    value = content.get(name)
    if value is None or is_of(value, kind):
        return value
    raise UnreadableModel(f"{where}: {name} is {shown(value)}; expected {WORDS[kind]}.")


def is_of(value: Any, kind: type) -> bool:
    """Whether a JSON value is of a type of `WORDS`, as `read_field` understands it."""
    if kind in (int, float) and isinstance(value, bool):
        return False
    if kind is float:
        return isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    return isinstance(value, kind)


def shown(value: Any) -> str:
    """A value for a message, cut where it is long."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 300:
        return f"a number of more than {value.bit_length() * 3 // 10} digits"
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
