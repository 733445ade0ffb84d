"""From a record (a JSON object, a table row) to a document, or to the name of what is wrong with it.

Shared by all sources whose input is records. A field is named as it stands in the record, or with dots for a field
of a field (`meta.url`).

A record may state its own licence, in text, as an SPDX expression, as an object of GitHub (`spdx_id`, `key`, `name`),
npm (`type`, `url`), Zenodo or CycloneDX (`id`, `expression`), as a list of these (all hold), or as any of them in JSON
or Python notation. Field names are compared without case. null and an empty text or list state nothing. Anything else
is stated and not understood: `unknown`, and never the source's own licence.
"""

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from data_filters.licence import normalise
from data_filters.repair import mend_surrogates
from pipeline.corpus.sources.where import ABSENT, Where, find
from pipeline.corpus.text.documents import WHERE, SetAside
from pipeline.corpus.text.source import Item, RecordOptions, document, set_aside
from pipeline.corpus.text.user_files import MAX_SAMPLE, MAX_TEXT_BYTES, Unreadable

_MAX_NAME_CHARACTERS = 2_000  # of a group, a metadata text: a URL fits, a page does not

_LICENCE_FIELDS = (
    "license", "licence", "licenses", "licences", "license_expression", "license_id", "spdx_id", "license_name",
    "max_stars_repo_licenses", "detected_licenses", "gha_license_id", "repo_license", "repo_licenses",  # The Stack's
)  # fmt: skip
_LICENCE_LINKS, _CONTAINERS = ("license_url", "license_link"), ("metadata", "meta")
LICENCE_FIELDS = frozenset((*_LICENCE_FIELDS, *_LICENCE_LINKS, *_CONTAINERS))  # of a record, in lower case
# Of an object, compared without case, `_`, `-` and `@`: the first of the exact ones that is text, else the first that
# is understood.
_EXACT_KEYS = ("spdxid", "spdx", "spdxexpression", "licenseid", "expression")
_OTHER_KEYS = (
    "id", "identifier", "rightsidentifier", "key", "name", "type", "title", "license", "licence", "licenses",
    "licences", "rights", "url", "uri", "rightsuri", "href", "link", "text",
)  # fmt: skip
_MAX_CHARACTERS, _MAX_DEPTH = 2_000, 6  # what is longer is a licence's text, and no name of one
_ONE_WORD = re.compile(r"[\w.+-]+")


class RecordReader:
    """`read(record, path)` for records of one source."""

    def __init__(self, options: RecordOptions):
        self.options = options
        self.where = None if options.where is None else Where(options.where)

    @property
    def needed_keys(self) -> tuple[str, ...]:
        """Fields without which no record becomes a document."""
        return (self.options.text_key, *(self.where.needed_fields if self.where else ()))

    @property
    def keys(self) -> tuple[str, ...]:
        """All fields that are looked at, those of licences aside."""
        group = (self.options.group_key,) if self.options.group_key else ()
        asked = self.where.fields if self.where else ()
        return (self.options.text_key, *asked, *group, *self.options.metadata_keys)

    def read(self, record: Any, path: str) -> Item:
        """A document, or what became of the record instead."""
        try:
            return self._read(record, path)
        except Unreadable as problem:
            return set_aside(path, problem)

    def _read(self, record: Any, path: str) -> Item:
        options = self.options
        if not isinstance(record, dict):
            raise Unreadable("not_a_record", shown(record))
        text = field(record, options.text_key)
        if self.where is not None and not self.where.holds(record):
            text = text if isinstance(text, str) else ""
            n_bytes = len(text.encode("utf-8", "surrogatepass"))
            return SetAside(path, "where", text[:MAX_SAMPLE], WHERE, n_bytes)
        if text is ABSENT:
            raise Unreadable("no_text_key", f"keys: {', '.join(map(str, record))}")
        if not isinstance(text, str):
            raise Unreadable("text_is_not_text", f"{type(text).__name__}: {shown(text)}")
        if len(text) > MAX_TEXT_BYTES:
            raise Unreadable("too_large", text[:MAX_SAMPLE])
        group = field(record, options.group_key) if options.group_key else None
        more: dict[str, Any] = {}
        kept = {key: _scalar(value) for key in options.metadata_keys if (value := field(record, key)) is not ABSENT}
        if kept:
            more["record"] = kept
        return document(
            text,
            path=path,
            group=path if group is None or group is ABSENT else shown(group, _MAX_NAME_CHARACTERS),
            license=own_license(record) or options.license,
            kind=str(options.kind),
            **more,
        )


