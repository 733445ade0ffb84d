"""Sources whose input is whole documents: a folder of the user's own files, and web archives.

A folder: each file is a document (text, Markdown, code, notebooks, pages; PDF and Word with the extra `docs`), plain or
compressed. Web archives: the main text of pages in `.warc` files, and plain text as it stands. Decompression is
ours (bounded, and a file that was cut off is noticed); warcio reads the records. A header that never ends is stopped, a
record that cannot be read is counted, and a file whose next record does not begin where it should is read no further.
"""

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson

from data_filters.rule import CODE, PROSE
from pipeline.config import yaml_values
from pipeline.corpus.sources.document_text import (
    decode_code,
    decode_page,
    decode_text,
    docx_text,
    main_text,
    parsed,
    pdf_text,
    quiet,
)
from pipeline.corpus.sources.input_files import FileSource, InputFile, Inputs, find_inputs
from pipeline.corpus.text.source import Item, TextOptions, check_limits, document, missing, set_aside
from pipeline.corpus.text.user_files import (
    COMPRESSIONS,
    MAX_TEXT_BYTES,
    UNKNOWN_COMPRESSIONS,
    Unreadable,
    open_input,
    read_whole,
    split_ending,
)

_ENDINGS = yaml_values.load(Path(__file__).with_name("endings.yaml").read_text(encoding="utf-8"))
PLAIN_ENDINGS = {**dict.fromkeys(_ENDINGS["prose"], PROSE), **dict.fromkeys(_ENDINGS["code"], CODE)}
NOTEBOOK = ".ipynb"
PAGE_ENDINGS = (".html", ".htm", ".xhtml")
EXTRA_ENDINGS = {".pdf": ("pypdf", "pypdf"), ".docx": ("docx", "python-docx")}  # module, distribution
TEXT_ENDINGS = (*PLAIN_ENDINGS, NOTEBOOK, *PAGE_ENDINGS, *EXTRA_ENDINGS)

WARC_ENDINGS = (".warc", ".wet")
PAGE_TYPES, PLAIN_TYPES = ("text/html", "application/xhtml+xml"), ("text/plain",)
_MAX_HEADER_BYTES = 1 << 20  # of one record, all lines together
_MAX_URL_CHARACTERS = 2_000


RECORD_TYPES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}


class TextFolder(FileSource):
    """A folder of text (`.txt`, `.md`, `.rst`, `.tex`, `.org`), code (`.py`, `.c`, `.js`, `.go`, `.rs`, `.java` and
    many more), notebooks (`.ipynb`), pages (`.html`, main text), `.pdf` and `.docx` (extra `docs`), plain or
    compressed (`.gz`), each a document; its first folder level is the group. `endings`: which to read (default: all of
    these); any other ending may stand there and is read as plain text. Files of others are counted, not looked at.
    `split_characters`: longer texts (a book) are cut at blank lines into documents of about this length.
    `license: own` marks private text. `kind`: null takes it from the ending. Links out of the folder are not followed.
    `limit_tokens`: at 4 bytes a token.
    """

    version = 4
    options = TextOptions

    def __init__(
        self, path: str, endings: Sequence[str] | None = None, split_characters: int | None = None, **common: Any
    ):
        self.path = path
        self.limits = options = TextOptions(**common)
        self.license, self.kind = options.license, options.kind
        self.endings = _checked_endings(endings)
        check_limits(split_characters=split_characters)
        self.split_characters = split_characters

    def find(self) -> Inputs:
        shown, more = ", ".join(self.endings[:12]), len(self.endings) - 12
        wanted = f"files ending in {shown}{f' and {more} more, or those of `endings`' if more > 0 else ''}"
        what = f"a folder, a text file, {wanted}"
        kind = RECORD_TYPES.get(split_ending(Path(self.path).name)[0])
        if kind and Path(self.path).expanduser().is_file() and not self._wanted(Path(self.path).name):
            raise missing(f"{self.path} holds records, not one text", f"type: {kind}", "path")
        return find_inputs(self.path, what, self._wanted, links_inside=True, noun="text file")

    def _wanted(self, name: str) -> bool:
        name = name.lower()
        packed = next((e for e in (*COMPRESSIONS, *UNKNOWN_COMPRESSIONS) if name.endswith(e)), "")
        return name.endswith(self.endings) or name.removesuffix(packed).endswith(self.endings)

    def content_hash(self) -> str:
        self.check_packages()
        return super().content_hash()

    def check_packages(self) -> None:
        """Raises `UserError` where files need a package that is not installed."""
        files = self.files()
        for ending, (module, distribution) in EXTRA_ENDINGS.items():
            count = sum(f.ending == ending for f in files)
            if count and importlib.util.find_spec(module) is None:
                raise missing(
                    f"{self.path} holds {count:,} {ending} files and {distribution} is not installed",
                    "it: `pip install -e '.[docs]'`, or `endings` without this one",
                    "path",
                )

    def libraries(self) -> tuple[str, ...]:
        found = {f.ending for f in self.files()}
        pages = ("trafilatura", "lxml") if found & set(PAGE_ENDINGS) else ()
        return (*pages, *(name for ending, (_, name) in EXTRA_ENDINGS.items() if ending in found))

    def raw_records(self, file: InputFile) -> Iterator[Any]:
        if self.split_characters is None:
            yield file
        else:
            yield from split_text(_file_text(file), self.split_characters)

    def item(self, raw: Any, file: InputFile, place: str) -> Item:
        kind = self.kind or (CODE if file.ending == NOTEBOOK else PLAIN_ENDINGS.get(file.ending, PROSE))
        group = file.name.split("/")[0]
        whole = not isinstance(raw, str)
        text, path = (_file_text(file), file.name) if whole else (raw, place)
        return document(text, path=path, group=group, license=self.license, kind=kind)


