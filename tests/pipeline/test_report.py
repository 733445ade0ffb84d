"""The report is one page that loads nothing, and its charts hold what they were given."""

import ast
import fnmatch
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import lxml.html
import pytest
import yaml
from jinja2 import UndefinedError
from markupsafe import Markup
from page_text import rows, words

from pipeline.pages import html
from pipeline.pages.charts import Line, line_chart
from pipeline.reporting import page as page_module
from pipeline.reporting.data import measured
from pipeline.reporting.page import render
from pipeline.run_stage import run_stage
from pipeline.system.progress import format_seconds

ROOT = Path(__file__).resolve().parents[2]
REPLAYED = {"before": 1.0, "after": 1.0, "lost": 0.0}


def test_a_chart_names_its_curves_and_axes_and_escapes_text():
    svg = line_chart([Line("a<b", [(0, 5.0), (10, 2.0)], "--a")], x_name="tokens", y_name="loss", format_x=str)
    assert "a&lt;b 2.000" in svg
    assert "tokens" in svg
    assert "loss" in svg


def test_a_long_curve_stays_small_and_keeps_its_end():
    points = [(float(i), 1.0 / (1 + i)) for i in range(100_000)]
    svg = line_chart([Line("x", points, "--a")], x_name="x", y_name="y", format_x=str)
    assert len(svg) < 20_000
    assert "x 0.000" in svg


def test_every_point_lies_inside_the_picture():
    points = [(0.0, 9.0), *((float(i), 4.0 - i / 100) for i in range(1, 200))]
    svg = line_chart([Line("x", points, "--a")], x_name="x", y_name="y", format_x=str)
    path = re.search(r'points="([^"]+)"', svg)
    assert path is not None
    for pair in path[1].split():
        x, y = map(float, pair.split(","))
        assert 0 <= x <= 720
        assert 0 <= y <= 300


def test_no_points_no_chart():
    assert line_chart([Line("x", [], "--a")], x_name="x", y_name="y", format_x=str) == ""


def test_durations_read_like_a_person_would_say_them():
    assert format_seconds(42.4) == "42 s"
    assert format_seconds(185) == "3 min 05 s"
    assert format_seconds(7 * 3600 + 12 * 60) == "7 h 12 min"


def _report(**parts: Any) -> dict[str, Any]:
    """A report.json with nothing in it but these parts."""
    hours = {"stages": [], "price_per_hour": None, "pretrain_lives": None}
    return {"name": "x", "identity": [], "metrics": [], "hours": hours, **parts}


PRETRAIN = {
    "initial_val_bits_per_byte": 4.0,
    "val_bits_per_byte": 3.0,
    "bits_per_byte": {},
    "gpu_hours_total": 0.01,
    "max_gpu_hours": 0.01,
    "tokens_seen": 10,
    "tokens_per_second": 1.0,
    "annealed": False,
    "stopped_by": "gpu_hours",
    "epochs": {},
    "mix": {},
}
INIT = {"method": "random", "parameters": {"source": None, "grown": 7}, "grown_bits_per_byte": 4.0,
        "max_abs_logit_diff": None}  # fmt: skip


def test_a_run_that_was_exported_without_a_validation_still_gets_its_page():
    page = render(_report(init=INIT, pretrain=PRETRAIN))
    assert ("after pretraining", "7", "3.0000", "", "") in rows(page)
    page = render(_report(init=INIT, pretrain={**PRETRAIN, "val_bits_per_byte": None}))
    assert "not measured" in words(page)
    assert "after pretraining" not in page


def test_the_page_says_how_often_each_source_was_read_and_what_share_it_had():
    read = {
        "epochs": {"code": 2.4567, "more <x>": 0.1},
        "mix": {"stable": {"code": 0.75, "more <x>": 0.25}, "decay": {"code": 1.0}},
    }
    shown = rows(render(_report(pretrain={**PRETRAIN, **read})))
    assert ("code", "2.46", "75.0%", "100.0%") in shown
    assert ("more <x>", "0.10", "25.0%", "0.0%") in shown
    read = {"epochs": {"code": 0.5}, "mix": {"stable": {"code": 1.0}, "decay": {}}}
    assert "decay phase" not in render(_report(pretrain={**PRETRAIN, **read}))


def test_no_text_of_a_user_becomes_markup():
    """Names, prompts, texts and messages of a run stand on the page as they are."""
    evil = '</pre><script src="//x">&lt;</script>\'"'
    pretrain = {**PRETRAIN, "epochs": {evil: 1.0}, "mix": {"stable": {evil: 1.0}}, "stopped_by": evil,
                "bits_per_byte": {evil: 1.0}, "samples": [{"prompt": evil, "text": evil}], "replay": {evil: REPLAYED},
                "cards": [{"device": evil, "lives": 1, "gpu_hours": 1.0}]}  # fmt: skip
    metrics = [{"budget/tokens": 1, f"val/{evil}/bits_per_byte": 1.0}]
    scores = {evil: {"score": None, "why": evil}}
    rows_ = [{"kind": evil, "disk_bytes": 1, "memory_bytes": 1, "scores": {evil: {"score": 1.0}}, "speed_why": evil}]
    page = render(
        _report(
            name=evil,
            init={**INIT, "method": evil},
            pretrain=pretrain,
            metrics=metrics,
            evaluate={"scores": scores},
            quantize={"rows": rows_, "on_device": evil},
        )
    )
    assert page.count("<script") == 1  # the page's own
    assert page.count('"//x"') == page.count('src="//x"') == 0
    assert words(page).count(evil) > 15
    records = [{"path": evil, "text": evil, "value": evil, "threshold": 1, "detail": evil}]
    shown = html.render("examples.html", records=records, measured=measured)
    assert "<script" not in shown
    assert words(shown).count(evil) == 4


