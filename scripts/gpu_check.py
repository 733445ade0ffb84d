"""What a CUDA card must show: kernels agree, memory is as planned, speed by shape and policy, a killed run resumes.

In: a folder. Out: `gpu_check.json` there, written after every part (a part that fails or finds no time says so and the
next one runs), and a table on the screen. Needs torch, lightning, tokenizers, safetensors, numpy; `--cpu` runs every
line at tiny sizes, where memory is predicted only and there is no peak to compare speed with.
"""

import argparse
import gc
import importlib.util
import json
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from model import float8
from model.config import ModelConfig
from model.estimate import Plan, TrainSettings
from model.loss import chunked_cross_entropy
from model.optim import OPTIMIZERS
from model.transformer import Transformer
from pipeline.training.batches import Copies
from pipeline.training.devices import find_card
from scripts import gpu_check_run
from scripts.gpu_check_run import SHAPES, batch_of, built, step

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    "torch",
    "lightning",
    "tokenizers",
    "safetensors",
    "numpy",
    "datatrove",
    "wandb",
    "triton",
    "torchao",
)
LIMIT_BYTES = int(24e9)  # what a 24 GB card has, its driver's part included


@dataclass(frozen=True)
class Case:
    """One row of the memory and speed tables."""

    shape: str
    windows: int
    sequence_length: int
    checkpointing: str
    compiled: bool
    precision: str = "bf16-sr"
    optimizer: str = "adamw8bit"
    in_backward: bool = False
    float8: str = "none"
    limit_bytes: int | None = None  # a smaller card, by the share of memory that this process may take


