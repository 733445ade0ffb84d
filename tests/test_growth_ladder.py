"""The ladder of budgets: runs that survive a kill, rates tuned before they are used, and tables that add up."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scripts import growth_ladder, growth_ladder_report
from scripts.growth_ladder import Group, Lab, Plan, Runs, Scale, Setting

ROOT = Path(__file__).resolve().parents[1]
SMALL = Scale(2, 10, 4, 300, 16, 2, 1, (1e-3, 1e-2, 1e-1))


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Of a scale that trains in a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(growth_ladder.SCALES, "small", SMALL)
        patch.setattr(growth_ladder, "PERMUTED_WINDOWS", 64)
        patch.setattr(growth_ladder, "HELD_OUT_FILES", 8)
        patch.setattr(growth_ladder, "WARMUP_STEPS", 2)
        patch.setattr(growth_ladder, "PACKAGES", ("mpmath",))
        growth_ladder.source_files.cache_clear()
        yield Lab("small", "cpu", tmp_path_factory.mktemp("ladder"))
        growth_ladder.source_files.cache_clear()


SCRATCH = Setting("scratch", 10, 1, 1e-2, scale="small")


def test_every_arm_costs_the_flops_of_its_budget(lab):
    small = dataclasses.replace(SCRATCH, arm="small", source="stacked")
    grown = dataclasses.replace(small, arm="grown", share=0.5, source_rate=1e-2)
    rows = [lab.run(setting) for setting in (SCRATCH, small, grown)]
    source, target = SMALL.source("stacked", "phi"), SMALL.target("phi")
    assert rows[0]["steps"] == 10
    assert rows[1]["steps"] == round(10 / SMALL.cost(source))
    assert rows[2]["source_steps"] * SMALL.cost(source) + rows[2]["steps"] == pytest.approx(10, abs=0.5)
    assert rows[1]["parameters"] == source.parameters
    assert rows[2]["parameters"] == target.parameters > source.parameters
    for row in rows:
        assert 2 < row["loss"] < math.log(300) + 1
        assert row["budget_tokens"] == 10 * 32


def test_a_run_that_branches_from_a_kept_stable_phase_ends_at_the_same_loss(lab, tmp_path):
    alone = Lab("small", "cpu", tmp_path)
    branched = [lab.run(dataclasses.replace(SCRATCH, budget=budget)) for budget in (10, 20)][1]
    assert alone.run(dataclasses.replace(SCRATCH, budget=20))["loss"] == branched["loss"]


def test_seeds_have_texts_of_their_own_and_no_held_out_file_is_trained_on(lab):
    one, two = (growth_ladder.Text(SMALL, seed, tuning=False) for seed in (1, 2))
    assert not torch.equal(one.windows(0, 4), two.windows(0, 4))
    assert len(one.held_out) > 8
    for_tuning = {file for file in growth_ladder.source_files() if growth_ladder._is_for_tuning(file)}
    assert 0.05 < len(for_tuning) / len(growth_ladder.source_files()) < 0.25
    for text in (one, two):
        assert not for_tuning & set(text._waiting)
    assert torch.equal(one.windows(60, 10), torch.cat([one.windows(60, 4), one.windows(64, 6)]))


def row(setting: Setting, loss: float) -> dict:
    return {
        **dataclasses.asdict(setting), "loss": loss, "budget_tokens": setting.budget * 1000,
        "flops": setting.budget * 1e9, "target_parameters": 200_000, "parameters": 100_000, "cpu_seconds": 1.0,
        "device": "cpu",
    }  # fmt: skip


def test_a_line_that_a_kill_cut_short_costs_that_run_alone(tmp_path):
    runs, other = Runs(tmp_path / "runs.jsonl"), dataclasses.replace(SCRATCH, seed=2)
    runs.append(row(SCRATCH, 3.0))
    with open(runs.path, "a") as file:
        file.write('{"arm": "scratch", "bud')
    assert [found["seed"] for found in runs.rows()] == [1]
    runs.append(row(other, 2.0))
    assert [found["loss"] for found in runs.rows()] == [3.0, 2.0]


def test_a_field_that_is_added_later_changes_no_earlier_run():
    """Ids of this commit: rows of published runs hold the same fields."""
    assert (
        Setting("scratch", 200, 1, 8e-3).id == Setting.of({"arm": "scratch", "budget": 200, "seed": 1, "rate": 8e-3}).id
    )
    assert Setting("scratch", 200, 1, 8e-3).id != Setting("scratch", 200, 1, 8e-3, family="qwen3").id


def simulate(best: float, most: int) -> list[dict]:
    """Runs the plan with made-up losses that are lowest at the rate `best`."""
    rows: list[dict] = []
    while len(rows) < most and (setting := Plan("toy", rows).next()):
        rows.append(row(setting, 3 + abs(math.log(setting.rate / best)) + setting.seed / 100))
    return rows


def test_rates_are_tuned_first_until_the_best_has_a_worse_one_on_either_side():
    rows = simulate(best=3.2e-2, most=60)
    tuning = [r for r in rows if r["tuning"]]
    scratch = [r["rate"] for r in tuning if r["arm"] == "scratch" and r["family"] == "phi"]
    assert scratch == [4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2]
    assert Plan("toy", rows).rate(Group("scratch")) == 3.2e-2
    used = {r["rate"] for r in rows if not r["tuning"]}
    assert used == {3.2e-2}
    assert {r["seed"] for r in tuning} == {0}
    first = [r["tuning"] for r in rows].index(False)
    assert {r["arm"] for r in rows[:first]} == {"scratch", "small", "grown"}


def test_any_beginning_of_the_plan_compares_arms_at_equal_budgets_and_no_run_comes_twice():
    rows = simulate(best=8e-3, most=10_000)
    assert len({Setting.of(r).id for r in rows}) == len(rows)
    runs = [r for r in rows if not r["tuning"]]
    assert [(r["budget"], r["arm"], r["share"]) for r in runs[:5]] == [
        (200, "scratch", 0.0), (200, "small", 0.0), (200, "grown", 0.2), (200, "grown", 0.35), (200, "grown", 0.5),
    ]  # fmt: skip
    assert {r["budget"] for r in runs} == {200, 400, 800, 1600, 3200, 6400}
    assert {r["source"] for r in runs if r["arm"] == "small"} == {"stacked", "phi", "phi-twice"}
    assert {r["optimizer"] for r in runs} == {"adamw", "muon"}
    assert {r["family"] for r in runs} == {"phi", "qwen3"}


def losses(**arms: dict[int, list[float]]) -> dict:
    """Arm -> seed -> losses at 1, 10 and 100 tokens per parameter."""
    places = (1.0, 10.0, 100.0)
    return {
        arm: {seed: dict(zip(places, found, strict=True)) for seed, found in seeds.items()}
        for arm, seeds in arms.items()
    }


def test_a_crossing_is_read_off_the_logarithm_of_tokens_with_an_interval_over_seeds():
    arms = losses(scratch={1: [3, 2, 1], 2: [3, 2, 1]}, small={1: [2.5, 2.5, 2.5], 2: [2.5, 2.2, 2.2]})
    found = growth_ladder_report.crossing(arms, "small", "scratch")
    assert found["per_seed"]["1"] == pytest.approx(10**0.5, abs=1e-3)
    assert found["per_seed"]["2"] == pytest.approx(10 ** (0.5 / 0.7), abs=1e-3)
    assert found["interval"][0] < found["tokens_per_parameter"] < found["interval"][1]
    assert found["seeds_that_cross"] == found["seeds"] == 2


def test_arms_that_do_not_cross_in_every_seed_have_no_crossing_but_leads_at_the_ends():
    arms = losses(scratch={1: [3, 2, 1], 2: [3, 2, 1]}, small={1: [2.5, 2.5, 2.5], 2: [2.5, 1.5, 0.5]})
    found = growth_ladder_report.crossing(arms, "small", "scratch")
    assert found["tokens_per_parameter"] is None
    assert found["interval"] is None
    assert (found["seeds_that_cross"], found["seeds"]) == (1, 2)
    assert found["lead_at_the_ends"]["1"]["mean"] == 0.5
    assert "1 of 2 seeds cross within 1.0 to 100.0" in growth_ladder_report.crossing_in_words(found)


def test_no_figure_of_growth_chooses_its_own_share():
    shares = {
        "grown 0.2": {1: [2.0, 2.0, 2.0], 2: [3.0, 2.0, 2.0]},
        "grown 0.35": {1: [3.0, 1.9, 1.9], 2: [2.5, 2.1, 1.0]},
    }
    arms = losses(scratch={1: [4.0, 4.0, 4.0], 2: [4.0, 4.0, 4.0]}, **shares)
    found = growth_ladder_report.by_other_seeds(arms, list(shares))
    assert found[1] == {1.0: 3.0, 10.0: 2.0, 100.0: 1.9}  # what seed 2 found best
    assert found[2] == {1.0: 3.0, 10.0: 2.1, 100.0: 1.0}
    alone = {name: {1: seeds[1]} for name, seeds in arms.items()}
    assert growth_ladder_report.by_other_seeds(alone, list(shares))[1] == arms["grown 0.35"][1]


def test_the_report_has_every_seeds_value_and_what_the_planner_reads(tmp_path):
    rows = simulate(best=8e-3, most=60)
    runs = Runs(tmp_path / "runs.jsonl")
    for each in rows:
        runs.append(each)
    places = ["--runs", str(runs.path), "--results", str(tmp_path), "--table", str(tmp_path / "table.json")]
    command = [sys.executable, "scripts/bench_growth.py", "--report", *places]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert "| tokens per parameter | seeds |" in shown
    record = json.loads((tmp_path / "ladder.json").read_text())
    first = record["ladders"][0]["budgets"][0]
    assert set(first["losses"]["scratch"]["per_seed"]) == {"1", "2", "3"}
    assert first["losses"]["scratch"]["mean"] == pytest.approx(3.02)
    table = json.loads((tmp_path / "table.json").read_text())
    assert set(table["ladders"][0]["points"][0]["gains"]) == {
        "small over scratch",
        "grown over scratch",
        "grown over small",
    }
    assert "<polygon" in (tmp_path / "ladder-phi-adamw-stacked.svg").read_text()


def test_a_free_source_is_continued_or_grown_on_another_text_and_what_it_forgets_is_measured(lab, monkeypatch):
    monkeypatch.setattr(growth_ladder, "TUNING_FILES", 2)
    run = dataclasses.replace(SCRATCH, arm="continue", source="phi", source_rate=1e-2, free=20, domain="headers")
    for setting in (run, dataclasses.replace(run, arm="grown")):
        row = lab.run(setting)
        config = SMALL.source("phi", "phi") if setting.arm == "continue" else SMALL.target("phi")
        assert row["parameters"] == config.parameters
        assert row["steps"] == round(10 / SMALL.cost(config))
        assert row["loss"] < row["loss_before"]
        assert row["loss_on_source_text"] > 0
    assert len(list(lab.folder.glob("*-20.pt"))) >= 1


@pytest.mark.parametrize(
    "name", ["moments kept, only new weights warm up", "in two steps", "live blocks", "doubled width"]
)
def test_a_treatment_trains_and_treats_new_weights_as_it_says(lab, name):
    treatment = growth_ladder.TREATMENTS[name]
    run = dataclasses.replace(
        SCRATCH, arm="grown", source=treatment.source, share=0.5, source_rate=1e-2, treatment=name
    )
    assert lab.run(run)["loss"] < math.log(300) + 1


def test_new_values_are_the_repeated_blocks_and_what_does_not_come_from_the_source(lab):
    for source in ("stacked", "phi"):
        config, target = SMALL.source(source, "phi"), SMALL.target("phi")
        weights = dict(growth_ladder.Transformer(config).initialize(1).state_dict())
        run = dataclasses.replace(SCRATCH, arm="grown", source=source)
        _, is_new = lab._grow(run, config, target, weights)
        shares = {key: float(new.float().mean()) for key, new in is_new.items()}
        if source == "stacked":
            assert shares["model.layers.0.mlp.fc1.weight"] == shares["model.embed_tokens.weight"] == 0
            assert shares["model.layers.3.mlp.fc1.weight"] == 1
        else:
            kept = config.hidden_size * config.intermediate_size / (target.hidden_size * target.intermediate_size)
            assert shares["model.layers.0.mlp.fc1.weight"] == pytest.approx(1 - kept)


def test_moves_of_new_values_alone_are_scaled(lab):
    after, before = {"w": torch.tensor([1.0, 1.0])}, {"w": torch.zeros(2)}
    treatment = growth_ladder.Treatment(new_rate=2.0, rewarm_old=False)
    growth_ladder._scale_moves(after, before, treatment, {"w": torch.tensor([True, False])}, warmup=0.25)
    assert after["w"].tolist() == [0.5, 1.0]
