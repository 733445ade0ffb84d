"""The stage as a user runs it: `configs/tiny.yaml` on all cores, and the same content whatever happens on the way."""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from scripts.bench_rows import at_most, row

ROOT = Path(__file__).resolve().parents[2]
TINY = str(ROOT / "configs" / "tiny.yaml")
SLICE = (
    "data.sources.python_library.distributions=[mpmath,networkx,rich,pydantic]",
    "data.sources.exercises.count=600",
    "data.tasks=6",
)
KILLS = 6


def run_tiny() -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as root:
        started = time.monotonic()
        _hornbook(root, TINY)
        seconds = time.monotonic() - started
        facts = _manifest(root)
    cores = len(os.sched_getaffinity(0))
    return [
        at_most(f"`hornbook data configs/tiny.yaml`, {cores} cores", seconds, "s", 180),
        row("documents read", facts["documents"]["read"], "documents"),
        row("train tokens", facts["tokens"]["train"], "tokens"),
    ]


def run_determinism() -> list[dict[str, Any]]:
    """One content hash for 1 and 2 workers, three hash seeds, and a stage killed at random moments again and again."""
    hashes: list[str] = []
    for workers, seed in (("1", "0"), ("2", "1"), ("2", "12345")):
        with tempfile.TemporaryDirectory() as root:
            _hornbook(root, TINY, *SLICE, f"data.workers={workers}", PYTHONHASHSEED=seed)
            hashes.append(_manifest(root)["content_hash"])
    draw, kills = random.Random(3), 0
    with tempfile.TemporaryDirectory() as root:
        for _ in range(KILLS):
            kills += _hornbook(root, TINY, *SLICE, kill_after=draw.uniform(1.0, 9.0))
        _hornbook(root, TINY, *SLICE)
        hashes.append(_manifest(root)["content_hash"])
    name = f"content hashes over 1 and 2 workers, 3 hash seeds and {kills} kill -9"
    return [row(name, len(set(hashes)), "different", "1", len(set(hashes)) == 1)]


def _hornbook(root: str, *words: str, kill_after: float | None = None, **environment: str) -> bool:
    """Runs the data stage; True where it had to be killed. Raises `CalledProcessError` where it fails by itself."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "pipeline", "data", *words],
        env={**os.environ, "HORNBOOK_ROOT": root, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        code = process.wait(timeout=kill_after)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    if code:
        raise subprocess.CalledProcessError(code, process.args)
    return False


def _manifest(root: str) -> dict[str, Any]:
    return json.loads((Path(root) / "runs" / "tiny" / "data" / "manifest.json").read_text())
