"""Pretraining under spikes, numbers that are not finite, signals inside a step, and decisions that are replayed."""

# ruff: noqa: F811 (fixtures)
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from test_pretrain import Small, small, small_inputs  # noqa: F401 - fixtures

from pipeline.run_stage import run_stage
from pipeline.storage.steps import read_manifest
from pipeline.system import signals
from pipeline.system.errors import UserError
from pipeline.training.decisions import RecordedRun

EXACT = ("train.precision=32-true", "train.micro_batch=4", "train.checkpoint_every_seconds=1000")


def records(small: Small, kind: str) -> list[dict]:
    lines = (small.folder / "decisions.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def test_a_run_is_replayed_from_its_decisions_bit_by_bit(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = small.run_here("budget.max_tokens=15_360", *EXACT)
    record, expected = small.folder / "decisions.jsonl", small.losses()
    other_root = tmp_path / "other"
    other_root.mkdir()
    monkeypatch.setenv("HORNBOOK_ROOT", str(other_root))
    other = Small(other_root)
    # The machine's own choices are others here: the record's count.
    config = other.config("budget.max_gpu_hours=1", "train.precision=auto", "train.micro_batch=8")
    run_stage("pretrain", config, "small.yaml", replay=str(record))
    again = read_manifest(other.folder)
    assert again["steps"] == first["steps"]
    assert other.losses() == expected
    assert again["tokens_sha256"] == first["tokens_sha256"] != ""
    weights = "model/model.safetensors"
    assert again["outputs"][weights]["sha256"] == first["outputs"][weights]["sha256"]
    assert again["annealed"] == first["annealed"]


def test_what_cannot_be_replayed_is_said(small: Small, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no file"):
        RecordedRun(tmp_path / "nowhere.jsonl")
    path = tmp_path / "decisions.jsonl"
    path.write_text('{"kind": "decay", "step": 3, "end_step": 9, "progress": 0}\n')
    with pytest.raises(UserError, match="records these precisions: none"):
        RecordedRun(path)
    path.write_text("not json\n")
    with pytest.raises(UserError, match=r"is no decisions\.jsonl"):
        RecordedRun(path)


@pytest.mark.parametrize("value", [float("nan"), 1e4])
def test_a_bad_step_is_skipped_recorded_once_and_skipped_again_after_a_resume(
    small: Small, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    from model.transformer import Transformer

    plain, bad = Transformer.loss, small.batches(*EXACT).batch(70).input_ids_BT[:4]

    def spoiled(self: Transformer, ids: torch.Tensor, *more: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        loss, count = plain(self, ids, *more)
        return (loss * value, count) if torch.equal(ids, bad) else (loss, count)

    monkeypatch.setattr(Transformer, "loss", spoiled)
    often = ("train.checkpoint_every_seconds=0.001", "train.keep_checkpoints=100")
    first = small.run_here("budget.max_tokens=51_200", *EXACT, *often)
    assert first["skipped_steps"] == 1
    assert [record["step"] for record in records(small, "skip")] == [71]
    rows = small.losses()

    (small.folder / "manifest.json").unlink()
    for path in (small.folder / "checkpoints").glob("step-*"):
        if int(path.name.split("-")[1]) > 65:
            shutil.rmtree(path)
    second = small.run_here("budget.max_tokens=51_200", *EXACT, *often)
    assert small.losses()[:60] == rows[:60]
    assert second["content_hash"] == first["content_hash"]
    assert second["skipped_steps"] == 1
    assert len(records(small, "skip")) == 1


def test_a_signal_between_two_micro_batches_gives_the_step_up_and_loses_nothing(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    from model.transformer import Transformer
    from pipeline.system.errors import Stopped

    whole = small.run_here("budget.max_tokens=10_240", *EXACT)
    rows = small.losses()
    shutil.rmtree(small.folder)
    plain, calls = Transformer.loss, []

    def interrupted(self: Transformer, *args: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if torch.is_grad_enabled():
            calls.append(1)
            if len(calls) == 11:  # the first half of the sixth step
                signals._received.append(signal.SIGTERM)
        return plain(self, *args)

    monkeypatch.setattr(Transformer, "loss", interrupted)
    with pytest.raises(Stopped, match="SIGTERM"):
        small.run_here("budget.max_tokens=10_240", *EXACT)
    assert len(calls) == 11
    assert [path.name for path in (small.folder / "checkpoints").iterdir()] == ["step-00000005"]
    signals._received.clear()
    again = small.run_here("budget.max_tokens=10_240", *EXACT)
    assert small.losses() == rows
    assert again["content_hash"] == whole["content_hash"]
    assert again["tokens_sha256"] == whole["tokens_sha256"]


@pytest.mark.parametrize(("seconds", "steps", "annealed"), [(10.0, 20, True), (0.0, 12, False)])
def test_a_stop_that_no_other_life_can_follow_ends_the_run_in_this_one(
    small: Small, monkeypatch: pytest.MonkeyPatch, seconds: float, steps: int, annealed: bool
) -> None:
    from pipeline.training.budget import Budget
    from pipeline.training.control import Control

    monkeypatch.setattr(signals, "_received", [])
    monkeypatch.setattr(signals, "_end_is_near", False)
    monkeypatch.setattr("pipeline.training.budget.STOP_SECONDS", seconds)
    monkeypatch.setattr(Budget, "another_attempt_fits", lambda self, step: False)
    plain = Control._stop_if_asked

    def stopped(self: Control, trainer: Any) -> None:
        if self.module.step == 12 and not signals._received:
            signals._received.append(signal.SIGTERM)
        plain(self, trainer)

    monkeypatch.setattr(Control, "_stop_if_asked", stopped)
    manifest = small.run_here("budget.max_tokens=10_240", *EXACT)
    assert (manifest["steps"], manifest["annealed"], manifest["lives"]) == (steps, annealed, 1)
    assert len(records(small, "emergency")) == (0 if annealed else 1)
    assert (small.folder / "model" / "model.safetensors").is_file()
