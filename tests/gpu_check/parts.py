"""The parts of check.py, each in a process of its own: `python -m tests.gpu_check.parts PART FILE [--cpu]`.

Out: FILE, a JSON object that is written again after every result, so that a part that is cut off leaves what it has.
Times on a card are taken by its own events, and a step's is put together at the config's ratio of passes to steps: one
optimizer step after every pass would hide the accumulation and overstate the optimizer.
"""

import argparse
import gc
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

from model import checkpoints, float8
from model.config import ModelConfig
from model.estimate import Plan, TrainSettings
from model.float8 import use_float8
from model.loss import chunked_cross_entropy
from model.optim import OPTIMIZERS, MasterWeights, are_finite, needs_slices
from model.transformer import Transformer
from pipeline.training.batches import Copies
from pipeline.training.devices import find_card
from pipeline.training.memory import on_host

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "lightning", "tokenizers", "safetensors", "numpy", "datatrove", "wandb", "triton", "torchao")
LIMIT_BYTES = int(24e9)  # what a 24 GB card has, its driver's part included
SHAPES = {
    "tiny": ModelConfig(512, 64, 256, 2, 4),
    "day": ModelConfig(32768, 1280, 5120, 24, 20),
    "1.3b": ModelConfig(51200, 2048, 8192, 24, 32),
    "2.7b": ModelConfig(51200, 2560, 10240, 32, 32, partial_rotary_factor=0.4),
    "0.5b": checkpoints.known()["Qwen/Qwen2.5-0.5B"].shape,
    "3b": ModelConfig(151936, 2048, 11008, 36, 16, 2, family="qwen2", tie_word_embeddings=True),  # Qwen2.5-3B
}
PHI2_PASSES, DAY_PASSES = 32, 32  # of 16,384 tokens in a step of the config: 524,288 tokens
LLMQ = {"0.5b": {"H100": 149_000, "RTX 4090": 40_000}, "3b": {"H100": 31_000, "RTX 4090": 7_000}}  # tokens/s published
Report = Callable[[str, Any], None]


@dataclass(frozen=True)
class Case:
    """One row of the memory and speed tables. `passes`: of a step, by which the parts of its time are weighed."""

    shape: str
    windows: int
    sequence_length: int
    checkpointing: str
    compiled: bool
    precision: str = "bf16-sr"
    optimizer: str = "adamw8bit"
    passes: int = 1
    in_backward: bool = False
    float8: str = "none"
    limit_bytes: int | None = None  # a smaller card, by the share of memory that this process may take
    saved: bool = False  # whether a state is taken to the host too


