"""What a training step costs on a CPU: tokens per second, its share of a matrix product's speed, Lightning's part.

    scripts/with_env.sh scripts/bench_train.py --json docs/results/training/bench_train.json
    scripts/with_env.sh scripts/bench_train.py --quick --only small

Every arm is a process; the arms of a race take turns of a few steps; figures are medians of CPU time per step. The arms
of other programs (litgpt, transformers, a nanoGPT-style loop), the fixed-budget task and the sweeps, whose figures
docs/training has, are in the scripts of commit b39d95c.
"""

import multiprocessing
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from model.config import ModelConfig
from model.transformer import Transformer
from pipeline import config as configs
from pipeline.corpus.text.shards import INDEX_DTYPE, TokenSet
from pipeline.training import devices
from pipeline.training.batches import TokenBatches
from pipeline.training.forecast import MemoryForecast
from pipeline.training.module import PretrainModule
from scripts.bench_rows import Part, Rows, at_least, at_most, main, row

BF16 = bool(devices.cpu_flags() & devices.BF16_FLAGS)
POOL_STEPS = 16  # the windows of so many steps, over and over: no arm waits for text
PEAK_GOAL, FIRST_STEP_GOAL = (0.50, 0.65), 2.0
BLOCK_STEPS = 100  # the mean of a block: a row of metrics is written every 10 steps
LIGHTNING_GOAL_MILLISECONDS = 1.0


@dataclass(frozen=True)
class Shape:
    """A Phi-shaped decoder (untied head, biases, MLP of 4 x hidden) and a step of `windows` x `tokens`."""

    layers: int
    hidden: int
    heads: int
    windows: int
    tokens: int
    vocab_size: int = 8192

    @property
    def step_tokens(self) -> int:
        return self.windows * self.tokens

    @property
    def model(self) -> ModelConfig:
        return ModelConfig(
            vocab_size=self.vocab_size, hidden_size=self.hidden, intermediate_size=4 * self.hidden,
            num_hidden_layers=self.layers, num_attention_heads=self.heads, partial_rotary_factor=0.5,
            max_position_embeddings=self.tokens,
        )  # fmt: skip


SHAPES = {
    "S": Shape(layers=4, hidden=192, heads=3, windows=8, tokens=256),  # 4.9M parameters
    "M": Shape(layers=8, hidden=384, heads=6, windows=4, tokens=512),  # 20.5M
    "W": Shape(layers=2, hidden=1024, heads=16, windows=2, tokens=1024, vocab_size=1024),  # 27M, wide
    "toy": Shape(layers=2, hidden=64, heads=2, windows=1, tokens=64, vocab_size=512),  # a step of milliseconds
}

# A race: every arm is a process, one runs at a time, a few steps each: what else the machine does meets all alike

WARMUP_STEPS = 2


class Meter:
    """In an arm's process: `built()` when model and optimizer exist, `step()` after every optimizer step."""

    def __init__(self, race: Connection) -> None:
        self._race, self._cpu, self._wanted = race, list[float](), 1

    def built(self) -> None:
        self._built, self._cpu_from = time.perf_counter(), time.process_time()

    def step(self) -> None:
        self._cpu.append(time.process_time() - self._cpu_from)
        if len(self._cpu) == self._wanted:
            self._race.send((self._cpu, time.perf_counter() - self._built))
            try:
                self._wanted, self._cpu = self._race.recv(), []
            except EOFError:
                os._exit(0)  # the race is over; whatever loop this is in has nothing left to do
        self._cpu_from = time.process_time()


@dataclass
class Times:
    """CPU seconds per optimizer step of one arm. `first_step`: from the model being built to its first step's end, by
    the wall clock."""

    cpu: list[float] = field(default_factory=list)
    first_step: float = 0.0

    @property
    def cpu_seconds(self) -> float:
        return median(self.cpu)


class Runner:
    """The parent's end of one arm."""

    def __init__(self, arm: str, shape: str, environment: Mapping[str, str]) -> None:
        self.name, self.times = arm, Times()
        context = multiprocessing.get_context("spawn")  # an interpreter of its own, which loads torch
        self._arm, its_end = context.Pipe()
        self._process = context.Process(target=_run_arm, args=(arm, shape, its_end))
        one_thread = {f"{kind}_NUM_THREADS": "1" for kind in ("OMP", "MKL", "OPENBLAS")}
        with patch.dict(os.environ, {**environment, **one_thread}):
            self._process.start()
        its_end.close()
        _, self.times.first_step = self._answer()

    def run(self, steps: int, counted: bool = True) -> None:
        self._arm.send(steps)
        cpu, _ = self._answer()
        if counted:
            self.times.cpu += cpu

    def end(self) -> None:
        self._arm.close()
        self._process.join(60)

    def _answer(self) -> tuple[list[float], float]:
        try:
            return self._arm.recv()
        except EOFError:
            raise SystemExit(f"the arm '{self.name}' ended early; what it said is above") from None


