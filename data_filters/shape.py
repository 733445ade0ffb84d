"""Rules about the shape of a text that need no words: too short, too long, machine-made lines, tables of bytes.

Thresholds for code are those measured on the Python library corpus (DATA.md 2.1): lines over 2,000 characters or a
mean over 120 are data or minified code; under 40% letters is a table.
"""

import re

from datatrove.data import Document

from data_filters.checks import check_range
from data_filters.rule import CODE, KINDS, PROSE, Decision, Drop, Rule

_LETTERS = re.compile(r"[^\W\d_]+")


class Length(Rule):
    """Drops texts under `min_characters` or over `max_characters` (a single giant text is data, not writing)."""

    kinds = KINDS

    def __init__(self, min_characters: int = 200, max_characters: int = 1_000_000):
        check_range("min_characters", min_characters, 0, optional=False)
        check_range("max_characters", max_characters, min_characters, optional=False)
        self.min_characters, self.max_characters = min_characters, max_characters

    def filter(self, doc: Document) -> Decision:
        n = len(doc.text)
        if n < self.min_characters and doc.metadata.get("kind") != "exercise":  # a short exercise is a whole one
            return False, Drop("too_short", n, self.min_characters)
        if n > self.max_characters:
            return False, Drop("too_long", n, self.max_characters)
        return True


class LongLines(Rule):
    """Drops code with a line over `max_line_characters` or a mean line over `max_mean_line_characters`."""

    kinds = (CODE,)

    def __init__(self, max_line_characters: int = 2_000, max_mean_line_characters: int = 120):
        check_range("max_line_characters", max_line_characters, 1, optional=False)
        check_range("max_mean_line_characters", max_mean_line_characters, 1, optional=False)
        self.max_line, self.max_mean = max_line_characters, max_mean_line_characters

    def filter(self, doc: Document) -> Decision:
        lines = doc.text.split("\n")
        longest, mean = max(map(len, lines)), len(doc.text) / len(lines)
        if longest > self.max_line:
            return False, Drop("line_too_long", longest, self.max_line)
        if mean > self.max_mean:
            return False, Drop("mean_line_too_long", round(mean, 1), self.max_mean)
        return True


class Letters(Rule):
    """Drops texts whose share of letters among non-space characters is under `min_share`: tables, hex, ASCII art."""

    kinds = (CODE, PROSE)

    def __init__(self, min_share: float = 0.4):
        check_range("min_share", min_share, 0, 1, optional=False)
        self.min_share = min_share

    def filter(self, doc: Document) -> Decision:
        share = letter_share(doc.text)
        return True if share >= self.min_share else (False, Drop("few_letters", round(share, 4), self.min_share))


def letter_share(text: str) -> float:
    """Letters over characters that are not white space, 0 to 1."""
    letters = sum(map(len, _LETTERS.findall(text)))
    visible = sum(map(len, text.split()))
    return letters / visible if visible else 0.0
