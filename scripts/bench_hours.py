"""Is an hour ever wasted? Branches of one trunk beside runs dedicated to their budgets, and caps under random kills.

    scripts/with_env.sh scripts/bench_hours.py --json docs/hours/bench_hours.json
    scripts/with_env.sh scripts/bench_hours.py --quick

A 0.4M model on a slice of configs/tiny.yaml's corpus, one thread, budgets of 20 to 60 seconds in which starting the
process counts. `JOBS=2` in the environment runs two seeds or two killed runs at a time.
"""

import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts.bench_rows import Part, Rows, at_most, main, row  # noqa: E402

JOBS = int(os.environ.get("JOBS", "1"))
BUDGETS_SECONDS = (20, 24, 28, 33, 39, 46, 53, 60)
SEEDS, KILLED_RUNS = 3, 20
CONFIG = """
name: hours
data:
  sources:
    python_library: {type: python_library, distributions: [mpmath, networkx, omegaconf, pydantic]}
  filters: {length: {}, long_lines: {}, letters: {}}
  validation: {max_bytes: 60_000}
  tasks: 4
model: {vocab_size: 1024, hidden_size: 96, intermediate_size: 384, num_hidden_layers: 3, num_attention_heads: 4,
        max_position_embeddings: 128}
train: {sequence_length: 128, global_batch_tokens: 1024, learning_rate: 4.0e-3, warmup_steps: 20, device: cpu,
        checkpoint_every_seconds: 5}
tracking: {to: none}
sample: {prompts: []}
"""


