"""Where a run computes and in which numbers, chosen from the machine and printed once with the reason.

In: `train.device`, `train.precision`. Out: a `Machine`: torch device, precision, peak FLOP/s for MFU. On a CPU two
settings make most of the difference (1.2x to 1.7x and 1.6x of a step on a machine with AVX-512): big blocks must not
come from the kernel page by page (memory.py), and matrix products must be bf16 where the CPU has the instructions.

A run may resume on another device: `begin_process` records the move before anything follows from it. The text and the
learning rate do not depend on the device, because a batch is a function of (seed, step) and the rate of the step and
the decisions. The sums of a step do (kernels, micro-batch, precision), so a run is equal bit by bit only as long as it
stays on one kind of CPU. On a GPU two runs are equal up to rounding: attention's backward pass adds in no fixed order.
"""

import math
import os
import platform
import re
import time
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
import yaml

from model import cpu_kernels, float8
from pipeline.config import BudgetConfig, TrainConfig
from pipeline.storage.ledger import Ledger
from pipeline.system.errors import UserError
from pipeline.training.budget import Measured
from pipeline.training.decisions import Decisions
from pipeline.training.memory import DeviceMemory, set_up_allocator

BF16_FLAGS = {"avx512_bf16", "amx_bf16"}  # instructions without which bf16 is slower than fp32
EMULATED = "the card emulates bf16 (it is older than NVIDIA's Ampere)"
GEMM_SIZE = 1024  # large enough for the peak, small enough for 0.1 s on one core
THREAD_TRIALS, THREADS_REVIEW_SECONDS = 5, 10.0
GPU_TABLE = Path(__file__).with_name("gpus.yaml")  # a link to configs/gpus.yaml; in an installed copy, the file


@dataclass(frozen=True)
class Machine:
    """`peak_flops`: dense bf16 (or fp32) FLOP/s of the table, or of a product measured on a CPU; None if unknown."""

    device: torch.device
    name: str
    precision: str
    reason: str
    peak_flops: float | None
    peak_source: str
    threads: "Threads"

    @cached_property
    def memory(self) -> DeviceMemory:
        return DeviceMemory(self.device)

    def mfu(self, flops_per_second: float) -> float | None:
        """The share of the card's peak that is used. None on a CPU: what one product reaches there in a moment is no
        peak, as its clock, its threads and its neighbors change."""
        if self.device.type == "cpu" or not self.peak_flops:
            return None
        return flops_per_second / self.peak_flops

    def describe(self) -> str:
        peak = f", {self.peak_flops / 1e12:.3g} TFLOP/s ({self.peak_source})" if self.peak_flops else ""
        return f"{self.name}, {self.precision}: {self.reason}{peak}"


def choose(train: TrainConfig) -> Machine:
    """The device and precision of this run. Raises `UserError` where the device or the fp8 asked for is not there."""
    kind = _device_kind(train.device)
    device = torch.device(kind, 0) if kind == "cuda" else torch.device(kind)
    missing = None if train.float8 == "none" else float8.why_not(device)
    if missing is not None:
        raise UserError(f"train.float8 is '{train.float8}': {missing}; or set train.float8=none")
    torch.set_float32_matmul_precision(_product_precision(kind, train.precision))
    name = torch.cuda.get_device_name(device) if kind == "cuda" else f"{cpu_name()} ({torch.get_num_threads()} threads)"
    precision, reason = _precision(train.precision, kind)
    if kind == "cpu":
        missing = cpu_kernels.why_not()
        passes = "passes between products fused" if missing is None else f"torch's own passes ({missing})"
        reason += f"; {set_up_allocator()}; {passes}"
    threads = Threads(kind)
    threads.review()
    peak, source = _peak_flops(kind, name, precision)
    return Machine(device, name, precision, reason, peak, source, threads)


def _device_kind(wanted: str) -> str:
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    found = [kind for kind in there if there[kind]]
    if wanted == "auto":
        return "cuda" if "cuda" in found else "cpu"  # mps only when asked for: untested there
    if wanted not in found:
        raise UserError(f"train.device is '{wanted}', this machine has {', '.join(found)}; set train.device=auto")
    return wanted


def _product_precision(kind: str, precision: str) -> str:
    """torch's setting for fp32 matrix products: tf32 on a card; on a CPU oneDNN, 2.2x faster than MKL on AMD. There
    "medium" stays fp32-accurate (4e-7) except with AMX, which computes in bf16: not where fp32 was asked for."""
    if kind == "cuda":
        return "high"
    return "highest" if precision == "32-true" and "amx_bf16" in cpu_flags() else "medium"


def _precision(wanted: str, kind: str) -> tuple[str, str]:
    emulated = kind == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
    if wanted != "auto":
        return wanted, "as train.precision says" + (f", but {EMULATED}" if emulated and wanted != "32-true" else "")
    if kind == "cuda":
        reason = "the card has bf16; weights, sums and optimizer stay fp32"
        return ("32-true", EMULATED) if emulated else ("bf16-mixed", reason)
    flags = cpu_flags() & BF16_FLAGS
    if kind == "cpu" and flags:
        return "bf16-mixed", f"the CPU has {', '.join(sorted(flags))}; weights, sums and optimizer stay fp32"
    return "32-true", "no fast bf16 here"


@cache
def cpu_flags() -> frozenset[str]:
    """Instruction sets that /proc/cpuinfo names; none where there is no such file."""
    for line in _cpuinfo():
        if line.startswith("flags"):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


