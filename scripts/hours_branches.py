"""Part `branches` of bench_hours.py: one trunk's annealed models at eight budgets beside runs dedicated to each.

Budgets are tokens, so that no clock decides anything and a rerun gives the same figures. A dedicated run has only its
own budget in its config and a folder of its own. A run dedicated under the classical schedule, a cosine over all its
steps at the same peak, is there too: what a user gives up who does not name the budget beforehand. All runs are made by
the pretrain stage in one process.

    scripts/with_env.sh scripts/hours_branches.py docs/results/hours/branches.json docs/hours/branches.svg   # the picture
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.bench_rows import Rows, at_most, row
from scripts.hours_lab import Lab

BUDGETS_THOUSANDS = (24, 28, 33, 39, 46, 54, 64, 75)  # of tokens
COSINE_THOUSANDS = (24, 75)
SEEDS = 3
SMALLER = (
    "model.hidden_size=64", "model.intermediate_size=256", "model.num_hidden_layers=2", "train.global_batch_tokens=512",
    "train.precision=32-true", "train.validate_every_share=1",
)  # fmt: skip
COSINE = ("train.decay=cosine", "train.decay_share=0.99")


def branches(quick: bool) -> Rows:
    """Bits per byte of the branch at each budget over those of a run dedicated to it."""
    budgets, seeds = ((8, 12), 1) if quick else (BUDGETS_THOUSANDS, SEEDS)
    cosine = [b for b in budgets if quick or b in COSINE_THOUSANDS]
    with tempfile.TemporaryDirectory() as place:
        curves = [_one_seed(Lab(Path(place)), seed, budgets, cosine) for seed in range(1, seeds + 1)]
    rows: Rows = []
    worst = 0.0
    for thousands in budgets:
        branch, dedicated = ([c[kind][thousands]["bits"] for c in curves] for kind in ("branch", "dedicated"))
        ratios = [b / d for b, d in zip(branch, dedicated, strict=True)]
        worst = max(worst, *ratios)
        rows += [
            row(f"branch over dedicated run, {thousands}K tokens, seeds {_each(ratios)}", round(mean(ratios), 6), "x"),
            row(f"bits per byte, branch, {thousands}K", [round(b, 4) for b in branch], ""),
            row(f"bits per byte, dedicated, {thousands}K", [round(d, 4) for d in dedicated], ""),
        ]
    for b in cosine:
        ratios = [c["branch"][b]["bits"] / c["cosine"][b]["bits"] for c in curves]
        rows.append(row(f"branch over cosine run, {b}K tokens, seeds {_each(ratios)}", round(mean(ratios), 4), "x"))
    rows.append(row("trunk before its decay, seed 1", curves[0]["stable"], "[tokens, bits per byte]"))
    equal = sum(c["branch"][b]["hash"] == c["dedicated"][b]["hash"] for c in curves for b in budgets)
    flat = [c[kind][b] for c in curves for kind in ("branch", "dedicated") for b in budgets]
    own, each = (sum(c[kind][b]["own_tokens"] for c in curves for b in budgets) for kind in ("branch", "dedicated"))
    return [
        *rows,
        at_most("worst budget and seed, branch over dedicated run", worst, "x", 1.01),
        row("branches whose model equals the dedicated run's bit for bit", equal, f"of {len(budgets) * seeds}"),
        row("tokens trained for all budgets from one trunk, over those of a run for each", round(own / each, 3), "x"),
        row("runs that ended annealed", sum(f["annealed"] for f in flat), f"of {len(flat)}"),
    ]


def _one_seed(lab: Lab, seed: int, budgets: Sequence[int], cosine: Sequence[int]) -> dict[str, Any]:
    """Outcomes by kind and budget."""
    common, last = (f"seed={seed}", *SMALLER), budgets[-1]
    lab.prepare(*common)
    alone, trunk = lab.beside("alone"), f"trunk{seed}"
    names = ",".join(f"{b}K" for b in budgets)
    often = (*common, f"name={trunk}", f"budget.branches=[{names}]", "train.validate_every_share=0.05")
    result: dict[str, Any] = {"branch": {last: _outcome(lab.run_here(*often, _tokens(last)))}}
    for b in budgets[:-1]:
        result["branch"][b] = _outcome(lab.run_here(*common, f"name={trunk}", branch=f"{b}K"))
    for kind, chosen, more in (("dedicated", budgets, ()), ("cosine", cosine, COSINE)):
        result[kind] = {}
        for b in chosen:
            folder = alone.beside(f"{kind}-{seed}-{b}")  # one a run: two limits of one config would be one run
            result[kind][b] = _outcome(folder.run_here(*common, "name=run", _tokens(b), *more))
    start = next(r for r in lab.decisions(trunk) if r["kind"] == "decay")["step"]
    found = [r for r in lab.metrics(trunk) if "val/bits_per_byte" in r and 0 < r["step"] <= start]
    result["stable"] = [[r["budget/tokens"], round(r["val/bits_per_byte"], 4)] for r in found]
    return result


def _outcome(manifest: dict[str, Any]) -> dict[str, Any]:
    """`own_tokens`: trained for this model alone, the trunk's left out."""
    batch = manifest["config"]["train"]["global_batch_tokens"]
    steps = manifest["steps"] - (manifest.get("trunk") or {"steps": 0})["steps"]
    bits, annealed = manifest["val_bits_per_byte"], manifest["annealed"]
    return {"bits": bits, "annealed": annealed, "hash": manifest["content_hash"], "own_tokens": steps * batch}


def _tokens(thousands: int) -> str:
    return f"budget.max_tokens={1000 * thousands}"


def _each(ratios: Sequence[float]) -> str:
    return ", ".join(f"{ratio:.4f}" for ratio in ratios)


def picture(rows: Rows) -> str:
    """The trunk of seed 1 before its decay, and its models at every budget beside the dedicated runs: an SVG."""
    from pipeline.pages.charts import Line, chart_file, line_chart

    def ends(kind: str) -> list[tuple[float, float]]:
        found = [r for r in rows if r["name"].startswith(f"bits per byte, {kind}, ")]
        return [(1000.0 * int(r["name"].split(", ")[-1].rstrip("K")), r["value"][0]) for r in found]

    trunk = next(r["value"] for r in rows if r["name"].startswith("trunk before"))
    trunk = [(x, y) for x, y in trunk if x >= 0.25 * max(t for t, _ in ends("branch"))]
    chart = line_chart(
        [
            Line("trunk", trunk, "--c"),
            Line("dedicated runs", ends("dedicated"), "--b", dashed=True),
            Line("branches", ends("branch"), "--a", marks=True),
        ],
        x_name="tokens",
        y_name="bits per byte, held-out",
        format_x=lambda x: f"{x / 1000:.0f}K",
    )
    return chart_file(chart)


if __name__ == "__main__":
    source, target = sys.argv[1:]
    Path(target).write_text(picture(json.loads(Path(source).read_text(encoding="utf-8"))["rows"]), encoding="utf-8")
