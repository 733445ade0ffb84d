"""Our prose rules decide as datatrove's classes with the same splitter: same reason, and the same text from C4."""

import warnings

import pytest
from datatrove.data import Document
from datatrove.pipeline.filters.c4_filters import C4QualityFilter
from datatrove.pipeline.filters.fineweb_quality_filter import FineWebQualityFilter
from datatrove.pipeline.filters.gopher_quality_filter import GopherQualityFilter
from datatrove.pipeline.filters.gopher_repetition_filter import GopherRepetitionFilter

from data_filters.c4 import C4Quality
from data_filters.fineweb import FineWebQuality
from data_filters.gopher import GopherQuality
from data_filters.repetition import GopherRepetition
from data_filters.words import Words, whitespace_splitter

PAIRS = {
    "gopher_quality": (GopherQualityFilter, GopherQuality, {}),
    "gopher_quality, loose": (
        GopherQualityFilter,
        GopherQuality,
        {"min_doc_words": None, "min_avg_word_length": 1, "max_symbol_word_ratio": 0.5, "stop_words": ["a", "a b"]},
    ),
    "gopher_repetition": (GopherRepetitionFilter, GopherRepetition, {}),
    "gopher_repetition, n-grams only": (
        GopherRepetitionFilter,
        GopherRepetition,
        {"dup_line_frac": None, "dup_para_frac": None, "dup_line_char_frac": None, "dup_para_char_frac": 0}
        | {"top_n_grams": ((3, 0.3), (1, 0.4), (2, 0.3)), "dup_n_grams": ((7, 0.3), (2, 0.6), (5, 0.4), (1, 0.9))},
    ),
    "gopher_repetition, late n-grams": (
        GopherRepetitionFilter,
        GopherRepetition,
        {"dup_line_frac": 1, "dup_para_frac": 1, "dup_line_char_frac": 1, "dup_para_char_frac": 1, "top_n_grams": ()},
    ),
    "fineweb": (FineWebQualityFilter, FineWebQuality, {}),
    "fineweb, other ends": (
        FineWebQualityFilter,
        FineWebQuality,
        {
            "line_punct_thr": 0.5,
            "line_punct_exclude_zero": True,
            "stop_chars": (".", "..", " ", "d"),
            "new_line_ratio": 1,
        }
        | {"char_duplicates_ratio": 0.3, "short_line_thr": 0.9},
    ),
    "c4": (C4QualityFilter, C4Quality, {}),
    "c4, all lines": (
        C4QualityFilter,
        C4Quality,
        {"filter_no_terminal_punct": False, "min_num_sentences": -1, "min_words_per_line": -1, "max_word_length": 20}
        | {"filter_lorem_ipsum": False},
    ),
    "c4, sentences": (
        C4QualityFilter,
        C4Quality,
        {"split_paragraph": False, "remove_citations": False, "min_num_sentences": 2, "filter_policy": False}
        | {"filter_no_terminal_punct": False},
    ),
}


@pytest.mark.parametrize("name", list(PAIRS))
def test_decision_reason_and_text_are_datatroves(name, odd_texts, real_texts):
    stock_class, our_class, options = PAIRS[name]
    stock = stock_class(**options, language=whitespace_splitter())
    more = {"remove_lines": True} if our_class is C4Quality else {}
    ours = our_class(**options, **more)
    reasons = set()
    for text in [*odd_texts, *real_texts]:
        mine = Document(text, "x", metadata={})
        found = ours.filter(mine)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # numpy's mean of no words
                theirs = Document(text, "x", metadata={})
                expected = stock.filter(theirs)
        except ZeroDivisionError:
            assert found is not True
            continue
        reason = None if expected is True else expected[1]
        assert (None if found is True else found[1].reason) == reason, text[:200]
        assert found is True or (found[1].value is not None and found[1].threshold is not None)
        if expected is True:
            assert mine.text == theirs.text
        reasons.add(reason)
    assert len(reasons) > 1, "the texts should meet more than one answer"


def test_words_are_those_of_split(odd_texts):
    for text in odd_texts:
        words, view = text.split(), Words(text)
        assert view.lengths.tolist() == list(map(len, words))
        assert view.has_letter.tolist() == [any(map(str.isalpha, word)) for word in words]
        assert len(view.joined_bytes) == len("".join(words))


def test_every_character_has_the_class_that_python_gives_it():
    text = " ".join(map(chr, range(0x3000)))
    view = Words(text)
    assert view.has_letter.tolist() == [any(map(str.isalpha, word)) for word in text.split()]


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        (GopherQuality, {"max_bullet_lines_ratio": 1.5}, "max_bullet_lines_ratio is 1.5; expected 0 to 1"),
        (GopherRepetition, {"dup_n_grams": [5]}, r"dup_n_grams is \[5\]; expected a list of"),
        (GopherRepetition, {"top_n_grams": [[0, 0.2]]}, "top_n_grams: n is 0; expected a whole number"),
        (FineWebQuality, {"line_punct_thr": None}, "line_punct_thr is None; expected 0 to 1"),
        (C4Quality, {"min_num_sentences": -2}, "min_num_sentences is -2; expected -1 or more"),
    ],
)
def test_options_out_of_range_are_named(rule, options, message):
    with pytest.raises(ValueError, match=message):
        rule(**options)
