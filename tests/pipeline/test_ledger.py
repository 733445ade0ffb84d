"""Every second of every process is in the ledger, whatever happened to it."""

import json
import subprocess
import sys
import time

from pipeline.storage.files import read_json_lines
from pipeline.storage.ledger import Ledger, process_age_seconds, spent_hours


def _line(**values) -> str:
    base = {"stage": "pretrain", "fingerprint": "f", "life": 1, "device": "cpu", "devices": 1, "pid": 1, "job": None}
    return json.dumps({**base, **values}) + "\n"


def test_lives_add_up_each_at_its_last_heartbeat(tmp_path):
    path = tmp_path / "ledger.jsonl"
    path.write_text(_line(seconds=3.0) + _line(seconds=8.0) + _line(life=2, seconds=10.0, devices=2) + '{"stage": "pre')
    with Ledger(path, stage="pretrain", fingerprint="f", device="cpu") as ledger:
        assert ledger.life == 3
        assert ledger.earlier_seconds == 28.0
        assert ledger.spent_seconds >= 28.0 + process_age_seconds() - 0.1
    assert read_json_lines(path)[-1]["life"] == 3


def test_other_stages_and_other_fingerprints_are_counted_apart(tmp_path):
    path = tmp_path / "ledger.jsonl"
    path.write_text(_line(seconds=36.0) + _line(stage="data", seconds=72.0) + _line(fingerprint="g", seconds=36.0))
    with Ledger(path, stage="pretrain", fingerprint="g", device="cpu") as ledger:
        assert ledger.earlier_seconds == 36.0
        assert ledger.life == 2
    hours = spent_hours(path)
    assert hours["data"] == 0.02
    assert hours["pretrain"] > 0.02


def test_the_clock_starts_with_the_process_and_not_with_the_import():
    code = "import time; time.sleep(0.5); from pipeline.storage.ledger import process_age_seconds as a; print(a())"
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert 0.5 <= float(done.stdout) <= time.monotonic() - started + 0.1


def test_a_torn_last_line_does_not_swallow_the_next_one(tmp_path):
    path = tmp_path / "ledger.jsonl"
    path.write_text(_line(seconds=3.0) + '{"stage": "pretrain", "fing')
    with Ledger(path, stage="pretrain", fingerprint="f", device="cpu"):
        pass
    assert [line["life"] for line in read_json_lines(path)] == [1, 2, 2]


def test_seconds_that_another_ledger_has_are_left_out_from_the_first_line_on(tmp_path):
    path = tmp_path / "ledger.jsonl"
    with Ledger(path, stage="init", fingerprint="f", device="cpu", waited_seconds=process_age_seconds()):
        pass
    assert all(line["seconds"] < 5 for line in read_json_lines(path))


def test_the_same_pretraining_under_another_name_gets_no_fresh_clock(tmp_path):
    folder = tmp_path / "artifacts" / "pretrain" / "f"
    folder.mkdir(parents=True)
    (folder / "ledger.jsonl").write_text(_line(seconds=50.0))
    with Ledger(
        tmp_path / "runs" / "b" / "ledger.jsonl", stage="pretrain", fingerprint="f", device="cpu", folder=folder
    ) as ledger:
        assert ledger.life == 2
        assert ledger.spent_seconds >= 50.0
    assert [line["life"] for line in read_json_lines(tmp_path / "runs" / "b" / "ledger.jsonl")] == [2, 2]
