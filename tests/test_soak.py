"""The short form of the soak: ten kills of one run, in saves and exports too, and not a bit that differs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ten_kills_change_no_bit_of_weights_losses_and_tokens(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("HORNBOOK_ROOT", "HORNBOOK_SOAK_PREPARED")}
    command = [
        sys.executable,
        "-P",
        str(ROOT / "scripts" / "soak.py"),
        "--quick",
        "--json",
        str(tmp_path / "soak.json"),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["name"]: row for row in json.loads((tmp_path / "soak.json").read_text())["rows"]}
    assert rows["kill -9 in pretrain"]["value"] >= 10
    exact = [row for name, row in rows.items() if "differ" in name]
    assert len(exact) == 2
    assert all(row["met"] for row in exact), done.stdout
