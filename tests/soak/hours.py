"""Whole pretrainings under a cap: killed at random moments, and beside what they said beforehand. The command is
scripts/bench_hours.py."""

import json
import math
import os
import random
import signal
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, median
from typing import Any

from pipeline.storage.files import read_json_lines
from scripts.bench_rows import Rows, at_most, row
from tests.soak.lab import Lab

JOBS = int(os.environ.get("JOBS", "1"))
KILLED_RUNS = 20
PEAK_LEARNING_RATE = 4.0e-3
CONFIG = f"""
name: hours
data:
  sources:
    python_library: {{type: python_library, distributions: [mpmath, networkx, omegaconf, pydantic]}}
  filters: {{length: {{}}, long_lines: {{}}, letters: {{}}}}
  validation: {{max_bytes: 20_000}}
  tasks: 4
model: {{vocab_size: 1024, hidden_size: 96, intermediate_size: 384, num_hidden_layers: 3, num_attention_heads: 4,
        max_position_embeddings: 128}}
train: {{sequence_length: 128, global_batch_tokens: 1024, learning_rate: {PEAK_LEARNING_RATE}, warmup_steps: 20,
        device: cpu, checkpoint_every_seconds: 5}}
tracking: {{to: none}}
sample: {{prompts: []}}
"""
# Settings that differ in what a step keeps.
WIDE = (
    "model.hidden_size=1024", "model.intermediate_size=4096", "model.num_hidden_layers=2",
    "model.num_attention_heads=16", "model.max_position_embeddings=1024", "train.sequence_length=1024",
    "train.global_batch_tokens=2048", "train.micro_batch=2", "train.log_every_steps=1", "train.precision=32-true",
    "train.validate_every_share=1", "budget.max_tokens=8_192", "data.validation.max_bytes=3_000",
)  # fmt: skip
SETTINGS = {
    "two windows of 1,024": (),
    "selective checkpointing": ("train.activation_checkpointing=selective",),
    "full checkpointing": ("train.activation_checkpointing=full",),
    "one window a pass of two": ("train.micro_batch=1",),
    "optimizer in the backward pass": ("train.optimizer_in_backward=true", "train.clip_norm=0"),
    "muon": ("train.optimizer=muon",),
    "8-bit optimizer states": ("train.optimizer=adamw8bit",),
    "windows of 512 (explicit attention)": ("train.sequence_length=512", "train.micro_batch=4"),
}
GIVEN_BACK = {"THP_MEM_ALLOC_ENABLE": "1"}  # big blocks go back to the kernel, which shows what a step needs
TIMED_TOKENS = (75_000, 150_000, 300_000)


def _lab(folder: Path, *words: str) -> Lab:
    """A folder with the data and the init made."""
    folder.mkdir(parents=True, exist_ok=True)
    lab = Lab(folder, folder, CONFIG)
    for stage in ("data", "init") if words else ():
        lab.finish(stage, *words)
    return lab


def _beside(lab: Lab, name: str) -> Lab:
    """A second folder for the same experiment: its data and init are the first one's, its pretrainings its own."""
    other = _lab(lab.folder / name)
    for made in (lab.folder / "artifacts").iterdir():
        link = other.folder / "artifacts" / made.name
        if made.name != "pretrain" and not link.exists():
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(made.resolve())
    return other


def _manifest(lab: Lab, name: str) -> dict[str, Any]:
    return json.loads((lab.folder / "runs" / name / "pretrain" / "manifest.json").read_text(encoding="utf-8"))


def kills(quick: bool) -> Rows:
    """Overshoot and unused share of the cap by the wall clock of every process, with kills at random moments."""
    with tempfile.TemporaryDirectory() as place:
        lab = _lab(Path(place), "seed=1")
        with ThreadPoolExecutor(JOBS) as pool:
            found = list(pool.map(lambda n: _killed_run(lab, n), range(1, (2 if quick else KILLED_RUNS) + 1)))
    runs = [run for run in found if run is not None]
    undisturbed, disturbed = [r for r in runs if not r["kills"]], [r for r in runs if r["kills"]]
    to_the_end = [r for r in runs if r["left"] is None]
    emergencies = [r for r in runs if r["left"] is not None]
    said = ", ".join(f"{r['left']:.1f} of {r['cap']:.1f}" for r in emergencies) or "none"
    return [
        row("runs, and kill -9 among them", f"{len(runs)}, {sum(r['kills'] for r in runs)}", ""),
        row("runs killed before anything was saved until no start fitted any more", len(found) - len(runs), "more"),
        row("caps, from and to", f"{min(r['cap'] for r in runs):.1f}, {max(r['cap'] for r in runs):.1f}", "s"),
        row("start of a process until its first step, median", round(median(r["start"] for r in runs), 1), "s"),
        at_most("overshoot of an undisturbed run, worst", max((r["over"] for r in undisturbed), default=0.0), "s", 0),
        at_most("overshoot per kill of a killed run, worst", max((r["over"] / r["kills"] for r in disturbed),
                                                                default=0.0), "s", 5),
        at_most("unused share of the cap, mean", mean(r["unused"] for r in runs), "share", 0.03),
        row("unused share of the cap, worst", round(max(r["unused"] for r in runs), 4), "share"),
        at_most("last learning rate over the peak, worst but for emergencies", max(r["rate"] for r in to_the_end),
                "share", 0.01),
        row("runs that ended annealed", sum(r["annealed"] for r in runs), f"of {len(runs)}"),
        row("runs of which a kill left too little for one step and the export", len(emergencies), f"of {len(runs)}"),
        row("seconds left of the cap when their last process had started", said, "s"),
    ]  # fmt: skip


