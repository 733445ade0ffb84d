"""The account of a data stage: it closes to zero, fits its schema, and says of private text nothing but figures."""

import itertools
import json
import re
import zlib

import numpy as np
import orjson
import pytest
import yaml
from data_corpus import make_config, prose, write_corpus
from json_schema import SCHEMA, problems, report_of
from page_text import words

from data_filters.rule import PROSE
from pipeline import stages
from pipeline.corpus import statistics
from pipeline.corpus.scorers.document_scorers import SHIPPED
from pipeline.corpus.scorers.linear import auc, read_roc, roc_curve
from pipeline.corpus.statistics import Provenance, metadata_of, notices
from pipeline.corpus.text.documents import read_decisions
from pipeline.corpus.text.shards import TokenShards
from pipeline.corpus.text.tokenizer import load_tokenizer
from pipeline.pages import html
from pipeline.pages.charts import roc_chart, score_chart
from pipeline.pages.data_card import ATTRIBUTION, CARD, REPORT
from pipeline.reporting.data import data_view
from pipeline.reporting.page import collect, render, write_shared
from pipeline.run_stage import run_stage
from pipeline.storage.steps import read_manifest

UNITS = ("documents", "bytes", "tokens")
SECRET = "zanzibar"


@pytest.fixture(scope="module")
def account(finished) -> dict:
    return json.loads((finished[0] / REPORT).read_text())


@pytest.fixture(scope="module")
def page(finished) -> tuple[dict, str]:
    folder = finished[0]
    found = collect(make_config(folder / "in"), {"data": folder}, folder / "no-ledger")
    return found, render(found)


def test_what_came_in_is_what_is_kept_and_what_was_dropped_in_every_unit(account, finished):
    flow, (folder, manifest) = account["funnel"], finished
    drops = [drop for step in flow["steps"] for drop in step["drops"]]
    for unit in UNITS:
        assert flow["read"][unit] == flow["kept"][unit] + sum(drop[unit] for drop in drops)
        left = flow["read"][unit]
        for step in flow["steps"]:
            left -= sum(drop[unit] for drop in step["drops"])
            assert step["left"][unit] == left
    counts = manifest["documents"]
    assert flow["read"]["documents"] == counts["read"]
    assert flow["kept"]["documents"] == counts["kept"]
    by_filter: dict[str, int] = {}
    for drop in drops:
        by_filter[drop["filter"]] = by_filter.get(drop["filter"], 0) + drop["documents"]
    assert by_filter.pop("unreadable") == counts["unreadable"]
    assert by_filter == counts["dropped"]
    sets = TokenShards.open(folder)
    everything = [*sets.train.values(), *(s for name, s in sets.val.items() if name != "textbook")]
    assert flow["kept"]["tokens"] >= sum(s.n_tokens for s in everything)
    assert flow["kept"]["bytes"] >= sum(s.n_bytes for s in everything)
    before_cut = next(step["left"]["tokens"] for step in flow["steps"] if step["step"] == "near_dedup")
    assert before_cut == next(row["tokens"] for row in manifest["funnel"] if row["step"] == "near_dedup")


def test_tokens_of_what_was_never_encoded_are_estimated_near_the_truth(account, finished):
    copy = next(
        drop for step in account["funnel"]["steps"] for drop in step["drops"] if drop["filter"] == "exact_dedup"
    )
    tokenizer = load_tokenizer(finished[0] / "tokenizer.json")
    assert not copy["tokens_measured"]
    ids = tokenizer.encode(prose(3), add_special_tokens=False).ids
    assert copy["tokens"] == len(ids) + 1  # one text, all of it in the sample


def test_report_json_fits_the_shipped_schema_and_a_wrong_one_does_not(page):
    found = page[0]
    assert problems(found, SCHEMA) == []
    broken = json.loads(json.dumps(found))
    broken["data"]["funnel"]["kept"]["tokens"] = "many"
    broken["data"]["sources"]["web"]["nonsense"] = 1
    del broken["hours"]
    assert len(problems(broken, SCHEMA)) == 3


def test_the_page_is_the_json_and_needs_nothing_else(page):
    found, text = page
    assert render(json.loads(json.dumps(found))) == text
    assert text.count("<script") == 1
    assert not re.search(r"<script src|<link|<img|src=|url\(|@import", text)
    for wanted in ("prefers-color-scheme: dark", "@media print", "viewport"):
        assert wanted in text
    assert "leaves 0 documents, 0 bytes and 0 tokens" in words(text)
    for count in ("read", "kept"):
        assert f"{found['data']['funnel'][count]['documents']:,}" in text


def test_a_folder_without_its_account_says_how_to_get_it(finished, tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps(finished[1]))
    found = collect(make_config(finished[0] / "in"), {"data": tmp_path}, tmp_path / "no-ledger")
    assert problems(found, SCHEMA) == []
    assert "Delete data/manifest.json" in render(found)