def split_text(text: str, characters: int) -> Iterator[str]:
    """Parts of at least `characters` that end at a blank line, at most four times as long where there is none."""
    start, most = 0, 4 * characters
    while len(text) - start > 2 * characters:
        found = text.find("\n\n", start + characters, start + most)
        end = found + 2 if found >= 0 else start + most
        yield text[start:end]
        start = end
    if text[start:].strip() or start == 0:
        yield text[start:]


def _file_text(file: InputFile) -> str:
    data = read_whole(file.path)
    if file.ending in PAGE_ENDINGS:
        return main_text(decode_page(data))
    if file.ending == ".pdf":
        return pdf_text(data)
    if file.ending == ".docx":
        return docx_text(data)
    if file.ending == NOTEBOOK:
        return notebook_text(decode_text(data))
    return decode_code(data) if file.ending in (".py", ".pyi") else decode_text(data)


def notebook_text(text: str) -> str:
    """The cells of a Jupyter notebook, its words and its code in their order, a blank line between; no outputs. Raises
    `Unreadable`: `broken_json`, `no_text`."""
    try:
        book = orjson.loads(text)
        sheets = book.get("worksheets") or [book]  # before version 4 of the format
        cells = [cell for sheet in sheets for cell in sheet["cells"]]
        sources = [cell.get("source", cell.get("input", "")) for cell in cells if cell.get("cell_type") != "raw"]
        parts = [part if isinstance(part, str) else "".join(part) for part in sources]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Unreadable("broken_json", f"no notebook: {type(error).__name__}: {error}") from None
    whole = "\n\n".join(part.strip("\n") for part in parts if part.strip())
    if not whole:
        raise Unreadable("no_text", f"{len(parts):,} cells without a character")
    return whole


def _checked_endings(endings: Sequence[str] | None) -> tuple[str, ...]:
    if endings is None:
        return TEXT_ENDINGS
    if isinstance(endings, str) or not endings or not all(isinstance(e, str) for e in endings):
        raise ValueError(f"endings is {endings!r}; expected a list such as [.md, .html]")
    chosen = [e.lower() if e.startswith(".") else f".{e.lower()}" for e in endings]
    binary = [e for e in chosen if e in _ENDINGS["binary"]]
    if binary:
        raise ValueError(
            f"endings has '{binary[0]}', which is no text; expected endings of text, such as "
            f"{', '.join(TEXT_ENDINGS[:4])}"
        )
    return tuple(sorted(set(chosen)))


