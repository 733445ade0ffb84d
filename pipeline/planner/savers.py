"""Which settings of memory a training takes on a card: the config's own, and the fastest that fit.

In: a config, bytes of a card. Out: estimates of a traced step (`model/estimate.py`). A trace takes seconds.
"""

import dataclasses
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

from pipeline.config import Config
from pipeline.training.memory import CPU_MICRO_TOKENS, choices, memory_plan, train_settings

if TYPE_CHECKING:
    from model.estimate import MemoryEstimate, Plan, TrainSettings

# Fastest first: what a card too small for one rung can take next.
LADDER: tuple[dict[str, Any], ...] = (
    {"precision": "bf16-mixed", "optimizer": "adamw", "activation_checkpointing": "none"},
    {"precision": "bf16-sr", "optimizer": "adamw8bit", "activation_checkpointing": "selective"},
    {"precision": "bf16-sr", "optimizer": "adamw8bit", "activation_checkpointing": "full"},
    {"precision": "bf16-sr", "optimizer": "adamw4bit", "activation_checkpointing": "full",
     "optimizer_in_backward": True},
)  # fmt: skip
FP32_LADDER: tuple[dict[str, Any], ...] = tuple(
    {"precision": "32-true", "optimizer": "adamw", "activation_checkpointing": kept} for kept in ("none", "full")
)  # of cards without bf16


def own_settings(config: Config, card: Mapping[str, Any]) -> "TrainSettings":
    """As the config says; precision `auto` is what a run would take on that card."""
    automatic = "32-true" if card.get("emulates_bf16") else "bf16-mixed"
    precision = automatic if config.train.precision == "auto" else config.train.precision
    settings = train_settings(config.train, precision)
    return dataclasses.replace(settings, device_type="cpu") if card.get("cpu") else settings


def rung_settings(config: Config, rung: Mapping[str, Any]) -> "TrainSettings":
    changed = dataclasses.replace(config.train, **{"optimizer_in_backward": False, **rung})
    return train_settings(changed, rung["precision"])


def traces(config: Config, card: Mapping[str, Any]) -> tuple["Plan", list["Plan"]]:
    """Of the config's own settings, and of every rung of the ladder; two at a time, in processes that import no more
    than that."""
    from model.estimate import Plan

    settings = [own_settings(config, card), *(rung_settings(config, rung) for rung in LADDER)]
    distinct = list(dict.fromkeys(settings))
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        found = dict(zip(distinct, pool.map(Plan, [config.model] * len(distinct), distinct), strict=True))
    own, *rungs = (found[each] for each in settings)
    return own, rungs


def asked(config: Config, card: Mapping[str, Any]) -> list[int]:
    """The micro-batches that the config leaves open."""
    train = config.train
    if train.micro_batch or train.optimizer_in_backward:
        return [train.micro_batch or train.global_batch_tokens // train.sequence_length]
    if card.get("cpu"):
        return [min(max(choices(train)), max(1, CPU_MICRO_TOKENS // train.sequence_length))]
    return choices(train)


def first_that_fits(
    config: Config, card_bytes: int, plans: list["Plan"] | None = None, ladder: tuple[dict[str, Any], ...] = LADDER
) -> tuple[dict[str, Any], "MemoryEstimate"] | None:
    """The fastest rung of the ladder that a card of this size can take, with its largest micro-batch. Without `plans`
    each rung is traced when it is tried."""
    windows = config.train.global_batch_tokens // config.train.sequence_length
    for number, rung in enumerate(ladder):
        plan = plans[number] if plans else memory_plan(config.model, rung_settings(config, rung))
        found = plan.largest([n for n in (32, 16, 8, 4, 2, 1) if n <= windows], card_bytes)
        if found is not None:
            return rung, found
    return None