def test_near_misses_are_those_nearest_to_the_limit(root):
    lines = [json.dumps({"text": " ".join(["word"] * n), "domain": f"d{n}"}) for n in range(1, 20)]
    lines += [json.dumps({"text": prose(i), "domain": f"site{i}"}) for i in range(20)]
    path = root / "in.jsonl"
    path.write_text("\n".join(lines))
    config = make_config(
        path, data__filters={"length": {"min_characters": 100}}, data__sources__exercises=None, data__tasks=2
    )
    run_stage("data", config, "x.yaml")
    folder = stages.data_step(config).path
    account = json.loads((folder / REPORT).read_text())
    entry = next(e for e in account["gallery"] if e["filter"] == "length")
    rules = next(s for s in stages.data_step(config).chain() if s.name == "data-rules")
    values = sorted(record["value"] for _, record in read_decisions(rules.path, 2))
    assert entry["documents"] == len(values) == 19
    assert sorted(e["value"] for e in entry["near_misses"]) == values[-2:] == [89, 94]
    assert all(e["text"].startswith("word word") for e in entry["near_misses"])
    before = read_manifest(folder)["content_hash"]
    (folder / "manifest.json").unlink()  # as the page advises where the account is missing
    run_stage("data", config, "x.yaml")
    assert read_manifest(folder)["content_hash"] == before


def test_private_text_is_shown_to_its_owner_and_named_nowhere_in_what_is_passed_on(root, capsys):
    folder = root / f"{SECRET}-files"
    folder.mkdir()
    for i in range(12):
        (folder / f"{SECRET}-{i}.md").write_text(f"{SECRET} {prose(i)}")
        (folder / f"{SECRET}-short-{i}.md").write_text(SECRET)
    (folder / f"{SECRET}-bad.md").write_bytes(f"{SECRET} ".encode() + b"\xff\xfe")
    (folder / f"notes.{SECRET}").write_text("of an ending that is not read")
    items = root / "items.txt"
    items.write_text(prose(2, 1))
    public = root / "web.jsonl"
    public.write_text("\n".join(json.dumps({"text": prose(100 + i), "license": "GPL-3.0-only"}) for i in range(12)))
    config = make_config(
        public,
        data__sources={
            f"{SECRET}_notes": {"type": "text", "path": str(folder), "license": "own"},
            "web": {"type": "jsonl", "path": str(public)},
        },
        data__filters={"length": {"min_characters": 50}},
        data__max_unreadable=0.5,
        data__decontamination={"files": [str(items)], "ngram_words": 8, "min_words": 5},
        data__near_dedup_similarity=0.95,
    )
    run_stage("data", config, "x.yaml")
    capsys.readouterr()
    made = stages.data_step(config).path
    card, attribution = (made / CARD).read_text(), (made / ATTRIBUTION).read_text()
    for text in (card, attribution):
        assert SECRET not in text
        assert "private text" in text
    assert "GPL-3.0-only" in attribution
    source = f"{SECRET}_notes"
    found, page = report_of("test")
    for word in (f"{SECRET}-short-", f"{SECRET}-bad.md", f".{SECRET}", f"<td>{source}</td>", "report test --share"):
        assert word in page
    assert write_shared(config) == root / "runs" / "test" / "shared" / "report.html"
    found, page = report_of("test/shared")
    assert "report test --share" not in page
    for text in (json.dumps(found), page):
        assert SECRET not in text
        assert str(root) not in text
        assert "private text" in text
    account = found["data"]
    assert account["licence"]["kind"] == "private"
    assert [terms["kind"] for terms in account["licence"]["terms"]] == ["private", "copyleft"]
    assert account["contamination"]["items_matched"] == 1
    reasons = {(entry["filter"], entry["reason"]) for entry in account["gallery"]}
    assert {("unreadable", "not_utf8"), ("length", "too_short"), ("contamination", "shared_words")} <= reasons
    assert any(e.get("private") for entry in account["gallery"] for e in entry["examples"])
    assert all(e.get("private") for entry in account["gallery"] for e in entry["examples"] if "text" not in e)
    manifest = read_manifest(made)
    assert {name: s["private"] for name, s in manifest["sources"].items()} == {source: True, "web": False}


def test_the_card_has_front_matter_and_is_part_of_the_stage_but_not_of_its_content(finished):
    folder, manifest = finished
    front = yaml.safe_load((folder / CARD).read_text().split("---")[1])
    assert front["license"] == "other"
    assert front["size_categories"] == ["n<1K"]
    assert {REPORT, CARD, ATTRIBUTION} <= manifest["outputs"].keys()
    card = (folder / CARD).read_text()
    assert f"{manifest['documents']['read']:,} documents read" in card
    assert manifest["fingerprint"] in card


def test_metadata_of_a_stored_line_is_what_parsing_all_of_it_gives():
    tricky = 'a ,"metadata":{"x":1} in the text \\ "'
    for record in ({"k": 1}, {"metadata": tricky}, None):
        metadata = {"path": tricky, "record": record, "kind": PROSE, "at": {"metadata": 2}}
        stored = {"text": tricky, "id": "1", "metadata": metadata}
        assert metadata_of(orjson.dumps(stored, option=orjson.OPT_APPEND_NEWLINE)) == metadata
    assert metadata_of(orjson.dumps({"metadata": {"a": 1}, "text": "x"})) == {"a": 1}


