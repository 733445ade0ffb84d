"""A page that people pass on shows no name and no text of private documents; a card does not even name their source."""

from page_text import words

from pipeline.corpus.dropped import public_record
from pipeline.pages import html
from pipeline.pages.private import public_names
from pipeline.release.model_card import Lineage, model_card
from pipeline.reporting.data import measured


def _shown(record: dict, private: tuple[str, ...] = ()) -> dict:
    return public_record(record, record["text"], private)


def test_a_page_shows_of_private_text_what_was_measured_and_no_more():
    record = {"source": "notes", "path": "zanzibar/a.md", "text": "zanzibar", "license": "own", "value": 3,
              "threshold": 50, "detail": "z"}  # fmt: skip
    assert _shown(record) == {"private": True, "value": 3, "threshold": 50}
    page = html.render("examples.html", records=[_shown(record)], measured=measured)
    assert words(page) == "private text measured 3; limit 50"
    assert _shown({**record, "license": "MIT"})["path"] == "zanzibar/a.md"
    unread = {"source": "notes", "path": "zanzibar/b.pdf", "text": "zanzibar"}  # it has no licence of its own
    assert _shown(unread, ("notes",)) == {"private": True}
    near = {  # a public twin of a private text
        **record,
        "license": "MIT",
        "source": "web",
        "detail": "notes/zanzibar/a.md",
    }
    assert "detail" not in _shown(near, ("notes",))


def test_a_card_calls_private_sources_private_text():
    sources = {
        "zanzibar": {"licenses": {"own": 2}, "documents": 2},
        "web": {"licenses": {"MIT": 1}, "documents": 1},
    }
    assert public_names(sources) == {"zanzibar": "private text", "web": "web"}
    assert public_names({**sources, "other": {"licenses": {}, "private": True}})["other"] == "private text 2"
    pretrain = {
        "fingerprint": "f", "tokens_seen": 10, "steps": 1, "precision": "32-true", "device": "cpu", "annealed": True,
        "bits_per_byte": {"zanzibar": 1.0, "web": 2.0},
    }  # fmt: skip
    data = {"fingerprint": "d", "tokens": {"train": 10}, "sources": sources}
    init = {"fingerprint": "i", "source": "/home/zanzibar/models/small", "method": "exact", "function_preserving": True}
    card = model_card(Lineage("m", 10, 8, data=data, init=init, pretrain=pretrain))
    assert "zanzibar" not in card
    assert "held-out private text" in card
    assert "grown from small" in card
