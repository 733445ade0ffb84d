"""A page that people pass on shows no name and no text of private documents; a card does not even name their source."""

import json

from page_text import words

from pipeline.corpus.dropped import example_of
from pipeline.pages import html
from pipeline.pages.private import public_names, shared_report
from pipeline.release.model_card import Lineage, model_card
from pipeline.reporting.data import measured


def test_of_private_text_a_page_to_pass_on_shows_what_was_measured_and_no_more():
    record = {"source": "notes", "path": "zanzibar/a.md", "license": "own", "value": 3, "threshold": 50, "detail": "z"}
    own = example_of(record, "zanzibar", ())
    page = html.render("examples.html", records=[own], measured=measured)
    assert "zanzibar/a.md" in words(page)  # the owner's page
    assert own["private"] is True
    public = example_of({**record, "license": "MIT"}, "open", ())
    assert "private" not in public
    unread = example_of({"source": "notes", "path": "zanzibar/b.pdf"}, "zanzibar", ("notes",))  # without a licence
    found = shared_report({"data": None, "samples": [own, public, unread]})["samples"]
    assert found == [{"private": True, "value": 3, "threshold": 50}, public, {"private": True}]
    quoting = {**own, "value": "zanzibar {", "threshold": "none"}  # what C4's rule measures is a line of the text
    assert shared_report({"data": None, "samples": [quoting]})["samples"] == [{"private": True}]
    page = html.render("examples.html", records=found[:1], measured=measured)
    assert words(page) == "private text measured 3; limit 50"


def test_a_shared_report_names_private_sources_nowhere():
    account = {
        "sources": {
            "zanzibar": {"private": True, "licenses": {"own": 1}, "lost_files": [{"file": "zanzibar.md"}],
                         "files": {"skipped": {".zanzibar": 2}}},
            "web": {"private": False, "licenses": {"MIT": 1}, "lost_files": [{"file": "w"}],
                    "files": {"skipped": {".css": 1}}},
        },
        "files": {"skipped": {".zanzibar": 2, ".css": 1}},
        "groups": {"largest": [{"source": "zanzibar", "group": "zanzibar-1"}, {"source": "web", "group": "w"}]},
        "duplicates": {"largest_clusters": [{"path": "zanzibar/a.md"}]},
        "contamination": {"most_matched": [{"item": "zanzibar.txt: item 1"}]},
        "held_out": {"warnings": ["data.sources.zanzibar: one group"], "sources": {"zanzibar": 1, "web": 2}},
        "quality": {"sources": ["zanzibar"], "thresholds": {"zanzibar": 0.5}, "rated": {"note": "by /home/z/l.jsonl"}},
        "gallery": [{"filter": "where", "reason": "zanzibar", "near_misses": [
            {"source": "web", "path": "w/1", "text": "open", "detail": "zanzibar/a.md"}]}],
    }  # fmt: skip
    report = {
        "data": account,
        "metrics": [{"val/zanzibar/bits_per_byte": 1.0, "val/web/bits_per_byte": 2.0}],
        "pretrain": {"mix": {"stable": {"zanzibar": 1.0}}, "bits_per_byte": {"zanzibar": 1.0, "textbook": 1.0},
                     "samples": [{"prompt": "zanzibar", "text": "zanzibar"}]},
        "evaluate": {"scores": {"bits_per_byte/zanzibar": {"score": 1.0}, "cloze": {"score": 0.2}}},
        "finetune": {"bits_per_byte": {"zanzibar_talks": 1.0}, "validation_documents": {"zanzibar_talks": 3}},
    }  # fmt: skip
    found = shared_report(report)
    assert "zanzibar" not in json.dumps(found)
    assert "/home" not in json.dumps(found)
    data = found["data"]
    assert data["sources"]["web"] == account["sources"]["web"]
    assert data["files"]["skipped"] == {"private text": 2, ".css": 1}
    assert data["held_out"]["warnings"] == ["private text: one group"]
    assert data["gallery"][0]["near_misses"] == [{"source": "web", "path": "w/1", "text": "open"}]
    assert found["metrics"] == [{"val/private text/bits_per_byte": 1.0, "val/web/bits_per_byte": 2.0}]
    assert found["evaluate"]["scores"].keys() == {"bits_per_byte/private text", "cloze"}
    assert found["finetune"]["bits_per_byte"] == {"tuning data": 1.0}
    assert found["pretrain"]["samples"] == []
    assert "zanzibar" in json.dumps(report)  # the owner's own stays as it is


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
