"""Files that are code by name only: tables written as literals, and modules that merely import and re-export.

In: a code document of any language with quotes and # or // comments. Thresholds come from 1,146 files (17.3 MB) of
packaged Python that pass the rules of shape and the generated-code banner; names and scores of the 60 highest were
looked at, and excerpts of about 25. `data_lines` over 0.5 are 29 files (2.5%, 0.40 MB; translation tables, lexers'
keyword lists, one test of settings); 0.3 would take 15 more, tests among them. `boilerplate` under 50 characters are 35
files (3.1%, 0.04 MB; `__init__` files); at 77 characters a first small function appears.
"""

import re

from datatrove.data import Document

from data_filters.checks import check_range
from data_filters.rule import CODE, Decision, Drop, Rule

_LITERAL = (
    r"""(?:[rbuf]{0,2}(?:"(?:[^"\\\n]|\\.)*+"|'(?:[^'\\\n]|\\.)*+'))"""
    r"""|[-+]?(?>0[xX][0-9a-fA-F]+|\d[\d_]*(?:\.\d*)?(?:[eE][-+]?\d+)?[lLuUfFjn]*)"""
    r"""|None|True|False|null|true|false|nil"""
)
# Possessive throughout (`*+`): a line that is no data must fail at once, not try every way to cut its numbers.
_DATA_LINE = re.compile(
    r"^[ \t]*+(?=[^\n]*[\d\"'])(?![^\n]*(?:\"\"\"|'''))(?:" + _LITERAL + r"|[\[\](){}<>,:;=|\\ \t]){2,}+$",
    re.MULTILINE,
)
_NO_CODE = re.compile(
    r"^[ \t]*+(?:from[ \t]+[\w.]+[ \t]+import[ \t]*\([^)]*\)"
    r"|(?:from[ \t]|import[ \t]|#|//|using[ \t]|require|package[ \t]|use[ \t])[^\n]*"
    r"|__all__[ \t]*\+?=[ \t]*[\[(][^\])]*[\])])",
    re.MULTILINE,
)


class DataLines(Rule):
    """Drops code of whose characters over `max_share` stand on lines of nothing but strings, numbers and brackets."""

    kinds = (CODE,)

    def __init__(self, max_share: float = 0.5):
        check_range("max_share", max_share, 0, 1, optional=False)
        self.max_share = max_share

    def filter(self, doc: Document) -> Decision:
        share = _visible("".join(_DATA_LINE.findall(doc.text))) / max(1, _visible(doc.text))
        return True if share <= self.max_share else (False, Drop("mostly_data", round(share, 4), self.max_share))


class Boilerplate(Rule):
    """Drops code with under `min_characters` left without its imports, `__all__`, comments and white space."""

    kinds = (CODE,)

    def __init__(self, min_characters: int = 50):
        check_range("min_characters", min_characters, 0, optional=False)
        self.min_characters = min_characters

    def filter(self, doc: Document) -> Decision:
        left = _visible(_NO_CODE.sub("", doc.text))
        return True if left >= self.min_characters else (False, Drop("only_imports", left, self.min_characters))


def _visible(text: str) -> int:
    return sum(map(len, text.split()))
