"""Bits per byte after a fixed time of one core: `hornbook pretrain`, fresh and grown, beside a nanoGPT-style loop.

Only training steps and growth are charged, in CPU seconds, and the arms take turns; all learning rates follow the
spent share of the budget, so that no arm is punished for a horizon that was set wrong. nanoGPT's values are those of
its small (character) example.
"""

import math
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import torch

from pipeline.config import Config
from pipeline.training.batches import Batch
from pipeline.training.budget import Budget, Plan, Verdict
from pipeline.training.cap import Cap
from pipeline.training.decisions import Decisions
from pipeline.training.module import PretrainModule
from scripts.bench_rows import Rows, at_most, row
from scripts.growth_bench import lab
from scripts.train_bench import nanogpt, ours, task
from scripts.train_bench.shapes import SHAPES, Shape

T = TypeVar("T")

SHAPE = SHAPES["S"]
RATE, LEAST_RATE, BETA2, WARMUP_SHARE = 1e-3, 1e-4, 0.99, 0.05
# The best of what was tried (docs/training, "Loss after 200 s of one core"); else the defaults.
RECIPE: dict[str, Any] = {
    "optimizer": "muon", "learning_rate": 1.8e-2, "beta2": 0.99, "muon_momentum": 0.8, "warmup_steps": 5,
    "decay_share": 0.6,
}  # fmt: skip
GROWN_RATE, SOURCE_RATE = 1.2e-2, 2e-2
SOURCE, SOURCE_SHARE = replace(SHAPE, layers=1, hidden=128, heads=2), 0.33  # what is grown, and its share of the time
GOAL = 0.75
TURN_SECONDS = 5.0


def run(seconds: float) -> Rows:
    """`seconds` of CPU time for each arm."""
    name = f"bits per byte on held-out text after {seconds:g} CPU seconds"
    rows, theirs = [], 0.0
    for arm, (bits, tokens) in zip(ARMS, take_turns(task.load(), seconds), strict=True):
        rows += [
            row(f"{name}: {arm}", round(bits, 4), "bits/byte"),
            row("its tokens", round(tokens / 1e6, 3), "million"),
        ]
        if arm in REACH:
            what = f"{name}: {arm}, share of the nanoGPT loop's (reach {REACH[arm]})"
            rows.append(at_most(what, bits / theirs, "", GOAL))
        else:
            theirs = bits
    return rows


def take_turns(text: task.Task, seconds: float) -> list[tuple[float, int]]:
    """(bits per byte, tokens) of all arms: each a process, a few seconds of one, then of the next, so that whatever
    else the machine does meets all alike."""
    context, arms = multiprocessing.get_context("spawn"), []
    for train in ARMS.values():
        here, there = context.Pipe()
        process = context.Process(target=_arm, args=(train, text, seconds, there), daemon=True)
        process.start()
        there.close()
        arms.append(here)
    results: list[Any] = [None] * len(arms)
    while None in results:
        for number, arm in enumerate(arms):
            if results[number] is None:
                arm.send("go on")
                results[number] = arm.recv()
    return results


def _arm(train: Callable[..., tuple[float, int]], text: task.Task, seconds: float, pipe: Connection) -> None:
    pipe.recv()
    until = time.process_time() + TURN_SECONDS

    def turn() -> None:
        nonlocal until
        if time.process_time() >= until:
            pipe.send(None)
            pipe.recv()
            until = time.process_time() + TURN_SECONDS

    pipe.send(train(text, seconds, turn=turn))


class _Clock:
    """CPU seconds that are charged. `turn`: between two steps, uncharged."""

    def __init__(self, turn: Callable[[], None]) -> None:
        self.turn, self.spent = turn, 0.0

    def charge(self, work: Callable[[], T]) -> tuple[T, float]:
        """What `work` gives, and what it took."""
        self.turn()
        started = time.process_time()
        result = work()
        used = time.process_time() - started
        self.spent += used
        return result, used


