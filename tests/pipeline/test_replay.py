"""What a grown model lost on the text it came from: facts, a line for the console, a row of the page."""

from pathlib import Path

import pytest
from page_text import rows

from pipeline import config as configs
from pipeline.corpus.text.intervals import replay_in_words, replay_lines
from pipeline.pages import html
from pipeline.training.finish import what_was_lost

TINY = Path(__file__).resolve().parents[2] / "configs" / "tiny.yaml"


def _facts(before: dict, after: dict) -> dict:
    return what_was_lost(configs.load(TINY, ["data.sources.exercises.replay=true"]), before, after)


def test_only_marked_sources_are_compared_and_the_difference_has_a_sign():
    facts = _facts({"exercises": 1.0, "textbook": 2.0}, {"exercises": 1.25, "textbook": 1.0})
    assert facts == {"exercises": {"before": 1.0, "after": 1.25, "lost": 0.25}}
    assert "lost 0.2500" in replay_lines({"replay": facts})[0]
    better = _facts({"exercises": 1.0}, {"exercises": 0.75})
    assert "gained 0.2500" in replay_lines({"replay": better})[0]
    assert what_was_lost(configs.load(TINY), {"exercises": 1.0}, {"exercises": 2.0}) == {}
    assert replay_lines({}) == []  # a manifest from before there was such a thing


@pytest.mark.parametrize(("before", "after"), [({}, {"exercises": 1.0}), ({"exercises": 1.0}, {})])
def test_what_was_not_measured_is_said(before, after):
    facts = _facts(before, after)
    assert facts["exercises"]["lost"] is None
    assert "not measured" in replay_lines({"replay": facts})[0]


def test_the_page_shows_share_before_and_after():
    facts = _facts({"exercises": 1.0}, {"exercises": 1.25})
    pretrain = {"replay": facts, "mix": {"stable": {"exercises": 0.3}, "decay": {}}, "bits_per_byte": {}, "epochs": {}}
    page = html.render("pretrain.html", pretrain=pretrain, curves={}, phases={}, in_words=replay_in_words)
    assert ("exercises", "30%", "1.0000 bits per byte before, 1.2500 after: lost 0.2500") in rows(page)
    page = html.render("pretrain.html", pretrain={**pretrain, "replay": {}}, curves={}, phases={})
    assert "Kept and lost" not in page
