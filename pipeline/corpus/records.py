"""From a record (a JSON object, a table row) to a document, or to the name of what is wrong with it.

Shared by all sources whose input is records. A field is named as it stands in the record, or with dots for a field
of a field (`meta.url`).
"""

import re
from typing import Any

from data_filters.repair import mend_surrogates
from pipeline.corpus.compressed import MAX_SAMPLE, Unreadable
from pipeline.corpus.documents import MAX_TEXT_BYTES
from pipeline.corpus.source import Item, RecordOptions, document, set_aside

_MAX_NAME_CHARACTERS = 2_000  # of a group, a licence, a metadata text: a URL fits, a page does not
_ABSENT = object()


class RecordReader:
    """`read(record, path)` for records of one source."""

    def __init__(self, options: RecordOptions):
        self.options = options
        self.where = Where(options.where) if options.where else None

    @property
    def needed_keys(self) -> tuple[str, ...]:
        """Fields without which no record becomes a document."""
        return (self.options.text_key, *(self.where.fields if self.where else ()))

    @property
    def keys(self) -> tuple[str, ...]:
        """All fields that are looked at."""
        group = (self.options.group_key,) if self.options.group_key else ()
        return (*self.needed_keys, *group, *self.options.metadata_keys, "license")

    def read(self, record: Any, path: str) -> Item | None:
        """None: the record is outside `where`."""
        try:
            return self._read(record, path)
        except Unreadable as problem:
            return set_aside(path, problem)

    def _read(self, record: Any, path: str) -> Item | None:
        options = self.options
        if not isinstance(record, dict):
            raise Unreadable("not_a_record", shown(record))
        if self.where is not None and not self.where.holds(record):
            return None
        text = field(record, options.text_key)
        if text is _ABSENT:
            raise Unreadable("no_text_key", f"keys: {', '.join(map(str, record))}")
        if not isinstance(text, str):
            raise Unreadable("text_is_not_text", f"{type(text).__name__}: {shown(text)}")
        if len(text) > MAX_TEXT_BYTES:
            raise Unreadable("too_large", text[:MAX_SAMPLE])
        group = field(record, options.group_key) if options.group_key else None
        more: dict[str, Any] = {}
        kept = {key: _scalar(value) for key in options.metadata_keys if (value := field(record, key)) is not _ABSENT}
        if kept:
            more["record"] = kept
        return document(
            text,
            path=path,
            group=path if group is None or group is _ABSENT else shown(group, _MAX_NAME_CHARACTERS),
            license=_license(record.get("license")) or options.license,
            kind=str(options.kind),
            **more,
        )


def field(record: dict[str, Any], key: str) -> Any:
    """`record[key]`, else the field of a field that the dots in `key` lead to, else a mark for absent."""
    if key in record:
        return record[key]
    found: Any = record
    for part in key.split("."):
        if not isinstance(found, dict) or part not in found:
            return _ABSENT
        found = found[part]
    return found


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


def _license(value: Any) -> str:
    """A record's own licence; where it lists several, all of them hold. Empty where it says nothing usable."""
    if isinstance(value, str):
        return value[:_MAX_NAME_CHARACTERS]
    if isinstance(value, list) and value and all(isinstance(v, str) for v in value):
        return " AND ".join(value)[:_MAX_NAME_CHARACTERS]
    return ""


class Where:
    """One or several comparisons, all of which must hold: `int_score >= 3 and language == "en"`."""

    _AND = re.compile(r"""\sand\s(?=(?:[^"']|"[^"]*"|'[^']*')*$)""")  # not inside quotes

    def __init__(self, text: str):
        self.comparisons = [Comparison(part) for part in self._AND.split(text)]
        self.fields = tuple(c.field for c in self.comparisons)

    def holds(self, record: dict[str, Any]) -> bool:
        """Raises `Unreadable` where a field is absent or cannot be compared: that record is counted, not let in."""
        for comparison in self.comparisons:
            comparison.check(record)
            if not comparison.holds(record):
                return False
        return True


class Comparison:
    """A single condition on a record's field, such as `int_score >= 3` or `language == "en"`."""

    _SHAPE = re.compile(r"^\s*([\w.-]+)\s*(>=|<=|==|!=|>|<)\s*([^<>=!\s].*?)\s*$")
    _NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")

    def __init__(self, text: str):
        found = self._SHAPE.match(text)
        if not found:
            raise ValueError(
                f"where has {text!r}; expected one comparison such as 'int_score >= 3', or several with ' and '"
            )
        self.field, self.operator, value = found.groups()
        self.value: float | bool | str = value
        if value in ("true", "false"):
            self.value = value == "true"
        elif self._NUMBER.fullmatch(value):
            self.value = float(value)
        elif value[0] in "\"'" and value[-1] == value[0]:
            self.value = value[1:-1]
        if isinstance(self.value, bool) and self.operator not in ("==", "!="):
            raise ValueError(f"where has {text!r}; true and false can be compared with == and != only")

    def check(self, record: dict[str, Any]) -> None:
        """Raises `Unreadable` where the field is absent, or of a type that `value` cannot be compared with."""
        found = field(record, self.field)
        if found is _ABSENT or found is None:
            raise Unreadable("no_where_field", f"{self.field}; keys: {', '.join(map(str, record))}")
        if not self._comparable(found):
            raise Unreadable("where_field_type", f"{self.field} is {type(found).__name__}: {shown(found)}")

    def holds(self, record: dict[str, Any]) -> bool:
        """False where the field is absent or of another type: what cannot be checked is not let in."""
        found: Any = field(record, self.field)
        if not self._comparable(found):
            return False
        value: Any = self.value
        match self.operator:
            case ">=":
                return found >= value
            case "<=":
                return found <= value
            case ">":
                return found > value
            case "<":
                return found < value
            case "==":
                return found == value
        return found != value

    def _comparable(self, found: Any) -> bool:
        if isinstance(self.value, bool) or isinstance(found, bool):
            return isinstance(self.value, bool) and isinstance(found, bool)
        return isinstance(found, int | float) if isinstance(self.value, float) else isinstance(found, str)
