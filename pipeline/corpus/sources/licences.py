"""A record's own licence, in whichever of the usual forms it is stated.

In: a record. Out: the licence as text, for `data_filters.licence` to read. The forms: text, SPDX expressions, the
objects of GitHub (`spdx_id`, `key`, `name`), npm (`type`, `url`), Zenodo and CycloneDX (`id`, `expression`), lists of
any of these (all of them hold), and each of them as JSON text or as Python prints it. Names of fields are compared
without case. null and an empty text or list state nothing. Whatever else stands there is stated and not understood:
unknown, and never the source's own licence.
"""

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from data_filters.licence import normalise
from data_filters.repair import mend_surrogates

_NAMES = (
    "license", "licence", "licenses", "licences", "license_expression", "license_id", "spdx_id", "license_name",
    "max_stars_repo_licenses", "detected_licenses", "gha_license_id", "repo_license", "repo_licenses",  # The Stack's
)  # fmt: skip
_LINKS, _CONTAINERS = ("license_url", "license_link"), ("metadata", "meta")
FIELDS = frozenset((*_NAMES, *_LINKS, *_CONTAINERS))  # of a record, in lower case
# Of an object, compared without case, `_`, `-` and `@`: the first of the exact ones that is text, else the first that
# is understood.
_EXACT = ("spdxid", "spdx", "spdxexpression", "licenseid", "expression")
_OTHERS = (
    "id", "identifier", "rightsidentifier", "key", "name", "type", "title", "license", "licence", "licenses",
    "licences", "rights", "url", "uri", "rightsuri", "href", "link", "text",
)  # fmt: skip
_MAX_CHARACTERS, _MAX_DEPTH = 2_000, 6  # what is longer is a licence's text, and no name of one
_SIMPLE = re.compile(r"[\w.+-]+")


def own_license(record: Mapping[str, Any]) -> str | None:
    """The licence that a record states; None where it states none. One that is not understood begins with
    `unknown`. The first of the record, its metadata and links to licences that states anything counts."""
    top = _in_lower_case(record)
    places = [top, *(_in_lower_case(_opened(top[name])) for name in _CONTAINERS if name in top)]
    for names in (_NAMES, _LINKS):
        for place in places:
            stated = _read([value for name in names for value in place.get(name, ())], 0)
            if stated is not None:
                return mend_surrogates(stated)
    return None


def _in_lower_case(record: Mapping[Any, Any]) -> dict[str, list[Any]]:
    """The fields that may state a licence: name -> values, of which `License` and `license` may both stand there."""
    found: dict[str, list[Any]] = {}
    for key, value in record.items():
        if isinstance(key, str) and (name := key.lower()) in FIELDS:
            found.setdefault(name, []).append(value)
    return found


def _opened(values: Sequence[Any]) -> Mapping[Any, Any]:
    """The first object among them; tables hold some as JSON text."""
    for value in values:
        if isinstance(value, str) and "licen" in value.lower() and value.lstrip().startswith("{"):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                continue
        if isinstance(value, Mapping):
            return value
    return {}


def _read(value: Any, depth: int) -> str | None:
    if value is None or value != value:  # not-a-number is how pandas writes null
        return None
    if depth > _MAX_DEPTH:
        return _unknown(value)
    if isinstance(value, str):
        return _of_text(value.strip(), depth)
    if isinstance(value, Mapping):
        return _of_object(value, depth)
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return _all_of([part for entry in value if (part := _read(entry, depth + 1)) is not None])
    return _unknown(value)


def _of_text(text: str, depth: int) -> str | None:
    if len(text) > _MAX_CHARACTERS:  # a part of it might read as a licence
        return _unknown(text)
    if text[:1] in ("{", "[", '"'):
        for parse in (json.loads, ast.literal_eval):
            try:
                return _read(parse(text), depth + 1)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
    return text or None


def _of_object(value: Mapping[str, Any], depth: int) -> str | None:
    fields = {re.sub(r"[_@-]", "", str(key)).lower(): found for key, found in value.items()}
    stated = {name: part for name, found in fields.items() if (part := _read(found, depth + 1)) is not None}
    if not stated:
        return None
    for name in _EXACT:
        if name in stated:
            return stated[name]
    known = [stated[name] for name in _OTHERS if name in stated]
    return next((part for part in known if normalise(part)), None) or _unknown(known[0] if known else value)


def _all_of(parts: Sequence[str]) -> str | None:
    distinct = tuple(dict.fromkeys(parts))
    if len(distinct) < 2:
        return distinct[0] if distinct else None
    if len("".join(distinct)) > _MAX_CHARACTERS or not all(normalise(part) for part in distinct):
        return _unknown(", ".join(distinct))
    return " AND ".join(part if _SIMPLE.fullmatch(part) else f"({part})" for part in distinct)


def _unknown(value: Any) -> str:
    try:
        return f"unknown: {value}"[:200]
    except (RecursionError, ValueError):  # nested a thousand times; a number of ten thousand digits
        return "unknown"
