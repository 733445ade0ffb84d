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
    drop = Language(min_probability=1, min_letters=0).decide(doc("the cat 1 2 3", "prose"))
    assert drop is not None
    assert (drop.reason, drop.threshold) == ("unsure_language", 1)


@pytest.mark.parametrize(
    "heading", ["Installation Guide", "Data model", "Jawa", "Menu", "API", "Java tutorial", "Lambda"]
)
def test_a_short_heading_is_no_foreign_language_but_a_short_text_in_another_script_is(heading):
    assert Language().decide(doc(heading, "prose")) is None
    assert Language().decide(doc("これは日本語の文章です。", "prose")) is not None
    assert Language().decide(doc("Der Hund läuft schnell über die Straße und bellt die Katze an.", "prose")) is not None


def test_what_a_source_is_expected_to_be_weighs_on_short_texts_only():
    short = "Configuration menu data panel"
    likely, unlikely = (identify(short, ["en"], prior) for prior in (0.99, 0.01))
    assert dict([likely]).get("en", 0) > dict([unlikely]).get("en", 0)
    assert identify("Der Hund läuft schnell über die Straße. " * 9, ["en"], 0.99)[0] == "de"
    with pytest.raises(ValueError, match="prior is 1; expected a probability between 0 and 1"):
        Language(prior=1)


def test_unknown_languages_are_refused():
    with pytest.raises(ValueError, match="languages holds 'english'; expected some of af am"):
        Language(["english"])
    with pytest.raises(ValueError, match="languages is 'en'; expected a list"):
        Language("en")
