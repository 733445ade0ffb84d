"""What a CUDA card must show: kernels agree, memory is as planned, speed by shape and policy, a killed run goes on.

In: a folder. Out: `gpu_check.json` there, written after every part (a part that fails or finds no time says so and the
next one runs), and a table on the screen. Needs torch, lightning, tokenizers, safetensors, numpy; `--cpu` runs every
line at tiny sizes, where memory is predicted only and there is no peak to compare speed with.
"""

import argparse
import gc
import importlib.util
import json
import platform
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml  # lightning needs it too

from model.config import ModelConfig
from model.estimate import TrainSettings, estimate_memory
from model.loss import chunked_cross_entropy
from model.optim import OPTIMIZERS, MasterWeights, needs_slices
from model.transformer import Transformer

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "lightning", "tokenizers", "safetensors", "numpy", "omegaconf", "datatrove", "wandb", "triton")
SHAPES = {
    "tiny": ModelConfig(512, 64, 256, 2, 4),
    "125m": ModelConfig(51200, 768, 3072, 12, 12),
    "1.3b": ModelConfig(51200, 2048, 8192, 24, 32),
    "2.7b": ModelConfig(51200, 2560, 10240, 32, 32, partial_rotary_factor=0.4),
}


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


CASES = [
    Case("125m", 16, 2048, "none", False, "bf16-mixed", "adamw"),
    Case("125m", 16, 2048, "none", True, "bf16-mixed", "adamw"),
    Case("2.7b", 8, 2048, "none", True),
    Case("2.7b", 8, 2048, "selective", True),
    Case("1.3b", 8, 2048, "none", True, "bf16-mixed", "adamw"),
    Case("2.7b", 8, 2048, "none", False),
    Case("2.7b", 8, 2048, "full", True),
    Case("2.7b", 1, 2048, "full", False),
    Case("2.7b", 1, 2048, "full", False, optimizer="adamw4bit", in_backward=True),
]
CPU_CASES = [
    Case("tiny", 2, 64, policy, False, precision, optimizer, in_backward)
    for policy, precision, optimizer, in_backward in (
        ("none", "bf16-mixed", "adamw", False),
        ("selective", "bf16-sr", "adamw8bit", False),
        ("full", "bf16-sr", "adamw4bit", True),
    )
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cpu", action="store_true", help="tiny sizes, to try the script itself")
    parser.add_argument("--seconds", type=float, default=540, help="parts that would start later are left out")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.cpu and not torch.cuda.is_available():
        raise SystemExit("torch.cuda.is_available() is false; run on a CUDA machine, or with --cpu to try the script")
    args.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cpu" if args.cpu else "cuda")
    if args.child:
        train_child(args.out, device)
        return
    ends = time.monotonic() + args.seconds
    found: dict[str, Any] = {"environment": environment(device), "started": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    parts: list[tuple[str, Callable[[], Any]]] = [
        ("kernels", lambda: kernels(device)),
        ("resume", lambda: resume(args)),
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
    cards = yaml.safe_load((ROOT / "configs" / "gpus.yaml").read_text(encoding="utf-8"))
    for card in cards.values():
        if all(word.lower() in card_name.lower() for word in card["match"]):
            return card["bf16_dense_tflops"] * 1e12
    return None


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
    rows = {name: {"error": float(f"{e:.3g}"), "tolerance": t, "ok": e <= t} for name, (e, t) in checks.items()}
    return {"ok": all(row["ok"] for row in rows.values()), "checks": rows, "losses": losses}


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
    ids_BT = batch_of(network.config, 2, 128, device, 0)
    loss_sum, count = network.loss(ids_BT[:, :-1], ids_BT[:, 1:])
    (loss_sum / count).backward()
    parts = [(loss_sum / count).detach().view(1), *(p.grad.flatten() for p in network.parameters())]  # type: ignore
    return torch.cat([part.float().cpu() for part in parts])


def distance(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


def optimizer_loss(device: torch.device, optimizer: str, precision: str, steps: int = 20) -> float:
    """The loss after a few steps of a tiny network."""
    network, weights = built(SHAPES["tiny"], device, precision, optimizer)
    for step in range(steps):
        ids_BT = batch_of(network.config, 4, 64, device, step)
        loss_sum, count = network.loss(ids_BT[:, :-1], ids_BT[:, 1:])
        (loss_sum / count).backward()
        weights.accumulate()
        weights.step(1.0)
    return float(loss_sum.detach() / count)


def built(
    config: ModelConfig, device: torch.device, precision: str, optimizer: str, in_backward: bool = False
) -> tuple[Transformer, MasterWeights]:
    torch.manual_seed(0)
    with device:
        network = Transformer(config)
    if config is SHAPES["tiny"]:
        network.initialize(0)
    network.attention_kernel = "sdpa"
    sliced = needs_slices(precision, in_backward)
    make = lambda groups: OPTIMIZERS[optimizer](groups, learning_rate=1e-3, sliced=sliced)  # noqa: E731
    return network, MasterWeights(network, make, precision, in_backward=in_backward)


def batch_of(config: ModelConfig, windows: int, tokens: int, device: torch.device, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randint(0, 8, (windows, tokens + 1), generator=generator)
    return (steps.cumsum(1) % config.vocab_size).to(device)


# ---- memory and speed


def run_case(case: Case, device: torch.device) -> dict[str, Any]:
    """Predicted and measured peak, tokens per second and MFU of one row. Memory that runs out is an answer too."""
    config = SHAPES[case.shape]
    settings = TrainSettings(case.sequence_length, case.precision, case.optimizer, case.checkpointing, case.in_backward)
    predicted = estimate_memory(config, settings, case.windows)
    row: dict[str, Any] = {**asdict(case), "predicted_bytes": predicted.traced_bytes, "by_kind": predicted.by_kind}
    try:
        return row | measured(case, config, device)
    except torch.OutOfMemoryError as error:
        return row | {"out_of_memory": str(error)[:200]}


def measured(case: Case, config: ModelConfig, device: torch.device) -> dict[str, Any]:
    network, weights = built(config, device, case.precision, case.optimizer, case.in_backward)
    network.activation_checkpointing = case.checkpointing
    if case.compiled:
        network.compile_blocks()
    ids_BT = batch_of(config, case.windows, case.sequence_length, device, 0)
    started = time.monotonic()
    for _ in range(2):
        one_step(network, weights, ids_BT, case)
    synchronize(device)
    start_seconds = time.monotonic() - started
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    steps, started = 0, time.monotonic()
    while steps < 3 or (time.monotonic() - started < 6 and steps < 200):
        one_step(network, weights, ids_BT, case)
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


def one_step(network: Transformer, weights: MasterWeights, ids_BT: torch.Tensor, case: Case) -> None:
    """One pass and one optimizer step: the optimizer's share is larger than in a run that accumulates."""
    loss_sum, _ = network.loss(ids_BT[:, :-1], ids_BT[:, 1:])
    (loss_sum / ids_BT[:, 1:].numel()).backward()
    weights.accumulate()
    weights.step(None if case.in_backward else 1.0)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


# ---- a capped run, killed and resumed

RESUME_STEPS, SAVE_AT = 30, 10


def resume(args: argparse.Namespace) -> dict[str, Any]:
    """Trains in a child that is killed after its checkpoint, again from there, and once unbroken: equal losses."""
    losses = {}
    for name, kill in (("killed", True), ("unbroken", False)):
        folder = args.out / f"resume-{name}"
        folder.mkdir(exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        command = [sys.executable, __file__, str(folder), "--child", *(["--cpu"] if args.cpu else [])]
        child = subprocess.Popen(command)
        killed_at = kill_after_checkpoint(child, folder) if kill else None
        if child.wait(timeout=120) not in (0, -signal.SIGKILL):
            raise RuntimeError(f"the training child ended with {child.returncode}")
        if kill:
            if child.returncode == 0:
                raise RuntimeError("the child was done before it could be killed")
            subprocess.run(command, check=True, timeout=120)
        lines = (folder / "losses.jsonl").read_text(encoding="utf-8").splitlines()
        losses[name] = {row["step"]: row["loss"] for row in map(json.loads, lines)}
    return {
        "ok": losses["killed"] == losses["unbroken"],
        "killed_after_step": killed_at or SAVE_AT,
        "steps": RESUME_STEPS,
    }


def kill_after_checkpoint(child: "subprocess.Popen[bytes]", folder: Path) -> int:
    ends = time.monotonic() + 120
    while not (folder / "killable").exists():
        if time.monotonic() > ends or child.poll() is not None:
            raise RuntimeError("the training child wrote no checkpoint")
        time.sleep(0.02)
    child.kill()
    return SAVE_AT


def train_child(folder: Path, device: torch.device) -> None:
    """bf16 weights with stochastic rounding and 8-bit moments: the state that is hardest to bring back exactly."""
    from safetensors.torch import load_file, save_file

    network, weights = built(SHAPES["tiny"], device, "bf16-sr", "adamw8bit")
    saved, start = folder / "state.safetensors", 0
    if saved.exists():
        state = load_file(saved)
        start = int(state.pop("position"))
        torch.set_rng_state(state.pop("random"))
        if device.type == "cuda":
            torch.cuda.set_rng_state(state.pop("random_cuda"))
        weights.load_state_dict(state)
    for step in range(start, RESUME_STEPS):
        ids_BT = batch_of(network.config, 4, 64, device, step)
        loss_sum, count = network.loss(ids_BT[:, :-1], ids_BT[:, 1:])
        (loss_sum / count).backward()
        weights.step(1.0)
        with open(folder / "losses.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "loss": float(loss_sum.detach() / count)}) + "\n")
        if step + 1 == SAVE_AT and start == 0:
            state = {name: tensor.contiguous() for name, tensor in weights.state_dict().items()}
            state |= {"position": torch.tensor(SAVE_AT), "random": torch.get_rng_state()}
            if device.type == "cuda":
                state["random_cuda"] = torch.cuda.get_rng_state()
            save_file(state, folder / "state.part")
            (folder / "state.part").rename(saved)
        if step + 1 == SAVE_AT + 5 and start == 0:
            (folder / "killable").touch()
            time.sleep(2.0)  # time to be killed in, five steps after the checkpoint


# ---- the table


def table(found: dict[str, Any]) -> str:
    facts = found["environment"]
    lines = [
        f"{facts.get('card', 'CPU, tiny sizes: no figures of a GPU')}, torch {facts['packages']['torch']}, "
        f"{facts['commit'][:10]}"
    ]
    missing = [name for name, number in facts["packages"].items() if number == "missing"]
    if missing:
        lines.append(f"missing here: {', '.join(missing)} (`hornbook` itself needs omegaconf; this check does not)")
    for name in ("kernels", "resume"):
        part = found[name]
        bad = [check for check, row in part.get("checks", {}).items() if not row["ok"]]
        lines.append(
            f"{name}: {'ok' if part.get('ok') else part.get('error') or part.get('skipped') or bad or 'NOT equal'}"
        )
    lines.append(f"{'shape':6} {'batch':>9} {'recompute':9} {'compile':7} {'weights':10} {'optimizer':14} "
                 f"{'plan GiB':>8} {'peak GiB':>8} {'tokens/s':>10} {'MFU':>6}")  # fmt: skip
    for name, row in found.items():
        if name.startswith("case"):
            lines.append(table_row(row))
    return "\n".join(lines)


def table_row(row: dict[str, Any]) -> str:
    if "shape" not in row:
        return row.get("error") or row.get("skipped") or "?"
    optimizer = row["optimizer"] + (" in bwd" if row["in_backward"] else "")
    peak = "no memory" if "out_of_memory" in row else gibibytes(row.get("measured_bytes"))
    mfu = f"{100 * row['mfu']:.1f}%" if row.get("mfu") else "-"
    return (
        f"{row['shape']:6} {row['windows']:>4}x{row['sequence_length']:<4} {row['checkpointing']:9} "
        f"{'yes' if row['compiled'] else 'no':7} {row['precision']:10} {optimizer:14} "
        f"{gibibytes(row['predicted_bytes']):>8} {peak:>8} {row.get('tokens_per_second', 0):>10,.0f} {mfu:>6}"
    )


def gibibytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 2**30:.2f}"


if __name__ == "__main__":
    main()
