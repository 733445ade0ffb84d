"""Shapes and networks of gpu_check.py, and its short pretraining under a cap of seconds, killed once and resumed.

In: a folder. Out: what the ledger, the decisions and the losses say. The child is a loop around hornbook's own budget,
ledger and decisions with a tiny network; it is killed five steps after its checkpoint, and its second process computes
those steps again.
"""

import argparse
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from model.config import ModelConfig
from model.float8 import use_float8
from model.optim import OPTIMIZERS, MasterWeights, needs_slices
from model.schedules import wsd
from model.transformer import Transformer
from pipeline.storage.ledger import LEDGER, Ledger, spent_seconds
from pipeline.training.budget import Budget, Limits, Verdict
from pipeline.training.cap import Cap
from pipeline.training.decisions import Decisions

SHAPES = {
    "tiny": ModelConfig(512, 64, 256, 2, 4),
    "125m": ModelConfig(51200, 768, 3072, 12, 12),
    "1.3b": ModelConfig(51200, 2048, 8192, 24, 32),
    "2.7b": ModelConfig(51200, 2560, 10240, 32, 32, partial_rotary_factor=0.4),
}


def built(
    shape: str,
    device: torch.device,
    precision: str,
    optimizer: str,
    in_backward: bool = False,
    float8: str = "none",
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


CAP_SECONDS = 45.0  # two starts of torch on a busy machine, and some seconds to train
SAVE_AT, KILL_AT, WARMUP_STEPS, RATE, DECAY_SHARE = 10, 15, 5, 1e-3, 0.3
STAGE, DECISIONS, LOSSES, SAVED, KILLABLE = "pretrain", "decisions.jsonl", "losses.jsonl", "state.safetensors", "now"


def run(folder: Path, device: torch.device) -> dict[str, Any]:
    """Both processes. `ok`: within the cap, annealed, and the steps that both took have equal losses."""
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    command = [sys.executable, "-m", "scripts.gpu_check_run", str(folder), device.type]
    first = subprocess.Popen(command)
    _kill_after_checkpoint(first, folder)
    subprocess.run(command, check=True, timeout=4 * CAP_SECONDS)
    spent = spent_seconds(folder / LEDGER, STAGE, "check")
    rows = [json.loads(line) for line in (folder / LOSSES).read_text(encoding="utf-8").splitlines()]
    losses: dict[int, list[float]] = {}
    for row in rows:
        losses.setdefault(row["step"], []).append(row["loss"])
    twice = [pair for pair in losses.values() if len(pair) == 2]
    end = next(r for r in reversed(Decisions(folder / DECISIONS).records) if r["kind"] == "finish")
    return {
        "ok": bool(twice) and all(a == b for a, b in twice) and spent <= CAP_SECONDS and end["annealed"],
        "cap_seconds": CAP_SECONDS,
        "spent_seconds": round(spent, 2),
        "annealed": end["annealed"],
        "steps": end["step"],
        "killed_after_step": KILL_AT,
        "steps_of_both_lives": len(twice),
        "equal": sum(a == b for a, b in twice),
    }


def _kill_after_checkpoint(child: "subprocess.Popen[bytes]", folder: Path) -> None:
    ends = time.monotonic() + 4 * CAP_SECONDS
    while not (folder / KILLABLE).exists():
        if time.monotonic() > ends or child.poll() is not None:
            child.kill()
            raise RuntimeError("the training child wrote no checkpoint")
        time.sleep(0.02)
    child.kill()
    if child.wait(timeout=60) != -signal.SIGKILL:
        raise RuntimeError(f"the training child ended with {child.returncode} before it could be killed")


def train(folder: Path, device: torch.device) -> None:
    """One life: bf16 weights with stochastic rounding and 8-bit moments, the state that is hardest to bring back."""
    decisions = Decisions(folder / DECISIONS)
    with Ledger(folder / LEDGER, stage=STAGE, fingerprint="check", device=device.type) as ledger:
        limits = Limits(
            Cap(CAP_SECONDS / 3600), max_steps=None, decay_share=DECAY_SHARE, max_gpu_hours=CAP_SECONDS / 3600
        )
        budget = Budget(limits, lambda: ledger.spent_seconds, decisions)
        network, weights = built("tiny", device, "bf16-sr", "adamw8bit")
        done = _load(folder / SAVED, weights, device)
        resumed = done > 0
        with open(folder / LOSSES, "a", encoding="utf-8", buffering=1) as losses:
            verdict = budget.decide(done)
            while verdict != Verdict.FINISH:
                started = time.monotonic()
                weights.set_learning_rate(RATE * wsd(done, WARMUP_STEPS, decisions.segments(), "linear"))
                loss = float(step(network, weights, batch_of(network, 4, 64, device, done), 1.0))
                losses.write(json.dumps({"step": done, "loss": loss}) + "\n")
                done += 1
                budget.measured.step(time.monotonic() - started)
                if done == SAVE_AT and not resumed:
                    _save(folder / SAVED, weights, device)
                if done == KILL_AT and not resumed:
                    (folder / KILLABLE).touch()
                    time.sleep(60)  # to be killed in
                verdict = budget.decide(done)
        decisions.add("finish", done, annealed=budget.annealed(done))


def _save(path: Path, weights: Any, device: torch.device) -> None:
    from safetensors.torch import save_file

    state = {name: tensor.contiguous() for name, tensor in weights.state_dict().items()}
    state |= {"position": torch.tensor(SAVE_AT), "random": torch.get_rng_state()}
    if device.type == "cuda":
        state["random_cuda"] = torch.cuda.get_rng_state()
    save_file(state, path.with_suffix(".part"))
    path.with_suffix(".part").rename(path)


def _load(path: Path, weights: Any, device: torch.device) -> int:
    """Steps done; 0 where there is nothing to resume from."""
    from safetensors.torch import load_file

    if not path.exists():
        return 0
    state = load_file(path)
    done = int(state.pop("position"))
    torch.set_rng_state(state.pop("random"))
    if device.type == "cuda":
        torch.cuda.set_rng_state(state.pop("random_cuda"))
    weights.load_state_dict(state)
    return done


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("device")
    arguments = parser.parse_args()
    train(arguments.folder, torch.device(arguments.device))