def test_attribution_has_the_copyright_of_the_very_version_that_was_read():
    import importlib.metadata

    version = importlib.metadata.version("numpy")
    counted = Provenance()
    for package, of in (("numpy", version), ("numpy", "0.0.1"), ("python", "3.11")):
        counted.add({"source": "s", "package": package, "version": of, "license": "BSD-3-Clause"}, 10, 5)
    counted.add({"source": "s", "package": "numpy", "version": version, "license": "BSD License"}, 10, 5)
    rows = counted.rows()
    assert rows[0]["documents"] == 2  # two spellings of one licence are one row
    found = {(n["package"], n["version"]): n for n in notices(rows)}
    assert any("NumPy Developers" in line for line in found["numpy", version]["copyright"])
    assert ("numpy", "0.0.1") not in found
    assert any("Python Software Foundation" in line for line in found["python", "3.11"]["copyright"])
    assert any(
        "requests" in n["notice"].lower()
        for n in notices([{"package": "requests", "version": importlib.metadata.version("requests")}])
    )


def test_the_roc_curve_holds_the_area_and_the_shipped_one_is_that_of_the_shipped_scorer():
    rng = np.random.default_rng(1)
    good = rng.random(500) < 0.4
    scores = np.round(rng.random(500) * 0.5 + 0.3 * good, 2)
    curve = np.array(roc_curve(scores, good, points=1_000))
    assert np.trapezoid(curve[:, 1], curve[:, 0]) == pytest.approx(auc(scores, good), abs=1e-3)
    from pipeline.corpus.scorers.linear import load_scorer

    shipped = np.array(read_roc(SHIPPED))
    assert np.trapezoid(shipped[:, 1], shipped[:, 0]) == pytest.approx(load_scorer(SHIPPED).facts["auc"], abs=5e-3)
    assert (np.diff(shipped[:, 2]) <= 0).all()
    assert "cut at 0.5" in roc_chart(shipped.tolist(), 0.5)


def test_diversity_is_high_for_varied_and_low_for_repeated_text():
    rng = np.random.default_rng(2)
    varied = statistics.diversity([rng.integers(0, 64, 4096)], 64, "".join(map(chr, rng.integers(97, 120, 4096))))
    repeated = statistics.diversity([np.tile(np.arange(8), 512)], 64, "the same words " * 300)
    assert varied["entropy_bits_per_token"] == pytest.approx(6, abs=0.05)
    assert repeated["entropy_bits_per_token"] == 3
    assert repeated["distinct_ngrams"]["4"] == round(8 / 4093, 4)
    assert varied["distinct_ngrams"]["4"] > 0.99
    assert repeated["vocabulary_used"] == 8 / 64
    text = "the same words " * 300
    assert repeated["compression_ratio"] == round(len(text) / len(zlib.compress(text.encode(), 6)), 3)


def test_lengths_and_scores_fall_into_the_bins_that_hold_them():
    rows = statistics.length_histogram(np.array([1, 3, 4, 7, 8]))
    assert [(r["from_tokens"], r["documents"], r["tokens"]) for r in rows] == [
        (1, 1, 1),
        (2, 1, 3),
        (4, 2, 11),
        (8, 1, 8),
    ]
    assert statistics.length_histogram(np.zeros(0, dtype=np.int64)) == []
    scores = np.array([0.0, 0.49, 0.5, 1.0])
    histogram = statistics.score_histogram(scores, {"train": np.array([2, 3]), "not kept": np.array([0, 1])})
    assert histogram["train"][10] == histogram["train"][-1] == 1
    assert score_chart(histogram, 0.5).count("<rect") == 40
    assert score_chart({"train": [0] * 20}, None) == ""


def test_the_tenths_hold_every_scored_document_once_and_show_two_of_each(root, capsys):
    scorer = {"type": "shipped", "sources": ["web"]}
    config = make_config(write_corpus(root / "in"), data__scorer=scorer, data__filters__quality={})
    run_stage("data", config, "x.yaml")
    capsys.readouterr()
    account = json.loads((stages.data_step(config).path / REPORT).read_text())
    tenths, histogram = account["quality"]["deciles"], account["quality"]["histograms"]["web"]
    assert [t["decile"] for t in tenths] == list(range(1, 11))
    assert all(a["lowest"] >= b["highest"] for a, b in itertools.pairwise(tenths))
    assert sum(t["documents"] for t in tenths) == sum(map(sum, histogram.values()))
    assert all(len(t["examples"]) == 2 for t in tenths)
    assert sum(t["kept"] for t in tenths) == sum(histogram["train"]) + sum(histogram["validation"])
    assert "AUC 0.8" in html.render("data.html", **data_view(account))
