"""Named things of a config (sources, filters) and their options, checked against the signature of the class that
takes them before any work starts: the nearest right name is in the message."""

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from pipeline.config import nearest
from pipeline.config.yaml_values import number_meant
from pipeline.system.errors import UserError

T = TypeVar("T")


def look_up(table: Mapping[str, T], name: str, key: str, list_name: str) -> T:
    """`table[name]`, or `UserError` naming the nearest entry and the command that lists them."""
    if name not in table:
        raise UserError(
            f"{key}: there is no '{name}'{nearest(str(name), table)}; `hornbook list {list_name}` shows them all"
        )
    return table[name]


def make(cls: type[T], options: Mapping[str, Any] | None, key: str) -> T:
    """`cls(**options)`; `UserError` for an unknown or missing option and for a value that `cls` refuses."""
    if options is not None and not isinstance(options, Mapping):
        raise UserError(f"{key} is {options!r}; expected a section with options, or {{}} for the defaults")
    options = dict(options or {})
    parameters = inspect.signature(cls).parameters
    for option in options:
        if option not in parameters:
            known = ", ".join(parameters) or "none"
            raise UserError(f"{key}: unknown option '{option}'{nearest(str(option), parameters)}; known: {known}")
    missing = [n for n, p in parameters.items() if p.default is inspect.Parameter.empty and n not in options]
    if missing:
        raise UserError(f"{key}: option '{missing[0]}' has no value; it must be set")
    _check_types(parameters, options, key)
    try:
        return cls(**options)
    except (TypeError, ValueError) as error:
        raise UserError(f"{key}: {error}") from None


def _check_types(parameters: Mapping[str, inspect.Parameter], options: Mapping[str, Any], key: str) -> None:
    """Numbers where numbers belong and text where text belongs, told from the annotation."""
    for name, value in options.items():
        annotation = parameters[name].annotation
        text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
        allowed = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,)}.get(text)
        meant = number_meant(name, value) if isinstance(value, str) and re.search(r"\b(int|float)\b", text) else None
        if meant is not None:
            raise UserError(f"{key}.{name} is {value!r}; expected a number" + (f": write {meant}" if meant else ""))
        if allowed and (not isinstance(value, allowed) or (isinstance(value, bool) and text != "bool")):
            raise UserError(f"{key}.{name} is {value!r}; expected {text}")


def chosen(names: Sequence[str] | None, known: Iterable[str], option: str) -> tuple[str, ...]:
    """The entries of `known` that a list option names, in the order of `known`; all for None. `ValueError` for a name
    that is not there, and for what is no list or empty."""
    known = tuple(known)
    if names is None:
        return known
    if isinstance(names, str) or not isinstance(names, Sequence) or not names:
        raise ValueError(f"{option} is {names!r}; expected a list of some of {', '.join(known)}")
    for name in names:
        if name not in known:
            raise ValueError(f"{option} has '{name}'{nearest(str(name), known)}; expected some of {', '.join(known)}")
    return tuple(name for name in known if name in names)
