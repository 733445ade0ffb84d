"""Forecast against fact: the memory of a step and the length of the run, in the manifest of every pretraining."""

import json

import pytest
from test_pretrain import Small, driver, hours, small, small_inputs  # noqa: F401 - fixtures

from pipeline.training import forecast
from pipeline.training.budget import Budget, Plan
from pipeline.training.decisions import Decisions


def test_a_run_says_beforehand_what_memory_a_step_takes_and_how_long_it_will_be(small: Small) -> None:  # noqa: F811
    wide = ("seed=5", "model.hidden_size=256", "model.intermediate_size=1024", "train.precision=32-true")
    driver.make_inputs(small.config(*wide))
    small.mix = wide
    first = small.run_here("budget.max_tokens=40_960", *wide)
    memory, time = first["forecast"]["memory"], first["forecast"]["time"]
    assert memory["traced_bytes"] > 16 * 1.5e6  # weights, gradients and two moments in fp32
    assert memory["predicted_bytes"] == memory["traced_bytes"] + memory["held_before_bytes"]
    assert memory["ratio"] == pytest.approx(memory["predicted_bytes"] / memory["measured_bytes"], abs=1e-4)
    assert 0.7 < memory["ratio"] < 1.1
    assert first["peak_memory_bytes"] >= memory["measured_bytes"]
    assert (time["predicted_steps"], time["steps"]) == (80, 80)
    assert 0.3 < time["ratio"] < 3  # a busy machine
    assert first["forecast"]["predicted"]["end_step"] == 80
    records = [json.loads(line) for line in (small.folder / "decisions.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if r["kind"] == "memory"] == [0]
    made = [r for r in records if r["kind"] == "forecast"]
    assert [8 <= r["step"] <= 21 for r in made] == [True]

    longer = small.run_here("budget.max_tokens=61_440", *wide)["forecast"]
    assert longer["memory"]["traced_bytes"] == memory["traced_bytes"]
    assert longer["time"] == {} or longer["time"]["predicted_steps"] == 120


def test_a_cap_too_short_for_a_trace_says_so(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(forecast, "LEAST_CAP_SECONDS", 1e9)
    manifest = small.run_here("budget.max_tokens=5_120", hours(1e6))
    assert "not traced" in manifest["forecast"]["memory"]["reason"]
    assert manifest["forecast"]["time"] == {}


def test_the_forecast_of_a_steady_machine_is_right() -> None:
    now = [10.0]
    budget = Budget(Plan(1000.0, None, 0.3, checkpoint_every_seconds=1e9), lambda: now[0], Decisions(None))
    for kind in ("validation", "checkpoint", "export"):
        budget.measured.event(kind, 5.0)
    for step in range(1, 101):
        now[0] += 1.0
        budget.measured.step(1.0)
        budget.decide(step)
        forecast.predict_time(budget, step)
    (record,) = budget.decisions.of_kind("forecast")
    assert record["step"] == 90  # a tenth of the cap
    # 1000 s less 10 s of start, 4 validations, checkpoint, export and the reserve's margins
    assert 915 < record["steps"] < 965
    assert record["seconds"] == pytest.approx(980, abs=20)
