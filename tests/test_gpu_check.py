"""The check of a card, on a CPU: each part in its own process, results kept whatever happens to it."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.gpu_check import check

ROOT = Path(__file__).resolve().parents[1]


def run(out: Path, *arguments: str) -> tuple[int, str, dict]:
    command = [str(ROOT / "scripts/gpu_check.sh"), str(out), "--cpu", *arguments]
    environment = {"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr, json.loads((out / "gpu_check.json").read_text())


def test_the_parts_that_tell_most_come_first_and_fit_together_before_the_last_ones() -> None:
    parts = list(check.LIMIT_SECONDS)
    assert parts == ["ceilings", "phi2", "shapes", "waits", "pretrain", "24 GB", "kernels", "rest"]
    assert sum(check.LIMIT_SECONDS[part] for part in parts[:5]) < 540 - check.END_SECONDS


def test_a_part_that_is_cut_off_keeps_what_it_reported_and_leaves_no_process(tmp_path, monkeypatch) -> None:
    script = tmp_path / "slow.py"
    script.write_text(
        "import pathlib, subprocess, sys, time\n"
        "child = subprocess.Popen(['sleep', '60'])\n"
        'pathlib.Path(sys.argv[4]).write_text(\'{"first": {"ok": true, "child": %d}}\' % child.pid)\n'
        "time.sleep(60)\n"
    )
    monkeypatch.setattr(check.sys, "executable", "python-of-the-test")
    plain = subprocess.Popen

    def started(command, **settings):
        assert command[:4] == ["python-of-the-test", "-m", "tests.gpu_check.parts", "24 GB"]
        return plain([sys.base_prefix + "/bin/python3", str(script), *command[1:]], **settings)

    monkeypatch.setattr(check.subprocess, "Popen", started)
    began = time.monotonic()
    part = check.run_part("24 GB", tmp_path, True, 3)
    assert time.monotonic() - began < 20
    assert part["ended"] == "cut off after 3 s"
    assert part["results"]["first"]["ok"]
    status = Path(f"/proc/{part['results']['first']['child']}/status")
    for _ in range(100):  # a killed process is gone a moment later
        if not status.exists() or "zombie" in status.read_text():
            break
        time.sleep(0.05)
    else:
        pytest.fail("the part's own process is still there")
    assert check.is_good(part)


def test_a_part_that_fails_is_reported_and_fails_the_check() -> None:
    failed = {"ended": "exit code 1: ZeroDivisionError", "seconds": 1.0, "results": {"before": {"ok": True}}}
    wrong = {"ended": "done", "seconds": 1.0, "results": {"waits": {"ok": False, "error": "it waits"}}}
    assert not check.is_good(failed)
    assert not check.is_good(wrong)
    table = check.table({"cpu": True, "parts": {"phi2": failed, "waits": wrong, "rest": {"skipped": "over"}}})
    assert table.split("\n")[1:] == [
        "phi2: exit code 1: ZeroDivisionError, 1 s", "  before: ok True", "waits: done, 1 s",
        "  waits: ok False, error it waits", "rest: left out, over",
    ]  # fmt: skip


@pytest.mark.slow
def test_the_check_runs_on_a_cpu_and_leaves_out_what_finds_no_time(tmp_path) -> None:
    code, said, found = run(tmp_path, "--parts", "ceilings", "waits", "24 GB")
    assert code == 0, said
    assert found["parts"]["ceilings"]["results"]["product"]["flops_per_second"] > 0
    assert all(row["ok"] for row in found["parts"]["waits"]["results"].values())
    for row in found["parts"]["24 GB"]["results"].values():
        assert set(row["milliseconds"]) == {"forward", "backward", "accumulation", "optimizer"}
        assert row["tokens_per_second"] > 0
    assert (tmp_path / "table.txt").read_text().count("\n") > 8
    code, said, found = run(tmp_path, "--parts", "phi2", "--seconds", "10")
    assert "left out" in said
    assert found["parts"]["phi2"] == {"skipped": "10 s are over"}


@pytest.mark.slow
def test_its_pretraining_is_killed_resumed_and_ends_inside_its_cap(tmp_path) -> None:
    code, said, found = run(tmp_path, "--parts", "pretrain")
    assert code == 0, said
    result = found["parts"]["pretrain"]["results"]["pretrain"]
    assert result["attempts"] == 2
    assert result["losses_apart"] == 0
    assert result["last_validation"]["device"] == "cpu"
