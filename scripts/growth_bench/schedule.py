"""How to spend a fixed budget of FLOPs on growing: how much on the source, decayed or not, grown once or twice.

In: a laboratory. Out: runs that all cost what scratch costs, and a table for planning (`plan_table`): what each choice
gained over scratch, with its spread over seeds. Everything runs on hornbook's own schedule (warm-up, stable, decay).
Related: late growth with a stable schedule (zero/one-layer, ICML 2026), the timing rule of G_stack (arXiv 2405.15319),
which asks for more source tokens than such a budget has.
"""

import time
from statistics import mean, stdev
from typing import Any

from scripts.growth_bench.lab import DECAY_SHARE, Lab, Run
from scripts.growth_bench.rows import Row, over_seeds, record

SHARES = (0.2, 0.35, 0.5)
"""Of the FLOPs of scratch, spent on all that comes before the target."""
CHOICES = {
    "stable": "the source never decays",
    "decayed": "the source decays over its last 30%",
    "before its decay": "the same source, taken from where its decay began: that decay's FLOPs are spent in vain",
    "twice": "the source's half of the share never decays, nor does a model in between on the other half",
}


def sweep(lab: Lab, shares: tuple[float, ...] = SHARES, choices: tuple[str, ...] = tuple(CHOICES)) -> dict[str, Run]:
    """All runs of one seed: "scratch", and "<share> <choice>" for the target of each, "... source" for its source."""
    runs: dict[str, Run] = {}
    began = time.monotonic()

    def say(name: str, run: Run) -> None:
        runs[name] = run
        print(f"  seed {lab.seed} {name:<26} {run.final:.4f}  {time.monotonic() - began:.0f} s", flush=True)

    say("scratch", lab.train(lab.fresh(lab.scale.target), lab.steps, lab.wsd(lab.steps)))
    trunk = _Trunk(lab)
    for share in sorted(shares):
        steps = _steps(lab, share)
        before, stable = trunk.at(round(steps * (1 - DECAY_SHARE))), trunk.at(steps)
        begin = {"first": steps, "source_cost": share * lab.steps}
        for choice in choices:
            name = f"{share:g} {choice}"
            if choice == "twice":
                say(name, _twice(lab, trunk, share))
                continue
            source = {"stable": stable, "before its decay": before}.get(choice) or _decayed(lab, before, steps)
            say(f"{name} source", source)
            left = round(lab.steps * (1 - share))
            say(name, lab.train(lab.grow(source, lab.scale.target), left, lab.wsd(left), **begin))
    return runs


class _Trunk:
    """The source on its stable rate, trained once per seed: every share is a point on it."""

    def __init__(self, lab: Lab) -> None:
        self.lab, self._runs = lab, [lab.train(lab.fresh(lab.scale.source), 0, lab.stable)]

    def at(self, step: int) -> Run:
        last = max((run for run in self._runs if run.curve[-1][0] <= step), key=lambda run: run.curve[-1][0])
        start = last.curve[-1][0]
        if start != step:
            last = self.lab.train(self.lab.again(last), step, self.lab.stable, start=start, moments=last.moments)
            self._runs.append(last)
        return last


def _steps(lab: Lab, share: float) -> int:
    """Steps of the source that cost `share` of scratch."""
    return round(share * lab.steps / lab.scale.share(lab.scale.source))


def _decayed(lab: Lab, before: Run, steps: int) -> Run:
    start = before.curve[-1][0]
    return lab.train(lab.again(before), steps, lab.wsd(steps), start=start, moments=before.moments)


def _twice(lab: Lab, trunk: _Trunk, share: float) -> Run:
    small = _steps(lab, share / 2)
    between = round(share / 2 * lab.steps / lab.scale.share(lab.scale.middle))
    middle = lab.train(lab.grow(trunk.at(small), lab.scale.middle), between, lab.stable, first=small)
    left = round(lab.steps * (1 - share))
    begin = {"first": small + between, "source_cost": share * lab.steps}
    return lab.train(lab.grow(middle, lab.scale.target), left, lab.wsd(left), **begin)


def rows_of(seeds: list[dict[str, Run]]) -> list[Row]:
    """Better than scratch at equal total FLOPs, the re-warm bump, and the source's own end; means over seeds."""
    rows: list[Row] = []
    for name in (name for name in seeds[0] if name != "scratch" and not name.endswith("source")):
        gain = over_seeds(
            seeds, f"{name}: better than scratch", lambda r, n=name: r["scratch"].final - r[n].final, "nats"
        )
        rows.append(gain | {"spread": _spread(gain["per_seed"])})
        rows.append(over_seeds(seeds, f"{name}: re-warm bump", lambda r, n=name: r[n].bump[0], "nats"))
    rows.append(over_seeds(seeds, "scratch: final loss", lambda r: r["scratch"].final, "nats"))
    return rows


def _spread(values: list[float]) -> float | None:
    return stdev(values) if len(values) > 1 else None


def plan_table(seeds: list[dict[str, Run]], lab: Lab) -> dict[str, Any]:
    """What a planner needs: for a budget (tokens that scratch would see, per parameter of the target) and each choice
    the gain in nats per token over scratch at equal total FLOPs, its standard deviation over seeds, and each seed's."""
    target, source = lab.scale.target, lab.scale.source
    rows = []
    for name in (name for name in seeds[0] if name != "scratch" and not name.endswith("source")):
        share, choice = name.split(" ", 1)
        gains = [runs["scratch"].final - runs[name].final for runs in seeds]
        spread = _spread(gains)
        rows.append(
            {
                "tokens_per_parameter": round(lab.steps * lab.scale.step_tokens / target.parameters, 3),
                "source_share": float(share),
                "choice": choice,
                "gain_nats": round(mean(gains), 4),
                "spread_nats": None if spread is None else round(spread, 4),
                "per_seed": [round(gain, 4) for gain in gains],
            }
        )
    return {
        "what": "gain over training from fresh weights at equal total FLOPs, source counted",
        "target_parameters": target.parameters,
        "source_parameters": source.parameters,
        "source_cost_per_token": round(lab.scale.share(source), 4),
        "choices": CHOICES,
        "rows": rows,
    }


def run_record(seeds: list[dict[str, Run]], lab: Lab, device: str = "cpu") -> dict[str, Any]:
    """Rows, the table, and every curve of the seeds so far."""
    curves = [{name: {"source_cost": r.source_cost, "curve": r.curve} for name, r in runs.items()} for runs in seeds]
    settings = {"steps": lab.steps, "tokens_per_step": lab.scale.step_tokens, "peak_rate": lab.scale.peak_rate}
    return record(rows_of(seeds), device, settings=settings, table=plan_table(seeds, lab), curves=curves)
