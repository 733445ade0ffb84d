"""The text of one document: the characters of its bytes, a page's main text, the text of PDF and Word files.

Main text by trafilatura, which came out first in most comparisons of extractors and made FineWeb. Its caches hold
pure functions and its deduplication is off, so that a page's text does not depend on the pages before it. PDF and Word
(extra `docs`) through pypdf and python-docx. Parsers run on hostile input: whatever they raise, and a parse that does
not end, becomes the name of a cause, and the next document is read.
"""

import codecs
import io
import logging
import re
import signal
import threading
import tokenize
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.corpus.text.user_files import BOMB_RATIO, MAX_TEXT_BYTES, Unreadable

_META_CHARSET = re.compile(rb"""<meta[^>]{0,500}?charset\s*=\s*["']?\s*([\w.:-]{1,40})""", re.IGNORECASE)
_XML_CHARSET = re.compile(rb"""^\s*<\?xml[^>]{0,200}?encoding\s*=\s*["']([\w.:-]{1,40})""", re.IGNORECASE)
_META_WITHIN_BYTES = 4_096
MAX_PAGE_CHARACTERS = 5_000_000  # where Common Crawl cuts; a parsed page takes up to 100 bytes of memory a character
_MARKS = (  # the longer first: UTF-32's begins with UTF-16's
    (codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"),
)  # fmt: skip
# Encodings of text. Python's table also has codecs that are none, or take time that grows with the square.
_TEXT_CODECS = re.compile(
    r"(utf-(8|16|32)|ascii|iso8859|cp\d|koi8|gb|big5|euc_|shift_ji|iso2022|mac-|tis-620|hz|johab|ptcp154)"
)
# The web standard: a page that says Latin-1 or ASCII means Windows' superset, and so on.
_ALIASES = {"iso8859-1": "cp1252", "ascii": "cp1252", "iso8859-9": "cp1254", "tis-620": "cp874", "iso8859-11": "cp874",
            "gb2312": "gb18030", "gbk": "gb18030", "euc_kr": "cp949", "shift_jis": "cp932"}  # fmt: skip
_LABELS = {  # of the web standard, those that Python does not know
    "x-sjis": "cp932", "windows-31j": "cp932", "x-euc-jp": "euc_jp", "x-gbk": "gb18030", "gb_2312-80": "gb18030",
    "x-x-big5": "big5", "cn-big5": "big5", "windows-949": "cp949", "ks_c_5601-1989": "cp949", "windows-874": "cp874",
    "dos-874": "cp874", "x-mac-roman": "mac-roman", "x-mac-cyrillic": "mac-cyrillic", "koi8-ru": "koi8-u",
    "koi8": "koi8-r", "iso-8859-8-i": "iso8859-8", "logical": "iso8859-8", "iso-8859-8-e": "iso8859-8",
    "visual": "iso8859-8", "iso-8859-6-i": "iso8859-6", "iso-8859-6-e": "iso8859-6",
    "unicode-1-1-utf-8": "utf-8",
    **{f"x-cp{n}": f"cp{n}" for n in range(1250, 1259)},
    **{f"iso8859{n}": f"iso8859-{n}" for n in range(1, 17)},
}  # fmt: skip
_SINGLE_BYTE = re.compile(r"(iso8859|cp(125\d|437|85\d|86\d|874|720|737|775|1006)|koi8|mac-|ptcp154)")  # any bytes fit
_ASCII_ONLY = re.compile(r"(iso2022|hz)")  # these write every character with bytes of ASCII
_WIDE = re.compile(r"utf-(16|32)")
_BLANKS = frozenset(" \n\u3000\u3001\u3002")  # text of any length has one

MAX_PAGES = 5_000
MAX_UNPACKED_BYTES = 256_000_000  # of a .docx: python-docx keeps every part of it in memory, pictures too
_MAX_HONEST_PART_BYTES = 10_000_000  # a part beyond it that shrank by more than BOMB_RATIO is no text

# Of processor time, so that a busy machine makes no difference. An article of 8 MB takes 2 s; what is parsed is bounded
# in size too, so this only ends documents built to take long (trafilatura: 13 s for 2 MB of 120,000 paragraphs).
PARSE_CPU_SECONDS = 15


def decode_page(data: bytes, header_charset: str | None = None) -> str:
    """The text of a page. Its mark decides; else what fits, among UTF-8 and the charsets that the header and the page's
    own `meta` declare: what is valid UTF-8 is UTF-8, and encodings of one byte, into which all bytes fit, come last.
    ISO-8859-1 in a header is a server's default and gives way to another. A few bytes that do not fit cost a character
    each. Raises `Unreadable`: `not_utf8`, `wrong_encoding`."""
    marked = _marked(data)
    if marked is not None:
        return _decode(*marked)
    declared = _declared(data, header_charset)
    has_nul, is_ascii = b"\0" in data, data.isascii()
    for encoding in declared:
        if (has_nul and _WIDE.match(encoding)) or (is_ascii and _ASCII_ONLY.match(encoding)):
            return _decode(data, encoding)
    others = [e for e in declared if e != "utf-8" and not _WIDE.match(e)]
    for encoding in ("utf-8", *(e for e in others if not _SINGLE_BYTE.match(e))):
        text = _fitting(data, encoding, has_rival=bool(others))
        if text is not None:
            return text
    # cp1252 stands first where the server's default does: another declaration says more.
    last = sorted((e for e in others if _SINGLE_BYTE.match(e)), key=lambda e: e == "cp1252")
    return _decode(data, next(iter([*last, *others]), "utf-8"))


def decode_text(data: bytes) -> str:
    """The text of a plain file: by its mark, else UTF-8, in which a few bad bytes cost a character each. Raises
    `Unreadable`: `not_utf8`."""
    marked = _marked(data)
    if marked is not None:
        rest, encoding = marked
        text = _fitting(rest, encoding, has_rival=False)
        if text is not None and (encoding == "utf-8" or not text or not _BLANKS.isdisjoint(text)):
            return text
    return _decode(data, "utf-8")


def decode_code(data: bytes) -> str:
    """The same for Python, which may declare another encoding in its first lines (PEP 263)."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        try:
            return data.decode(tokenize.detect_encoding(io.BytesIO(data).readline)[0])
        except (SyntaxError, UnicodeDecodeError, LookupError):
            return decode_text(data)


def main_text(html: str) -> str:
    """The main text of a page. Raises `Unreadable`: `too_large`, `no_main_text`, `cannot_parse`, `parse_timeout`."""
    if len(html) > MAX_PAGE_CHARACTERS:
        raise Unreadable("too_large", f"a page of {len(html):,} characters; at most {MAX_PAGE_CHARACTERS:,} are parsed")
    text = parsed(lambda: _extract(html))
    if not text.strip():
        raise Unreadable("no_main_text", " ".join(html[:2_000].split()))
    return text


def _extract(html: str) -> str:
    quiet("trafilatura", "htmldate", "courlan", "justext", "readability")
    import trafilatura

    found = trafilatura.extract(
        html.replace("\0", ""),  # libxml2 ends a page there
        output_format="txt",
        include_comments=False,
        include_tables=True,
        include_formatting=False,
        deduplicate=False,
    )
    return found or ""


def _marked(data: bytes) -> tuple[bytes, str] | None:
    """(the bytes after the mark, encoding) where there is one."""
    return next(((data[len(mark) :], encoding) for mark, encoding in _MARKS if data.startswith(mark)), None)


def _declared(data: bytes, header_charset: str | None) -> list[str]:
    """The encodings that header and page name, in this order, each once."""
    start = data[:_META_WITHIN_BYTES]
    found = [m.group(1).decode("ascii", "replace") for p in (_META_CHARSET, _XML_CHARSET) if (m := p.search(start))]
    return list(dict.fromkeys(e for name in (header_charset, *found) if (e := _codec(name))))


def _codec(name: str | None) -> str | None:
    """Python's name of an encoding of text, None where it is not one."""
    label = (name or "").strip(" \"';").lower()
    try:
        found = codecs.lookup(_LABELS.get(label, label)).name
    except (LookupError, ValueError):
        return None
    return _ALIASES.get(found, found) if _TEXT_CODECS.match(found) else None


def _fitting(data: bytes, encoding: str, *, has_rival: bool) -> str | None:
    """The text, None where the encoding does not fit. A byte that fits nowhere becomes U+FFFD: one, or one in a
    thousand characters, or one where ten others are right. `has_rival`: another encoding would take the bytes too;
    then most of what is not ASCII must be right."""
    text = data.decode(encoding, "replace")
    already = data.count("\ufffd".encode()) if encoding == "utf-8" else 0
    bad = text.count("\ufffd") - already
    if not bad:
        return text
    right = sum(1 for c in text if c > "\x7f") - bad
    fits = right > bad if has_rival else bad <= max(1, len(text) // 1_000) or right >= 10 * bad
    return text if fits else None


def _decode(data: bytes, encoding: str) -> str:
    text = _fitting(data, encoding, has_rival=False)
    if text is not None:
        return text
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        around = data[max(0, error.start - 50) : error.start + 200]
        found = f"byte {error.start}: {around.decode('ascii', 'backslashreplace')}"
        if encoding == "utf-8":
            raise Unreadable("not_utf8", found) from None
        raise Unreadable("wrong_encoding", f"not {encoding}, {found}") from None


def pdf_text(data: bytes) -> str:
    """The pages' text, a blank line between them. Raises `Unreadable`: `damaged_file`, `encrypted`, `too_large`,
    `no_text` (scanned pages), `cannot_parse`, `parse_timeout`."""
    return parsed(lambda: _pdf_text(data))


def _pdf_text(data: bytes) -> str:
    quiet("pypdf")
    from pypdf import PdfReader
    from pypdf.errors import DependencyError, PyPdfError

    try:
        reader = PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):  # many are open to read and locked to change only
            raise Unreadable("encrypted", "a password is needed")
        n_pages = len(reader.pages)
    except DependencyError:
        raise Unreadable("encrypted", "its cipher needs another library") from None
    except (PyPdfError, OSError) as error:
        raise Unreadable("damaged_file", f"{type(error).__name__}: {error}") from None
    if n_pages > MAX_PAGES:
        raise Unreadable("too_large", f"{n_pages:,} pages; at most {MAX_PAGES:,} are read")
    texts, n_characters = [], 0
    for page in reader.pages:
        text = page.extract_text().strip()
        n_characters += len(text)
        if n_characters > MAX_TEXT_BYTES:
            raise Unreadable("too_large", f"over {MAX_TEXT_BYTES:,} characters")
        texts.append(text)
    whole = "\n\n".join(t for t in texts if t)
    if not whole:
        raise Unreadable("no_text", f"{n_pages:,} pages without a character: scanned?")
    return whole


def docx_text(data: bytes) -> str:
    """Paragraphs and tables in their order, a table's cells with tabs between. Raises `Unreadable`: `damaged_file`,
    `bomb`, `no_text`, `too_large`, `cannot_parse`, `parse_timeout`."""
    _check_archive(data)
    return parsed(lambda: _docx_text(data))


def _check_archive(data: bytes) -> None:
    """By the sizes that the archive declares; a part that is longer than it declares is refused when it is read."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            parts = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise Unreadable("damaged_file", f"{type(error).__name__}: {error}") from None
    whole = sum(p.file_size for p in parts)
    if whole > MAX_UNPACKED_BYTES:
        raise Unreadable("bomb", f"{len(data):,} bytes unpack to {whole:,}; at most {MAX_UNPACKED_BYTES:,} are read")
    for part in parts:
        if part.file_size > _MAX_HONEST_PART_BYTES and part.file_size > BOMB_RATIO * max(part.compress_size, 1):
            raise Unreadable("bomb", f"{part.filename}: {part.compress_size:,} bytes unpack to {part.file_size:,}")


def _docx_text(data: bytes) -> str:
    import docx
    from docx.opc.exceptions import OpcError
    from docx.text.paragraph import Paragraph

    try:
        opened = docx.Document(io.BytesIO(data))
    except (OpcError, zipfile.BadZipFile) as error:
        raise Unreadable("damaged_file", f"{type(error).__name__}: {error}") from None
    blocks = [
        block.text if isinstance(block, Paragraph) else _table_rows(block) for block in opened.iter_inner_content()
    ]
    text = "\n\n".join(b for b in blocks if b.strip())
    if not text:
        raise Unreadable("no_text", f"{len(blocks):,} paragraphs and tables without a character")
    if len(text) > MAX_TEXT_BYTES:
        raise Unreadable("too_large", f"over {MAX_TEXT_BYTES:,} characters")
    return text


def _table_rows(table: Any) -> str:
    lines = []
    for row in table.rows:
        cells = {id(cell._tc): cell.text.replace("\n", " ") for cell in row.cells}  # a merged cell comes repeatedly
        lines.append("\t".join(cells.values()))
    return "\n".join(lines)


class _Expired(BaseException):
    """No `except Exception` of a library swallows it."""


def parsed(parse: Callable[[], str], seconds: float = PARSE_CPU_SECONDS) -> str:
    """`parse()`. Raises `Unreadable`: its own, else `cannot_parse` with type and message, or `parse_timeout`."""
    try:
        with _deadline(seconds):
            return parse()
    except Unreadable:
        raise
    except _Expired:
        raise Unreadable("parse_timeout", f"over {seconds:g} s of processor time") from None
    except Exception as error:  # a parser may raise anything on damaged input, and only this document is lost
        raise Unreadable("cannot_parse", f"{type(error).__name__}: {error}") from None


def quiet(*loggers: str) -> None:
    """Parsers warn about every oddity of every document; what matters is counted by cause."""
    for name in loggers:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only there can a signal interrupt
        yield
        return

    def expire(*_: Any) -> None:
        raise _Expired

    before = signal.signal(signal.SIGPROF, expire)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
