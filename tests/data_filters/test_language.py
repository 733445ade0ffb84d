"""Language is found offline, the same in every process, from the head of the page."""

import pytest

from data_filters.language import LANGUAGES, Language, _model, identify
from tests.data_filters.test_rules import GOOD_PROSE, doc


def test_the_written_list_is_the_models():
    assert sorted(LANGUAGES) == sorted(_model().labels)


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", GOOD_PROSE),
        ("de", "Der Hund läuft schnell über die Straße und bellt die Katze an."),
        ("fr", "Le chat est sur la table et il dort depuis ce matin."),
        ("ja", "これは日本語の文章です。猫が机の上で寝ています。"),
    ],
)
def test_language_is_written_to_the_document(language, text):
    page = doc(text, "prose")
    assert Language([language]).decide(page) is None
    assert page.metadata["language"] == language
    assert page.metadata["language_score"] > 0.9
    assert identify(text) == identify(text)


def test_only_the_head_is_read_and_an_unsure_guess_is_dropped():
    mixed = "Der Hund läuft schnell über die Straße. " * 5 + GOOD_PROSE * 20
    assert Language(["de"], head_characters=100).decide(doc(mixed, "prose")) is None
    drop = Language(min_probability=1).decide(doc("the cat 1 2 3", "prose"))
    assert drop is not None
    assert (drop.reason, drop.threshold) == ("unsure_language", 1)


def test_unknown_languages_are_refused():
    with pytest.raises(ValueError, match="languages holds 'english'; expected some of af am"):
        Language(["english"])
    with pytest.raises(ValueError, match="languages is 'en'; expected a list"):
        Language("en")