def train_ours(
    text: task.Task,
    seconds: float,
    seed: int = 0,
    turn: Callable[[], None] = lambda: None,
    recipe: Mapping[str, Any] = RECIPE,
    source: Shape | None = None,
) -> tuple[float, int]:
    """(bits per byte, tokens) of our module, the budget deciding when the decay starts.

    `source`: a smaller shape, which trains first, without a decay, for `SOURCE_SHARE` of the time and is then grown
    by the method `exact`; its training, the growth and its tokens are counted.
    """
    from pipeline.training.batches import TokenBatches
    from pipeline.training.validation import Validation

    config = ours.experiment(SHAPE, **recipe)
    config.seed = seed
    batches, decisions, clock = TokenBatches({"train": text.train}, config), Decisions(None), _Clock(turn)
    steps, of_source = ours.steps_without_end(batches), 0
    if source is None:
        module, _ = ours.module_of(config)
    else:
        module, of_source = _grown(source, config, steps, SOURCE_SHARE * seconds, clock)
    plan = Plan(
        Cap(seconds / 3600), None, config.train.decay_share, checkpoint_every_seconds=math.inf, validate_every_share=2.0
    )
    budget = Budget(plan, lambda: clock.spent, decisions)
    for number, batch in enumerate(steps):
        module.segments = decisions.segments()
        _, used = clock.charge(lambda batch=batch, number=number: module.training_step(batch, number))
        budget.measured.step(used, batches.sizes.sequences(number) / batches.sizes.full)
        if budget.decide(module.step) == Verdict.FINISH:
            break
    result = Validation({"held_out": text.held_out}, SHAPE.tokens).run(module.network)
    assert result is not None
    return result["held_out"], batches.sizes.tokens(of_source + module.step)


def _grown(
    source: Shape, target: Config, steps: Iterator[Batch], seconds: float, clock: _Clock
) -> tuple[PretrainModule, int]:
    """The target's module with a source's weights after `seconds`, and how many steps those took."""
    train = replace(target.train, learning_rate=SOURCE_RATE)
    config = replace(target, model=ours.model_config(source), train=train)
    module, machine = ours.module_of(config)
    while clock.spent < seconds:
        batch = next(steps)
        clock.charge(lambda batch=batch: module.training_step(batch, module.step))

    def grow() -> PretrainModule:
        network = lab.grow(config.model, module.optimizer.master_state_dict(), target.model, target.seed)
        return PretrainModule(network, target.train, machine.precision)

    return clock.charge(grow)[0], module.step


def train_nanogpt(
    text: task.Task, seconds: float, seed: int = 0, turn: Callable[[], None] = lambda: None
) -> tuple[float, int]:
    """(bits per byte, tokens) of the nanoGPT-style loop with its defaults, in fp32 as it runs on a CPU."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = nanogpt.GPT(SHAPE)
    adamw = nanogpt.optimizer(model, RATE, BETA2)
    step = nanogpt.step(model, adamw, autocast=False)
    ids, spent, steps = torch.from_numpy(text.train.tokens.astype("int64")), 0.0, 0
    while spent < seconds:
        turn()
        started = time.process_time()
        for group in adamw.param_groups:
            group["lr"] = _cosine(spent / seconds)
        starts = torch.randint(len(ids) - SHAPE.tokens - 1, (SHAPE.windows,)).tolist()
        step(
            torch.stack([ids[at : at + SHAPE.tokens] for at in starts]),
            torch.stack([ids[at + 1 : at + 1 + SHAPE.tokens] for at in starts]),
        )
        spent, steps = spent + time.process_time() - started, steps + 1
    return _bits_per_byte(model, text), steps * SHAPE.step_tokens


def _cosine(progress: float) -> float:
    if progress < WARMUP_SHARE:
        return RATE * max(progress / WARMUP_SHARE, 1e-3)
    half = 0.5 + 0.5 * math.cos(math.pi * (progress - WARMUP_SHARE) / (1 - WARMUP_SHARE))
    return LEAST_RATE + (RATE - LEAST_RATE) * half


@torch.no_grad()
def _bits_per_byte(model: nanogpt.GPT, text: task.Task) -> float:
    """Over windows that do not overlap, as `Validation` cuts them."""
    from pipeline.training.packing import Stream

    stream = Stream("held_out", text.held_out.tokens, SHAPE.tokens)
    nats, predicted = 0.0, 0
    for part in torch.arange(stream.count).split(32):
        inputs, labels = (torch.from_numpy(a) for a in stream.windows(part.numpy()))
        labels = labels.masked_fill(labels < 0, -1)
        count = int((labels >= 0).sum())
        nats += float(model.loss(inputs, labels)) * count
        predicted += count
    return nats / predicted / math.log(2) / text.bytes_per_token


ARMS: dict[str, Callable[..., tuple[float, int]]] = {
    "nanoGPT loop": train_nanogpt,
    "hornbook": train_ours,
    "hornbook, grown": partial(train_ours, recipe=RECIPE | {"learning_rate": GROWN_RATE}, source=SOURCE),
}
REACH = {"hornbook": 0.70, "hornbook, grown": 0.65}
