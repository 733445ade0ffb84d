"""Gopher's rules for prose (arXiv 2112.11446, appendix A), by datatrove's own classes.

Words are runs between white space, as the paper says; datatrove's default splits with spaCy, which costs 13-23 times
as much, is one more heavy dependency, and keeps a third of what these keep (DATA.md 2.1).
"""

from functools import cached_property
from typing import Any

from datatrove.data import Document

from data_filters.rule import PROSE, Decision, Drop, Rule


def whitespace_words() -> Any:
    """A datatrove `WordTokenizer` that splits at white space; made on demand, its module takes 0.3 s to import."""
    from datatrove.utils.word_tokenizers import WordTokenizer

    class Whitespace(WordTokenizer):
        def word_tokenize(self, text: str) -> list[str]:
            return text.split()

        def sent_tokenize(self, text: str) -> list[str]:
            return text.splitlines()

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            return [(0, len(text))]

    return Whitespace()


class GopherQuality(Rule):
    """Gopher's quality rules on prose: number and mean length of words, symbols, bullets, letters, stop words."""

    kinds = (PROSE,)

    def __init__(
        self,
        min_doc_words: int = 50,
        max_doc_words: int = 100_000,
        min_avg_word_length: float = 3,
        max_avg_word_length: float = 10,
        max_symbol_word_ratio: float = 0.1,
        max_non_alpha_words_ratio: float = 0.8,
        min_stop_words: int = 2,
    ):
        self.options = {k: v for k, v in locals().items() if k not in ("self", "__class__")}

    @cached_property
    def _stock(self) -> Any:
        from datatrove.pipeline.filters.gopher_quality_filter import GopherQualityFilter

        return GopherQualityFilter(**self.options, language=whitespace_words())

    def filter(self, doc: Document) -> Decision:
        if not doc.text.strip():  # datatrove divides by the number of lines and words
            return False, Drop("gopher_short_doc", 0, self.options["min_doc_words"])
        kept = self._stock.filter(doc)
        if kept is True:
            return True
        reason = kept[1]
        return False, Drop(reason, *self._measure(reason, doc.text))

    def _measure(self, reason: str, text: str) -> tuple[float | None, float | None]:
        """Value and threshold behind a reason, measured again only for what was dropped."""
        words, limits = text.split(), self.options
        n = max(1, len(words))
        measures: dict[str, tuple[float | None, float | None]] = {
            "gopher_short_doc": (len(words), limits["min_doc_words"]),
            "gopher_long_doc": (len(words), limits["max_doc_words"]),
            "gopher_below_avg_threshold": (sum(map(len, words)) / n, limits["min_avg_word_length"]),
            "gopher_above_avg_threshold": (sum(map(len, words)) / n, limits["max_avg_word_length"]),
            "gopher_too_many_hashes": (text.count("#") / n, limits["max_symbol_word_ratio"]),
            "gopher_too_many_ellipsis": (
                (text.count("...") + text.count("…")) / n,
                limits["max_symbol_word_ratio"],
            ),
            "gopher_below_alpha_threshold": (
                sum(any(c.isalpha() for c in w) for w in words) / n,
                limits["max_non_alpha_words_ratio"],
            ),
            "gopher_enough_stop_words": (
                len(self._stock.stop_words.intersection(words)),
                limits["min_stop_words"],
            ),
            "gopher_too_many_bullets": (_line_share(text, ("•", "-"), start=True), 0.9),
            "gopher_too_many_end_ellipsis": (_line_share(text, ("...", "…"), start=False), 0.3),
        }
        value, threshold = measures[reason]
        return (None if value is None else round(value, 4)), threshold


class GopherRepetition(Rule):
    """Gopher's repetition rules on prose: repeated lines, paragraphs and word n-grams, at the paper's thresholds."""

    kinds = (PROSE,)

    @cached_property
    def _stock(self) -> Any:
        from datatrove.pipeline.filters.gopher_repetition_filter import GopherRepetitionFilter

        return GopherRepetitionFilter(language=whitespace_words())

    def filter(self, doc: Document) -> Decision:
        kept = self._stock.filter(doc)
        return True if kept is True else (False, Drop(kept[1], *self._measure(kept[1], doc.text)))

    def _measure(self, reason: str, text: str) -> tuple[float | None, float | None]:
        from datatrove.pipeline.filters import gopher_repetition_filter as stock

        words, limits = text.split(), self._stock
        if reason.startswith("top_"):
            n = int(reason.split("_")[1])
            grams = stock.get_n_grams(words, n)
            return round(stock.find_top_duplicate(grams) / len(text), 4), dict(limits.top_n_grams)[n]
        if reason.startswith("duplicated_"):
            n = int(reason.split("_")[1])
            return round(stock.find_all_duplicate(words, n) / len(text), 4), dict(limits.dup_n_grams)[n]
        if reason.startswith("dup_"):
            parts = limits.paragraph_exp.split(text.strip()) if "para" in reason else limits._line_splitter.split(text)
            elements, characters = stock.find_duplicates(parts)
            value = characters / len(text) if "char" in reason else elements / len(parts)
            return round(value, 4), getattr(limits, reason)
        return None, None


def _line_share(text: str, marks: tuple[str, ...], *, start: bool) -> float:
    lines = text.splitlines()
    hits = sum(line.lstrip().startswith(marks) if start else line.rstrip().endswith(marks) for line in lines)
    return hits / max(1, len(lines))
