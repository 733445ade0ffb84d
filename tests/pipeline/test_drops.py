"""Dropped texts are shown with their reason and limit, beside kept ones that measure nearly as much."""

import json
import os

import pytest
from data_corpus import make_config, prose, write_corpus
from datatrove.data import Document

from data_filters.rule import measured
from data_filters.table import FILTERS
from pipeline import __main__ as command
from pipeline.run_stage import run_stage

SECRET = "zanzibar"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A root with the data stage of two public sources and a private one; the working folder of the tests."""
    folder = tmp_path_factory.mktemp("drops")
    before = os.environ.get("HORNBOOK_ROOT")
    os.environ["HORNBOOK_ROOT"] = str(folder)
    corpus = write_corpus(folder / "in")
    lines = [json.dumps({"text": prose(i, sentences=3)}) for i in range(5)]  # 15 words a sentence: under 50
    lines += [json.dumps({"text": prose(100 + i, sentences=4 + i)}) for i in range(5)]
    (folder / "short.jsonl").write_text("\n".join(lines) + "\n")
    notes = folder / SECRET / f"{SECRET}-notes"
    notes.mkdir(parents=True)
    for i in range(6):
        (notes / f"{SECRET}{i}.md").write_text(prose(200 + i, sentences=2 if i < 2 else 9) + f"\n{SECRET} is ours.\n")
    sources = {
        "web": {"type": "jsonl", "path": str(corpus), "group_key": "domain", "license": "MIT"},
        "pages": {"type": "jsonl", "path": str(folder / "short.jsonl"), "license": "MIT"},
        f"{SECRET}_source": {"type": "text", "path": str(folder / SECRET), "license": "own"},
    }
    config = make_config(
        corpus, data__sources=sources, data__max_unreadable=0.5,
        data__filters={"length": {"min_characters": 50}, "gopher_quality": {}},
    )  # fmt: skip
    try:
        run_stage("data", config, "test")
        yield folder, config
    finally:
        os.environ.pop("HORNBOOK_ROOT") if before is None else os.environ.update(HORNBOOK_ROOT=before)


@pytest.fixture
def hornbook(home, monkeypatch, capsys):
    monkeypatch.setenv("HORNBOOK_ROOT", str(home[0]))

    def run(*words: str) -> tuple[int, str, str]:
        code = command.run_guarded(command.parse(words))
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_a_dropped_text_stands_beside_the_kept_one_of_its_source_that_measures_nearest(hornbook):
    code, out, _ = hornbook("drops", "test", "--reason", "gopher_quality", "--source", "pages", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["reasons"] == [{"filter": "gopher_quality", "reason": "gopher_short_doc", "documents": 5}]
    assert len(found["drops"]) == 5
    for drop in found["drops"]:
        assert (drop["source"], drop["limit"]) == ("pages", 50)
        assert drop["value"] == len(drop["text"].split()) < 50
        assert drop["kept"]["value"] == len(drop["kept"]["text"].split()) >= 50
        assert drop["kept"]["text"] == prose(100, sentences=4)  # the shortest of the kept ones
    code, out, _ = hornbook("drops", "test", "--reason", "gopher_quality", "--source", "pages", "-n", "2")
    assert code == 0
    assert out.count("  dropped  short.jsonl:") == 2
    assert "gopher_quality: gopher_short_doc; measured 45; limit 50" in out
    assert f"  kept     {found['drops'][0]['kept']['path']}  measured {len(prose(100, 4).split())}; limit 50" in out


def test_every_reason_gets_its_turn_and_a_copy_stands_beside_its_original(hornbook):
    found = json.loads(hornbook("drops", "test", "-n", "20", "--json")[1])
    assert {drop["reason"] for drop in found["drops"]} == {row["reason"] for row in found["reasons"]}
    [copy] = [drop for drop in found["drops"] if drop["filter"] == "exact_dedup"]
    assert copy["kept"]["by"] == "original"
    assert copy["kept"]["text"].split() == copy["text"].split()
    unread = [drop for drop in found["drops"] if drop["filter"] == "unreadable"]
    assert unread
    assert all(drop["kept"] is None for drop in unread)
    shown = hornbook("drops", "test", "--source", f"{SECRET}_source")[1]
    assert f"{SECRET}0.md" in shown  # the owner's own terminal
    assert f"{SECRET} is ours" in shown


def test_names_that_are_none_are_answered_with_those_there_are(hornbook):
    for words, expected in [
        (("--reason", "gopher_qualty"), "did you mean 'gopher_quality'"),
        (("--source", "page"), "did you mean 'pages'"),
        (("-n", "0"), "at least 1"),
    ]:
        code, _, said = hornbook("drops", "test", *words)
        assert code == 2
        assert expected in said
        assert said.count("\n") == 1


BORDERLINE = {  # filter, options, reason, limit, a text it keeps, what it measures of it
    "a count": ("gopher_quality", {}, "gopher_short_doc", 50, prose(1), 15 * 14),
    "a share": ("gopher_quality", {}, "gopher_too_many_hashes", 0.1, "the # and of " * 20 + prose(1), 20 / 290),
    "a share that shares its option": (
        "gopher_quality", {}, "gopher_too_many_ellipsis", 0.1, "the and of it... " * 9 + prose(1), 9 / 246,
    ),
    "a limit in pairs": (
        "gopher_repetition", {"top_n_grams": [[2, 0.9]], "dup_n_grams": []}, "top_2_gram", 0.9, prose(1), None,
    ),
    "characters": ("length", {"min_characters": 10}, "too_short", 10, "x" * 30, 30),
    "letters": ("letters", {}, "few_letters", 0.4, "ab12 " * 10, 0.5),
}  # fmt: skip


@pytest.mark.parametrize("case", BORDERLINE)
def test_what_a_rule_measures_of_a_kept_text_is_found(case):
    name, options, reason, limit, text, expected = BORDERLINE[case]
    rule, doc = FILTERS[name](**options), Document(text=text, id="", metadata={})
    assert rule.decide(doc) is None
    found = measured(rule, doc, reason, limit)
    assert found is not None
    assert found == pytest.approx(expected, rel=1e-2) if expected is not None else 0 < found < limit
    assert measured(rule, doc, "no_such_reason", limit) is None
