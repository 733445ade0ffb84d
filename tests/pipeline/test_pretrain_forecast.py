"""Forecast against fact: the memory of a step and the length of the run, in the manifest of every pretraining."""

import json

import pytest
from test_pretrain import Small, driver, hours, small, small_inputs  # noqa: F401 - fixtures

from pipeline.pretrain import forecast_lines
from pipeline.training import forecast
from pipeline.training.budget import Budget, Limits
from pipeline.training.cap import Cap
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
    assert time["ratio"] == pytest.approx(time["predicted_seconds"] / time["seconds"], rel=0.05)  # both are rounded
    assert first["forecast"]["predicted"]["end_step"] == 80
    records = [json.loads(line) for line in (small.folder / "decisions.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if r["kind"] == "memory"] == [0]
    made = [r for r in records if r["kind"] == "forecast"]
    assert [8 <= made[0]["step"] <= 21, made[1]["step"]] == [True, 27]
    assert time["again"]["at_step"] == 27
    assert time["range"][0] <= time["predicted_seconds"] <= time["range"][1]

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
    budget = Budget(
        Limits(Cap(1000.0 / 3600), None, 0.3, checkpoint_every_seconds=1e9), lambda: now[0], Decisions(None)
    )
    for kind in ("validation", "checkpoint", "export"):
        budget.measured.event(kind, 5.0)
    for step in range(1, 401):
        now[0] += 1.0
        budget.measured.step(1.0)
        budget.decide(step)
        forecast.predict_time(budget, step)
    record, again = budget.decisions.of_kind("forecast")
    assert record["step"] == 90  # a tenth of the cap
    # 1000 s less 10 s of start, 4 validations, checkpoint, export and the reserve's margins
    assert 915 < record["steps"] < 965
    assert record["seconds"] == pytest.approx(980, abs=20)
    assert record["steps_range"][0] < record["steps"] < record["steps_range"][1]
    assert (again["step"], again["steps"]) == (324, record["steps"]) or 300 < again["step"] < 340
    narrower = again["steps_range"][1] - again["steps_range"][0]
    assert narrower < record["steps_range"][1] - record["steps_range"][0]


def test_the_last_lines_say_what_to_make_of_a_forecast_that_was_wrong() -> None:
    """20 quiet steps, then a machine half as fast."""
    now, decisions = [0.0], Decisions(None)
    budget = Budget(Limits(Cap(1000.0 / 3600), None, 0.3, checkpoint_every_seconds=1e9), lambda: now[0], decisions)
    step = 0
    while now[0] < 900:
        step += 1
        now[0] += (seconds := 1.0 if step <= 100 else 2.0)
        budget.measured.step(seconds)
        forecast.predict_time(budget, step)
    facts = {"memory": {}, "time": forecast.time_facts(budget, step)}
    first, said = forecast_lines(facts)
    assert first == f"  forecast over fact: length {facts['time']['ratio']:.3f}"
    assert facts["time"]["ratio"] > 1.5
    assert "at step 100" in said
    assert f"steps were forecast, {step:,} came" in said
    assert "a step took 2 s after it, 1" in said
    assert "the machine got slower" in said
    assert facts["time"]["again"]["ratio"] < facts["time"]["ratio"]


def test_a_forecast_within_its_range_says_so() -> None:
    time = {"ratio": 1.02, "range": [90, 110], "unit": "steps", "steps": 100, "at_step": 10}
    assert forecast_lines({"memory": {}, "time": time})[1].endswith("100 came: within the range")
