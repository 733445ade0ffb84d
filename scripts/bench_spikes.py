"""Which steps are skipped? Ordinary runs must skip none, and every planted spike must be caught.

    scripts/with_env.sh scripts/bench_spikes.py --json docs/results/training/spikes.json
    scripts/with_env.sh scripts/bench_spikes.py --quick

The 0.4M model of scripts/hours_lab.py in real runs, each with a seed of its own, so another start and other text.
Planted are, each for one step: the loss times ten, a gradient that is not finite, and a corrupt batch (random token
ids). Part `early` says from which step on a corrupt batch is caught, by the rule's own limit at every fourth step.
"""

import math
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.bench_rows import Part, Rows, at_most, main, row
from scripts.hours_lab import Lab

ORDINARY_RUNS, PLANTED_RUNS = 20, 5
TOKENS, STEP_TOKENS = 400_000, 1024
PLAN = {
    20: "not finite", 100: "ten times the loss", 130: "corrupt", 160: "not finite", 200: "corrupt",
    230: "ten times the loss", 250: "corrupt", 320: "not finite", 380: "ten times the loss", 340: "corrupt",
}  # fmt: skip


def ordinary(quick: bool) -> Rows:
    """Nothing is planted, and the longest of the runs is three times as long."""
    runs = 2 if quick else ORDINARY_RUNS
    skipped, highest, norms = 0, [], []
    with tempfile.TemporaryDirectory() as place:
        lab = Lab(Path(place))
        for seed in range(1, runs + 1):
            found = _run(lab, seed, 3 * TOKENS if seed == runs else TOKENS)
            skipped += len(found["skipped"])
            losses, steps = found["losses"], range(32, len(found["losses"]))
            highest.append(max(losses[i] - _middle(losses, i) for i in steps))
            norms.append(max(found["norms"][i] / _middle(found["norms"], i) for i in steps))
    return [
        at_most(f"steps skipped in {runs} ordinary runs", skipped, "steps", 0),
        row("highest loss over the median of the 128 steps before, of a run: median, worst", _two(highest), "nats"),
        row("highest gradient norm over the median of the 128 before, of a run: median, worst", _two(norms), "x"),
    ]


def planted(quick: bool) -> Rows:
    runs = 1 if quick else PLANTED_RUNS
    missed: list[str] = []
    others = 0
    with tempfile.TemporaryDirectory() as place:
        lab = Lab(Path(place))
        for seed in range(1, runs + 1):
            with _planted(PLAN):
                skipped = _run(lab, seed, TOKENS)["skipped"]
            missed += [f"seed {seed}, step {s}: {kind}" for s, kind in PLAN.items() if s + 1 not in skipped]
            others += len(set(skipped) - {s + 1 for s in PLAN})
    print(*missed, sep="\n", flush=True)
    rows = [
        at_most(f"planted and not caught: {kind}", sum(kind in line for line in missed), "steps", 0)
        for kind in sorted(set(PLAN.values()))
    ]
    count = f"{len(PLAN)} a run in {runs} runs"
    return [row("planted", count, ""), *rows, at_most("other steps skipped in these runs", others, "steps", 0)]


def early(quick: bool) -> Rows:
    """From when on a corrupt batch lies above the limit in every run, and how far the loss has fallen by then."""
    from_step, fallen = [], []
    with tempfile.TemporaryDirectory() as place:
        lab = Lab(Path(place))
        for seed in range(1, 2 if quick else PLANTED_RUNS + 1):
            with _looking() as seen:
                found = _run(lab, seed, 200 * STEP_TOKENS)
            missed = [step for step, loss, limit in seen if loss <= limit]
            first = next(step for step, *_ in seen if step > max(missed, default=-1))
            from_step.append(first)
            fallen.append(math.log(1024) - _middle(found["losses"], first, 16))
    return [
        row("a corrupt batch is caught from this step on: median, worst", _two(from_step), "step"),
        row("the loss is this far below uniform guessing by then: median, most", _two(fallen), "nats"),
    ]


