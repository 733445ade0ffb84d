"""Repair of a text before any rule looks at it: what is broken is repaired, what a person wrote stays.

Byte order marks, NUL bytes, Windows and old Mac line ends and lone surrogates everywhere; wrongly decoded text
(ftfy) in prose only, as code may hold such bytes on purpose. Personal data is masked by `personal_data`.
"""

import re

from data_filters import personal_data
from data_filters.rule import PROSE

_SURROGATES = re.compile("[\ud800-\udfff]")


def repair(text: str, kind: str, *, mask: bool = True) -> str:
    """The repaired text: valid UTF-8, `\\n` line ends, no NUL, no mark at its start; with `mask`, no personal data."""
    if text.startswith("\ufeff"):
        text = text.lstrip("\ufeff")
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "\0" in text:
        text = text.replace("\0", "")
    if not text.isascii():
        text = mend_surrogates(text)
        if kind == PROSE:  # ftfy reads 4 MB/s, and lines that are ASCII cannot be wrongly decoded
            text = "\n".join(line if line.isascii() else _fix_line(line) for line in text.split("\n"))
    return personal_data.mask(text)[0] if mask else text


def mend_surrogates(text: str) -> str:
    """Text that can be written as UTF-8: pairs that were cut apart are joined, lone halves become U+FFFD."""
    if text.isascii() or not _SURROGATES.search(text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _fix_line(line: str) -> str:
    import ftfy

    return ftfy.fix_text(
        line,
        unescape_html=False,  # a manual about HTML must keep its entities
        fix_latin_ligatures=False,
        fix_character_width=False,
        uncurl_quotes=False,
        normalization=None,
    )
