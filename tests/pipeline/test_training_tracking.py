"""metrics.jsonl is the truth and is cut back exactly; a mirror that fails or hangs costs a run nothing."""

import json
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline.training.tracking import Metrics, WandbMirror, cut_metrics, read_metrics, set_metrics_aside


def mirror(folder: Path, said: list[str]) -> WandbMirror:
    return WandbMirror(folder / "run", folder / "wandb-id", "name", "project", {"a": 1}, said.append)


def test_rows_are_cut_back_to_the_checkpoint_and_a_torn_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with Metrics(path) as metrics:
        for step in range(10):
            metrics.log_metrics({"train/loss": 1.0 / (step + 1)}, step)
    with open(path, "a") as file:
        file.write('{"step": 10, "train/lo')
    set_metrics_aside(path, 6)
    cut_metrics(path, 6)
    assert [row["step"] for row in read_metrics(path)] == list(range(7))
    assert read_metrics(path)[3] == {"step": 3, "train/loss": 0.25}
    assert len(read_metrics(tmp_path / "metrics-before-6.jsonl")) == 10


def test_a_mirror_that_cannot_start_is_said_once_and_rows_still_reach_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    said: list[str] = []
    with Metrics(tmp_path / "metrics.jsonl", mirror(tmp_path, said)) as metrics:
        for step in range(3):
            metrics.log_metrics({"train/loss": 1.0}, step)
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 3
    assert len(said) == 1
    assert "W&B is off for this run" in said[0]


def test_a_mirror_that_hangs_delays_neither_a_row_nor_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    never = threading.Event()
    monkeypatch.setattr(WandbMirror, "_start", lambda self: never.wait(30))
    said: list[str] = []
    hanging = mirror(tmp_path, said)
    started = time.monotonic()
    for step in range(1000):
        hanging.log({"step": step})
    hanging.finish_seconds = 0.2
    hanging.finish()
    assert time.monotonic() - started < 1
    assert "did not finish in time" in said[0]
    never.set()


def test_without_a_key_the_mirror_is_offline_and_asks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setattr(WandbMirror, "_work", lambda self: None)
    assert not mirror(tmp_path, []).online
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    online = mirror(tmp_path, [])
    assert online.online
    assert online.limit_finish(cap_seconds=144.0) == pytest.approx(2.88), "the end of a short run is short as well"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert not mirror(tmp_path, []).online


def test_numbers_are_plain_json(tmp_path: Path) -> None:
    with Metrics(tmp_path / "metrics.jsonl") as metrics:
        metrics.log_metrics({"perf/mfu": None, "train/loss": 2.5}, 1)  # type: ignore[dict-item]
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "perf/mfu": None, "train/loss": 2.5}