def _run_arm(arm: str, shape: str, race: Connection) -> None:
    warnings.simplefilter("ignore")
    ARMS[arm](SHAPES[shape], Meter(race))


def race(
    arms: list[str], shape: str, rounds: int, steps: int,
    environments: Mapping[str, Mapping[str, str]] | None = None,
) -> dict[str, Times]:  # fmt: skip
    """Arm -> its times after `rounds` turns of `steps` steps. `environments`: what an arm finds there besides."""
    own = environments or {}
    # One after the other: each waits when it is ready.
    runners = [Runner(arm, shape, own.get(arm, {})) for arm in arms]
    for runner in runners:
        runner.run(WARMUP_STEPS, counted=False)
    for turn in range(rounds):
        for runner in runners if turn % 2 == 0 else reversed(runners):
            runner.run(steps)
    for runner in runners:
        runner.end()
    return {runner.name: runner.times for runner in runners}


# The arms: the module and loop of `hornbook pretrain`, bare, and in Lightning with all that a run has


def _experiment(shape: Shape, precision: str) -> configs.Config:
    train = {
        "sequence_length": shape.tokens, "global_batch_tokens": shape.step_tokens, "learning_rate": 1e-3,
        "weight_decay": 0.1, "clip_norm": 1.0, "device": "cpu", "precision": precision,
    }  # fmt: skip
    return configs.from_values({"name": "bench", "model": {**shape.model.__dict__}, "train": train}, where="bench")


def _text(shape: Shape) -> np.ndarray:
    """Ids of `POOL_STEPS` steps: frequent tokens come often, as in text."""
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(POOL_STEPS * shape.windows, shape.tokens + 1, generator=generator)
    return (shape.vocab_size**uniform - 1).long().clamp_(0, shape.vocab_size - 1).flatten().numpy()


def _token_set(ids: np.ndarray) -> TokenSet:
    """One document of these ids."""
    index = np.array([(0, len(ids), 4 * len(ids), 0.5)], dtype=INDEX_DTYPE)
    return TokenSet("text", ids.astype(np.uint16), index)


def _module_of(config: configs.Config) -> tuple[PretrainModule, devices.Machine]:
    """The network as init and pretrain make it, on the machine as they choose it."""
    machine = devices.choose(config.train)
    network = Transformer(config.model).initialize(config.seed)
    return PretrainModule(network, config.train, machine.precision), machine


def _bare(shape: Shape, meter: Meter, precision: str = "auto") -> None:
    """Our training step in a plain loop over our batches."""
    config = _experiment(shape, precision)
    batches = TokenBatches({"text": _token_set(_text(shape))}, config)
    module, _ = _module_of(config)
    meter.built()
    for number, batch in enumerate(batches):
        module.training_step(batch, number)
        meter.step()


