"""Reads the user's own files: sources, tuning examples and evaluation items, plain or compressed, in bounded memory.

In: a path. Out: bytes, numbered lines of bounded length, or the records of JSON lines and JSON documents. Whatever is
wrong with a file comes as one `Unreadable` with the name of its cause, after everything that could be read before it. A
small file that grows without end is stopped as a `bomb`: real text shrinks 3 to 30 times.

Lines end at line feeds only: U+2028 and U+0085 may stand inside a text. Halves of surrogate pairs (half an emoji) are
repaired. A broken record does not affect its neighbours; `read_files` counts it and names the first.
"""

import bz2
import io
import json
import lzma
import os
import stat
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar

import orjson

from data_filters.repair import mend_surrogates
from pipeline.system.errors import UserError

MAX_TEXT_BYTES = 32_000_000  # a longer text or line is set aside unread: it would take a worker's whole memory
BOMB_BYTES, BOMB_RATIO = 1_000_000_000, 200  # more than both: a bomb
MAX_SAMPLE = 500  # characters kept of what could not be read
_PIECE_BYTES = 1 << 16
_ZSTD_FEED_BYTES = 1 << 10  # zstd turns 4 bytes into 128 kB at worst, so a feed of 1 kB makes at most 32 MB
_ZSTD_WINDOW_BYTES = 1 << 27  # what `zstd` itself accepts without --long
_MAX_ZSTD_WINDOW_BYTES = 1 << 31  # its largest; memory is taken as far as the text fills it
_XZ_MEMORY_BYTES = 1 << 30  # `xz -9` takes 64 MB
UNKNOWN_COMPRESSIONS = (".lz4", ".br", ".7z", ".snappy", ".sz", ".z")
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_BOM = b"\xef\xbb\xbf"
_LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"

T = TypeVar("T")
MAX_UNREADABLE = 0.1  # the default of `data.max_unreadable`
# More than a record is lost.
OF_A_FILE = ("damaged_file", "bomb", "cannot_open", "not_a_file", "unknown_compression", "lfs_pointer")
_IN_WORDS = {
    "broken_json": "is not JSON", "not_utf8": "is not UTF-8", "too_large": "is too large", "empty_file": "has no byte",
}  # fmt: skip


class Unreadable(Exception):
    """Why an input never became a document: `cause` is the name it is counted by, `sample` what was found, `n_bytes`
    the size of a part of a file, where it is known."""

    def __init__(self, cause: str, sample: str = "", n_bytes: int = 0):
        super().__init__(f"{cause}: {sample}")
        self.cause, self.sample, self.n_bytes = cause, sample[:MAX_SAMPLE], n_bytes


class LostFile(Unreadable):
    """What ended the reading of a file: all that came before was read, and nothing of the rest."""


def open_input(path: Path) -> BinaryIO:
    """A reader of the decompressed bytes. Opening and reading it raise `Unreadable`."""
    ending = path.suffix.lower()
    if ending in UNKNOWN_COMPRESSIONS:
        raise Unreadable("unknown_compression", f"{ending}; plain files and {', '.join(COMPRESSIONS)} can be read")
    file = open_regular(path)
    _check_downloaded(file)
    decompress = COMPRESSIONS.get(ending)
    return io.BufferedReader(_Decompressed(file, decompress), _PIECE_BYTES) if decompress else file


