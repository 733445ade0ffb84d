"""Records of the user's own files, read alike wherever hornbook takes some: sources, tuning examples, evaluation
items.

In: JSON lines, plain or compressed, or one JSON document. Out: values, and in place of what cannot be read why. Lines
end at line feeds and nowhere else: U+2028 and U+0085 may stand inside a text. Halves of surrogate pairs (half an emoji)
are repaired. A broken record takes no neighbour along; `read_files` counts it and names the first.
"""

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import orjson

from data_filters.repair import mend_surrogates
from pipeline.corpus.text.compressed import (
    MAX_SAMPLE,
    Unreadable,
    decode_utf8,
    numbered_lines,
    read_whole,
    split_ending,
)
from pipeline.corpus.text.documents import MAX_TEXT_BYTES
from pipeline.system.errors import UserError

T = TypeVar("T")
MAX_UNREADABLE = 0.1  # the default of `data.max_unreadable`
# More than a record is lost.
OF_A_FILE = ("damaged_file", "bomb", "cannot_open", "not_a_file", "unknown_compression", "lfs_pointer")
_IN_WORDS = {
    "broken_json": "is not JSON", "not_utf8": "is not UTF-8", "too_large": "is too large", "empty_file": "has no byte",
}  # fmt: skip


def parse(line: bytes) -> Any:
    """The value of a text of JSON; its texts may hold lone surrogates. Raises `Unreadable`: `not_utf8`,
    `broken_json`."""
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        text = decode_utf8(line)
    # orjson refuses lone surrogates (`"\ud800"`), NaN and raw control characters; the standard library reads them.
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        raise Unreadable("broken_json", text[:MAX_SAMPLE]) from None


def _parse_whole(text: bytes) -> Any:
    """The same, with texts that can be written."""
    try:
        return mended(parse(text))
    except RecursionError:
        raise Unreadable("broken_json", "nested too deep") from None


def mended(value: Any) -> Any:
    """A JSON value whose texts can be written as UTF-8."""
    if isinstance(value, str):
        return mend_surrogates(value)
    if isinstance(value, dict):
        return {mended(k): mended(v) for k, v in value.items()}
    return [mended(v) for v in value] if isinstance(value, list) else value


def plain_ending(path: Path) -> str:
    """The ending that says what a file holds, without that of its compression: `.jsonl` of `a.jsonl.gz`."""
    return split_ending(path.name)[0]


def read_bytes(path: Path, max_bytes: int = 64 * MAX_TEXT_BYTES) -> bytes:
    """A whole file, decompressed, without a byte-order mark. Raises `Unreadable`."""
    return read_whole(path, max_bytes).removeprefix(b"\xef\xbb\xbf")


def records(path: Path) -> Iterator[tuple[str, Any]]:
    """(place such as `line 3`, the value there or an `Unreadable`) of a file. One that ends in `.json` may be one
    document: the entries of its list, or itself."""
    if plain_ending(path) == ".json":
        try:
            document = _parse_whole(read_bytes(path))
        except Unreadable as problem:
            if problem.cause != "broken_json":
                yield "", problem
                return
        else:
            entries = document if isinstance(document, list) else [document]
            yield from ((f"item {number}", entry) for number, entry in enumerate(entries, 1))
            return
    for number, line in numbered_lines(path):
        if isinstance(line, Unreadable):
            yield f"line {number + 1}", line
        elif line.strip():
            try:
                yield f"line {number + 1}", _parse_whole(line)
            except Unreadable as problem:
                yield f"line {number + 1}", problem


@dataclass
class Found(Generic[T]):
    """What was made of records; `causes`: of what could not be, with `first` as an example in words. `lost_bytes`: of
    files that are damaged, wherever in them, of `total_bytes`."""

    key: str
    made: list[T] = field(default_factory=list)
    causes: Counter[str] = field(default_factory=Counter)
    first: str = ""
    lost_bytes: int = 0
    total_bytes: int = 0

    def add(self, path: Path, place: str, value: Any, make: Callable[[Any, str], T]) -> None:
        """`make(value, place)`, or what it raises as `Unreadable`, or the `Unreadable` that `value` is."""
        try:
            if isinstance(value, Unreadable):
                raise value
            self.made.append(make(value, place))
        except Unreadable as problem:
            self.causes[problem.cause] += 1
            self.lost_bytes += _size(path) if problem.cause in OF_A_FILE else 0
            what = _IN_WORDS.get(problem.cause)
            where = f"{mend_surrogates(str(path))}, {place}" if place else mend_surrogates(str(path))
            said = f"{what}: {problem.sample[:200]}" if what else problem.sample or problem.cause
            self.first = self.first or " ".join(f"{where} {said}".split())

    def check(self, max_unreadable: float) -> "Found[T]":
        """Says how much was set aside. Raises `UserError` where it is more than the share `max_unreadable`."""
        lost = self.causes.total()
        if not lost:
            return self
        share = max(lost / (lost + len(self.made)), self.lost_bytes / max(1, self.total_bytes))
        causes = ", ".join(f"{n:,} {cause}" for cause, n in self.causes.most_common())
        said = f"{lost:,} of {lost + len(self.made):,} records cannot be read ({causes}); the first: {self.first}"
        if share > max_unreadable:
            allow = f", or allow it: data.max_unreadable={min(1.0, round(share + 0.01, 2)):g}" if self.made else ""
            raise UserError(
                f"{self.key}: {said}. That is more than data.max_unreadable={max_unreadable:g}; fix them{allow}"
            )
        print(f"  WARNING: {self.key}: {said}; set aside", file=sys.stderr, flush=True)
        return self


def read_files(paths: Sequence[Path], make: Callable[[Any, str], T], key: str) -> Found[T]:
    """`make` of every record of some files, of which it may refuse any by raising `Unreadable`."""
    found: Found[T] = Found(key)
    for path in paths:
        found.total_bytes += _size(path)
        for place, value in records(path):
            found.add(path, place, value, make)
    return found


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
