"""The fuzzer notices what it is there for, and a fixed part of its cases finds nothing. All: scripts/fuzz.py."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts are in no package that is installed

from pipeline.system.errors import UserError
from tests.fuzz.command import KINDS
from tests.fuzz.judging import TOO_LARGE, TOO_LONG, Job, Workers, Wrong, run, survive

ROOT = Path(__file__).resolve().parents[1]
EACH = 4  # cases of every kind: a minute on a busy machine


def _refused() -> None:
    raise UserError("the file holds no text; expected some")


def _two_messages() -> None:
    print("hornbook: first", file=sys.stderr)
    raise UserError("second")


PLANTED = {
    "sound": (lambda draw, folder: run(_refused), None),
    "raises": (lambda draw, folder: run(lambda: [][1]), "traceback: IndexError"),
    "says two things": (lambda draw, folder: run(_two_messages), "exit code 2 with 2 messages"),
    "loses a text": (lambda draw, folder: survive(["a", "b"], ["a"], "lines"), "lost: lines"),
    "hangs": (lambda draw, folder: time.sleep(99), TOO_LONG),
    "eats memory": (lambda draw, folder: len(b"x" * (5 << 29)), TOO_LARGE),
    "dies": (lambda draw, folder: os.abort(), "the process died: SIGABRT"),
    "leaves the handler": (lambda draw, folder: run(lambda: exec("raise BaseException")), "traceback: BaseException"),
}
LIMITS = {"hangs": 0.5}  # seconds; the others have a minute, on a busy machine


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_found_kept_and_named_with_its_command(name, tmp_path):
    cases = {kind: case for kind, (case, _) in PLANTED.items()}
    with Workers(cases, 1, tmp_path / "work", tmp_path / "kept", most_seconds=LIMITS.get(name, 60)) as workers:
        first, second = workers.run([Job(name, 7), Job("sound", 8)])
    assert second.what is None, "the next case still runs"
    expected = PLANTED[name][1]
    assert first.what == expected if expected is None else str(first.what).startswith(expected)
    assert Path(first.kept).is_dir() if expected else not first.kept
    assert first.job.command == f"scripts/fuzz.py --kind {name} --seed 7 --cases 1"


def test_an_exit_in_one_message_is_no_fault_and_a_traceback_names_our_line():
    assert run(_refused).code == 2
    with pytest.raises(Wrong, match=r"FileNotFoundError at pipeline/__main__.py:\d+"):
        run(lambda: os.listdir("/nowhere"))


@pytest.mark.slow
def test_a_fixed_part_of_the_cases_finds_nothing():
    words = ["--each", str(EACH), "--seed", "1000"]
    words += [word for kind in KINDS for word in ("--kind", kind)]
    done = subprocess.run(
        [sys.executable, "-P", "scripts/fuzz.py", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " 0 of them with a fault" in done.stdout
