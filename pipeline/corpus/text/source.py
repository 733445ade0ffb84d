"""What a text source is: options in, documents with provenance out, split over fixed shards. And how named things of a
config (sources, filters, scorers) are made: their options are checked against the signature of the class before any
work starts, and a message names the nearest known name.

A source's own options are the keywords of its `__init__`; the options that all sources share are fields of the
dataclasses below, taken by `**common` and shown in the signature.
"""

import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from datatrove.data import Document

from data_filters.rule import KINDS, PROSE
from pipeline.config import nearest
from pipeline.config.yaml_values import number_meant
from pipeline.corpus.text.documents import SetAside
from pipeline.corpus.text.user_files import Unreadable
from pipeline.system.errors import UserError

Item = Document | SetAside
BYTES_PER_TOKEN = 4.0  # `limit_tokens` is an estimate: the tokenizer does not exist yet when text is read

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What every source takes: how much of it is read at most, shared out evenly over the shards. `spread`: the
    documents up to `limit_documents` come from all of its files, not from the first ones (`hornbook data --limit`)."""

    limit_documents: int | None = None
    limit_bytes: int | None = None
    limit_tokens: int | None = None
    spread: bool = False

    def __post_init__(self) -> None:
        check_limits(**{f.name: getattr(self, f.name) for f in fields(Limits) if f.name != "spread"})

    def share(self, task: int, tasks: int) -> tuple[float, float]:
        """(documents, bytes) that shard `task` may give; `limit_tokens` counts as bytes, at 4 a token."""
        n_bytes = [task_limit(self.limit_bytes, task, tasks)]
        if self.limit_tokens is not None:
            n_bytes.append(task_limit(int(self.limit_tokens * BYTES_PER_TOKEN), task, tasks))
        return task_limit(self.limit_documents, task, tasks), min(n_bytes)


@dataclass(frozen=True, kw_only=True)
class TextOptions(Limits):
    """Of a source whose input is files: `license` where a document does not say its own, and the `kind`."""

    license: str = "unknown"
    kind: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind is not None and self.kind not in KINDS:
            raise ValueError(f"kind is '{self.kind}'; expected one of {', '.join(KINDS)}")


@dataclass(frozen=True, kw_only=True)
class RecordOptions(TextOptions):
    """Of a source whose input is records: which fields hold what, and `where`, which records are wanted."""

    kind: str | None = PROSE
    text_key: str = "text"
    group_key: str | None = None
    metadata_keys: Sequence[str] = ()
    where: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind is None:
            raise ValueError(f"kind is null; expected one of {', '.join(KINDS)}, as records have no ending")
        if isinstance(self.metadata_keys, str) or not all(isinstance(k, str) for k in self.metadata_keys):
            raise ValueError(f"metadata_keys is {self.metadata_keys!r}; expected a list of field names")
        for name in ("group_key", "where"):
            if not isinstance(getattr(self, name), str | None):
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected text")


class Source(ABC):
    """Options are the keywords of `__init__` and the fields of `options`. `version` is raised when the same input
    gives other documents."""

    version: ClassVar[int] = 1
    without_effect: ClassVar[tuple[str, ...]] = ()
    """Options that change how documents are obtained and not what they are."""
    options: ClassVar[type[Limits]] = Limits
    limits: Limits

    def __init_subclass__(cls) -> None:
        """The signature that a config is checked against: `**common` is replaced by the fields that it takes."""
        super().__init_subclass__()
        own = [p for p in inspect.signature(cls.__init__).parameters.values() if p.name != "self"]
        common = [p for n, p in inspect.signature(cls.options).parameters.items() if n not in {o.name for o in own}]
        named = [p for p in own if p.kind is not p.VAR_KEYWORD]
        cls.__signature__ = inspect.Signature(named + common)  # type: ignore[attr-defined]

    @abstractmethod
    def content_hash(self) -> str:
        """What the documents depend on beyond the options, for the fingerprint. Raises `UserError` where the
        input is missing; quick (no network, known files are not read again)."""

    @abstractmethod
    def items(self, task: int, tasks: int) -> Iterator[Item]:
        """The share of shard `task`, in a fixed order, without regard to limits. Broken input comes as `SetAside`,
        never as an exception."""

    def documents(self, task: int, tasks: int) -> Iterator[Item]:
        """`items` as far as the limits allow; reads no further than that."""
        yield from limited(self.items(task, tasks), *self.limits.share(task, tasks))

    def prepare(self, folder: Path) -> dict[str, Any]:
        """What cannot be shared out over shards, before them, in one process; returns facts for the manifest."""
        return {}

    def libraries(self) -> tuple[str, ...]:
        """Distributions whose version decides the documents."""
        return ()


def document(text: str, *, path: str, group: str, license: str, kind: str, version: str = "", **more: Any) -> Document:
    """A document with the provenance that every source must give; `group` is what is held out together. `more` goes
    into the metadata too: `record` holds the fields that a record brought along, where no name can hide another."""
    metadata = {**more, "path": path, "group": group, "version": version, "license": license, "kind": kind}
    return Document(text=text, id=path, metadata=metadata)


def set_aside(path: str, problem: Unreadable) -> SetAside:
    return SetAside(path, problem.cause, problem.sample, bytes=problem.n_bytes)


def task_limit(limit: int | None, task: int, tasks: int) -> float:
    """This shard's share of a whole-source limit: the shares add up to the limit."""
    if limit is None:
        return float("inf")
    return limit // tasks + (task < limit % tasks)


def spread_over(entries: Sequence[T], most: int) -> list[T]:
    """At most `most` of them, at even distances from the first to the last."""
    n = min(most, len(entries))
    return [entries[i * len(entries) // n] for i in range(n)]


def check_limits(**limits: int | None) -> None:
    """Each limit is a whole number of at least 1, or None. Raises `ValueError`."""
    for name, value in limits.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"{name} is {value!r}; expected a whole number of at least 1, or null for no limit")


def limited(items: Iterable[Item], max_documents: float, max_bytes: float) -> Iterator[Item]:
    """`items` until one of the limits is reached, and not one further. Unreadable ones count towards neither."""
    n_documents, n_bytes = 0, 0
    if max_documents <= 0 or max_bytes <= 0:
        return
    for item in items:
        if isinstance(item, Document):
            n_documents += 1
            n_bytes += len(item.text.encode("utf-8", "surrogatepass"))
        yield item
        if n_documents >= max_documents or n_bytes >= max_bytes:
            return


def missing(what: str, expected: str, key: str) -> UserError:
    return UserError(f"{key}: {what}; expected {expected}")


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
    """Numbers where numbers belong and text where text belongs, by the annotation of the parameter."""
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
    """The entries of `known` that a list option names, in the order of `known`; all for None. `ValueError` for an
    unknown name, an empty list, and anything but a list."""
    known = tuple(known)
    if names is None:
        return known
    if isinstance(names, str) or not isinstance(names, Sequence) or not names:
        raise ValueError(f"{option} is {names!r}; expected a list of some of {', '.join(known)}")
    for name in names:
        if name not in known:
            raise ValueError(f"{option} has '{name}'{nearest(str(name), known)}; expected some of {', '.join(known)}")
    return tuple(name for name in known if name in names)
