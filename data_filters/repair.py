"""Repair of a text before any rule looks at it: what is broken is mended, what a person wrote is left alone.

Byte order marks, NUL bytes, Windows and old Mac line ends and lone surrogates everywhere; wrongly decoded text
(ftfy) in prose only, as code may hold such bytes on purpose. E-mail addresses and public IP addresses are masked.
"""

import ipaddress
import re

from data_filters.rule import PROSE

_SURROGATES = re.compile("[\ud800-\udfff]")
_EMAIL = re.compile(
    r"\b[A-Za-z0-9][A-Za-z0-9._%+-]*@(?!(?:[\w-]+\.)*example\.(?:com|org|net)\b)"
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?\.)+"
    # Named endings only: `x@w.sum` is a matrix product, and masking it would break the program.
    r"(?:com|org|net|edu|gov|mil|int|info|io|dev|ai|me|co|uk|de|fr|nl|it|es|ch|at|be|se|no|fi|dk|pl|cz|ru|ua|jp|cn"
    r"|kr|in|au|nz|ca|br|us|eu)\b"
)
_IP = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.])")
MASKED_EMAIL, MASKED_IP = "email@example.com", "192.0.2.1"  # reserved for documentation (RFC 2606, RFC 5737)


def repair(text: str, kind: str, *, mask: bool = True) -> str:
    """The mended text: valid UTF-8, `\\n` line ends, no NUL, no mark at its start; with `mask`, no addresses."""
    if text.startswith("\ufeff"):
        text = text.lstrip("\ufeff")
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "\0" in text:
        text = text.replace("\0", "")
    if not text.isascii():
        text = _mend_unicode(text, kind)
    if mask and "@" in text:
        text = _EMAIL.sub(MASKED_EMAIL, text)
    return _IP.sub(_mask_public, text) if mask else text


def mend_surrogates(text: str) -> str:
    """Text that can be written as UTF-8: pairs that were cut apart are joined, lone halves become U+FFFD."""
    if text.isascii() or not _SURROGATES.search(text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _mend_unicode(text: str, kind: str) -> str:
    text = mend_surrogates(text)
    if kind == PROSE:
        import ftfy

        text = ftfy.fix_text(
            text,
            unescape_html=False,  # a manual about HTML must keep its entities
            fix_latin_ligatures=False,
            fix_character_width=False,
            uncurl_quotes=False,
            normalization=None,
        )
    return text


def _mask_public(match: re.Match[str]) -> str:
    try:
        return MASKED_IP if ipaddress.ip_address(match.group(0)).is_global else match.group(0)
    except ValueError:  # 1.2.300.4 and version numbers of four parts with leading zeros
        return match.group(0)