def _killed_run(lab: Lab, number: int) -> dict[str, Any] | None:
    """A cap of 50 to 75 s; every third run is left alone, the others are killed one to three times. None: killed
    before anything was saved until too little was left to start once more, which the command reported."""
    draw = random.Random(number)
    cap, name = draw.uniform(50, 75), f"killed{number}"
    left = 0 if number % 3 == 0 else draw.randint(1, 3)
    own, words = _beside(lab, name), ("seed=1", f"budget.max_gpu_hours={cap / 3600:.8f}", f"name={name}")
    folder = own.folder / "runs" / name / "pretrain"
    spent, done = 0.0, 0
    while True:
        started, process = time.monotonic(), own.start("pretrain", *words)
        try:
            process.wait(timeout=draw.uniform(6, cap / 2) if left else 20 * cap)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait(timeout=60)
            spent, left, done = spent + time.monotonic() - started, left - 1, done + 1
            continue
        life = own.wait(process, started)
        spent += life.seconds
        if life.code == 0:
            break
        if life.code == 2 and done and not list((folder / "checkpoints").glob("step-*")):
            return None
        raise RuntimeError(f"run {number} ended with {life.code}: {life.said[-2000:]}")
    manifest = _manifest(own, name)
    rates = [r["train/lr"] for r in read_json_lines(folder / "metrics.jsonl") if r.get("train/lr") is not None]
    emergencies = [r for r in read_json_lines(folder / "decisions.jsonl") if r["kind"] == "emergency"]
    return {
        "cap": cap,
        "kills": done,
        "over": round(spent - cap, 3),
        "unused": max(0.0, 1 - spent / cap),
        "rate": round(rates[-1] / PEAK_LEARNING_RATE, 6) if rates else math.inf,
        "annealed": manifest["annealed"],
        "left": emergencies[-1]["remaining_seconds"] if emergencies else None,
        "start": manifest["start_seconds"],
    }


def memory(quick: bool) -> Rows:
    """Predicted memory (the traced peak of a step, and what the process held before) over the resident high-water mark
    of the first steps, one row a setting: with big blocks given back to the kernel, and with glibc keeping them."""
    settings = dict(list(SETTINGS.items())[: 2 if quick else None])
    with tempfile.TemporaryDirectory() as place:
        lab = _lab(Path(place), "seed=1", *WIDE)

        def memory_of(number: int, name: str, given_back: bool) -> dict[str, Any]:
            own, words = _beside(lab, f"memory{number}{given_back}"), ("seed=1", "name=run", *WIDE, *settings[name])
            own.environment = GIVEN_BACK if given_back else {}
            if any("sequence_length" in word for word in settings[name]):
                own.finish("init", *words)
            own.finish("pretrain", *words)
            found = _manifest(own, "run")["forecast"]["memory"]
            kinds = ("traced_bytes", "held_before_bytes", "measured_bytes")
            traced, held, measured = (f"{found[key] / 2**20:,.0f}" for key in kinds)
            way = "memory" if given_back else "the same, big blocks kept"
            text = f"{way}, predicted over measured: {name} ({traced} traced + {held} held, {measured} MiB)"
            if not given_back:
                return row(text, found["ratio"], "x")
            return row(text, found["ratio"], "x", "0.97 to 1.03", abs(found["ratio"] - 1) <= 0.03)

        wanted = [(number, name, way) for way in (True, False) for number, name in enumerate(settings)]
        with ThreadPoolExecutor(JOBS) as pool:
            return list(pool.map(memory_of, *zip(*wanted, strict=True)))


def forecast_time(quick: bool) -> Rows:
    """The seconds predicted when a tenth of the budget was used, over those needed; nothing else may run beside it."""
    rows: Rows = []
    with tempfile.TemporaryDirectory() as place:
        lab = _lab(Path(place), "seed=1")
        for tokens in TIMED_TOKENS[: 1 if quick else None]:
            own = _beside(lab, f"time{tokens}")
            own.finish("pretrain", "seed=1", "name=run", f"budget.max_tokens={tokens}")
            found = _manifest(own, "run")["forecast"]["time"]
            said = f"{found['predicted_seconds']} of {found['seconds']} s"
            text = f"time, predicted over measured: {tokens // 1000}K tokens ({said})"
            rows.append(row(text, found["ratio"], "x", "0.95 to 1.05", abs(found["ratio"] - 1) <= 0.05))
    return rows
