"""Does growth pay? All runs of one seed at toy scale, and the figures of all seeds; both accountings together."""

import time
from collections.abc import Callable
from typing import Any

from model.growth import GROWTH
from model.transformer import Transformer
from scripts.growth_bench.lab import DECAY_SHARE, Lab, Run, Schedule
from scripts.growth_bench.moments import grown_moments
from scripts.growth_bench.rows import Figure, Row, over_seeds, record


def experiment(lab: Lab) -> dict[str, Run]:
    """All runs of one seed, by name."""
    T, scale = lab.steps, lab.scale
    small, middle, large = scale.source, scale.middle, scale.target
    cut = round(T * (1 - scale.share(small)))  # what is left for the target when the source's T steps are paid
    runs: dict[str, Run] = {}

    def train(name: str, network: Transformer, steps: int, schedule: Callable[[int], Schedule], **more: Any) -> None:
        began = time.monotonic()
        runs[name] = lab.train(network, steps, schedule(steps), **more)
        print(f"  seed {lab.seed} {name:<30} {runs[name].final:.4f}  {time.monotonic() - began:.0f} s", flush=True)

    train("scratch", lab.fresh(large), T, lab.cosine)
    train("source", lab.fresh(small), T, lab.cosine)
    paid = {"first": T, "source_cost": runs["source"].cost}
    train("exact, same schedule", lab.grow(runs["source"], large, "exact"), T, lab.cosine, **paid)
    train("exact, cut", lab.grow(runs["source"], large, "exact"), cut, lab.cosine, **paid)
    copied = {"new_blocks": "copy", "exact": False}
    train("exact, live new blocks, cut", lab.grow(runs["source"], large, "exact", **copied), cut, lab.cosine, **paid)
    train("rescale, cut", lab.grow(runs["source"], large, "rescale"), cut, lab.cosine, **paid)
    train("stack, cut", lab.grow(runs["source"], large, "stack"), cut, lab.cosine, **paid)
    third = (T - runs["source"].cost) / 3  # of what is left goes to the model in between
    half = round(third / scale.share(middle))
    train("middle", lab.grow(runs["source"], middle, "exact"), half, lab.cosine, **paid)
    rest = round(T - runs["middle"].cost)
    second = {"first": T + half, "source_cost": runs["middle"].cost}
    train("two steps of growth", lab.grow(runs["middle"], large, "exact"), rest, lab.cosine, **second)
    train("cheap source", lab.fresh(small), T * 2 // 5, lab.cosine)
    cheap = {"first": T * 2 // 5, "source_cost": runs["cheap source"].cost}
    left = round(T - cheap["source_cost"])
    train("exact from cheap source", lab.grow(runs["cheap source"], large, "exact"), left, lab.cosine, **cheap)
    _before_the_decay(lab, runs, train, cut)
    return runs


def _before_the_decay(lab: Lab, runs: dict[str, Run], train: Callable[..., None], cut: int) -> None:
    """The same with hornbook's own schedule: growing the source from before its decay, or after it."""
    T, trunk = lab.steps, round(lab.steps * (1 - DECAY_SHARE))
    small, large = lab.scale.source, lab.scale.target
    full = lab.wsd(T)
    train("scratch, wsd", lab.fresh(large), T, lab.wsd)
    train("source before its decay", lab.fresh(small), trunk, lambda _: full)
    before = runs["source before its decay"]
    train("source decayed", lab.again(before), T, lambda _: full, start=trunk, moments=before.moments)
    rules = GROWTH["exact"](small, large)
    moments = grown_moments(rules, before.moments, lab.seed)
    early, late = {"first": T, "source_cost": before.cost}, {"first": T, "source_cost": runs["source decayed"].cost}
    left = round(T - before.cost)
    train("from before the decay", lab.grow(before, large, "exact"), cut, lab.wsd, **early)
    train("same, equal total FLOPs", lab.grow(before, large, "exact"), left, lab.wsd, **early)
    train("same, moments grown", lab.grow(before, large, "exact"), cut, lab.wsd, moments=moments, **early)
    train("from the decayed source", lab.grow(runs["source decayed"], large, "exact"), cut, lab.wsd, **late)


def rows_of(seeds: list[dict[str, Run]], T: int) -> list[Row]:
    """The table of figures: means over seeds, each with its values per seed."""
    rows: list[Row] = []

    def add(name: str, of: Figure, unit: str, goal: str = "", reach: str = "") -> None:
        rows.append(over_seeds(seeds, name, of, unit, goal, reach))

    def tokens(name: str, base: str = "scratch") -> Figure:
        return lambda runs: _over(runs[name].steps_to(runs[base].final), 0.0, T)

    def flops(name: str, base: str = "scratch") -> Figure:
        return lambda runs: _over(runs[name].steps_to(runs[base].final), runs[name].source_cost, T)

    def better(name: str, base: str = "scratch") -> Figure:
        return lambda runs: runs[base].final - runs[name].final

    def figures(name: str, base: str = "scratch", goals: tuple[str, ...] = ("", "", "", "", "", "")) -> None:
        add(f"{name}: tokens to {base}'s loss, source free", tokens(name, base), "x", *goals[:2])
        add(f"{name}: total FLOPs to it, source counted", flops(name, base), "x", *goals[2:4])
        add(f"{name}: better than {base}", better(name, base), "nats", *goals[4:])
        add(f"{name}: share of scratch's FLOPs spent", lambda runs: runs[name].cost / T, "x")
        add(f"{name}: loss before training", lambda runs: runs[name].curve[0][1], "nats")
        add(f"{name}: re-warm bump", lambda runs: runs[name].bump[0], "nats")
        add(f"{name}: back after, share of T", lambda runs: _over(runs[name].bump[1], 0.0, T), "x")

    figures("exact, same schedule", goals=("<= 0.60", "<= 0.40", "", "", "", ""))
    figures("exact, cut", goals=("<= 0.50", "<= 0.30", "<= 0.95", "<= 0.80", ">= 0.04", ">= 0.12"))
    for name in ("exact, live new blocks, cut", "rescale, cut", "stack, cut", "two steps of growth"):
        figures(name)
    add("two steps of growth: better than one", better("two steps of growth", "exact, cut"), "nats", "", "> 0")
    figures("exact from cheap source")
    for name in ("from before the decay", "same, equal total FLOPs", "same, moments grown", "from the decayed source"):
        figures(name, "scratch, wsd")
    for name in ("scratch", "scratch, wsd", "source", "source before its decay", "source decayed"):
        add(f"{name}: final loss", lambda runs, name=name: runs[name].final, "nats")
    return rows


def _over(steps: float | None, extra: float, T: int) -> float | None:
    return None if steps is None else (steps + extra) / T


def run_record(seeds: list[dict[str, Run]], lab: Lab) -> dict[str, Any]:
    """Rows, settings and every curve of the seeds so far."""
    curves = [{name: {"source_cost": r.source_cost, "curve": r.curve} for name, r in s.items()} for s in seeds]
    settings = {"steps": lab.steps, "seeds": len(seeds), "tokens_per_step": lab.scale.step_tokens}
    settings |= {"peak_rate": lab.scale.peak_rate}
    return record(rows_of(seeds, lab.steps), settings=settings, curves=curves)
