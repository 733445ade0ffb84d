"""Bits per byte after a fixed time of one core: `hornbook pretrain`'s recipe beside a nanoGPT-style loop's defaults.

Only training steps are charged, in CPU seconds, and the two arms take turns; both learning rates follow the spent share
of the budget, so that no arm is punished for a horizon that was set wrong. nanoGPT's values are those of its small
(character) example.
"""

import math
import multiprocessing
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

import torch

from pipeline.training.budget import Budget, Plan, Verdict
from pipeline.training.decisions import Decisions
from scripts.bench_rows import Rows, at_most, row
from scripts.train_bench import nanogpt, ours, task
from scripts.train_bench.shapes import SHAPES

SHAPE = SHAPES["S"]
RATE, LEAST_RATE, BETA2, WARMUP_SHARE = 1e-3, 1e-4, 0.99, 0.05
RECIPE: dict[str, Any] = {"optimizer": "muon", "learning_rate": 1.2e-2}  # the best of `sweeps`; else the defaults
GOAL = 0.75
TURN_SECONDS = 5.0


def run(seconds: float) -> Rows:
    """`seconds` of CPU time for each arm."""
    (theirs, their_tokens), (mine, my_tokens) = take_turns(task.load(), seconds)
    name = f"bits per byte on held-out text after {seconds:g} CPU seconds"
    return [
        row(f"{name}: nanoGPT loop", round(theirs, 4), "bits/byte"),
        row("its tokens", round(their_tokens / 1e6, 3), "million"),
        row(f"{name}: hornbook", round(mine, 4), "bits/byte"),
        row("its tokens", round(my_tokens / 1e6, 3), "million"),
        at_most(f"{name}: share of the nanoGPT loop's (reach 0.70)", mine / theirs, "", GOAL),
    ]


def take_turns(text: task.Task, seconds: float) -> list[tuple[float, int]]:
    """(bits per byte, tokens) of both arms: each a process, a few seconds of one, then of the other, so that whatever
    else the machine does meets both alike."""
    context, arms = multiprocessing.get_context("spawn"), []
    for train in (train_nanogpt, train_ours):
        here, there = context.Pipe()
        process = context.Process(target=_arm, args=(train, text, seconds, there), daemon=True)
        process.start()
        there.close()
        arms.append(here)
    results: list[Any] = [None, None]
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


def train_ours(
    text: task.Task,
    seconds: float,
    seed: int = 0,
    turn: Callable[[], None] = lambda: None,
    recipe: Mapping[str, Any] = RECIPE,
) -> tuple[float, int]:
    """(bits per byte, tokens) of our module, the budget deciding when the decay starts. `turn`: between two steps."""
    from pipeline.training.batches import TokenBatches
    from pipeline.training.validation import Validation

    config = ours.experiment(SHAPE, **recipe)
    config.seed = seed
    module, _ = ours.module_of(config)
    batches, decisions, spent = TokenBatches({"train": text.train}, config), Decisions(None), 0.0
    plan = Plan(seconds, None, config.train.decay_share, checkpoint_every_seconds=math.inf, validate_every_share=2.0)
    budget = Budget(plan, lambda: spent, decisions)
    for number, batch in enumerate(ours.steps_without_end(batches)):
        turn()
        started = time.process_time()
        module.segments = decisions.segments()
        module.training_step(batch, number)
        used = time.process_time() - started
        spent += used
        budget.measured.step(used, batches.sizes.sequences(number) / batches.sizes.full)
        if budget.decide(module.step) == Verdict.FINISH:
            break
    result = Validation({"held_out": text.held_out}, SHAPE.tokens).run(module.network)
    assert result is not None
    return result["held_out"], batches.sizes.tokens(module.step)


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
