"""One cap for all who ask: what the source's training used of it (`budget.count_source`) is gone everywhere."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_pretrain import driver

from pipeline import config as configs
from pipeline.config import Config
from pipeline.storage.ledger import LEDGER, Ledger, process_age_seconds
from pipeline.system.errors import UserError
from pipeline.training import branching
from pipeline.training.budget import Budget, Limits
from pipeline.training.cap import Cap, check_cap, is_last_process, pretrain_cap
from pipeline.training.decisions import Decisions

HOUR = 3600.0


def config_of(tmp_path: Path, *overrides: str) -> Config:
    return configs.load(driver.config_file(tmp_path), overrides)


def folder_of(path: Path, *, start_seconds: float) -> tuple[Any, Ledger]:
    """A pretraining's folder with a checkpoint, of which one life of `start_seconds` until its first step is on
    record, and the ledger of the life that starts now."""
    (path / "checkpoints" / "step-00000009").mkdir(parents=True)
    line = {"stage": "pretrain", "fingerprint": "f", "life": 1, "pid": 1, "seconds": 0.0, "devices": 1}
    (path / LEDGER).write_text(json.dumps({**line, "start_seconds": start_seconds}) + "\n", encoding="utf-8")
    step = SimpleNamespace(path=path, fingerprint="f", finished=False)
    return step, Ledger(path / LEDGER, stage="pretrain", fingerprint="f", device="cpu")


def test_what_the_source_used_is_gone_from_the_cap() -> None:
    cap = Cap(1.0, source_seconds=1000.0)
    assert (cap.seconds, cap.own_seconds, cap.left_seconds(600.0)) == (HOUR, 2600.0, 2000.0)
    without = Cap(None, source_seconds=1000.0)
    assert (without.seconds, without.own_seconds, without.left_seconds(600.0)) == (None, None, math.inf)


@pytest.mark.parametrize(("source_seconds", "last"), [(0.0, False), (HOUR - 1000.0, True)])
def test_a_life_is_the_last_one_where_the_source_left_too_little_for_another(
    tmp_path: Path, source_seconds: float, last: bool
) -> None:
    """Three starts of 600 s fit into an hour, and not into the 1,000 s that the source left."""
    step, ledger = folder_of(tmp_path, start_seconds=600.0)
    ledger.waited_seconds = process_age_seconds()  # this life has spent nothing yet
    assert is_last_process(Cap(1.0, source_seconds), step, ledger) is last


def test_a_life_without_a_cap_is_never_the_last_one(tmp_path: Path) -> None:
    step, ledger = folder_of(tmp_path, start_seconds=600.0)
    assert not is_last_process(Cap(None, 1e9), step, ledger)


@pytest.mark.parametrize(("source_seconds", "start"), [(0.0, 30), (HOUR / 2, 10)])
def test_a_branch_starts_where_its_decay_fits_beside_the_sources_hours(
    tmp_path: Path, source_seconds: float, start: int
) -> None:
    """Of an hour with a decay of 0.3: a branch starts 3,060 s into the trunk, or 1,530 where the source used half."""
    seconds = {10: 1000.0, 20: 2000.0, 30: 3000.0, 40: 3500.0}
    trunk: Any = SimpleNamespace(
        decisions=Decisions(None), folder=tmp_path, steps=lambda: [*seconds], spent_seconds=seconds.__getitem__
    )
    config = config_of(tmp_path, "budget.max_gpu_hours=1", "train.decay_share=0.3")
    assert branching._start(config, Cap(1.0, source_seconds), trunk) == start


def test_a_branch_for_which_the_source_left_nothing_says_so(tmp_path: Path) -> None:
    trunk: Any = SimpleNamespace(
        decisions=Decisions(None), folder=tmp_path, steps=lambda: [10], spent_seconds=lambda step: 1000.0
    )
    config = config_of(tmp_path, "budget.max_gpu_hours=1", "train.decay_share=0.3")
    with pytest.raises(UserError, match=r"too late for this branch.*0\.7500 GPU-hours of the budget are its source's"):
        branching._start(config, Cap(1.0, 0.75 * HOUR), trunk)


def test_the_clock_of_the_steps_counts_the_sources_hours() -> None:
    """Of two hours the source used one, this run a quarter: what is left, what is used, and whether a branch is due."""
    limits = Limits(Cap(2.0, HOUR), None, 0.3, branches={"late": (2.0, None), "due": (1.0, None)})
    budget = Budget(limits, lambda: HOUR / 4, Decisions(None))
    assert (budget.spent(), budget.remaining_seconds(), budget.fraction(1)) == (1.25 * HOUR, 0.75 * HOUR, 0.625)
    for _ in range(3):
        budget.measured.step(1.0)
    assert budget.branches_due(100) == ["due"]


def test_a_start_is_refused_where_the_source_used_the_cap(tmp_path: Path) -> None:
    config = config_of(tmp_path, "budget.max_gpu_hours=1")
    step: Any = SimpleNamespace(path=tmp_path, fingerprint="f", finished=False)
    with pytest.raises(UserError, match=r"max_gpu_hours=1 is 3600\.0 s.*are used"):
        check_cap("pretrain", config, step, Cap(1.0, HOUR))


def test_the_sources_hours_count_only_where_the_budget_says_so(tmp_path: Path, monkeypatch: Any) -> None:
    from pipeline.storage.steps import Step

    init = Step("init", 1)
    step = Step("pretrain", 1, {}, {"init": init})
    monkeypatch.setattr("pipeline.training.cap.read_manifest", lambda path: {"source_gpu_hours": 0.25})
    assert pretrain_cap(config_of(tmp_path, "budget.max_gpu_hours=1"), step) == Cap(1.0)
    counted = config_of(tmp_path, "budget.max_gpu_hours=1", "budget.count_source=true")
    assert pretrain_cap(counted, step) == Cap(1.0, 900.0)
    monkeypatch.setattr("pipeline.training.cap.read_manifest", lambda path: {"source_gpu_hours": None})
    assert pretrain_cap(counted, step) == Cap(1.0)


def test_a_tuning_has_no_source_to_count(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"finetune\.budget\.count_source"):
        config_of(tmp_path, "finetune.budget.count_source=true")
