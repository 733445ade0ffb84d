"""Does growth pay, how should a budget be spent on it, and does it fit into memory?

    scripts/with_env.sh scripts/bench_growth.py --json docs/results/growth/bench_growth.json
    scripts/with_env.sh scripts/bench_growth.py --schedule --steps 200 --json docs/results/growth/bench_growth_schedule.json
    scripts/with_env.sh scripts/bench_growth.py --streaming --json docs/results/growth/bench_growth_streaming.json
    scripts/with_env.sh scripts/bench_growth.py --device cuda --shape 100m --json docs/gpu/growth.json

Default: a source and a target in the ratios of phi-1.5 to phi-2, at toy scale, plain PyTorch, one CPU thread; the text
is Python's standard library. Everything sees fresh text, the same batch size and peak rate, and both accountings are
printed together: source free, and source counted in FLOPs. `--schedule`: equal total FLOPs, spent in different ways;
it also writes the table that a planner reads. `--streaming`: phi-1.5's exact shape to phi-2's, memory and time.
`--device`, `--shape`: the comparison at another scale inside `--minutes`, with a picture beside the JSON.
"""

import argparse
import json
import sys
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from model.config import ModelConfig
from scripts.growth_bench import card, pays, schedule, streaming
from scripts.growth_bench.lab import SCALES, Lab, Run, Text
from scripts.growth_bench.rows import record, show

QUICK_STEPS = 32


def _pays(steps: int, seeds: int, path: str | None) -> dict[str, Any]:
    text, done, content = Text(SCALES["toy"], 2 * steps), [], {}
    for seed in range(1, seeds + 1):
        lab = Lab(text, seed, steps)
        done.append(pays.experiment(lab))
        content = pays.run_record(done, lab)
        _write(path, content)  # after every seed: an hour of measuring is not lost to a full disk
    return content


def _schedule(steps: int, seeds: int, shares: tuple[float, ...], path: str | None) -> dict[str, Any]:
    text, content = Text(SCALES["toy"], 2 * steps), {}
    done: list[dict[str, Run]] = []
    for seed in range(1, seeds + 1):
        lab = Lab(text, seed, steps, points=10)
        done.append(schedule.sweep(lab, shares))
        content = schedule.run_record(done, lab)
        _write(path, content)
        if path:
            _write_table(Path(path).with_name("schedule.json"), content["table"])
    return content


def _write_table(path: Path, table: dict[str, Any]) -> None:
    """Rows of other budgets that are in the file already stay."""
    new = {row["tokens_per_parameter"] for row in table["rows"]}
    kept = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    rows = [row for row in kept if row["tokens_per_parameter"] not in new] + table["rows"]
    _write(str(path), {**table, "rows": sorted(rows, key=lambda row: row["tokens_per_parameter"])})


def _card(shape: str, device: str, minutes: float, path: str | None) -> dict[str, Any]:
    runs, lab = card.run(shape, device, minutes)
    if path:
        card.picture(runs, lab, Path(path).with_suffix(".svg"))
    return schedule.run_record([runs], lab, device)


def _write(path: str | None, content: dict[str, Any]) -> None:
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="file to write the rows and curves to")
    parser.add_argument("--quick", action="store_true", help="one seed, few steps: shows that it runs, proves nothing")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400, help="of the scratch run, 2,048 tokens each")
    parser.add_argument("--schedule", action="store_true", help="ways to spend the FLOPs of --steps on growth")
    parser.add_argument("--shares", default="0.2,0.35,0.5", help="with --schedule: spent before the target")
    parser.add_argument("--streaming", action="store_true", help="phi-1.5's shape to phi-2's: memory and time")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="the comparison at --shape on this device")
    parser.add_argument("--shape", choices=SCALES, default="100m")
    parser.add_argument("--minutes", type=float, default=9.0, help="with --device: what all of it may take")
    parser.add_argument("--grow-once", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.grow_once:
        folder, dtype, shape = arguments.grow_once
        print(json.dumps(streaming.grow_once(Path(folder), dtype, ModelConfig(**json.loads(shape)))))
        return
    warnings.simplefilter("ignore")
    steps, seeds = (QUICK_STEPS, 1) if arguments.quick else (arguments.steps, arguments.seeds)
    if arguments.device != "cuda":
        torch.set_num_threads(1)
    if arguments.device:
        content = _card(arguments.shape, arguments.device, arguments.minutes, arguments.json)
    elif arguments.streaming:
        content = record(streaming.run(arguments.quick))
    elif arguments.schedule:
        shares = tuple(float(share) for share in arguments.shares.split(","))
        content = _schedule(steps, seeds, shares, arguments.json)
    else:
        content = _pays(steps, seeds, arguments.json)
    print(show(content["rows"]))
    _write(arguments.json, content)


if __name__ == "__main__":
    main()
