"""What is wrong with a value of a config, in words: what was found, what the schema expects."""

import dataclasses
from collections.abc import Mapping
from typing import Any, get_args, get_origin

from omegaconf.errors import OmegaConfBaseException


def explain(error: OmegaConfBaseException, values: Mapping[str, Any], schema: type, model: type) -> str:
    """What was found and what was expected, by the schema (`model`: of that section); the library's own words
    where it has more to say."""
    key = getattr(error, "full_key", None) or ""
    text = str(error).splitlines()[0]
    if "Missing mandatory value" in text or "MissingMandatoryValue" in type(error).__name__:
        return f"'{key}' has no value; it must be set, see configs/tiny.yaml"
    expected, found = _expected(annotation_of(key, schema, model)), _value(key, values)
    shown = "null" if found is None else repr(found)
    return f"'{key}' is {shown}; expected {expected}{_hint(found)}" if expected else f"'{key}': {text}"


def _hint(found: Any) -> str:
    """How to write what was probably meant."""
    if isinstance(found, float) and found.is_integer():
        return f": write {int(found):_}"
    return ""


def annotation_of(key: str, schema: type, model: type) -> Any:
    """The type of a key in the schema, or None."""
    found: Any = schema
    for part in key.split("."):
        fields = {f.name: f.type for f in dataclasses.fields(found)} if dataclasses.is_dataclass(found) else {}
        found = model if found is schema and part == "model" else fields.get(part)
    return found


def _value(key: str, values: Any) -> Any:
    for part in key.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


def _expected(annotation: Any) -> str:
    """A type in words; empty for one that has none here."""
    inner = [_expected(a) for a in get_args(annotation) if a is not type(None)]
    if type(None) in get_args(annotation) and len(inner) == 1 and inner[0]:
        return f"{inner[0]} or null"
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    words |= {list: "a list such as [a, b]", dict: "a section of named things"}
    return words.get(get_origin(annotation) or annotation, "")