def open_regular(path: Path) -> BinaryIO:
    """Opens a regular file and nothing else: a pipe or a device would wait forever or never end.
    Raises `Unreadable`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise Unreadable("cannot_open", str(error.strerror)) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Unreadable("not_a_file", "a pipe, socket, device or folder")
    return os.fdopen(descriptor, "rb")


def _check_downloaded(file: BinaryIO) -> None:
    """Git leaves a pointer of three lines in place of a large file until somebody fetches it."""
    try:
        start = file.read(len(_LFS_POINTER))
        file.seek(0)
    except OSError:
        return  # the next read raises
    if start == _LFS_POINTER:
        file.close()
        raise Unreadable("lfs_pointer", "the file was not downloaded: run `git lfs pull` where it comes from")


def read_whole(path: Path, max_bytes: int = MAX_TEXT_BYTES) -> bytes:
    """The bytes of a file, decompressed. Raises `Unreadable`: `too_large`, `cannot_open`, `not_a_file`,
    `damaged_file`, `unknown_compression`."""
    with open_input(path) as file:
        try:
            data = file.read(max_bytes + 1)
        except OSError as error:
            raise Unreadable("damaged_file", str(error.strerror)) from None
        if len(data) > max_bytes:
            raise Unreadable("too_large", f"{path.stat().st_size:,} bytes on disk; at most {max_bytes:,} are read")
    return data


def decode_utf8(data: bytes) -> str:
    """The text, strictly. Raises `Unreadable` with the bytes around the first one that is not UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        around = data[max(0, error.start - 50) : error.start + 200]
        raise Unreadable("not_utf8", f"byte {error.start}: {around.decode('utf-8', 'backslashreplace')}") from None


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes | Unreadable]]:
    """(number from 0, line) of a file, in place of a line what is wrong with it. Ends after a `LostFile`, which says
    what is wrong with all of the rest; a file without a byte is one `empty_file`. Memory: one line, of at most
    `MAX_TEXT_BYTES`."""
    number = 0
    try:
        with open_input(path) as file:
            while line := file.readline(MAX_TEXT_BYTES + 1):
                if number == 0:
                    if line.startswith(_UTF16_MARKS):  # every line would be broken: reported once, for the file
                        found = "the file begins with the mark of UTF-16 or UTF-32; expected UTF-8"
                        raise Unreadable("not_utf8", found)
                    line = line.removeprefix(_BOM)
                if len(line) > MAX_TEXT_BYTES:
                    start = line[:MAX_SAMPLE].decode("utf-8", "replace")
                    yield number, Unreadable("too_large", f"over {MAX_TEXT_BYTES:,} bytes: {start}", len(line))
                    while not line.endswith(b"\n") and (line := file.readline(_PIECE_BYTES)):
                        pass
                else:
                    yield number, line
                number += 1
        if number == 0:
            yield 0, LostFile("empty_file")
    except Unreadable as problem:
        yield number, LostFile(problem.cause, problem.sample)
    except OSError as error:
        yield number, LostFile("damaged_file", str(error.strerror))


class _Decompressed(io.RawIOBase):
    """The pieces that `decompress(file)` yields, as a stream that ends where a bomb shows itself."""

    def __init__(self, file: BinaryIO, decompress: Callable[[BinaryIO], Iterator[bytes]]):
        self._file, self._pieces = file, decompress(file)
        self._rest, self._made_bytes = memoryview(b""), 0
        self._problem: Unreadable | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            if self._problem is not None:  # every further read raises it again
                raise self._problem
            try:
                piece = next(self._pieces, None)
                if piece is None:
                    return 0
                self._count(len(piece))
            except Unreadable as problem:
                self._problem = problem
                raise
            self._rest = memoryview(piece)
        n = min(len(buffer), len(self._rest))
        buffer[:n] = self._rest[:n]
        self._rest = self._rest[n:]
        return n

    def _count(self, n_bytes: int) -> None:
        self._made_bytes += n_bytes
        read = self._file.tell()
        if self._made_bytes > BOMB_BYTES and self._made_bytes > BOMB_RATIO * read:
            raise Unreadable("bomb", f"{read:,} compressed bytes grew to {self._made_bytes:,} and had not ended")

    def close(self) -> None:
        self._file.close()
        super().close()


class _Gzip:
    """zlib's decompressor with the interface that those of bz2 and lzma share."""

    def __init__(self) -> None:
        self._member, self._tail = zlib.decompressobj(wbits=31), b""  # gzip header, checksum and length are checked

    def decompress(self, data: bytes, max_length: int) -> bytes:
        piece = self._member.decompress(self._tail + data, max_length)
        self._tail = self._member.unconsumed_tail
        return piece

    @property
    def needs_input(self) -> bool:
        return not self._tail

    @property
    def eof(self) -> bool:
        return self._member.eof

    @property
    def unused_data(self) -> bytes:
        return self._member.unused_data


def _members(file: BinaryIO, begin: Callable[[], Any]) -> Iterator[bytes]:
    """Member after member, each piece of at most `_PIECE_BYTES`; zeros may pad between and after members."""
    member, waiting = None, b""
    try:
        while True:
            ended = (member is None or member.needs_input) and not waiting and not (waiting := file.read(_PIECE_BYTES))
            if member is None:
                waiting = waiting.lstrip(b"\0")
                if not waiting:
                    if ended:
                        return
                    continue
                member = begin()
            piece = member.decompress(waiting, _PIECE_BYTES)
            waiting = b""
            if member.eof:
                waiting, member = member.unused_data, None
            elif ended and not piece:
                raise Unreadable("damaged_file", "cut off: the file ends inside its compressed data")
            yield piece
    except (zlib.error, lzma.LZMAError, OSError, EOFError) as error:
        raise Unreadable("damaged_file", str(error)) from None


