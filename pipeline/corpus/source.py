"""What a text source is: options in, documents with provenance out, split over fixed shards."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

from datatrove.data import Document

from data_filters.rule import KINDS
from pipeline.corpus.documents import MAX_TEXT_BYTES, SetAside
from pipeline.errors import UserError

Item = Document | SetAside


class Source(ABC):
    """Options are the keywords of `__init__`. `version` is raised when the same input gives other documents."""

    version: ClassVar[int] = 1

    @abstractmethod
    def content_hash(self) -> str:
        """What the documents depend on besides the options, for the fingerprint. Raises `UserError` where the
        input is missing; quick (no network, known files are not read again)."""

    @abstractmethod
    def documents(self, task: int, tasks: int) -> Iterator[Item]:
        """The share of shard `task`, in a fixed order. Broken input comes as `SetAside`, never as an exception."""

    def libraries(self) -> tuple[str, ...]:
        """Distributions whose version decides the documents."""
        return ()


def document(text: str, *, path: str, group: str, license: str, kind: str, version: str = "", **more: Any) -> Document:
    """A document with the provenance that every source must give; `group` is what is held out together."""
    metadata = {"path": path, "group": group, "version": version, "license": license, "kind": kind, **more}
    return Document(text=text, id=path, metadata=metadata)


def check_kind(kind: str) -> str:
    if kind not in KINDS:
        raise ValueError(f"kind is '{kind}'; expected one of {', '.join(KINDS)}")
    return kind


def task_limit(limit: int | None, task: int, tasks: int) -> float:
    """This shard's share of a whole-source limit: the shares add up to the limit."""
    if limit is None:
        return float("inf")
    return limit // tasks + (task < limit % tasks)


def check_limits(**limits: int | None) -> None:
    for name, value in limits.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; expected at least 1, or null for no limit")


def limited(items: Iterable[Item], max_documents: float, max_bytes: float) -> Iterator[Item]:
    """`items` until one of the limits is reached. Unreadable ones count towards neither."""
    documents, n_bytes = 0, 0
    for item in items:
        if isinstance(item, Document):
            if documents >= max_documents or n_bytes >= max_bytes:
                return
            documents += 1
            n_bytes += len(item.text.encode("utf-8", "surrogatepass"))
        yield item


class RecordReader:
    """Turns a JSON-like record into a document, or says by name why it cannot.

    Shared by sources whose input is records: `text_key` holds the text, `group_key` what is held out together.
    """

    def __init__(self, text_key: str, group_key: str | None, license: str, kind: str, where: str | None = None):
        self.text_key, self.group_key, self.license, self.kind = text_key, group_key, license, check_kind(kind)
        self.where = Comparison(where) if where else None

    def read(self, record: Any, path: str) -> Item | None:
        """None: the record is outside `where`."""
        if not isinstance(record, dict):
            return SetAside(path, "not_a_record", repr(record)[:500])
        if self.where is not None and not self.where.holds(record):
            return None
        if self.text_key not in record:
            return SetAside(path, "no_text_key", f"keys: {', '.join(map(str, record))}"[:500])
        text = record[self.text_key]
        if not isinstance(text, str):
            return SetAside(path, "text_is_not_text", f"{type(text).__name__}: {str(text)[:500]}")
        if len(text) > MAX_TEXT_BYTES:
            return SetAside(path, "too_large", text[:500])
        group = record.get(self.group_key) if self.group_key else None
        return document(
            text,
            path=path,
            group=path if group is None else str(group),
            license=str(record.get("license") or self.license),
            kind=self.kind,
        )


class Comparison:
    """A single condition on a record's field, such as `int_score >= 3` or `language == "en"`."""

    _SHAPE = re.compile(r"^\s*([\w.]+)\s*(>=|<=|==|!=|>|<)\s*([^<>=!\s].*?)\s*$")

    def __init__(self, text: str):
        found = self._SHAPE.match(text)
        if not found:
            raise ValueError(f"where is {text!r}; expected one comparison such as 'int_score >= 3'")
        self.field, self.operator, value = found.groups()
        try:
            self.value: float | str = float(value)
        except ValueError:
            self.value = value.strip("\"'")

    def holds(self, record: dict[str, Any]) -> bool:
        """False where the field is absent or of another type: what cannot be checked is not let in."""
        found = record.get(self.field)
        if isinstance(self.value, float):
            if isinstance(found, bool) or not isinstance(found, int | float):
                return False
        elif not isinstance(found, str):
            return False
        comparisons = {
            ">=": found >= self.value,  # type: ignore[operator]
            "<=": found <= self.value,  # type: ignore[operator]
            ">": found > self.value,  # type: ignore[operator]
            "<": found < self.value,  # type: ignore[operator]
            "==": found == self.value,
            "!=": found != self.value,
        }
        return comparisons[self.operator]


def missing(what: str, expected: str, key: str) -> UserError:
    return UserError(f"{key}: {what}; expected {expected}")
