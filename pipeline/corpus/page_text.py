"""Text of web pages: which characters the bytes stand for, and the main text without menus and footers.

Main text by trafilatura, which came out first in most comparisons of extractors and made FineWeb. Its caches hold
pure functions and its deduplication is off, so that a page's text does not depend on the pages before it.
"""

import codecs
import re

from pipeline.corpus.compressed import Unreadable, decode_utf8
from pipeline.corpus.parsing import parsed, quiet

_META_CHARSET = re.compile(rb"""<meta[^>]{0,500}?charset\s*=\s*["']?\s*([\w.:-]{1,40})""", re.IGNORECASE)
_META_WITHIN_BYTES = 4_096
MAX_PAGE_CHARACTERS = 5_000_000  # where Common Crawl cuts; a parsed page takes up to 100 bytes of memory a character
_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
# Encodings of text. Python's table also has codecs that are none, or take time that grows with the square.
_TEXT_CODECS = re.compile(
    r"(utf-(8|16|32)|ascii|iso8859|cp\d|koi8|gb|big5|euc_|shift_ji|iso2022|mac-|tis-620|hz|johab|ptcp154)"
)
# The web standard: a page that says Latin-1 or ASCII means Windows' superset.
_ALIASES = {"iso8859-1": "cp1252", "ascii": "cp1252", "gb2312": "gb18030", "gbk": "gb18030", "euc_kr": "cp949"}


def decode_page(data: bytes, header_charset: str | None = None) -> str:
    """By its mark, the charset of the header, the page's own `meta`, else UTF-8; strictly. Raises `Unreadable`."""
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return _decode(data[len(mark) :], encoding)
    meta = _META_CHARSET.search(data[:_META_WITHIN_BYTES])
    for name in (header_charset, meta.group(1).decode("ascii", "replace") if meta else None):
        encoding = _codec(name)
        if encoding:
            return _decode(data, encoding)
    return _decode(data, "utf-8")


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


def _codec(name: str | None) -> str | None:
    """Python's name of an encoding of text, None where it is not one."""
    try:
        found = codecs.lookup((name or "").strip(" \"';")).name
    except (LookupError, ValueError):
        return None
    return _ALIASES.get(found, found) if _TEXT_CODECS.match(found) else None


def _decode(data: bytes, encoding: str) -> str:
    if encoding == "utf-8":
        return decode_utf8(data)
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        around = data[max(0, error.start - 50) : error.start + 200]
        found = around.decode("ascii", "backslashreplace")
        raise Unreadable("wrong_encoding", f"byte {error.start} is not {encoding}: {found}") from None
