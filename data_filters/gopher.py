"""Gopher's quality rules for prose (arXiv 2112.11446, appendix A.1): counts of words, symbols, bullets, stop words.

In: a document. Out: the decision and reason of datatrove's `GopherQualityFilter` with white-space words, which is the
paper's definition; datatrove's default splits with spaCy and keeps a third of what these keep . A text
without words makes datatrove divide by zero where its length check is off; here it is `gopher_short_doc`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from datatrove.data import Document

from data_filters.rule import PROSE, Decision, Drop, Rule, check_range
from data_filters.words import Words, words_of

STOP_WORDS = ("the", "to", "of", "and", "that", "with", "be", "have")  # the common ones first: they are tried first


@dataclass(eq=False)
class GopherQuality(Rule):
    """Gopher's quality rules on prose: number and mean length of words, symbols, bullets, letters, stop words."""

    kinds, of_sentences = (PROSE,), True

    min_doc_words: int | None = 50
    max_doc_words: int | None = 100_000
    min_avg_word_length: float | None = 3
    max_avg_word_length: float | None = 10
    max_symbol_word_ratio: float | None = 0.1
    max_bullet_lines_ratio: float | None = 0.9
    max_ellipsis_lines_ratio: float | None = 0.3
    max_non_alpha_words_ratio: float | None = 0.8
    min_stop_words: int | None = 2
    stop_words: Sequence[str] | None = None

    def __post_init__(self) -> None:
        for name in ("min_doc_words", "max_doc_words", "min_avg_word_length", "max_avg_word_length", "min_stop_words"):
            check_range(name, getattr(self, name), 0)
        check_range("max_symbol_word_ratio", self.max_symbol_word_ratio, 0)
        for name in ("max_bullet_lines_ratio", "max_ellipsis_lines_ratio", "max_non_alpha_words_ratio"):
            check_range(name, getattr(self, name), 0, 1)
        if isinstance(self.stop_words, str):
            raise ValueError(f"stop_words is {self.stop_words!r}; expected a list of words")
        # What is no single word is never found among words.
        words = dict.fromkeys(STOP_WORDS if self.stop_words is None else self.stop_words)
        self._stop_words = tuple(word for word in words if word.split() == [word])

    def filter(self, doc: Document) -> Decision:
        view = words_of(doc.text)
        if not view.n_words:
            return False, Drop("gopher_short_doc", 0, self.min_doc_words or 1)
        drop = self._by_words(view) or self._by_marks(view) or self._by_kinds_of_words(view)
        return True if drop is None else (False, drop)

    def _by_words(self, view: Words) -> Drop | None:
        n, characters, symbols = view.n_words, int(view.starts[-1]), view.is_symbol
        if symbols.any():
            n -= int(np.count_nonzero(symbols))
            characters -= int(view.lengths[symbols].sum())
        if self.min_doc_words and n < self.min_doc_words:
            return Drop("gopher_short_doc", n, self.min_doc_words)
        if self.max_doc_words and n > self.max_doc_words:
            return Drop("gopher_long_doc", n, self.max_doc_words)
        if not n:
            return None  # a mean of nothing crosses no limit
        mean = characters / n
        if self.min_avg_word_length and mean < self.min_avg_word_length:
            return Drop("gopher_below_avg_threshold", round(mean, 4), self.min_avg_word_length)
        if self.max_avg_word_length and mean > self.max_avg_word_length:
            return Drop("gopher_above_avg_threshold", round(mean, 4), self.max_avg_word_length)
        return None

    def _by_marks(self, view: Words) -> Drop | None:
        text, n_words = view.text, view.n_words
        ellipses = text.count("...") + (0 if text.isascii() else text.count("…"))
        if limit := self.max_symbol_word_ratio:
            if (ratio := text.count("#") / n_words) > limit:
                return Drop("gopher_too_many_hashes", round(ratio, 4), limit)
            if (ratio := ellipses / n_words) > limit:
                return Drop("gopher_too_many_ellipsis", round(ratio, 4), limit)
        # Lines are only looked at where the marks in the whole text could be enough.
        at_least = text.count("\n") + (text[-1] != "\n")
        if (limit := self.max_bullet_lines_ratio) and (text.count("-") + text.count("•")) / at_least > limit:
            lines = text.splitlines()
            ratio = sum(line.lstrip().startswith(("•", "-")) for line in lines) / len(lines)
            if ratio > limit:
                return Drop("gopher_too_many_bullets", round(ratio, 4), limit)
        if (limit := self.max_ellipsis_lines_ratio) and ellipses / at_least > limit:
            lines = text.splitlines()
            ratio = sum(line.rstrip().endswith(("...", "…")) for line in lines) / len(lines)
            if ratio > limit:
                return Drop("gopher_too_many_end_ellipsis", round(ratio, 4), limit)
        return None

    def _by_kinds_of_words(self, view: Words) -> Drop | None:
        if limit := self.max_non_alpha_words_ratio:
            ratio = int(np.count_nonzero(view.has_letter)) / view.n_words
            if ratio < limit:
                return Drop("gopher_below_alpha_threshold", round(ratio, 4), limit)
        if limit := self.min_stop_words:
            sure = 0
            for word in self._stop_words:
                sure += f" {word} " in view.text
                if sure >= limit:
                    return None  # without making the words
            found = len(set(self._stop_words).intersection(view.words))
            if found < limit:
                return Drop("gopher_enough_stop_words", found, limit)
        return None