def field(record: dict[str, Any], key: str) -> Any:
    """`record[key]`, else the field of a field that the dots in `key` lead to, else `ABSENT`."""
    return find(record, key.split("."))


def shown(value: Any, characters: int = MAX_SAMPLE) -> str:
    """`value` as text of bounded length, whatever it is."""
    if isinstance(value, str):
        return value[:characters]
    try:
        return str(value)[:characters]
    except (RecursionError, ValueError):  # nested a thousand times; a number of ten thousand digits
        return type(value).__name__


def _scalar(value: Any) -> str | int | float | bool | None:
    """What JSON has a word for; the rest as text. It travels in files of 64-bit numbers and whole UTF-8."""
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return value
    return mend_surrogates(shown(value, _MAX_NAME_CHARACTERS if isinstance(value, str) else MAX_SAMPLE))


def own_license(record: Mapping[str, Any]) -> str | None:
    """The licence that a record states; None where it states none. One that is not understood begins with
    `unknown`. The first of the record, its metadata and links to licences that states anything counts."""
    top = _in_lower_case(record)
    places = [top, *(_in_lower_case(_first_object(top[name])) for name in _CONTAINERS if name in top)]
    for names in (_LICENCE_FIELDS, _LICENCE_LINKS):
        for place in places:
            stated = _stated([value for name in names for value in place.get(name, ())], 0)
            if stated is not None:
                return mend_surrogates(stated)
    return None


def _in_lower_case(record: Mapping[Any, Any]) -> dict[str, list[Any]]:
    """The fields that may state a licence: name -> values, of which `License` and `license` may both stand there."""
    found: dict[str, list[Any]] = {}
    for key, value in record.items():
        if isinstance(key, str) and (name := key.lower()) in LICENCE_FIELDS:
            found.setdefault(name, []).append(value)
    return found


def _first_object(values: Sequence[Any]) -> Mapping[Any, Any]:
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


def _stated(value: Any, depth: int) -> str | None:
    if value is None or value != value:  # not-a-number is how pandas writes null
        return None
    if depth > _MAX_DEPTH:
        return _unknown(value)
    if isinstance(value, str):
        return _of_text(value.strip(), depth)
    if isinstance(value, Mapping):
        return _of_object(value, depth)
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return _all_of([part for entry in value if (part := _stated(entry, depth + 1)) is not None])
    return _unknown(value)


def _of_text(text: str, depth: int) -> str | None:
    if len(text) > _MAX_CHARACTERS:  # a part of it might read as a licence
        return _unknown(text)
    if text[:1] in ("{", "[", '"'):
        for parse in (json.loads, ast.literal_eval):
            try:
                return _stated(parse(text), depth + 1)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
    return text or None


def _of_object(value: Mapping[str, Any], depth: int) -> str | None:
    fields = {re.sub(r"[_@-]", "", str(key)).lower(): found for key, found in value.items()}
    stated = {name: part for name, found in fields.items() if (part := _stated(found, depth + 1)) is not None}
    if not stated:
        return None
    for name in _EXACT_KEYS:
        if name in stated:
            return stated[name]
    known = [stated[name] for name in _OTHER_KEYS if name in stated]
    return next((part for part in known if normalise(part)), None) or _unknown(known[0] if known else value)


def _all_of(parts: Sequence[str]) -> str | None:
    distinct = tuple(dict.fromkeys(parts))
    if len(distinct) < 2:
        return distinct[0] if distinct else None
    if len("".join(distinct)) > _MAX_CHARACTERS or not all(normalise(part) for part in distinct):
        return _unknown(", ".join(distinct))
    return " AND ".join(part if _ONE_WORD.fullmatch(part) else f"({part})" for part in distinct)


def _unknown(value: Any) -> str:
    try:
        return f"unknown: {value}"[:200]
    except (RecursionError, ValueError):  # nested a thousand times; a number of ten thousand digits
        return "unknown"