def test_every_reason_of_a_rule_or_a_reader_has_words():
    reasons = {"top_4_gram", "duplicated_10_n_grams", "dup_line_frac", "dup_line_char_frac", "dup_para_char_frac"}
    reasons |= {"email", "ip", "key", "below_min_score", "not_utf8", "stub_passed"}
    for path in [*(ROOT / "data_filters").rglob("*.py"), *(ROOT / "pipeline").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("Drop", "Unreadable") and node.args:
                reasons |= {node.args[0].value} if isinstance(node.args[0], ast.Constant) else set()
    assert len(reasons) > 60
    known = yaml.safe_load(html.REASONS.read_text(encoding="utf-8"))
    assert [reason for reason in reasons if not {reason, re.sub(r"\d+", "N", reason)} & known.keys()] == []
    assert html.reason_in_words("top_4_gram") == "one phrase of 4 words makes up too much of it"
    assert html.reason_in_words("a_rule_of_my_own") == "a rule of my own"


def test_headings_get_addresses_and_links_and_few_of_them_no_links():
    page = Markup("<h2>Data</h2><h3>A &amp; B: more</h3><h2>Data</h2>")
    shown = html.with_contents(page)
    assert shown.startswith(
        '<nav aria-label="Contents"><a class="to-h2" href="#data">Data</a>\n<a class="to-h3" href="#a-b">'
    )
    assert shown.endswith('<h2 id="data">Data</h2><h3 id="a-b">A &amp; B: more</h3><h2 id="data-2">Data</h2>')
    assert html.with_contents(Markup("<h2>Data</h2>")) == '<h2 id="data">Data</h2>'


def test_a_run_has_its_figures_beside_the_loss():
    rows = [{"budget/tokens": 1000 * i, "train/loss": 4.0, "train/lr": 2e-4, "train/grad_norm": 0.75,
             "perf/tokens_per_second": 12_300, "perf/peak_memory_bytes": 1.5e9} for i in range(9)]  # fmt: skip
    page = render(_report(pretrain=PRETRAIN, metrics=rows))
    for value in ("train 4.000", "speed 12.3k", "norm 0.75", "rate 0.0002", "peak 1.5"):
        assert f">{value}</text>" in page
    assert page.count("data-hover=") == 5  # nothing was validated: no chart of held-out text


def test_no_template_switches_escaping_off_and_each_names_what_it_lacks():
    for path in html.TEMPLATES.iterdir():
        if path.is_file():
            assert not re.search(r"\|\s*safe|autoescape", path.read_text(encoding="utf-8")), path
    with pytest.raises(UndefinedError, match="records"):
        html.render("examples.html")


def test_every_template_is_installed_with_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    shipped = project["tool"]["setuptools"]["package-data"]["pipeline"]
    templates = [path for path in html.TEMPLATES.iterdir() if path.is_file()]
    assert {"page.html", "style.css", "data_card.md"} <= {path.name for path in templates}
    for path in templates:
        inside = path.relative_to(ROOT / "pipeline").as_posix()
        assert any(fnmatch.fnmatch(inside, pattern) for pattern in shipped), inside


def test_several_runs_are_drawn_in_one_chart_with_what_differs_in_their_configs(pretrained):
    first, second = pretrained(), pretrained("name=other", "train.learning_rate=1e-3")
    run_stage("pretrain", second, "small.yaml")
    path = page_module.write_several([first, second])
    assert path == page_module.Experiment(first).folder / "report-with-other.html"
    page = path.read_text(encoding="utf-8")
    assert [row[:2] for row in rows(page)[1:3]] == [("small", "annealed"), ("other", "annealed")]
    assert ("train.learning_rate", "0.005", "0.001") in rows(page)
    assert not [row for row in rows(page) if row[0] in ("name", "train.sequence_length")]
    loss = json.loads(lxml.html.fromstring(page).xpath("//svg/@data-hover")[0])
    assert [line["name"] for line in loss["lines"]] == ["small", "other"]
    for link in lxml.html.fromstring(page).xpath("//td/a/@href"):
        assert (path.parent / link).is_file(), link


def test_a_pretraining_under_way_has_its_curves_only_where_they_are_asked_for(pretrained):
    config = pretrained()
    folder = page_module.Experiment(config).stage_folder("pretrain")
    (folder / "manifest.json").unlink()
    report = page_module.so_far(config)
    assert "pretrain" not in report
    assert report["metrics"]
    page = render(report, live=["pretrain running"])
    assert "Pretraining under way" in words(page)
    assert "<body data-live>" in page
    assert "Pretraining under way" not in page_module.write(config).read_text(encoding="utf-8")
    assert "Pretraining under way" in page_module.write(config, unfinished=True).read_text(encoding="utf-8")