def _unzstd(file: BinaryIO) -> Iterator[bytes]:
    """Frame after frame. Not `stream_reader`: that one takes a file that was cut off for a whole one."""
    import zstandard

    decompressor = zstandard.ZstdDecompressor(max_window_size=_zstd_window_bytes())
    frame = None
    try:
        while block := file.read(_PIECE_BYTES):
            for at in range(0, len(block), _ZSTD_FEED_BYTES):
                waiting = block[at : at + _ZSTD_FEED_BYTES]
                while waiting:
                    frame = frame or decompressor.decompressobj()
                    yield frame.decompress(waiting)
                    waiting = frame.unused_data if frame.eof else b""
                    frame = None if frame.eof else frame
        if frame is not None:
            raise Unreadable("damaged_file", "cut off: the file ends inside its compressed data")
    except zstandard.ZstdError as error:
        too_large = "; `zstd --long` made it for more memory than there is here" if "much memory" in str(error) else ""
        raise Unreadable("damaged_file", f"{error}{too_large}") from None


def _zstd_window_bytes() -> int:
    """The largest window that is read: a power of two of at most a quarter of the memory that is free."""
    try:
        free_bytes = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not on this system
        free_bytes = 0
    allowed = 1 << max(0, free_bytes // 4).bit_length() >> 1
    return min(max(allowed, _ZSTD_WINDOW_BYTES), _MAX_ZSTD_WINDOW_BYTES)


_unxz = partial(_members, begin=partial(lzma.LZMADecompressor, memlimit=_XZ_MEMORY_BYTES))
# The one table of what can be read, by the last ending of a file's name.
COMPRESSIONS: dict[str, Callable[[BinaryIO], Iterator[bytes]]] = {
    ".gz": partial(_members, begin=_Gzip), ".bz2": partial(_members, begin=bz2.BZ2Decompressor),
    ".xz": _unxz, ".lzma": _unxz, ".zst": _unzstd, ".zstd": _unzstd,
}  # fmt: skip


def split_ending(name: str) -> tuple[str, str]:
    """The lower-case ending of a file's name without its compression, and the compression: `a.tar.JSONL.gz` is
    (`.jsonl`, `.gz`), `a.gz` is (``, `.gz`). Compressions that cannot be read are split off too."""
    path = Path(name.lower())
    if path.suffix in COMPRESSIONS or path.suffix in UNKNOWN_COMPRESSIONS:
        return Path(path.stem).suffix, path.suffix
    return path.suffix, ""


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


def read_bytes(path: Path) -> bytes:
    """A whole file, decompressed, without a byte-order mark. Raises `Unreadable`."""
    return read_whole(path, 64 * MAX_TEXT_BYTES).removeprefix(_BOM)


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
            self.lost_bytes += size_bytes(path) if problem.cause in OF_A_FILE else 0
            what = _IN_WORDS.get(problem.cause)
            where = f"{mend_surrogates(str(path))}, {place}" if place else mend_surrogates(str(path))
            said = f"{what}: {problem.sample[:200]}" if what else problem.sample or problem.cause
            self.first = self.first or " ".join(f"{where} {said}".split())

    def check(self, max_unreadable: float) -> "Found[T]":
        """Says how much was set aside. Raises `UserError` where it is all, or more than the share `max_unreadable`."""
        lost = self.causes.total()
        if not lost:
            return self
        share = max(lost / (lost + len(self.made)), self.lost_bytes / max(1, self.total_bytes))
        causes = ", ".join(f"{n:,} {cause}" for cause, n in self.causes.most_common())
        said = f"{lost:,} of {lost + len(self.made):,} records cannot be read ({causes}); the first: {self.first}"
        if not self.made:
            raise UserError(f"{self.key}: {said}. None is left; fix the file, or name another one")
        if share > max_unreadable:
            allow = f", or allow it: data.max_unreadable={min(1.0, round(share + 0.01, 2)):g}"
            raise UserError(
                f"{self.key}: {said}. That is more than data.max_unreadable={max_unreadable:g}; fix them{allow}"
            )
        print(f"  WARNING: {self.key}: {said}; set aside", file=sys.stderr, flush=True)
        return self


def read_files(paths: Sequence[Path], make: Callable[[Any, str], T], key: str) -> Found[T]:
    """`make` of every record of some files, of which it may refuse any by raising `Unreadable`."""
    found: Found[T] = Found(key)
    for path in paths:
        found.total_bytes += size_bytes(path)
        for place, value in records(path):
            found.add(path, place, value, make)
    return found


def size_bytes(path: Path) -> int:
    """Of a regular file on disk; 0 of anything else."""
    try:
        about = path.stat()
    except OSError:
        return 0
    return about.st_size if stat.S_ISREG(about.st_mode) else 0
