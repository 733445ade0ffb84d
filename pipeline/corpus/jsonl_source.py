"""JSON lines: one record a line. A broken line is set aside by name of its cause and takes no neighbour along."""

from collections.abc import Iterator
from typing import Any

from pipeline.corpus.compressed import Unreadable, numbered_lines
from pipeline.corpus.input_files import InputFile, hash_inputs, matching
from pipeline.corpus.json_lines import parse
from pipeline.corpus.records import RecordReader
from pipeline.corpus.source import Item, RecordOptions, Source, set_aside

ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".ndjson", ".ndjson.gz", ".ndjson.zst")


class Jsonl(Source):
    """JSON lines, plain, `.gz` or `.zst`: one record a line, the text under `text_key`. `path`: file, glob or folder.
    `group_key`: field whose documents are held out together (default: each its own). `metadata_keys`: fields that
    are kept with the document. `license`: of records that state none; `own` for private text. `where`: which records
    are wanted, such as `int_score >= 3 and language == 'en'` (docs/data/README.md). `limit_tokens`: at 4 bytes a token.
    """

    version = 2
    options = RecordOptions

    def __init__(self, path: str, **common: Any):
        self.path = path
        self.limits = options = RecordOptions(**common)
        self.reader = RecordReader(options)

    def files(self) -> list[InputFile]:
        return matching(self.path, "a .jsonl, .jsonl.gz or .jsonl.zst file, a folder of them", ENDINGS)

    def content_hash(self) -> str:
        return hash_inputs(self.files())

    def items(self, task: int, tasks: int) -> Iterator[Item]:
        """By file where there are enough of them; else every shard goes over the lines and takes its share."""
        files = self.files()
        by_file = len(files) >= tasks
        for i, file in enumerate(files):
            if by_file and i % tasks != task:
                continue
            for number, line in _lines(file):
                if not by_file and (number + i) % tasks != task:
                    continue
                place = f"{file.name}:{number + 1}"
                item = set_aside(place, line) if isinstance(line, Unreadable) else self._record(line, place)
                if item is not None:
                    yield item

    def _record(self, line: bytes, place: str) -> Item | None:
        if not line.strip():
            return None  # a blank line is no document
        try:
            record = parse(line)
        except Unreadable as problem:
            return set_aside(place, problem)
        return self.reader.read(record, place)


def _lines(file: InputFile) -> Iterator[tuple[int, bytes | Unreadable]]:
    if file.problem is not None:
        yield 0, file.problem
    else:
        yield from numbered_lines(file.path)
