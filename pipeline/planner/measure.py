"""`hornbook plan --measure`: a few real steps of a config on this machine, compared with what the trace forecasts.

In: a config. Out: measured tokens per second and peak memory, with the forecast for the same micro-batch. The steps
are the trainer's own (`PretrainModule`), on random tokens and fresh weights, of one and of two micro-batches, in their
own process: what the second one adds tells the seconds of a step with the config's number of them. On a CPU the peak is
what that process holds above what it held before the network was built.
"""

import dataclasses
import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

from pipeline.config import Config
from pipeline.system.errors import UserError

PASSES = 2  # micro-batches of a measured step
MOST_SECONDS, LEAST_STEPS = 10.0, 2  # of each kind


def measure(config: Config) -> dict[str, Any]:
    """Runs the steps and returns plain values. Raises `UserError` where this machine's memory cannot hold them."""
    _check_room(config.train.device, 2 * config.model.parameters)  # bf16 weights alone, before anything takes time
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_measure, config).result()


def _measure(config: Config) -> dict[str, Any]:
    import torch

    from model.estimate import Plan
    from model.transformer import Transformer
    from pipeline.training import devices
    from pipeline.training.batches import Batch
    from pipeline.training.memory import micro_batch_windows, train_settings
    from pipeline.training.module import PretrainModule

    machine = devices.choose(config.train)
    windows = micro_batch_windows(config.train, machine.device.type, config.model, machine.precision)
    most = config.train.global_batch_tokens // (windows * config.train.sequence_length)
    tokens = min(PASSES, most) * windows * config.train.sequence_length
    train = dataclasses.replace(config.train, global_batch_tokens=tokens, micro_batch=windows)
    forecast = Plan(config.model, train_settings(train, machine.precision)).estimate(windows)
    _check_room(machine.device.type, forecast.needed_bytes)
    before = 0 if machine.device.type == "cuda" else machine.memory.peak_bytes()  # a GPU holds nothing yet
    torch.manual_seed(config.seed)
    module = PretrainModule(Transformer(config.model).to(machine.device), train, machine.precision)
    shape = (train.global_batch_tokens // train.sequence_length, train.sequence_length)
    ids_BT = torch.randint(config.model.vocab_size, shape).to(machine.device)
    batch = Batch(ids_BT, ids_BT.roll(-1, 1), ids_BT.numel())
    first = _seconds_of_step(module, batch)
    one_pass = Batch(batch.input_ids_BT[:windows], batch.labels_BT[:windows], ids_BT[:windows].numel())
    steps: list[tuple[float, float]] = []
    while len(steps) < LEAST_STEPS or sum(map(sum, steps)) < MOST_SECONDS / 2:
        steps.append((_seconds_of_step(module, one_pass), _seconds_of_step(module, batch)))
    one, two = (sorted(column)[len(steps) // 2] for column in zip(*steps, strict=True))
    step_seconds = one + (most - 1) * max(0.0, two - one)
    per_second = most * windows * train.sequence_length / step_seconds
    flops = config.model.flops_per_token(train.sequence_length)
    peak, mfu = machine.memory.peak_bytes() - before, machine.mfu(per_second * flops)
    return {
        "device": machine.name,
        "precision": machine.precision,
        "micro_batch": windows,
        "steps": 2 * len(steps),
        "tokens_per_second": round(per_second, 1),
        "mfu": mfu and round(mfu, 4),
        "first_step_seconds": round(first, 2),
        "peak_memory_bytes": peak,
        "forecast_bytes": forecast.traced_bytes,
        "forecast_over_measured": round(forecast.traced_bytes / peak, 3) if peak > 0 else None,
        "basis": f"{2 * len(steps)} steps of 1 and {PASSES} micro-batches on random tokens, for a step of {most}; the "
        "forecast is a trace as for a card, and on a CPU attention and loss keep other buffers",
    }


def _check_room(kind: str, needed_bytes: int) -> None:
    """Of the CPU's memory; a GPU raises its own error."""
    if kind != "cpu":
        return
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed_bytes > free:
        raise UserError(
            f"--measure: a step of this config takes about {needed_bytes / 1e9:.1f} GB, this machine has "
            f"{free / 1e9:.1f} GB free; measure on a larger one, or a smaller model (model.num_hidden_layers=...)"
        )


def _seconds_of_step(module: Any, batch: Any) -> float:
    started = time.perf_counter()
    module.training_step(batch, 0)
    float(module.last_loss)  # waits for the device
    float(module.last_grad_norm)
    return time.perf_counter() - started