class Warc(FileSource):
    """Web archives, `.warc`, plain or compressed: main text of HTML pages, plain text as it stands (also the
    extracted text of `.wet` files). `path`: file, glob or folder. The host is the group, the URL the path; URL and
    date are kept with the document. Answers other than 200 and other types are not looked at. Limits as for `jsonl`.
    """

    version = 2
    options = TextOptions

    def __init__(self, path: str, **common: Any):
        self.path = path
        self.limits = options = TextOptions(**common)
        self.license, self.kind = options.license, options.kind or PROSE

    def find(self) -> Inputs:
        wanted = "a .warc file (or compressed: .warc.gz), a folder of them"
        return find_inputs(self.path, wanted, lambda name: split_ending(name)[0] in WARC_ENDINGS)

    def libraries(self) -> tuple[str, ...]:
        return ("warcio", "trafilatura", "lxml")

    def raw_records(self, file: InputFile) -> Iterator[Any]:
        """Those that hold a page or text."""
        with open_input(file.path) as stream:
            records = _archive(stream)
            while (record := _next(records)) is not None:
                if not record.rec_type:
                    raise Unreadable("damaged_file", "a record that does not say its WARC-Type")
                if _document_type(record) in (*PAGE_TYPES, *PLAIN_TYPES):
                    yield record

    def item(self, raw: Any, file: InputFile, place: str) -> Item | None:
        """None where the file cannot be read further: the next read reports that, once."""
        headers = raw.rec_headers
        url = (headers.get_header("WARC-Target-URI") or "").strip("<>")[:_MAX_URL_CHARACTERS]
        try:
            text = _page_text(raw)
        except Unreadable as problem:
            if problem.cause in ("damaged_file", "bomb"):
                return None
            return set_aside(f"{place} {url}".strip(), problem)
        about = {"url": url, "date": (headers.get_header("WARC-Date") or "")[:100]}
        group, path = _host(url) or place, url or place
        return document(text, path=path, group=group, license=self.license, kind=self.kind, record=about)


def _next(records: Iterator[Any]) -> Any | None:
    try:
        return next(records, None)
    except Unreadable:
        raise
    except Exception as error:  # warcio raises anything on a broken header
        raise Unreadable("damaged_file", f"{type(error).__name__}: {' '.join(str(error).split())}") from None


def _archive(stream: Any) -> Iterator[Any]:
    """warcio's records, read through lines of bounded length. Raises `Unreadable` where no record begins."""
    from warcio.archiveiterator import WARCIterator
    from warcio.bufferedreaders import BufferedReader

    quiet("warcio")
    if not stream.peek(1):
        raise Unreadable("empty_file")

    # warcio reads header lines of any length and prints to stderr; its two classes are replaced where they do so.
    class Pieces:
        """What there is at once: a read that waits for more loses what came before the place of a damage."""

        read = staticmethod(stream.read1)

    class Lines(BufferedReader):
        line_bytes = 0

        def readline(self, length: int | None = None) -> bytes:
            line = super().readline(min(length or _MAX_HEADER_BYTES, _MAX_HEADER_BYTES))
            self.line_bytes += len(line)
            if self.line_bytes > _MAX_HEADER_BYTES:
                raise Unreadable("damaged_file", f"the headers of a record are longer than {_MAX_HEADER_BYTES:,} bytes")
            return line

    class Records(WARCIterator):
        def _consume_blanklines(self) -> tuple[bytes | None, int]:
            """Up to the next record. warcio's own warns on stderr of a record that is longer than it says."""
            n_bytes = 0
            while line := lines.readline():
                if line.strip():
                    if not line.startswith(b"WARC/"):
                        raise Unreadable("damaged_file", f"expected a record, found {line[:100]!r}")
                    return line, n_bytes
                n_bytes += len(line)
            return None, n_bytes

    lines = Lines(Pieces)
    records: Any = Records(stream)
    records.reader = lines
    for record in records:
        yield record
        lines.line_bytes = 0


def _document_type(record: Any) -> str | None:
    """The media type of the document that a record holds, None where it holds none."""
    if record.rec_type == "response":
        http = record.http_headers
        if http is None or http.get_statuscode() != "200":
            return None
        return _media_type(http.get_header("Content-Type"))
    if record.rec_type in ("conversion", "resource"):
        return _media_type(record.rec_headers.get_header("Content-Type"))
    return None


def _media_type(value: str | None) -> str:
    return (value or "").partition(";")[0].strip().lower()


def _page_text(record: Any) -> str:
    headers = record.http_headers or record.rec_headers
    _, _, parameters = (headers.get_header("Content-Type") or "").lower().partition("charset=")
    payload: list[bytes] = []
    parsed(lambda: payload.append(_payload(record)) or "")
    text = decode_page(payload[0], parameters.partition(";")[0] or None)
    return main_text(text) if _document_type(record) in PAGE_TYPES else text


def _payload(record: Any) -> bytes:
    """The body, with its own compression undone, of bounded size."""
    stream, pieces, size = record.content_stream(), [], 0
    while piece := stream.read(1 << 16):
        size += len(piece)
        if size > MAX_TEXT_BYTES:
            raise Unreadable("too_large", f"over {MAX_TEXT_BYTES:,} bytes")
        pieces.append(piece)
    while record.raw_stream.read(1 << 16):  # what its own encoding leaves over
        pass
    if getattr(record.raw_stream, "limit", 0) > 0:
        raise Unreadable("cut_off", "the file ends inside this record")
    return b"".join(pieces)


def _host(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").removeprefix("www.")
    except ValueError:  # `http://[` is not an address
        return ""