@cache
def cpu_name() -> str:
    for line in _cpuinfo():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []


class Threads:
    """How many threads compute on a CPU, measured again and again during a run.

    Threads that wait for each other spin: where something else takes one of the cores, a step was seen 2 to 10 times
    slower with two threads than with one, and 1.8 times faster where nothing did. Where OMP_NUM_THREADS is set, it
    decides.
    """

    def __init__(self, kind: str) -> None:
        """`kind`: of the device that computes; on a card the CPU's threads are not what a step waits for."""
        fixed = kind != "cpu" or "OMP_NUM_THREADS" in os.environ
        self.most = 1 if fixed else torch.get_num_threads()
        self._reviewed_at = -math.inf

    def review(self) -> int | None:
        """At most every ten seconds (it takes about 0.2): sets what is faster now; the new number where it changed."""
        if self.most == 1 or time.monotonic() - self._reviewed_at < THREADS_REVIEW_SECONDS:
            return None
        before = torch.get_num_threads()
        seconds: dict[int, list[float]] = {self.most: [], 1: []}
        for _ in range(THREAD_TRIALS):
            for threads, times in seconds.items():
                torch.set_num_threads(threads)
                times.append(_some_small_operations())
        chosen = min(seconds, key=lambda threads: sorted(seconds[threads])[THREAD_TRIALS // 2])
        torch.set_num_threads(chosen)
        self._reviewed_at = time.monotonic()
        return chosen if chosen != before else None


def _some_small_operations() -> float:
    """Seconds for what a block of a small network does: products, with passes over memory in between."""
    weight, x = torch.full((256, 1024), 0.01), torch.full((2048, 256), 0.01)
    started = time.perf_counter()
    hidden = torch.nn.functional.gelu(x @ weight, approximate="tanh")
    torch.nn.functional.layer_norm(x + hidden @ weight.t(), (256,))
    return time.perf_counter() - started


def gpu_table() -> dict[str, dict[str, Any]]:
    """configs/gpus.yaml: card -> memory, peak FLOP/s, bandwidth, price."""
    return yaml.safe_load(GPU_TABLE.read_text(encoding="utf-8"))


VARIANTS = {"laptop", "max", "mobile", "ti", "super", "d"}


def find_card(name: str) -> dict[str, Any] | None:
    """The table's entry for the name that the driver reports ("NVIDIA H100 80GB HBM3"), or None. By whole words: a
    GH200 is no H200. A variant (`VARIANTS`) has another's name and own speed: it has an entry of its own or none."""
    words = set(re.findall(r"[a-z0-9]+", name.lower()))
    named = ((card, {word.lower() for word in card["match"]}) for card in gpu_table().values())
    return next((card for card, match in named if match <= words and words & VARIANTS <= match), None)


def _peak_flops(kind: str, name: str, precision: str) -> tuple[float | None, str]:
    if kind == "cuda":
        card = find_card(name)
        return (card["bf16_dense_tflops"] * 1e12, "configs/gpus.yaml") if card else (None, "not in configs/gpus.yaml")
    if kind == "cpu":
        return measure_gemm(torch.float32 if precision == "32-true" else torch.bfloat16), "measured matrix product"
    return None, "unknown"


def measure_gemm(dtype: torch.dtype) -> float:
    """FLOP/s of a square matrix product, the best of what fits into 0.1 s."""
    a, b = (torch.randn(GEMM_SIZE, GEMM_SIZE).to(dtype) for _ in range(2))
    torch.mm(a, b)
    best, started = float("inf"), time.perf_counter()
    while time.perf_counter() - started < 0.1:
        before = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - before)
    return 2 * GEMM_SIZE**3 / best


def price_per_hour(budget: BudgetConfig, machine: Machine) -> float | None:
    """`budget.gpu_hour_price`, else what configs/gpus.yaml says of the card, None where neither is known."""
    if budget.gpu_hour_price is not None or machine.device.type != "cuda":
        return budget.gpu_hour_price
    card = find_card(machine.name)
    return card["price_per_hour"] if card else None


def begin_process(
    decisions: Decisions, ledger: Ledger, machine: Machine, measured: Measured, budget: BudgetConfig, *,
    step: int, windows: int,
) -> str | None:  # fmt: skip
    """Records that this process starts after `step` steps, with `windows` a pass, and the move where the newest state
    is another device's. Returns a line for the console about the move."""
    before = (decisions.of_kind("life") or [{}])[-1]
    price = price_per_hour(budget, machine)
    ledger.card = {"micro_batch": windows, **({} if price is None else {"price_per_hour": price})}
    decisions.add(
        "life",
        step,
        life=ledger.life,
        device=machine.name,
        precision=machine.precision,
        reason=machine.reason,
        micro_batch=windows,
        threads=torch.get_num_threads(),
    )
    if measured.moved_from is None:
        return None
    decisions.add(
        "card",
        step,
        before={key: before.get(key) for key in ("device", "precision", "micro_batch")},
        step_seconds_before=measured.speeds.get(measured.moved_from),
        step_seconds_expected=measured.inherited_step,
    )
    seconds = f", {measured.inherited_step:.3g} s a step expected" if measured.inherited_step else ""
    return f"another card: {machine.name} after {measured.moved_from}{seconds}; from here on equal up to rounding"
