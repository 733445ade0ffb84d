"""How many windows a forward pass takes: as the config says, as caches like it, or as the memory plan allows.

In: the `train` section, a model's shape, a device. Out: windows, and what of the section the plan (model/estimate.py)
needs to know. Imports no lightning: `hornbook plan` asks the same questions.
"""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from model.config import ModelConfig
from pipeline.config import TrainConfig

if TYPE_CHECKING:
    from model.estimate import Plan, TrainSettings

CPU_MICRO_TOKENS = 8192  # activations of a larger step fall out of the caches and into gigabytes
GPU_MICRO_WINDOWS = 8
GPU_ENOUGH_TOKENS = 65536  # a pass of more keeps no card busier
_PLANS: dict[Any, "Plan"] = {}


def micro_batch_windows(train: TrainConfig, device_type: str, model: ModelConfig, precision: str) -> int:
    """Windows per forward pass: `train.micro_batch`; else on a card the most that the memory plan allows, on a CPU what
    stays in its caches. With the optimizer in the backward pass it is the whole step.
    """
    if train.optimizer_in_backward:
        return train.global_batch_tokens // train.sequence_length
    if train.micro_batch:
        return train.micro_batch
    windows = _smallest_step(train)
    if device_type == "cpu":
        return min(windows, max(1, CPU_MICRO_TOKENS // train.sequence_length))
    if device_type != "cuda":
        return min(windows, GPU_MICRO_WINDOWS)
    return planned_windows(train, model, precision, _card_bytes())


def planned_windows(train: TrainConfig, model: ModelConfig, precision: str, device_memory_bytes: int) -> int:
    """The largest divisor of the step's windows whose traced peak fits; 1 where none does (trying will tell)."""
    found = memory_plan(model, train_settings(train, precision)).largest(choices(train), device_memory_bytes)
    return found.windows if found else 1


def memory_plan(model: ModelConfig, settings: "TrainSettings") -> "Plan":
    """The traces of a model under its settings, made once a process: they take seconds."""
    from model.estimate import Plan

    key = (tuple(sorted(asdict(model).items())), settings)
    if key not in _PLANS:
        _PLANS[key] = Plan(model, settings)
    return _PLANS[key]


def choices(train: TrainConfig) -> list[int]:
    """The micro-batches that a plan may choose from."""
    return [windows for windows in divisors(train) if windows * train.sequence_length <= GPU_ENOUGH_TOKENS] or [1]


def train_settings(train: TrainConfig, precision: str) -> "TrainSettings":
    """What of the `train` section the memory plan needs."""
    from model.estimate import TrainSettings  # fake tensors take a second to import; a CPU run needs none

    return TrainSettings(
        sequence_length=train.sequence_length,
        precision=precision,
        optimizer=train.optimizer,
        activation_checkpointing=train.activation_checkpointing,
        optimizer_in_backward=train.optimizer_in_backward,
        accumulate=not train.optimizer_in_backward,
    )


def divisors(train: TrainConfig) -> list[int]:
    """Micro-batches that every step can be cut into."""
    windows = _smallest_step(train)
    return [count for count in range(1, windows + 1) if windows % count == 0]


def _smallest_step(train: TrainConfig) -> int:
    """Windows; all steps of a batch-size warm-up are multiples of it, so no pass is cut short and compiled again."""
    return (train.batch_start_tokens or train.global_batch_tokens) // train.sequence_length


def _card_bytes() -> int:
    """Of the card, or of the share that this process may use."""
    share = (
        torch.cuda.get_per_process_memory_fraction() if hasattr(torch.cuda, "get_per_process_memory_fraction") else 1
    )
    return int(torch.cuda.mem_get_info()[1] * share)
