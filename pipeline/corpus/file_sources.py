"""Sources in the user's own files: records in JSON lines, and folders of text.

A broken line or file is set aside by name of its cause and never takes its neighbours along.
"""

import glob
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import orjson

from data_filters.rule import CODE, PROSE
from pipeline.artifacts import hash_files
from pipeline.corpus.documents import MAX_TEXT_BYTES, SetAside
from pipeline.corpus.source import (
    Item,
    RecordReader,
    Source,
    check_kind,
    check_limits,
    document,
    limited,
    missing,
    task_limit,
)

TEXT_ENDINGS = {".txt": PROSE, ".md": PROSE, ".rst": PROSE, ".py": CODE}


class Jsonl(Source):
    """JSON lines, plain, `.gz` or `.zst`: one record a line, the text under `text_key`.

    `path`: file or glob. `group_key`: field whose documents are held out together (default: each its own).
    `license`: for records without a `license` field. Limits are shared out evenly over the shards.
    """

    def __init__(
        self,
        path: str,
        text_key: str = "text",
        group_key: str | None = None,
        license: str = "unknown",
        kind: str = PROSE,
        limit_documents: int | None = None,
        limit_bytes: int | None = None,
    ):
        check_limits(limit_documents=limit_documents, limit_bytes=limit_bytes)
        self.path = path
        self.reader = RecordReader(text_key, group_key, license, kind)
        self.limit_documents, self.limit_bytes = limit_documents, limit_bytes

    def files(self) -> list[Path]:
        found = [Path(p) for p in sorted(glob.glob(str(Path(self.path).expanduser()), recursive=True))]
        found = [p for p in found if p.is_file()]
        if not found:
            raise missing(f"nothing matches {self.path}", "a .jsonl, .jsonl.gz or .jsonl.zst file or glob", "path")
        return found

    def content_hash(self) -> str:
        return _hash(self.files())

    def documents(self, task: int, tasks: int) -> Iterator[Item]:
        limits = task_limit(self.limit_documents, task, tasks), task_limit(self.limit_bytes, task, tasks)
        yield from limited(self._items(task, tasks), *limits)

    def _items(self, task: int, tasks: int) -> Iterator[Item]:
        """By file where there are enough of them; else every shard goes over the lines and takes its share."""
        files = self.files()
        by_file = len(files) >= tasks
        for i, path in enumerate(files):
            if by_file and i % tasks != task:
                continue
            for number, item in _numbered_lines(path):
                if not by_file and (number + i) % tasks != task:
                    continue
                place = f"{path.name}:{number + 1}"
                read = _set_aside(item, place) if isinstance(item, str) else self._record(item, place)
                if read is not None:
                    yield read

    def _record(self, line: bytes, place: str) -> Item | None:
        if not line.strip():
            return SetAside(place, "empty_line")
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError:
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return SetAside(place, "not_utf8", line[:500].decode("utf-8", "backslashreplace"))
            return self._record_with_surrogates(line, place)
        return self.reader.read(record, place)

    def _record_with_surrogates(self, line: bytes, place: str) -> Item | None:
        """orjson refuses lone surrogates (`"\\ud800"`), the standard library reads them and repair mends them."""
        import json

        try:
            return self.reader.read(json.loads(line), place)
        except (ValueError, RecursionError):
            return SetAside(place, "broken_json", line[:500].decode("utf-8", "replace"))


class TextFolder(Source):
    """A folder of `.txt`, `.md`, `.rst` and `.py` files, each a document; its first folder level is the group.

    `license: own` marks private text. `kind`: null takes it from the ending. Files of other endings are not looked at.
    """

    def __init__(self, path: str, license: str = "unknown", kind: str | None = None):
        self.path, self.license = path, license
        self.kind = kind if kind is None else check_kind(kind)

    def files(self) -> list[Path]:
        folder = Path(self.path).expanduser()
        if not folder.is_dir():
            raise missing(f"{self.path} is not a folder", "a folder with text files", "path")
        found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in TEXT_ENDINGS and p.is_file())
        if not found:
            raise missing(f"{self.path} holds no text file", f"files ending in {', '.join(TEXT_ENDINGS)}", "path")
        return found

    def content_hash(self) -> str:
        return hash_files(self.files(), Path(self.path).expanduser())

    def documents(self, task: int, tasks: int) -> Iterator[Item]:
        folder = Path(self.path).expanduser()
        for path in self.files()[task::tasks]:
            relative = path.relative_to(folder).as_posix()
            text = read_text(path)
            if isinstance(text, str):
                group = relative.split("/")[0]
                kind = self.kind or TEXT_ENDINGS[path.suffix.lower()]
                yield document(text, path=relative, group=group, license=self.license, kind=kind)
            else:
                yield SetAside(relative, *text)


def read_text(path: Path) -> str | tuple[str, str]:
    """The text of a file, or (cause, sample) where it cannot be read as UTF-8 of bounded size."""
    try:
        if path.stat().st_size > MAX_TEXT_BYTES:
            return "too_large", f"{path.stat().st_size:,} bytes"
        data = path.read_bytes()
    except OSError as error:
        return "cannot_open", str(error.strerror)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return "not_utf8", data[:500].decode("utf-8", "backslashreplace")


def _numbered_lines(path: Path) -> Iterator[tuple[int, bytes | str]]:
    """(number, line) of a file; a text instead of bytes names what broke. Memory: one line of bounded length."""
    number = 0
    try:
        with _open(path) as file:
            while line := file.readline(MAX_TEXT_BYTES):
                if len(line) >= MAX_TEXT_BYTES and not line.endswith(b"\n"):
                    while (rest := file.readline(MAX_TEXT_BYTES)) and not rest.endswith(b"\n"):
                        pass
                    yield number, "too_large"
                else:
                    yield number, line
                number += 1
    except (OSError, EOFError, zlib.error, ValueError, RuntimeError) as error:  # cut or damaged archive
        yield number, f"damaged_file: {error}"
    except Exception as error:
        if type(error).__name__ != "ZstdError":
            raise
        yield number, f"damaged_file: {error}"


def _open(path: Path) -> BinaryIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if path.suffix == ".zst":
        import zstandard

        file = open(path, "rb")  # noqa: SIM115 - closed with the stream, by the caller's `with`
        stream = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True, closefd=True)
        return io.BufferedReader(stream, 1 << 20)  # type: ignore[arg-type]
    return open(path, "rb")


def _set_aside(problem: str, place: str) -> SetAside:
    cause, _, detail = problem.partition(": ")
    return SetAside(place, cause, detail)


def _hash(files: list[Path]) -> str:
    """By content and name; the folder they lie in does not matter, so that it can move."""
    base = files[0].parent
    while not all(p.is_relative_to(base) for p in files):
        base = base.parent
    return hash_files(files, base)
