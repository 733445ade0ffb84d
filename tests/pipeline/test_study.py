"""A real study of toy members: killed and gone on with, a loser stopped early by the rule, pages from what came out."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.storage.files import read_json_lines
from pipeline.system.errors import DONE, STOPPED

ROOT = Path(__file__).resolve().parents[2]
BASE = """
name: base
data: {sources: {exercises: {type: exercises, count: 300}}, workers: 1, tasks: 2, tokenizer_train_bytes: 60_000,
       validation: {share: 0.1, max_bytes: 4000}}
model: {vocab_size: 400, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 2,
        max_position_embeddings: 64}
train: {sequence_length: 64, global_batch_tokens: 256, device: cpu, log_every_steps: 5, learning_rate: 5.0e-3,
        precision: 32-true, warmup_steps: 5}
tracking: {to: none}
sample: {prompts: []}
"""
STUDY = """
name: toy
base: base.yaml
equal: {flops: 4.0e+9}
seeds: [4]
axes:
  rate: {right: {}, tiny: {train.learning_rate: 1.0e-6}}
  form: {stored: {}, half: {form: bf16}}
design: full
stop: {at: [0.5], keep: 0.5}
"""


def start(folder: Path, *words: str) -> subprocess.Popen:
    environment = {**os.environ, "HORNBOOK_ROOT": str(folder / "root"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-m", "pipeline", "study", str(folder / "toy.yaml"), *words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
def test_a_study_is_killed_goes_on_stops_the_loser_and_says_what_it_shows(tmp_path):
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "toy.yaml").write_text(STUDY)
    run = tmp_path / "root" / "runs" / "toy"
    first = start(tmp_path)
    while not any(line["stage"] == "pretrain" for line in read_json_lines(run / "right-s4" / "ledger.jsonl")):
        assert first.poll() is None
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    said, _ = first.communicate()
    assert first.returncode == STOPPED, said
    assert "the same command resumes" in said

    second = start(tmp_path, "--json")
    said, _ = second.communicate()
    assert second.returncode == DONE, said
    facts = json.loads((run / "study.json").read_text())
    states = {(row["cell"]["rate"], row["cell"]["form"]): row["state"] for row in facts["rows"]}
    assert states == {("right", "stored"): "done", ("right", "half"): "done",
                      ("tiny", "stored"): "stopped", ("tiny", "half"): "stopped"}  # fmt: skip
    [record] = read_json_lines(run / "stops.jsonl")
    assert record["losses"]["right"] < record["losses"]["tiny"]
    assert not (run / "tiny-s4" / "pretrain" / "manifest.json").exists()
    stored, half = (row for row in facts["combinations"] if row["cell"]["rate"] == "right")
    assert half["inference_bytes"] == pytest.approx(stored["inference_bytes"] / 2, rel=0.01)
    assert half["bits_per_byte"] == pytest.approx(stored["bits_per_byte"], rel=0.01)
    assert stored["training_flops"] == pytest.approx(4e9, rel=0.1)
    [effect] = facts["effects"]  # of the form; the other rate has no result
    assert effect["mean"] == pytest.approx(half["bits_per_byte"] - stored["bits_per_byte"])
    text = (run / "study.md").read_text()
    assert "no clear difference with 1 seed" in text
    assert "Stopped early at 0.5 of the budget" in text
    assert (run / "study.html").read_text().count("<svg") == 2
    assert (run / "study-bytes.svg").read_text().startswith("<svg")
    lives = {line["life"] for line in read_json_lines(run / "right-s4" / "ledger.jsonl") if line["stage"] == "pretrain"}
    assert len(lives) >= 2