class Lab:
    """One folder with the data made; runs `hornbook pretrain` as processes of their own, one thread each."""

    def __init__(self, folder: Path):
        self.folder, self.config = folder, folder / "hours.yaml"
        self.config.write_text(CONFIG, encoding="utf-8")

    def start(self, stage: str, *words: str) -> subprocess.Popen:
        environment = {**os.environ, "HORNBOOK_ROOT": str(self.folder), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-P", "-m", "pipeline", stage, str(self.config), *words]
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def pretrain(self, seed: int, name: str, *words: str) -> dict[str, Any]:
        """The manifest of a run; `name` is the experiment's folder under runs/."""
        self.prepare(seed)
        self._finish("pretrain", f"seed={seed}", *words)
        return self.manifest(name)

    def prepare(self, seed: int) -> None:
        for stage in ("data", "init"):
            self._finish(stage, f"seed={seed}")

    def manifest(self, name: str) -> dict[str, Any]:
        return json.loads((self.folder / "runs" / name / "pretrain" / "manifest.json").read_text(encoding="utf-8"))

    def _finish(self, stage: str, *words: str) -> None:
        process = self.start(stage, *words)
        _, errors = process.communicate()
        if process.returncode:
            raise RuntimeError(f"hornbook {stage} {' '.join(words)} ended with {process.returncode}: {errors[-2000:]}")


def hours(seconds: float) -> str:
    return f"budget.max_gpu_hours={seconds / 3600:.8f}"


def branches(quick: bool) -> Rows:
    """Bits per byte of the branch at each budget over those of a run dedicated to it."""
    budgets, seeds = (BUDGETS_SECONDS[:2], 1) if quick else (BUDGETS_SECONDS, SEEDS)
    with tempfile.TemporaryDirectory() as place:
        lab = Lab(Path(place))
        with ThreadPoolExecutor(JOBS) as pool:
            curves = list(pool.map(lambda seed: _one_seed(lab, seed, budgets), range(1, seeds + 1)))
    rows: Rows = []
    for i, seconds in enumerate(budgets):
        ratios = [curve[i]["branch"]["bits"] / curve[i]["dedicated"]["bits"] for curve in curves]
        spread = f"; seeds {', '.join(f'{ratio:.4f}' for ratio in ratios)}"
        rows.append(row(f"branch over dedicated run, {seconds} s, bits per byte{spread}", round(mean(ratios), 4), "x"))
    flat = [c[kind]["bits"] for curve in curves for c in curve for kind in ("branch", "dedicated")]
    worst = max(mean(c[i]["branch"]["bits"] / c[i]["dedicated"]["bits"] for c in curves) for i in range(len(budgets)))
    cost = mean(sum(c["branch"]["own_seconds"] for c in curve) + curve[0]["trunk_seconds"] for curve in curves)
    return [
        *rows,
        at_most("worst budget, mean of the seeds", worst, "x", 1.01),
        row("all budgets from one trunk: device-seconds", round(cost, 1), "s"),
        row("all budgets, each a run of its own: device-seconds", float(sum(budgets)), "s"),
        row("runs that ended annealed", sum(c[k]["annealed"] for curve in curves for c in curve for k in
                                            ("branch", "dedicated")), f"of {len(flat)}"),
    ]  # fmt: skip


def _one_seed(lab: Lab, seed: int, budgets: Sequence[int]) -> list[dict[str, Any]]:
    """Per budget the branch and the dedicated run. Every run is an experiment of its own name."""
    names = ",".join(f"{seconds}s" for seconds in budgets)
    trunk_name = f"trunk{seed}"
    more = (hours(budgets[-1]), f"budget.branches=[{names}]", f"name={trunk_name}")
    trunk = lab.pretrain(seed, trunk_name, *more)
    result = []
    for seconds in budgets:
        words = (f"name={trunk_name}", "--branch", f"{seconds}s")
        branch = trunk if seconds == budgets[-1] else lab.pretrain(seed, f"{trunk_name}/branch-{seconds}s", *words)
        # A beta2 that differs by a billionth makes another folder of the same training.
        name = f"dedicated{seed}-{seconds}"
        dedicated = lab.pretrain(seed, name, hours(seconds), f"name={name}", f"train.beta2={0.95 + seconds * 1e-9:.9f}")
        own = 0.0 if branch is trunk else branch["gpu_hours"] - branch["trunk"]["gpu_hours"]
        result.append(
            {
                "branch": {**_outcome(branch), "own_seconds": 3600 * own},
                "dedicated": _outcome(dedicated),
                "trunk_seconds": 3600 * trunk["gpu_hours"],
            }
        )
    return result


def _outcome(manifest: dict[str, Any]) -> dict[str, Any]:
    return {"bits": manifest["val_bits_per_byte"], "annealed": manifest["annealed"]}


def kills(quick: bool) -> Rows:
    """Overshoot and unused share of the cap by the wall clock of every process, with kills at random moments."""
    with tempfile.TemporaryDirectory() as place:
        lab = Lab(Path(place))
        with ThreadPoolExecutor(JOBS) as pool:
            runs = list(pool.map(lambda n: _killed_run(lab, n), range(1, (2 if quick else KILLED_RUNS) + 1)))
    undisturbed, disturbed = [r for r in runs if not r["kills"]], [r for r in runs if r["kills"]]
    worst_rate = max(r["rate"] for r in runs if r["annealed"])
    return [
        row("runs, and kill -9 among them", f"{len(runs)}, {sum(r['kills'] for r in runs)}", ""),
        at_most("overshoot of an undisturbed run, worst", max((r["over"] for r in undisturbed), default=0.0), "s", 0),
        at_most("overshoot per kill of a killed run, worst", max((r["over"] / r["kills"] for r in disturbed),
                                                                default=0.0), "s", 5),
        at_most("unused share of the cap, mean", mean(r["unused"] for r in runs), "share", 0.03),
        row("unused share of the cap, worst", round(max(r["unused"] for r in runs), 4), "share"),
        at_most("last learning rate over the peak, worst of the annealed", worst_rate, "share", 0.01),
        row("runs that ended annealed", sum(r["annealed"] for r in runs), f"of {len(runs)}"),
    ]  # fmt: skip


def _killed_run(lab: Lab, number: int) -> dict[str, Any]:
    """A cap of 30 to 45 s; every third run is left alone, the others are killed one to three times."""
    draw = random.Random(number)
    cap, name = draw.uniform(30, 45), f"killed{number}"
    left = 0 if number % 3 == 0 else draw.randint(1, 3)
    words = (f"seed={1000 + number}", hours(cap), f"name={name}")
    lab.prepare(1000 + number)
    spent, done = 0.0, 0
    while True:
        started, process = time.monotonic(), lab.start("pretrain", *words)
        try:
            _, errors = process.communicate(timeout=draw.uniform(6, cap / 2) if left else None)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            spent, left, done = spent + time.monotonic() - started, left - 1, done + 1
            continue
        spent += time.monotonic() - started
        if process.returncode == 0:
            break
        raise RuntimeError(f"run {number} ended with {process.returncode}: {errors[-2000:]}")
    manifest = lab.manifest(name)
    metrics = (lab.folder / "runs" / name / "pretrain" / "metrics.jsonl").read_text().splitlines()
    rates = [r["train/lr"] for r in map(json.loads, metrics) if r.get("train/lr") is not None]
    return {
        "kills": done,
        "over": round(spent - cap, 3),
        "unused": max(0.0, 1 - spent / cap),
        "rate": rates[-1] / 4e-3 if rates else math.inf,
        "annealed": manifest["annealed"],
    }


PARTS = {"branches": Part(branches, one_core=False), "kills": Part(kills, one_core=False)}

if __name__ == "__main__":
    main(__file__, __doc__ or "", "hours", PARTS, ("torch", "lightning"))
