"""Is an hour ever wasted? Branches of one trunk beside runs dedicated to their budgets, and caps under random kills.

    scripts/with_env.sh scripts/bench_hours.py --only branches --json docs/results/hours/branches.json
    scripts/with_env.sh scripts/bench_hours.py --only kills --json docs/results/hours/bench_hours.json
    scripts/with_env.sh scripts/bench_hours.py --only memory,time --json docs/results/hours/forecast.json
    scripts/with_env.sh scripts/bench_hours.py --quick

A 0.4M model on a slice of configs/tiny.yaml's corpus, one thread, caps of about a minute in which starting the process
counts. `JOBS=2` in the environment runs two killed runs, or the memory of two settings, at a
time.
"""

import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts import hours_forecast
from scripts.bench_rows import Part, Rows, at_most, main, row
from scripts.hours_branches import branches
from scripts.hours_lab import PEAK_LEARNING_RATE, Lab, hours

JOBS = int(os.environ.get("JOBS", "1"))
KILLED_RUNS = 20


def kills(quick: bool) -> Rows:
    """Overshoot and unused share of the cap by the wall clock of every process, with kills at random moments."""
    with tempfile.TemporaryDirectory() as place:
        lab = Lab(Path(place))
        lab.prepare("seed=1")
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
    before anything was saved until too little was left to start once more, which the command said."""
    draw = random.Random(number)
    cap, name = draw.uniform(50, 75), f"killed{number}"
    left = 0 if number % 3 == 0 else draw.randint(1, 3)
    own, words = lab.beside(name), ("seed=1", hours(cap), f"name={name}")
    spent, done = 0.0, 0
    while True:
        started, process = time.monotonic(), own.start("pretrain", *words)
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
        if process.returncode == 2 and done and not list((own.run_folder(name) / "checkpoints").glob("step-*")):
            return None
        raise RuntimeError(f"run {number} ended with {process.returncode}: {errors[-2000:]}")
    manifest = own.manifest(name)
    rates = [r["train/lr"] for r in own.metrics(name) if r.get("train/lr") is not None]
    emergencies = [r for r in own.decisions(name) if r["kind"] == "emergency"]
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


PARTS = {
    "branches": Part(branches),
    "kills": Part(kills, one_core=False),
    "memory": Part(lambda quick: hours_forecast.memory(quick, JOBS), one_core=False),
    "time": Part(hours_forecast.time, slow=True),
}

if __name__ == "__main__":
    main(__file__, __doc__ or "", "hours", PARTS, ("torch", "lightning"))