def _run(lab: Lab, seed: int, tokens: int) -> dict[str, Any]:
    words = (f"seed={seed}", f"name=run{seed}", "train.log_every_steps=1", f"budget.max_tokens={tokens}")
    lab.prepare_here(*words)
    lab.run_here(*words)
    name = f"run{seed}"
    rows = [r for r in lab.metrics(name) if "train/loss" in r]
    return {
        "skipped": [r["step"] for r in lab.decisions(name) if r["kind"] == "skip"],
        "losses": [r["train/loss"] for r in rows],
        "norms": [r["train/grad_norm"] for r in rows],
    }


@contextmanager
def _patched(passes: Callable[..., Any]) -> Iterator[None]:
    """`passes(module, batch, plain)` instead of the module's own."""
    from pipeline.training.module import PretrainModule

    plain = PretrainModule._passes
    PretrainModule._passes = lambda self, batch: passes(self, batch, plain)  # type: ignore[method-assign]
    try:
        yield
    finally:
        PretrainModule._passes = plain  # type: ignore[method-assign]


@contextmanager
def _planted(plan: dict[int, str]) -> Iterator[None]:
    """Runs inside meet what `plan` says, at 0-based steps."""

    def passes(module: Any, batch: Any, plain: Callable[..., Any]) -> Any:
        kind, network = plan.get(module.step), module.network
        if kind == "corrupt":
            return plain(module, _corrupt(batch, network.config.vocab_size))
        if kind == "not finite":
            hook = network.lm_head.weight.register_hook(lambda gradient: gradient * math.nan)
            try:
                return plain(module, batch)
            finally:
                hook.remove()
        if kind == "ten times the loss":
            loss = network.loss
            network.loss = lambda *args: (10 * (found := loss(*args))[0], *found[1:])
            try:
                return plain(module, batch)
            finally:
                del network.loss
        return plain(module, batch)

    with _patched(passes):
        yield


@contextmanager
def _looking() -> Iterator[list[tuple[int, float, float]]]:
    """Yields (step, loss of a corrupt batch there, the rule's limit), filled by runs inside; they are not disturbed."""
    import torch

    from pipeline.training.spikes import LEAST_STEPS

    seen: list[tuple[int, float, float]] = []

    def passes(module: Any, batch: Any, plain: Callable[..., Any]) -> Any:
        if module.step >= LEAST_STEPS and module.step % 4 == 0:
            other = _corrupt(batch, module.network.config.vocab_size)
            with torch.no_grad():
                loss = module.network.loss(other.input_ids_BT, other.labels_BT)[0] / other.predicted
            seen.append((module.step, float(loss), float(module.spikes.limits(module.step)[0])))
        return plain(module, batch)

    with _patched(passes):
        yield seen


def _corrupt(batch: Any, vocabulary: int) -> Any:
    import torch

    ids_BT, labels_BT = batch.input_ids_BT, batch.labels_BT
    generator = torch.Generator().manual_seed(0)
    drawn_BT = torch.randint(1, vocabulary, ids_BT.shape, generator=generator).to(ids_BT)
    return batch._replace(input_ids_BT=drawn_BT, labels_BT=torch.where(labels_BT < 0, labels_BT, drawn_BT.roll(-1, 1)))


def _middle(values: list[float], step: int, steps: int = 128) -> float:
    before = sorted(values[max(0, step - steps) : step])
    return before[len(before) // 2]


def _two(values: list[float]) -> str:
    ordered = sorted(values)
    return f"{ordered[len(ordered) // 2]:.3g}, {ordered[-1]:.3g}"


PARTS = {"ordinary": Part(ordinary), "planted": Part(planted), "early": Part(early)}

if __name__ == "__main__":
    main(__file__, __doc__ or "", "spikes", PARTS, ("torch", "lightning"))
