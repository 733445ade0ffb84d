"""hornbook's optimizer steps against a plain transformers loop, on the same real weights and text, at equal time.

    python scripts/bench_real.py --seconds 240 --out docs/results/training/real_cpu.json

After `make data init CONFIG=configs/real-cpu.yaml`. In turns of some seconds each side takes steps of 2,048 tokens of
the same stream, so that what else the machine does hits both. The plain loop: fp32 weights under bf16 autocast, torch's
AdamW, the same learning rate and clipping. Then both are scored on the same held-out windows.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.hf import load_network
from model.optim import OPTIMIZERS, MasterWeights
from pipeline import config as configs
from pipeline.corpus.text.shards import TokenShards
from pipeline.stages import data_step, init_step
from pipeline.training.devices import cpu_name

TURN_SECONDS, RATE, WARMUP = 10.0, 5e-5, 10
Step = Callable[[torch.Tensor], float]


def ours(folder: Path, windows: int) -> tuple[Step, Callable[[torch.Tensor], float]]:
    """A step as PretrainModule takes it, and the nats of windows."""
    network = load_network(folder)
    weights = MasterWeights(network, lambda groups: OPTIMIZERS["adamw"](groups, learning_rate=RATE), "bf16-mixed")
    steps = 0

    def step(ids_BT: torch.Tensor) -> float:
        nonlocal steps
        steps += 1
        weights.set_learning_rate(RATE * min(1.0, steps / WARMUP))
        total, count = torch.zeros(()), ids_BT[:, 1:].numel()
        for part in ids_BT.split(windows):
            loss_sum, _ = network.loss(part[:, :-1], part[:, 1:])
            (loss_sum / count).backward()
            weights.accumulate()
            total += loss_sum.detach()
        weights.step(1.0)
        return float(total) / count

    return step, lambda ids_BT: float(network.token_nats(ids_BT[:, :-1], ids_BT[:, 1:]).sum())


def plain(folder: Path) -> tuple[Step, Callable[[torch.Tensor], float]]:
    """What a user of transformers writes first."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARMUP))

    def step(ids_BT: torch.Tensor) -> float:
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(ids_BT, labels=ids_BT).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        return float(loss.detach())

    @torch.no_grad()
    def nats(ids_BT: torch.Tensor) -> float:
        with torch.autocast("cpu", torch.bfloat16):
            return float(model(ids_BT, labels=ids_BT).loss) * ids_BT[:, 1:].numel()

    return step, nats


def windows_of(tokens: np.ndarray, length: int) -> torch.Tensor:
    count = len(tokens) // length
    return torch.from_numpy(np.asarray(tokens[: count * length], dtype=np.int64)).view(count, length)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/real-cpu.yaml")
    parser.add_argument("--seconds", type=float, default=240.0, help="of training, for each side")
    parser.add_argument("--micro-batch", type=int, default=4, help="windows of a pass of hornbook's")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    config = configs.load(options.config)
    length, rows = config.train.sequence_length, config.train.global_batch_tokens // config.train.sequence_length
    shards, folder = TokenShards.open(data_step(config).path), init_step(config).path
    stream = windows_of(shards.train["documents"].tokens, length)
    held_out = {name: (windows_of(s.tokens, length), s.n_bytes / s.n_tokens) for name, s in shards.val.items()}
    sides = {"hornbook": ours(folder, options.micro_batch), "transformers": plain(folder)}
    facts: dict[str, dict[str, Any]] = {name: {"seconds": 0.0, "steps": 0} for name in sides}
    before = {name: _bits(nats, held_out) for name, (_, nats) in sides.items()}
    for step, _ in sides.values():
        step(stream[:rows])  # compiles, allocates; not counted
    while min(found["seconds"] for found in facts.values()) < options.seconds:
        for name, (step, _) in sides.items():
            found, started = facts[name], time.monotonic()
            while time.monotonic() - started < TURN_SECONDS:
                at = found["steps"] * rows % (len(stream) - rows)
                found["last_loss"] = step(stream[at : at + rows])
                found["steps"] += 1
            found["seconds"] += time.monotonic() - started
    for name, (_, nats) in sides.items():
        found = facts[name]
        found["tokens_per_second"] = round(found["steps"] * rows * length / found["seconds"], 1)
        found["bits_per_byte"] = {"before": before[name], "after": _bits(nats, held_out)}
    ratio = facts["hornbook"]["tokens_per_second"] / facts["transformers"]["tokens_per_second"]
    result = {
        "ratio": round(ratio, 3),
        **facts,
        "machine": f"{cpu_name()}, {torch.get_num_threads()} threads",
        "learning_rate": RATE,
        "window_tokens": length,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


def _bits(nats: Callable[[torch.Tensor], float], sets: dict[str, tuple[torch.Tensor, float]]) -> dict[str, float]:
    return {
        name: round(sum(nats(part) for part in ids.split(4)) / math.log(2) / (ids[:, 1:].numel() * bytes_per_token), 4)
        for name, (ids, bytes_per_token) in sets.items()
        if len(ids)
    }


if __name__ == "__main__":
    main()