def _lightning(shape: Shape, meter: Meter, wandb: bool = False) -> None:
    """The same under Lightning's Trainer with budget, metrics, checkpoints and signals on: `hornbook pretrain`'s own
    parts, put together as it does, with the meter as last callback."""
    from lightning.pytorch import Callback

    from pipeline.storage.ledger import Ledger
    from pipeline.training import tracking
    from pipeline.training.budget import Budget, Limits
    from pipeline.training.cap import Cap
    from pipeline.training.checkpoint import Checkpoints
    from pipeline.training.control import Control, build_trainer
    from pipeline.training.decisions import Decisions
    from pipeline.training.validation import Validation

    class Tell(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            meter.step()

    config, text = _experiment(shape, "auto"), _text(shape)
    batches = TokenBatches({"text": _token_set(text)}, config)
    validation = Validation({"text": _token_set(text[: 2 * shape.tokens])}, shape.tokens)
    module, machine = _module_of(config)
    meter.built()
    with tempfile.TemporaryDirectory() as place:
        folder, mirror = Path(place), None
        if wandb:
            mirror = tracking.WandbMirror(folder, folder / "id", "bench", "bench", {}, lambda line: None)
        decisions = Decisions(folder / "decisions.jsonl")
        ledger = Ledger(folder / "ledger.jsonl", stage="pretrain", fingerprint="bench", device="cpu")
        with ledger, tracking.Metrics(folder / "metrics.jsonl", mirror) as metrics:
            limits = Limits(Cap(1e4), max_steps=None, decay_share=config.train.decay_share)
            budget = Budget(limits, lambda: ledger.spent_seconds, decisions)
            checkpoints = Checkpoints(folder / "checkpoints", 2, decisions)
            flops = config.model.flops_per_token(shape.tokens)
            control = Control(
                stage="pretrain",
                train=config.train,
                machine=machine,
                module=module,
                batches=batches,
                validation=validation,
                budget=budget,
                checkpoints=checkpoints,
                metrics=metrics,
                ledger=ledger,
                memory=MemoryForecast(decisions, machine, machine.memory.held_bytes()),
                flops_per_token=flops,
            )
            trainer = build_trainer(machine, folder, control)
            trainer.callbacks.append(Tell())  # type: ignore[attr-defined]
            trainer.fit(module, batches)


OURS, BARE, BARE_FP32 = "hornbook", "hornbook, bare loop", "hornbook 32-true, bare loop"
WANDB, HUGE_PAGES = "hornbook, W&B offline", "hornbook, bare loop, huge pages"
ARMS: dict[str, Callable[[Shape, Meter], None]] = {
    OURS: _lightning,
    BARE: _bare,
    BARE_FP32: partial(_bare, precision="32-true"),
    HUGE_PAGES: _bare,  # the parent's environment asks for them, before torch is loaded
    WANDB: partial(_lightning, wandb=True),
}

# The parts


def speed(shape: str, quick: bool) -> Rows:
    """Tokens per second of one thread, CPU time."""
    arms = [OURS, BARE, BARE_FP32] if BF16 and not quick else [OURS, BARE]
    peaks = [_gemm_flops()]
    rounds = 2 if quick else 5 if shape == "S" else 3
    times = race(arms, shape, rounds, steps=2 if quick or shape == "M" else 3)
    peaks.append(_gemm_flops())
    s, peak, kind = SHAPES[shape], median(peaks), "bf16" if BF16 else "fp32"
    share = s.model.flops_per_token(s.tokens) * s.step_tokens / times[OURS].cpu_seconds / peak
    return [
        *(row(f"{shape}: tokens per CPU second, one thread: {name}", round(s.step_tokens / t.cpu_seconds), "tokens/s")
          for name, t in times.items()),
        row(f"{kind} matrix product of 1024 x 1024, before and after", round(peak / 1e9, 1), "GFLOP/s"),
        at_least(f"{shape}: share of the {kind} matrix product's speed, 6N + 12LTd (reach {PEAK_GOAL[1]:.2f})", share,
                 "", PEAK_GOAL[0]),
        at_most(f"{shape}: first step after the model is built (reach 1)", times[BARE].first_step, "s",
                FIRST_STEP_GOAL),
        row(f"{shape}: first step after the model is built, {OURS}", round(times[OURS].first_step, 2), "s"),
    ]  # fmt: skip


def _gemm_flops() -> float:
    """Of this process's CPU time, median of 2 seconds: the peak that a step is held against."""
    torch.set_num_threads(1)
    size, dtype = devices.GEMM_SIZE, torch.bfloat16 if BF16 else torch.float32
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    times, started = [], time.perf_counter()
    while time.perf_counter() - started < 2:
        before = time.process_time()
        torch.mm(a, b)
        times.append(time.process_time() - before)
    return 2 * size**3 / median(times)


def lightning(quick: bool) -> Rows:
    """What Lightning and our callbacks cost per step, beside our own training step in a plain loop.

    A network whose step takes milliseconds, in blocks of 100 steps; CPU time of all threads of the process."""
    times = race([BARE, OURS, WANDB], "toy", rounds=3 if quick else 11, steps=BLOCK_STEPS)
    blocks = {
        name: [1e3 * sum(t.cpu[at : at + BLOCK_STEPS]) / BLOCK_STEPS for at in range(0, len(t.cpu), BLOCK_STEPS)]
        for name, t in times.items()
    }
    cost = {name: median(b - a for a, b in zip(blocks[BARE], blocks[name], strict=True)) for name in (OURS, WANDB)}
    return [
        row("toy network: our step in a bare loop", round(median(blocks[BARE]), 3), "ms"),
        at_most("Lightning and all callbacks over the bare loop, a row every 10 steps", cost[OURS], "ms",
                LIGHTNING_GOAL_MILLISECONDS),
        at_most("the same with W&B offline", cost[WANDB], "ms", LIGHTNING_GOAL_MILLISECONDS),
    ]  # fmt: skip


def huge_pages(quick: bool) -> Rows:
    """Our step with its big blocks kept by glibc, and mapped in huge pages and given back; one thread, CPU time."""
    rows = []
    for shape in ("S",) if quick else ("S", "M", "W"):
        environments = {HUGE_PAGES: {"THP_MEM_ALLOC_ENABLE": "1"}}
        times = race([BARE, HUGE_PAGES], shape, 2 if quick else 8, steps=1, environments=environments)
        value = times[HUGE_PAGES].cpu_seconds / times[BARE].cpu_seconds
        rows.append(
            row(f"{shape}: a step with big blocks in huge pages over one with blocks kept", round(value, 3), "x")
        )
    return rows


PARTS = {
    "small": Part(partial(speed, "S")),
    "medium": Part(partial(speed, "M"), slow=True),
    "lightning": Part(lightning),
    "huge_pages": Part(huge_pages, slow=True),
}

if __name__ == "__main__":
    main(__file__, __doc__ or "", "train", PARTS, ("torch", "lightning", "numpy"))
