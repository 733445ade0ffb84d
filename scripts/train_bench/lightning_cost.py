"""What Lightning and our callbacks cost per optimizer step, beside our own training step in a plain loop."""

from statistics import median

from scripts.bench_rows import Rows, at_most, row
from scripts.train_bench.arms import BARE, MODULE, OURS, WANDB
from scripts.train_bench.race import race

BLOCK_STEPS = 100  # the mean of a block: a row of metrics is written every 10 steps
GOAL_MILLISECONDS = 1.0


def run(quick: bool) -> Rows:
    """A network whose step takes milliseconds, in blocks of 100 steps; CPU time of all threads of the process."""
    times = race(MODULE, [BARE, OURS, WANDB], "toy", rounds=3 if quick else 11, steps=BLOCK_STEPS)
    blocks = {
        name: [1e3 * sum(t.cpu[at : at + BLOCK_STEPS]) / BLOCK_STEPS for at in range(0, len(t.cpu), BLOCK_STEPS)]
        for name, t in times.items()
    }
    cost = {name: median(b - a for a, b in zip(blocks[BARE], blocks[name], strict=True)) for name in (OURS, WANDB)}
    return [
        row("toy network: our step in a bare loop", round(median(blocks[BARE]), 3), "ms"),
        at_most("Lightning and all callbacks over the bare loop, a row every 10 steps", cost[OURS], "ms",
                GOAL_MILLISECONDS),
        at_most("the same with W&B offline", cost[WANDB], "ms", GOAL_MILLISECONDS),
    ]  # fmt: skip
