"""Text of pages and files: which characters the bytes stand for, and a page's main text without menus and footers.

Main text by trafilatura, which came out first in most comparisons of extractors and made FineWeb. Its caches hold
pure functions and its deduplication is off, so that a page's text does not depend on the pages before it.
"""

import codecs
import io
import re
import tokenize

from pipeline.corpus.sources.parsing import parsed, quiet
from pipeline.corpus.text.compressed import Unreadable

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