CASES = [
    Case("125m", 16, 2048, "none", False, "bf16-mixed", "adamw"),
    Case("125m", 16, 2048, "none", True, "bf16-mixed", "adamw"),
    Case("2.7b", 8, 2048, "none", True),
    Case("2.7b", 1, 2048, "full", False, limit_bytes=LIMIT_BYTES),
    Case("2.7b", 1, 2048, "full", False, optimizer="adamw4bit", in_backward=True, limit_bytes=LIMIT_BYTES),
    Case("2.7b", 8, 2048, "none", True, float8="tensorwise"),
    Case("2.7b", 8, 2048, "selective", True),
    Case("1.3b", 8, 2048, "none", True, "bf16-mixed", "adamw"),
    Case("2.7b", 8, 2048, "none", False),
    Case("2.7b", 8, 2048, "full", True),
    Case("1.3b", 8, 2048, "none", True, "bf16-mixed", "adamw", float8="tensorwise"),
]
CPU_CASES = [
    Case("tiny", 2, 64, "none", False, "bf16-mixed", "adamw"),
    Case("tiny", 2, 64, "selective", False, "bf16-sr", "adamw8bit", limit_bytes=LIMIT_BYTES),
    Case("tiny", 2, 64, "full", False, "bf16-sr", "adamw4bit", in_backward=True),
    Case("tiny", 2, 64, "none", False, float8="tensorwise"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cpu", action="store_true", help="tiny sizes, to try the script itself")
    parser.add_argument("--seconds", type=float, default=540, help="parts that would start later are left out")
    args = parser.parse_args()
    if not args.cpu and not torch.cuda.is_available():
        raise SystemExit("torch.cuda.is_available() is false; run on a CUDA machine, or with --cpu to try the script")
    args.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cpu" if args.cpu else "cuda")
    ends = time.monotonic() + args.seconds
    found: dict[str, Any] = {"environment": environment(device), "started": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    parts: list[tuple[str, Callable[[], Any]]] = [
        ("kernels", lambda: kernels(device)),
        ("capped", lambda: gpu_check_run.run(args.out / "capped", device)),
    ]
    parts += [(f"case {i}", lambda c=c: run_case(c, device)) for i, c in enumerate(CPU_CASES if args.cpu else CASES)]
    for name, part in parts:
        started = time.monotonic()
        found[name] = attempt(part) if started < ends else {"skipped": f"{args.seconds:g} s are over"}
        found[name]["seconds"] = round(time.monotonic() - started, 1)
        (args.out / "gpu_check.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(
            f"{name}: {found[name].get('error') or found[name].get('skipped') or 'done'}", file=sys.stderr, flush=True
        )
    print(table(found))
    raise SystemExit(
        any("error" in part or part.get("ok") is False for part in found.values() if isinstance(part, dict))
    )


def attempt(part: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A part's result, or its error: the others still run."""
    try:
        return part()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {str(error)[:400]}", "traceback": traceback.format_exc()[-2000:]}
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def environment(device: torch.device) -> dict[str, Any]:
    """Card, versions, commit, what is missing."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    facts: dict[str, Any] = {
        "device": device.type,
        "python": platform.python_version(),
        "commit": commit.stdout.strip() or "unknown",
        "packages": {name: package_version(name) for name in PACKAGES},
        "note": "tiny sizes on a CPU: nothing here is a GPU's figure" if device.type == "cpu" else "",
    }
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        facts |= {"card": card.name, "memory_bytes": card.total_memory, "cuda": torch.version.cuda}
        facts["peak_flops"] = peak_flops(card.name)
    return facts


def package_version(name: str) -> str:
    try:
        return version(name) if importlib.util.find_spec(name) else "missing"
    except PackageNotFoundError:
        return "unknown"


def peak_flops(card_name: str) -> float | None:
    card = find_card(card_name)
    return card["bf16_dense_tflops"] * 1e12 if card else None


# ---- kernels


def kernels(device: torch.device) -> dict[str, Any]:
    """Relative errors against plain fp32, each with its tolerance."""
    checks = {"chunked loss, bf16": (loss_error(device), 0.01)}
    reference = gradients(device, torch.float32)
    checks["bf16 sdpa"] = distance(gradients(device, torch.bfloat16), reference), 0.05
    for policy in ("selective", "full"):
        checks[f"checkpointing {policy}"] = distance(gradients(device, torch.float32, policy), reference), 1e-5
    if device.type == "cuda":
        for policy in ("none", "selective", "full"):
            checks[f"compiled bf16 {policy}"] = (
                distance(gradients(device, torch.bfloat16, policy, True), reference),
                0.05,
            )
    losses = {name: optimizer_loss(device, name, "32-true") for name in OPTIMIZERS}
    checks["adamw8bit against adamw"] = abs(losses["adamw8bit"] - losses["adamw"]), 0.05
    checks["adamw4bit against adamw"] = abs(losses["adamw4bit"] - losses["adamw"]), 0.3
    checks["bf16-sr against fp32"] = abs(optimizer_loss(device, "adamw", "bf16-sr") - losses["adamw"]), 0.1
    if (missing := float8_missing(device)) is None:
        plain = optimizer_loss(device, "adamw", "bf16-mixed")
        for recipe in float8.RECIPES[1:]:
            loss = optimizer_loss(device, "adamw", "bf16-mixed", recipe)
            checks[f"fp8 {recipe} against bf16"] = abs(loss - plain), 0.01
    checks["batches copied ahead"] = copied_wrongly(device), 0
    if device.type == "cuda":
        for precision, optimizer, policy in (("bf16-mixed", "adamw", "none"), ("bf16-sr", "adamw8bit", "selective")):
            checks[f"host waits in a step, {precision} {optimizer}"] = waits(device, precision, optimizer, policy), 0
    rows = {name: {"error": float(f"{e:.3g}"), "tolerance": t, "ok": e <= t} for name, (e, t) in checks.items()}
    return {
        "ok": all(row["ok"] for row in rows.values()),
        "checks": rows,
        "losses": losses,
        "left out": {"fp8": missing} if missing else {},
    }


def float8_missing(device: torch.device) -> str | None:
    """Why fp8 is left out here; a CPU emulates it where torchao is installed."""
    if device.type == "cpu":
        return None if importlib.util.find_spec("torchao") else "torchao is not installed"
    return float8.why_not(device)


def waits(device: torch.device, precision: str, optimizer: str, policy: str) -> float:
    """1 where an operation of the third step made the host wait for the card, else 0."""
    network, weights = built("tiny", device, precision, optimizer)
    network.activation_checkpointing = policy
    ids_BT = batch_of(network, 4, 64, device, 0)
    for _ in range(2):
        step(network, weights, ids_BT, 1.0)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(network, weights, ids_BT, 1.0)
    except RuntimeError as error:
        print(f"  {error}", file=sys.stderr)
        return 1.0
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return 0.0


class Pair(NamedTuple):
    input_ids_BT: torch.Tensor
    labels_BT: torch.Tensor


def copied_wrongly(device: torch.device) -> float:
    """How many of 20 batches, each read at once, are not on the device what they were on the host."""
    copies, wrong = Copies(device), 0
    for number in range(20):
        host = Pair(torch.full((64, 2048), number), torch.arange(64 * 2048).view(64, 2048) + number)
        arrived = copies.finish(copies.begin(host))  # type: ignore[arg-type]
        sums = [int(tensor.sum()) for tensor in (arrived.input_ids_BT, arrived.labels_BT)]
        wrong += sums != [int(tensor.sum()) for tensor in host] or arrived.input_ids_BT.device.type != device.type
    return float(wrong)


def loss_error(device: torch.device) -> float:
    generator = torch.Generator().manual_seed(0)
    h, weight, bias = (torch.randn(shape, generator=generator).to(device) for shape in ((600, 64), (999, 64), (999,)))
    labels = torch.randint(0, 999, (600,), generator=generator).to(device)
    low = [tensor.bfloat16().requires_grad_() for tensor in (h, weight, bias)]
    loss_sum = chunked_cross_entropy(low[0], low[1], low[2], labels)[0]
    loss_sum.backward()
    plain = [tensor.detach().float().requires_grad_() for tensor in low]
    expected = torch.nn.functional.cross_entropy(torch.addmm(plain[2], plain[0], plain[1].t()), labels, reduction="sum")
    expected.backward()
    errors = [(loss_sum - expected).abs() / expected]
    errors += [(a.grad.float() - b.grad).norm() / b.grad.norm() for a, b in zip(low, plain, strict=True)]  # type: ignore
    return max(float(error.detach()) for error in errors)


def gradients(device: torch.device, dtype: torch.dtype, policy: str = "none", compiled: bool = False) -> torch.Tensor:
    """Loss and all gradients of one batch, in one fp32 vector on the CPU."""
    torch.manual_seed(0)
    network = Transformer(ModelConfig(512, 128, 512, 2, 2)).initialize(0).to(device, dtype)
    network.activation_checkpointing, network.attention_kernel = policy, "sdpa"
    if compiled:
        network.compile_blocks()
    ids_BT = batch_of(network, 2, 128, device, 0)
    loss_sum, count = network.loss(ids_BT[:, :-1], ids_BT[:, 1:])
    (loss_sum / count).backward()
    parts = [(loss_sum / count).detach().view(1), *(p.grad.flatten() for p in network.parameters())]  # type: ignore
    return torch.cat([part.float().cpu() for part in parts])


def distance(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


def optimizer_loss(device: torch.device, optimizer: str, precision: str, recipe: str = "none") -> float:
    """The loss after 20 steps of a tiny network."""
    network, weights = built("tiny", device, precision, optimizer, float8=recipe)
    losses = [step(network, weights, batch_of(network, 4, 64, device, seed), 1.0) for seed in range(20)]
    return float(losses[-1])


# ---- memory and speed


def run_case(case: Case, device: torch.device) -> dict[str, Any]:
    """Predicted and measured peak, tokens per second and MFU of one row. Memory that runs out is an answer too."""
    config = SHAPES[case.shape]
    settings = TrainSettings(case.sequence_length, case.precision, case.optimizer, case.checkpointing, case.in_backward)
    predicted = Plan(config, settings).estimate(case.windows)
    row: dict[str, Any] = {**asdict(case), "predicted_bytes": predicted.traced_bytes, "by_kind": predicted.by_kind}
    if case.float8 != "none" and (missing := float8_missing(device)):
        return row | {"skipped": f"{case.shape} with fp8: {missing}"}
    try:
        with memory_limit(case.limit_bytes, device):
            return row | measured(case, config, device)
    except torch.OutOfMemoryError as error:
        return row | {"out_of_memory": str(error)[:200]}


@contextmanager
def memory_limit(limit_bytes: int | None, device: torch.device) -> Any:
    """Within, the card is one of `limit_bytes`: an allocation past it fails as it would there. Speed stays its own."""
    if limit_bytes is None or device.type != "cuda":
        yield
        return
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, limit_bytes / total))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def measured(case: Case, config: ModelConfig, device: torch.device) -> dict[str, Any]:
    network, weights = built(case.shape, device, case.precision, case.optimizer, case.in_backward, case.float8)
    network.activation_checkpointing = case.checkpointing
    if case.compiled:
        network.compile_blocks()
    ids_BT = batch_of(network, case.windows, case.sequence_length, device, 0)
    clip_norm = None if case.in_backward else 1.0
    started = time.monotonic()
    for _ in range(2):
        step(network, weights, ids_BT, clip_norm)
    synchronize(device)
    start_seconds = time.monotonic() - started
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    steps, started = 0, time.monotonic()
    while steps < 3 or (time.monotonic() - started < 6 and steps < 200):
        step(network, weights, ids_BT, clip_norm)
        steps += 1
        if steps % 2 == 0:
            synchronize(device)  # so that the clock above is not ahead of the card by the whole queue
    synchronize(device)
    seconds = (time.monotonic() - started) / steps
    tokens_per_second = case.windows * case.sequence_length / seconds
    row = {"tokens_per_second": round(tokens_per_second, 1), "first_two_steps_seconds": round(start_seconds, 2)}
    if device.type == "cuda":
        peak, flops = peak_flops(torch.cuda.get_device_name()), config.flops_per_token(case.sequence_length)
        row["measured_bytes"] = torch.cuda.max_memory_allocated()
        row["reserved_bytes"] = torch.cuda.max_memory_reserved()
        row["mfu"] = round(tokens_per_second * flops / peak, 4) if peak else None  # type: ignore[assignment]
    return row


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


# ---- the table


def table(found: dict[str, Any]) -> str:
    facts = found["environment"]
    lines = [
        f"{facts.get('card', 'CPU, tiny sizes: no figures of a GPU')}, torch {facts['packages']['torch']}, "
        f"{facts['commit'][:10]}"
    ]
    missing = [name for name, number in facts["packages"].items() if number == "missing"]
    if missing:
        lines.append(f"missing here: {', '.join(missing)}")
    for name in ("kernels", "capped"):
        part = found[name]
        bad = [check for check, row in part.get("checks", {}).items() if not row["ok"]]
        lines.append(
            f"{name}: {'ok' if part.get('ok') else part.get('error') or part.get('skipped') or bad or 'NOT equal'}"
        )
    lines.append(f"{'shape':6} {'batch':>9} {'recompute':9} {'compile':7} {'weights':14} {'optimizer':14} "
                 f"{'plan GiB':>8} {'peak GiB':>8} {'tokens/s':>10} {'MFU':>6}")  # fmt: skip
    for name, row in found.items():
        if name.startswith("case"):
            lines.append(table_row(row))
    return "\n".join(lines)


def table_row(row: dict[str, Any]) -> str:
    if "shape" not in row or "skipped" in row:
        return row.get("error") or row.get("skipped") or "?"
    weights = row["precision"] + (" fp8" if row["float8"] != "none" else "")
    optimizer = row["optimizer"] + (" in bwd" if row["in_backward"] else "")
    peak = "no memory" if "out_of_memory" in row else gibibytes(row.get("measured_bytes"))
    limit = f" of {row['limit_bytes'] / 1e9:.0f} GB" if row["limit_bytes"] else ""
    mfu = f"{100 * row['mfu']:.1f}%" if row.get("mfu") else "-"
    return (
        f"{row['shape']:6} {row['windows']:>4}x{row['sequence_length']:<4} {row['checkpointing']:9} "
        f"{'yes' if row['compiled'] else 'no':7} {weights:14} {optimizer:14} "
        f"{gibibytes(row['predicted_bytes']):>8} {peak:>8} {row.get('tokens_per_second', 0):>10,.0f} {mfu:>6}{limit}"
    )


def gibibytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 2**30:.2f}"


if __name__ == "__main__":
    main()
