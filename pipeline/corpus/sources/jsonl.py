"""JSON lines: one record a line. A broken line is set aside by name of its cause and takes no neighbour along."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from pipeline.corpus.sources.input_files import FileSource, InputFile, Inputs, find_inputs
from pipeline.corpus.sources.records import RecordReader
from pipeline.corpus.sources.source import Item, RecordOptions, set_aside
from pipeline.corpus.text.compressed import Unreadable, numbered_lines, open_input, split_ending
from pipeline.corpus.text.documents import MAX_TEXT_BYTES, SetAside
from pipeline.corpus.text.json_lines import parse

ENDINGS = (".jsonl", ".ndjson", ".json")
_MAX_JSON_BYTES = 4 * MAX_TEXT_BYTES  # of a file that is one JSON value


class Jsonl(FileSource):
    """JSON lines, plain or compressed (`.gz`, `.bz2`, `.xz`, `.zst`): one record a line, the text under `text_key`; a
    `.json` file may be one list of records. `path`: file, glob or folder. `group_key`: field whose documents are held
    out together (default: each its own). `metadata_keys`: fields that are kept with the document. `license`: of records
    that state none; `own` for private text. `where`: which records are wanted, such as `int_score >= 3 and language ==
    'en'` (docs/data/README.md). `limit_tokens`: at 4 bytes a token.
    """

    version = 3
    options = RecordOptions

    def __init__(self, path: str, **common: Any):
        self.path = path
        self.limits = options = RecordOptions(**common)
        self.reader = RecordReader(options)

    def find(self) -> Inputs:
        wanted = "a file of JSON lines (.jsonl, .ndjson, .json, or one of them compressed), a folder of them"
        return find_inputs(self.path, wanted, lambda name: split_ending(name)[0] in ENDINGS)

    def raw_records(self, file: InputFile) -> Iterator[Any]:
        whole = _one_value(file) if file.ending == ".json" else None
        return iter(whole) if whole is not None else (line for _, line in numbered_lines(file.path))

    def item(self, raw: Any, file: InputFile, place: str) -> Item | None:
        if not isinstance(raw, bytes):
            return self.reader.read(raw, place)
        if not raw.strip():
            return None  # a blank line is no document
        try:
            item = self.reader.read(parse(raw), place)
        except Unreadable as problem:
            item = set_aside(place, problem)
        unread = isinstance(item, SetAside) and item.filter is None
        return replace(item, bytes=len(raw)) if unread else item  # type: ignore[type-var]


def _is_record(line: bytes) -> bool:
    try:
        return isinstance(parse(line), dict)
    except Unreadable:
        return False


def _one_value(file: InputFile) -> list[Any] | None:
    """The records of a file that is one JSON value over several lines, or one list; None where it is lines."""
    try:
        with open_input(file.path) as opened:
            data = opened.read(_MAX_JSON_BYTES + 1).removeprefix(b"\xef\xbb\xbf")
        if len(data) > _MAX_JSON_BYTES or not data.lstrip().startswith((b"[", b"{")):
            return None
        if data.lstrip().startswith(b"{"):
            first, _, rest = data.partition(b"\n")
            if not rest.strip() or _is_record(first):
                return None
        value = parse(data)
    except (Unreadable, OSError):
        return None
    return value if isinstance(value, list) else [value]
