"""From a record (a JSON object, a table row) to a document, or to the name of what is wrong with it.

Shared by all sources whose input is records. A field is named as it stands in the record, or with dots for a field
of a field (`meta.url`).
"""

from typing import Any

from data_filters.repair import mend_surrogates
from pipeline.corpus.sources.licences import own_license
from pipeline.corpus.sources.source import Item, RecordOptions, document, set_aside
from pipeline.corpus.sources.where import ABSENT, Where, find
from pipeline.corpus.text.compressed import MAX_SAMPLE, Unreadable
from pipeline.corpus.text.documents import MAX_TEXT_BYTES, WHERE, SetAside

_MAX_NAME_CHARACTERS = 2_000  # of a group, a metadata text: a URL fits, a page does not


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
        """All fields that are looked at, besides those of licences."""
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