PHI2 = Case("2.7b", 8, 2048, "none", True, passes=PHI2_PASSES, saved=True)
CASES = {
    "phi2": [PHI2],
    "shapes": [
        Case("day", 8, 2048, "none", True, "bf16-mixed", "adamw", DAY_PASSES),
        Case("3b", 16, 1024, "none", True, passes=32),
        Case("0.5b", 32, 1024, "none", True, passes=16),
    ],
    "24 GB": [
        Case("2.7b", 1, 2048, "full", True, passes=256, limit_bytes=LIMIT_BYTES, saved=True),
        Case("2.7b", 2, 2048, "full", False, optimizer="adamw4bit", in_backward=True, limit_bytes=LIMIT_BYTES),
    ],
    "rest": [
        replace(PHI2, float8="tensorwise", saved=False),
        replace(PHI2, checkpointing="selective", saved=False),
        replace(PHI2, checkpointing="full", saved=False),
        Case("1.3b", 8, 2048, "none", True, "bf16-mixed", "adamw", passes=32),
        replace(PHI2, compiled=False, saved=False),
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("file", type=Path)
    parser.add_argument("--cpu", action="store_true")
    args = parser.parse_args()
    found: dict[str, Any] = {}

    def report(name: str, value: Any) -> None:
        found[name] = value
        part = args.file.with_suffix(".part")
        part.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        part.replace(args.file)

    PARTS[args.part](torch.device("cpu" if args.cpu else "cuda"), report)


# ---- environment and ceilings


def ceilings(device: torch.device, report: Report) -> None:
    """Card and versions, the attention backend that is chosen, and what products and copies reach here at most."""
    report("environment", environment(device))
    report("attention", attention_backend(device))
    tiny = device.type == "cpu"
    sizes = (256, 128, 512) if tiny else (16384, 2560, 10240)
    a, b = torch.randn(sizes[:2], device=device).bfloat16(), torch.randn(sizes[1:], device=device).bfloat16()
    seconds = seconds_of(lambda: torch.mm(a, b), device)
    report("product", {"sizes": sizes, "flops_per_second": 2 * sizes[0] * sizes[1] * sizes[2] / seconds})
    source = torch.zeros(2**22 if tiny else 2**30, dtype=torch.uint8, device=device)
    target, host = torch.empty_like(source), torch.empty(source.nbytes, dtype=torch.uint8, pin_memory=not tiny)
    speeds = {
        "device": 2 * source.nbytes / seconds_of(lambda: target.copy_(source), device),
        "to_host": source.nbytes / seconds_of(lambda: host.copy_(source), device),
        "to_device": source.nbytes / seconds_of(lambda: target.copy_(host), device),
    }
    report("copies", {f"{name}_bytes_per_second": value for name, value in speeds.items()})


def seconds_of(work: Callable[[], Any], device: torch.device, times: int = 10) -> float:
    for _ in range(2):
        work()
    mark = Marks(device)
    mark("start")
    for _ in range(times):
        work()
    mark("work")
    return mark.seconds()["work"] / times


class Marks:
    """Seconds between points of a program, on the card's own clock where there is one. Nothing waits before the end."""

    def __init__(self, device: torch.device):
        self.device, self.points = device, []

    def __call__(self, name: str) -> None:
        """What came since the point before was `name`."""
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.points.append((name, event))
        else:
            self.points.append((name, time.perf_counter()))

    def seconds(self) -> dict[str, float]:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        found: dict[str, float] = {}
        for (_, before), (name, after) in zip(self.points, self.points[1:], strict=False):
            length = before.elapsed_time(after) / 1000 if self.device.type == "cuda" else after - before
            found[name] = found.get(name, 0.0) + length
        return found


def environment(device: torch.device) -> dict[str, Any]:
    """Card, versions, commit, what is missing."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    facts: dict[str, Any] = {
        "device": device.type,
        "python": platform.python_version(),
        "commit": commit.stdout.strip() or "unknown",
        "packages": {name: package_version(name) for name in PACKAGES},
        "allocator": os.environ.get("PYTORCH_ALLOC_CONF", ""),
        "note": "tiny sizes on a CPU: nothing here is a GPU's figure" if device.type == "cpu" else "",
    }
    if device.type == "cuda":
        card, (free, total) = torch.cuda.get_device_properties(device), torch.cuda.mem_get_info()
        facts |= {"card": card.name, "memory_bytes": total, "free_bytes": free, "cuda": torch.version.cuda}
        facts |= {"peak_flops": peak_flops(card.name), "cudnn": torch.backends.cudnn.version()}
    return facts


def package_version(name: str) -> str:
    try:
        return version(name) if importlib.util.find_spec(name) else "missing"
    except PackageNotFoundError:
        return "unknown"


def peak_flops(card_name: str) -> float | None:
    card = find_card(card_name)
    return card["bf16_dense_tflops"] * 1e12 if card else None


def attention_backend(device: torch.device) -> dict[str, str]:
    """torch's choice for a pass of Phi-2 and of day, whose heads have 80 and 64 numbers."""
    from torch.nn.attention import SDPBackend

    found = {}
    for size in (80, 64):
        shape = (1, 4, 256, size)
        q, k, v = (torch.zeros(shape, dtype=torch.bfloat16, device=device, requires_grad=True) for _ in range(3))
        found[f"head {size}"] = SDPBackend(torch.ops.aten._fused_sdp_choice(q, k, v, is_causal=True)).name
    return found


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


def gradients(
    device: torch.device, dtype: torch.dtype, policy: str = "none", compiled: bool = False, tokens: int = 128
) -> torch.Tensor:
    """Loss and all gradients of one batch, in one fp32 vector on the CPU."""
    torch.manual_seed(0)
    network = Transformer(ModelConfig(512, 128, 512, 2, 2)).initialize(0).to(device, dtype)
    network.activation_checkpointing, network.attention_kernel = policy, "sdpa"
    if compiled:
        network.compile_blocks()
    ids_BT = batch_of(network, 2, tokens, device, 0)
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


def built(
    shape: str, device: torch.device, precision: str, optimizer: str, in_backward: bool = False, float8: str = "none"
) -> tuple[Transformer, MasterWeights]:
    """A network in its precision, with its optimizer; fp8 is emulated where there is no card."""
    torch.manual_seed(0)
    with device:
        network = Transformer(SHAPES[shape])
    if shape == "tiny":
        network.initialize(0)
    network.attention_kernel = "sdpa"
    if float8 != "none":
        use_float8(network, float8, emulate=device.type == "cpu")
    sliced = needs_slices(precision, in_backward)
    make = lambda groups: OPTIMIZERS[optimizer](groups, learning_rate=1e-3, sliced=sliced)  # noqa: E731
    return network, MasterWeights(network, make, precision, in_backward=in_backward)


def batch_of(network: Transformer, windows: int, tokens: int, device: torch.device, seed: int) -> torch.Tensor:
    """Windows of `tokens` + 1 ids that can be learned."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randint(0, 8, (windows, tokens + 1), generator=generator)
    return (steps.cumsum(1) % network.config.vocab_size).to(device)


def step(network: Transformer, weights: MasterWeights, ids_BT: torch.Tensor, clip_norm: float | None) -> torch.Tensor:
    """One pass and one optimizer step, nothing read by the host; the mean loss."""
    loss_sum, _ = network.loss(ids_BT[:, :-1], ids_BT[:, 1:])
    loss = loss_sum / ids_BT[:, 1:].numel()
    loss.backward()
    weights.accumulate()
    weights.step(clip_norm)
    return loss.detach()


def cases(part: str, device: torch.device, report: Report) -> None:
    for case in CASES[part]:
        small = replace(case, shape="tiny", windows=2, sequence_length=64, compiled=False)
        own = case if device.type == "cuda" else small
        name = f"{case.shape} {case.checkpointing} {case.float8} {'compiled' if case.compiled else 'eager'}"
        torch._dynamo.reset()
        report(f"{name} {case.optimizer}", run_case(own, device))
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def run_case(case: Case, device: torch.device) -> dict[str, Any]:
    """Predicted and measured peak, seconds by part, tokens per second and MFU of one row. Memory that runs out is an
    answer too."""
    config = SHAPES[case.shape]
    several = case.passes > 1 and not case.in_backward
    settings = TrainSettings(
        case.sequence_length, case.precision, case.optimizer, case.checkpointing, case.in_backward, several
    )
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
def memory_limit(limit_bytes: int | None, device: torch.device) -> Iterator[None]:
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
    """Steps of two passes: the second one's backward adds to sums, the first one's does not, so their difference is the
    accumulation, wherever it happens."""
    network, weights = built(case.shape, device, case.precision, case.optimizer, case.in_backward, case.float8)
    network.activation_checkpointing = case.checkpointing
    if case.compiled:
        network.compile_blocks()
    ids_BT = batch_of(network, case.windows, case.sequence_length, device, 0)
    started = time.monotonic()
    marked_step(case, network, weights, ids_BT, Marks(device))
    synchronize(device)
    row: dict[str, Any] = {"first_step_seconds": round(time.monotonic() - started, 2)}
    marked_step(case, network, weights, ids_BT, Marks(device))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    found: list[dict[str, float]] = []
    started = time.monotonic()
    while len(found) < 3 or (time.monotonic() - started < 6 and len(found) < 50):
        marks = Marks(device)
        marked_step(case, network, weights, ids_BT, marks)
        found.append(marks.seconds())
    seconds = {name: sorted(each[name] for each in found)[len(found) // 2] for name in found[0]}
    row |= step_facts(case, config, seconds, device)
    if device.type == "cuda":
        stats = torch.cuda.memory_stats()
        row |= {"measured_bytes": torch.cuda.max_memory_allocated(), "retries": stats["num_alloc_retries"]}
        row["reserved_bytes"] = torch.cuda.max_memory_reserved()
    return row | (saved(weights, device) if case.saved else {})


def marked_step(case: Case, network: Transformer, weights: MasterWeights, ids_BT: torch.Tensor, mark: Marks) -> None:
    mark("start")
    for number in range(1 if case.in_backward or case.passes == 1 else 2):
        loss_sum, _ = network.loss(ids_BT[:, :-1], ids_BT[:, 1:])
        mark("forward")
        (loss_sum / ids_BT[:, 1:].numel()).backward()
        weights.accumulate()
        mark("backward and accumulation" if number else "backward")
    weights.step(None if case.in_backward else 1.0)
    mark("optimizer")


def step_facts(case: Case, config: ModelConfig, seconds: dict[str, float], device: torch.device) -> dict[str, Any]:
    """Of a pass and of a whole step with the case's passes."""
    both = "backward and accumulation" in seconds
    parts = {"forward": seconds["forward"] / (1 + both), "backward": seconds["backward"]}
    parts["accumulation"] = max(0.0, seconds["backward and accumulation"] - seconds["backward"]) if both else 0.0
    parts["optimizer"] = seconds["optimizer"]
    whole = case.passes * (parts["forward"] + parts["backward"]) + (case.passes - 1) * parts["accumulation"]
    whole += parts["optimizer"]
    per_second = case.passes * case.windows * case.sequence_length / whole
    peak = peak_flops(torch.cuda.get_device_name()) if device.type == "cuda" else None
    flops = config.flops_per_token(case.sequence_length)
    return {
        "milliseconds": {name: round(1000 * value, 3) for name, value in parts.items()},
        "step_seconds": round(whole, 4),
        "tokens_per_second": round(per_second, 1),
        "mfu": round(per_second * flops / peak, 4) if peak else None,
        "llmq_tokens_per_second": LLMQ.get(case.shape),
    }


def saved(weights: MasterWeights, device: torch.device) -> dict[str, Any]:
    """What a checkpoint takes to the host, as it takes it: seconds, bytes, and by how much the card's peak rises."""
    synchronize(device)
    before = torch.cuda.memory_allocated() if device.type == "cuda" else 0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    started, count = time.monotonic(), 0
    state = {f"master/{name}": tensor for name, tensor in weights.master_state_dict().items()} | weights.state_dict()
    are_finite(tensor for tensor in state.values() if tensor.is_floating_point()).tolist()
    for _, tensor in on_host((name, tensor.view(-1)) for name, tensor in state.items()):
        count += tensor.nbytes
    seconds = time.monotonic() - started
    rise = torch.cuda.max_memory_allocated() - before if device.type == "cuda" else None
    return {"save_seconds": round(seconds, 3), "save_bytes": count, "save_rise_bytes": rise}


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


# ---- waits


WAITING = {
    "bf16-mixed adamw": {"precision": "bf16-mixed", "optimizer": "adamw"},
    "bf16-sr adamw8bit selective": {
        "precision": "bf16-sr", "optimizer": "adamw8bit", "activation_checkpointing": "selective",
    },
    "bf16-sr in backward": {
        "precision": "bf16-sr", "optimizer": "adamw4bit", "optimizer_in_backward": True, "clip_norm": 0.0,
    },
}  # fmt: skip


def waits(device: torch.device, report: Report) -> None:
    """Whether an operation of a step makes the host wait for the card, over the trainer's module and its callback."""
    for name, settings in WAITING.items():
        report(name, waits_in_a_step(device, settings))


def waits_in_a_step(device: torch.device, settings: dict[str, Any]) -> dict[str, Any]:
    from pipeline.config import TrainConfig
    from pipeline.training.batches import Batch
    from pipeline.training.module import PretrainModule

    length = 2048 if device.type == "cuda" else 64
    train = TrainConfig(**{  # type: ignore[arg-type]
        "sequence_length": length, "global_batch_tokens": 2 * length, "compile": "false", "log_every_steps": 10**9,
        "micro_batch": 0 if "optimizer_in_backward" in settings else 1, **settings,
    })  # fmt: skip
    with device:
        network = Transformer(SHAPES["tiny"])
    network.initialize(0)
    module = PretrainModule(network, train, train.precision)
    ids_BT = torch.zeros((2, length), dtype=torch.int64, device=device)
    trainer: Any = SimpleNamespace(should_stop=False)
    with tempfile.TemporaryDirectory() as folder:
        control, error = control_of(module, Path(folder)), None
        for number in range(4):  # states are made in the first
            if number == 3 and device.type == "cuda":
                torch.cuda.synchronize()
                torch.cuda.set_sync_debug_mode("error")
            try:
                module.training_step(Batch(ids_BT, ids_BT, ids_BT.numel()), 0)
                control.on_train_batch_end(trainer, module)
            except RuntimeError as found:
                error = str(found)[:300]
            finally:
                if device.type == "cuda":
                    torch.cuda.set_sync_debug_mode("default")
    return {"ok": error is None and module.step == 4, "error": error, "tokens": 2 * length}


def control_of(module: Any, folder: Path) -> Any:
    """The callback that stands between two steps, with a budget, decisions and metrics of its own."""
    from pipeline.storage.ledger import Ledger
    from pipeline.training.budget import Budget, Limits
    from pipeline.training.cap import Cap
    from pipeline.training.checkpoint import Checkpoints
    from pipeline.training.control import Control
    from pipeline.training.decisions import Decisions
    from pipeline.training.devices import Machine, Threads
    from pipeline.training.forecast import MemoryForecast
    from pipeline.training.mixing import StepSizes
    from pipeline.training.tracking import Metrics

    train, decisions, kind = module.train_config, Decisions(folder / "decisions.jsonl"), module.last_verdict.device
    machine = Machine(kind, "", train.precision, "", None, "", Threads("cuda"))
    ledger = Ledger(folder / "ledger", stage="", fingerprint="", device=kind.type)
    limits = Limits(Cap(1.0), max_steps=10**6, decay_share=0.2, max_gpu_hours=1.0, max_tokens=10**12)
    batches: Any = SimpleNamespace(sizes=StepSizes(train), decay_from=lambda step: None)
    control = Control(
        stage="", train=train, machine=machine, module=module, batches=batches, validation=None,  # type: ignore
        budget=Budget(limits, lambda: 1.0, decisions), checkpoints=Checkpoints(folder / "checkpoints", 2, decisions),
        metrics=Metrics(folder / "metrics.jsonl"), ledger=ledger, memory=MemoryForecast(decisions, machine, None),
        flops_per_token=1,
    )  # fmt: skip
    control.budget.begin(0)
    return control


def determinism(device: torch.device) -> dict[str, Any]:
    """How far two passes over the same batch are apart: attention's backward pass may add in no fixed order."""
    length = 2048 if device.type == "cuda" else 128
    first, second = (gradients(device, torch.bfloat16, tokens=length) for _ in range(2))
    return {"tokens": length, "equal": bool(torch.equal(first, second)), "apart": distance(second, first)}


def pretrain(device: torch.device, report: Report) -> None:
    from tests.gpu_check import killed_run

    with tempfile.TemporaryDirectory() as folder:
        report("pretrain", killed_run.run(Path(folder), device.type))


def all_kernels(device: torch.device, report: Report) -> None:
    report("determinism", determinism(device))
    report("kernels", kernels(device))


PARTS: dict[str, Callable[[torch.device, Report], None]] = {
    "ceilings": ceilings,
    "phi2": lambda device, report: cases("phi2", device, report),
    "shapes": lambda device, report: cases("shapes", device, report),
    "waits": waits,
    "pretrain": pretrain,
    "24 GB": lambda device, report: cases("24 GB", device, report),
    "kernels": all_kernels,
    "rest": lambda device, report: cases("rest", device, report),
}


if __name__ == "__main__":
    main()
    sys.stdout.flush()
