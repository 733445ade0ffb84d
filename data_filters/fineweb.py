"""FineWeb's own rules for prose (arXiv 2406.17557, section 3.6): lines without an end, short lines, repeats, lists.

In: a document. Out: the decision and reason of datatrove's `FineWebQualityFilter` with white-space words. These
thresholds were found on web pages; on code they keep 7%.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import compress
from operator import itemgetter

from datatrove.data import Document

from data_filters.rule import PROSE, Decision, Drop, Rule, check_range
from data_filters.words import words_of

_LAST = itemgetter(-1)


@dataclass(eq=False)
class FineWebQuality(Rule):
    """FineWeb's rules on prose: share of lines that end in punctuation, of short and of repeated lines; lists."""

    kinds, of_sentences = (PROSE,), True

    line_punct_thr: float = 0.12
    line_punct_exclude_zero: bool = False
    stop_chars: Sequence[str] | None = None
    short_line_thr: float = 0.67
    short_line_length: int = 30
    char_duplicates_ratio: float = 0.01
    new_line_ratio: float = 0.3

    def __post_init__(self) -> None:
        for name in ("line_punct_thr", "short_line_thr", "char_duplicates_ratio"):
            check_range(name, getattr(self, name), 0, 1, optional=False)
        for name in ("short_line_length", "new_line_ratio"):
            check_range(name, getattr(self, name), 0, optional=False)
        found = self.stop_chars
        if found is not None and (isinstance(found, str) or not all(isinstance(c, str) for c in found)):
            raise ValueError(f"stop_chars is {found!r}; expected a list of line endings")

    @cached_property
    def _ends(self) -> tuple[frozenset[str], tuple[str, ...]]:
        """Line endings of one character, which are looked up, and all others."""
        if self.stop_chars is None:
            from datatrove.utils.text import TERMINAL_PUNCTUATION

            return frozenset(TERMINAL_PUNCTUATION), ()
        return frozenset(c for c in self.stop_chars if len(c) == 1), tuple(c for c in self.stop_chars if len(c) != 1)

    def filter(self, doc: Document) -> Decision:
        view = words_of(doc.text)
        lines = list(compress(view.lines, view.stripped_lines))
        if not lines:
            return False, Drop("empty", 0, 1)
        single, longer = self._ends
        ended = sum(map(single.__contains__, map(_LAST, lines)))
        if longer:
            ended = sum(line[-1] in single or line.endswith(longer) for line in lines)
        ratio = ended / len(lines)
        if ratio < self.line_punct_thr and not (ratio == 0 and self.line_punct_exclude_zero):
            return False, Drop("line_punct_ratio", round(ratio, 4), self.line_punct_thr)

        lengths = sorted(map(len, lines))
        ratio = bisect_right(lengths, self.short_line_length) / len(lines)
        if ratio > self.short_line_thr:
            return False, Drop("short_line_ratio", round(ratio, 4), self.short_line_thr)

        unique = [line for line in view.unique_lines if line and not line.isspace()]
        n_newlines = len(view.lines) - 1
        if len(unique) < len(lines):
            ratio = (sum(lengths) - sum(map(len, unique))) / (len(doc.text) - n_newlines)
            if ratio > self.char_duplicates_ratio:
                return False, Drop("char_dup_ratio", round(ratio, 4), self.char_duplicates_ratio)

        ratio = n_newlines / view.n_words
        if ratio > self.new_line_ratio:
            return False, Drop("list_ratio", round(ratio, 4), self.new_line_ratio)
        return True
