"""Tokens per second of one shape: ours against every peer as it comes and with our settings, on one and two cores."""

import time
from statistics import median
from typing import Any

import torch

from pipeline.training import devices
from scripts.bench_rows import Rows, at_least, at_most, row
from scripts.train_bench import ours
from scripts.train_bench.arms import BARE, BARE_FP32, COMPILED, GIVEN, HUGE_PAGES, LITGPT, LITGPT_FP32, MODULE, OURS
from scripts.train_bench.race import Times, race
from scripts.train_bench.shapes import SHAPES

BF16 = bool(devices.cpu_flags() & devices.BF16_FLAGS)
FP32_PEERS = (LITGPT_FP32, "transformers loop, fp32", "transformers Trainer, fp32", "nanoGPT loop, fp32")
# With fp32 weights in the optimizer, as ours: a peer given our precision has bf16 products and fp32 masters.
BF16_PEERS = (LITGPT, "transformers loop, bf16 autocast", "transformers Trainer, bf16", "nanoGPT loop, bf16 autocast")
# Where the CPU has no bf16, a peer's bf16 is slow by nature: only what litgpt does unasked is run, and its fp32 judged.
AS_IT_COMES = (*BF16_PEERS, "litgpt bf16-true (no fp32 weights)", *FP32_PEERS) if BF16 else (LITGPT, *FP32_PEERS)
GIVEN_OURS = BF16_PEERS if BF16 else FP32_PEERS
OPPONENT, QUICK = GIVEN_OURS[0], (GIVEN_OURS[0], GIVEN_OURS[-1])
GOALS = {"S": (2.2, 2.8), "M": (1.6, 2.0)}
GIVEN_GOAL, PEAK_GOAL, FIRST_STEP_GOAL = (1.4, 1.8), (0.50, 0.65), 2.0


def run(shape: str, quick: bool) -> Rows:
    """One thread, CPU time."""
    peers = QUICK if quick else AS_IT_COMES
    given = [name + GIVEN for name in (QUICK if quick else GIVEN_OURS)]
    mine = [OURS, BARE, BARE_FP32] if BF16 and not quick else [OURS, BARE]
    peaks = [_gemm_flops()]
    rounds = 2 if quick else 5 if shape == "S" else 3
    times = race(MODULE, [*mine, *peers, *given], shape, rounds, steps=2 if quick or shape == "M" else 3)
    peaks.append(_gemm_flops())
    must, reach = GOALS[shape]
    best_given = min(given, key=lambda name: times[name].cpu_seconds)
    title = f"{shape}: tokens per CPU second, one thread"
    return [
        *(_speed(title, shape, name, t) for name, t in times.items()),
        _ratio(f"{shape}: against {OPPONENT} as it comes (reach {reach})", times, OPPONENT, must),
        _ratio(f"{shape}: against {best_given} (reach {GIVEN_GOAL[1]})", times, best_given, GIVEN_GOAL[0]),
        *(_ratio(f"{shape}: against {name}", times, name) for name in times
          if name not in (*mine, OPPONENT, best_given)),
        *([_fp32_ratio(shape, times)] if BARE_FP32 in times else []),
        *_peak_share(shape, times, median(peaks)),
        at_most(f"{shape}: first step after the model is built (reach 1)", times[BARE].first_step, "s",
                FIRST_STEP_GOAL),
        *(row(f"{shape}: first step after the model is built, {name}", round(times[name].first_step, 2), "s")
          for name in (OURS, *peers)),
    ]  # fmt: skip


def run_two_threads(quick: bool) -> Rows:
    """Two threads, wall time: needs a machine that does nothing else."""
    names = [OURS, BARE, *(QUICK if quick else AS_IT_COMES)]
    times = race(MODULE, names, "S", rounds=2 if quick else 6, steps=3, threads=2)
    step_tokens = SHAPES["S"].step_tokens
    rows = [
        row(f"S: tokens per second, two threads, wall: {name}", round(step_tokens / t.wall_seconds), "tokens/s")
        for name, t in times.items()
    ]
    ours_wall = times[OURS].wall_seconds
    return rows + [
        row(f"S, two threads, wall: against {name}", round(t.wall_seconds / ours_wall, 3), "x")
        for name, t in times.items()
        if name not in (OURS, BARE)
    ]


def run_compiled(quick: bool) -> Rows:
    """litgpt exactly as its pretrain command runs, torch.compile included; also in fp32 where the CPU has no bf16."""
    names = [name + COMPILED for name in ((LITGPT,) if BF16 else (LITGPT, LITGPT_FP32))]
    times = race(MODULE, [OURS, *names], "S", rounds=2 if quick else 6, steps=3)
    rows = []
    for name in names:
        rows += [
            _speed("S: tokens per CPU second, one thread", "S", name, times[name]),
            _ratio(f"S: against {name}, compile time left out", times, name),
            row(f"S: first step after the model is built, {name}", round(times[name].first_step, 1), "s"),
        ]
    return rows


def run_huge_pages(quick: bool) -> Rows:
    """Our step with its big blocks kept by glibc, and mapped in huge pages and given back; one thread, CPU time."""
    rows, environments = [], {BARE + HUGE_PAGES: {"THP_MEM_ALLOC_ENABLE": "1"}}
    for shape in ("S",) if quick else ("S", "M", "W"):
        rounds = 2 if quick else 8
        times = race(MODULE, [BARE, BARE + HUGE_PAGES], shape, rounds, steps=1, environments=environments)
        value = times[BARE + HUGE_PAGES].cpu_seconds / times[BARE].cpu_seconds
        rows.append(
            row(f"{shape}: a step with big blocks in huge pages over one with blocks kept", round(value, 3), "x")
        )
    return rows


def _speed(title: str, shape: str, name: str, times: Times) -> dict[str, Any]:
    return row(f"{title}: {name}", round(SHAPES[shape].step_tokens / times.cpu_seconds), "tokens/s")


def _ratio(title: str, times: dict[str, Times], name: str, goal: float | None = None) -> dict[str, Any]:
    value = times[name].cpu_seconds / times[OURS].cpu_seconds
    return row(title, round(value, 3), "x") if goal is None else at_least(title, value, "x", goal)


def _fp32_ratio(shape: str, times: dict[str, Times]) -> dict[str, Any]:
    peers = [name for name in times if "fp32" in name or "32-true" in name]
    best = min((name for name in peers if name != BARE_FP32), key=lambda name: times[name].cpu_seconds)
    value = times[best].cpu_seconds / times[BARE_FP32].cpu_seconds
    return row(f"{shape}: {BARE_FP32} against {best}", round(value, 3), "x")


def _peak_share(shape: str, times: dict[str, Times], peak: float) -> Rows:
    s = SHAPES[shape]
    flops = ours.model_config(s).flops_per_token(s.tokens) * s.step_tokens
    share = flops / times[OURS].cpu_seconds / peak
    kind = "bf16" if BF16 else "fp32"
    name = f"{shape}: share of the {kind} matrix product's speed, 6N + 12LTd (reach {PEAK_GOAL[1]:.2f})"
    return [
        row(f"{kind} matrix product of 1024 x 1024, before and after", round(peak / 1e9, 1), "GFLOP/s"),
        at_least(name, share, "", PEAK_GOAL[0]),
    ]


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
