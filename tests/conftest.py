"""Set before torch is imported: waiting threads sleep, so that tests keep their pace on a busy machine."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("WANDB_MODE", "offline")

import processes


@pytest.fixture(autouse=True)
def _age_of_a_fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hours and shares of a cap count from a test's start, as in a command, and not from the suite's."""
    from pipeline.storage import ledger

    monkeypatch.setattr(ledger, "_PROCESS_START", time.monotonic())


@pytest.fixture(scope="session")
def start_seconds() -> float:
    """What a process needs here and now until it could train: its imports. Caps on a run's real time are so many starts
    and the time to train, as a machine that also runs other tests starts two to four times slower."""
    started = time.monotonic()
    subprocess.run([sys.executable, "-P", "-c", "import torch, lightning.pytorch"], check=True)
    return time.monotonic() - started


@pytest.fixture
def fork_seconds() -> float:
    """The same for a command of `processes`, which has the libraries already; measured for each test, as the load of a
    machine changes while a suite runs."""
    return processes.fork_seconds()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: side by side, a long one that starts last is waited for alone."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
