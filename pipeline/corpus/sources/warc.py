"""Web archives: the main text of the pages of `.warc`, `.warc.gz` and `.warc.zst` files, and of text as it stands.

Decompression is ours (bounded, and it says so where a file was cut off), warcio reads the records. A header that
never ends is stopped, a record that cannot be read is counted, and a file whose records no longer begin where they
should is given up there, with what came before it kept.
"""

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from data_filters.rule import PROSE
from pipeline.corpus.sources.input_files import FileSource, InputFile, Inputs, find_inputs
from pipeline.corpus.sources.page_text import decode_page, main_text
from pipeline.corpus.sources.parsing import parsed, quiet
from pipeline.corpus.sources.source import Item, TextOptions, document, set_aside
from pipeline.corpus.text.compressed import Unreadable, open_input, split_ending
from pipeline.corpus.text.documents import MAX_TEXT_BYTES

ENDINGS = (".warc", ".wet")
PAGES, PLAIN = ("text/html", "application/xhtml+xml"), ("text/plain",)
_MAX_HEADER_BYTES = 1 << 20  # of one record, all lines together
_MAX_URL_CHARACTERS = 2_000


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
        return find_inputs(self.path, wanted, lambda name: split_ending(name)[0] in ENDINGS)

    def libraries(self) -> tuple[str, ...]:
        return ("warcio", "trafilatura", "lxml")

    def raw_records(self, file: InputFile) -> Iterator[Any]:
        """Those that hold a page or text."""
        with open_input(file.path) as stream:
            records = _archive(stream)
            while (record := _next(records)) is not None:
                if not record.rec_type:
                    raise Unreadable("damaged_file", "a record that does not say its WARC-Type")
                if _type(record) in (*PAGES, *PLAIN):
                    yield record

    def item(self, raw: Any, file: InputFile, place: str) -> Item | None:
        """None where the file itself cannot be read further: it says so once, whoever reads on."""
        headers = raw.rec_headers
        url = (headers.get_header("WARC-Target-URI") or "").strip("<>")[:_MAX_URL_CHARACTERS]
        try:
            text = _text(raw)
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
    except Exception as error:  # warcio meets a broken header with whatever comes of it
        raise Unreadable("damaged_file", f"{type(error).__name__}: {' '.join(str(error).split())}") from None


def _archive(stream: Any) -> Iterator[Any]:
    """warcio's records, read through lines of bounded length. Raises `Unreadable` where no record begins."""
    from warcio.archiveiterator import WARCIterator
    from warcio.bufferedreaders import BufferedReader

    quiet("warcio")
    if not stream.peek(1):
        raise Unreadable("empty_file")

    class Pieces:
        """What there is at once: a read that waits for more loses what came before the place of a damage."""

        read = staticmethod(stream.read1)

    class Lines(BufferedReader):
        line_bytes = 0

        def readline(self, length: int | None = None) -> bytes:
            line = super().readline(min(length or _MAX_HEADER_BYTES, _MAX_HEADER_BYTES))
            self.line_bytes += len(line)
            if self.line_bytes > _MAX_HEADER_BYTES:
                raise Unreadable("damaged_file", f"the headers of a record go on beyond {_MAX_HEADER_BYTES:,} bytes")
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


def _type(record: Any) -> str | None:
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


def _text(record: Any) -> str:
    headers = record.http_headers or record.rec_headers
    _, _, parameters = (headers.get_header("Content-Type") or "").lower().partition("charset=")
    payload: list[bytes] = []
    parsed(lambda: payload.append(_payload(record)) or "")
    text = decode_page(payload[0], parameters.partition(";")[0] or None)
    return main_text(text) if _type(record) in PAGES else text


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
