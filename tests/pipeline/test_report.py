"""The report is one page without network or script, and its charts hold what they were given."""

import re

from pipeline.pages.charts import Line, line_chart
from pipeline.system.progress import format_seconds


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


def test_a_run_that_was_exported_without_a_validation_still_gets_its_page():
    from pipeline.reporting.page import _growth, _summary

    pretrain = {
        "initial_val_bits_per_byte": 4.0,
        "val_bits_per_byte": None,
        "gpu_hours_total": 0.01,
        "max_gpu_hours": 0.01,
        "tokens_seen": 10,
        "tokens_per_second": 1.0,
        "annealed": False,
        "stopped_by": "gpu_hours",
    }
    init = {
        "method": "random",
        "parameters": {"source": None, "grown": 7},
        "grown_bits_per_byte": 4.0,
        "max_abs_logit_diff": None,
    }
    assert "not measured" in _summary(None, init, pretrain)
    assert "after pretraining" not in _growth(init, pretrain)


def test_the_page_says_how_often_each_source_was_read_and_what_share_it_had():
    from pipeline.reporting.page import _text_read

    table = _text_read(
        {
            "epochs": {"code": 2.4567, "more <x>": 0.1},
            "mix": {"stable": {"code": 0.75, "more <x>": 0.25}, "decay": {"code": 1.0}},
        }
    )
    rows = [re.sub(r"<[^>]+>", "|", row).strip("|") for row in table.split("<tr>")[2:]]
    assert rows == ["code|2.46|75.0%|100.0%", "more &lt;x&gt;|0.10|25.0%|0.0%"]
    assert "decay" not in _text_read({"epochs": {"code": 0.5}, "mix": {"stable": {"code": 1.0}, "decay": {}}})
