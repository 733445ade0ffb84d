"""`hornbook plan`: what a config needs and buys on a GPU, computed on a machine that has none.

In: a config and a GPU of configs/gpus.yaml. Out: parameters, FLOPs, peak memory by kind from a traced training step
(`model/estimate.py`), the largest micro-batch, the memory savers that each size of GPU needs, tokens, epochs, hours and
cost of the cap on this and every other GPU, time outside training steps, disk, and what else the same hours would buy.
Speeds are the range of MFU that published trainings of this size reach. None of it was measured on a GPU by us yet, and
the answer says so. `--measure` adds a few real steps on this machine.
"""

import dataclasses
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

from pipeline.config import Config
from pipeline.pages import html
from pipeline.planner.advice import TOKENS_PER_PARAMETER, advice, growth_advice, source_of, verdict
from pipeline.planner.costs import MFU_BASIS, cards, disk, epochs_of, hours, overhead, text_of, unique_tokens
from pipeline.planner.roofline import roofline
from pipeline.stages import check_source
from pipeline.system.errors import UserError
from pipeline.training.memory import choices, train_settings

if TYPE_CHECKING:
    from model.estimate import Plan

GIB = 2**30
CARD_GIB = (8, 12, 16, 24, 40, 80, 140)
# Fastest first: what a card too small for one rung can take next.
LADDER: tuple[dict[str, Any], ...] = (
    {"precision": "bf16-mixed", "optimizer": "adamw", "activation_checkpointing": "none"},
    {"precision": "bf16-sr", "optimizer": "adamw8bit", "activation_checkpointing": "selective"},
    {"precision": "bf16-sr", "optimizer": "adamw8bit", "activation_checkpointing": "full"},
    {"precision": "bf16-sr", "optimizer": "adamw4bit", "activation_checkpointing": "full",
     "optimizer_in_backward": True},
)  # fmt: skip
MEMORY_BASIS = (
    "a training step on fake tensors, traced at 2 and 3 blocks; needed_gib adds 4% and 1.2 GiB for what no trace sees, "
    "both unmeasured"
)


def make_plan(config: Config, card_name: str | None, measured: bool = False) -> dict[str, Any]:
    """The answers as plain JSON values. Raises `UserError` for a card that the table does not have, and where
    `measured` asks for steps that this machine cannot hold."""
    _check_growth(config)
    name, card, table = _card(card_name)
    own, rungs = _traces(config)
    text = text_of(config)
    unique = unique_tokens(text)
    held_out = text["validation_tokens"]
    bought = hours(config, card, held_out)
    ranked = advice(config, bought, card, unique)
    memory = _memory(config, own, int(card["memory_gb"] * 1e9))
    return {
        "name": config.name,
        "card": name,
        "parameters": config.model.parameters,
        "flops_per_token": config.model.flops_per_token(config.train.sequence_length),
        "memory": memory,
        "expected": roofline(config, name, card, memory["micro_batch"]),
        "savers": {size: _first_that_fits(config, rungs, size) for size in CARD_GIB},
        "hours": {**bought, "basis": MFU_BASIS},
        "overhead": overhead(config, card, held_out),
        "source": _source(config),
        "text": {**text, "unique_tokens": unique, "epochs": _epochs(config, text, bought)},
        "disk_gb": disk(config, unique),
        "cards": cards(config, table, lambda n: own.largest(_asked(config), n), held_out),
        "advice": ranked,
        "verdict": verdict(config, ranked),
        "growth": growth_advice(),
        "measured": _measured(config, card, held_out) if measured else None,
    }


def _check_growth(config: Config) -> None:
    """A growth that init would refuse needs no forecast."""
    check_source(config)
    if config.init.source is not None:
        from pipeline.init import tensor_map

        tensor_map(config)


def show(plan: Mapping[str, Any]) -> str:
    """A plan as lines for a person."""
    return html.render("plan.txt", plan=plan, tokens_per_parameter=TOKENS_PER_PARAMETER).rstrip("\n")


def _card(name: str | None) -> tuple[str, Mapping[str, Any], dict[str, dict[str, Any]]]:
    from pipeline.training.devices import gpu_table

    table = gpu_table()
    name = name or "h100-80"
    if name not in table:
        raise UserError(f"--card is '{name}'; expected one of configs/gpus.yaml: {', '.join(table)}")
    return name, table[name], table


def _traces(config: Config) -> tuple["Plan", list["Plan"]]:
    """Of the config's own settings, and of every rung of the ladder; two at a time, in processes that import no more
    than that."""
    from model.estimate import Plan

    train = config.train
    precision = "bf16-mixed" if train.precision == "auto" else train.precision
    settings = [train_settings(train, precision)]
    for rung in LADDER:
        changed = dataclasses.replace(train, **{"optimizer_in_backward": False, **rung})
        settings.append(train_settings(changed, rung["precision"]))
    distinct = list(dict.fromkeys(settings))
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        found = dict(zip(distinct, pool.map(Plan, [config.model] * len(distinct), distinct), strict=True))
    own, *rungs = (found[each] for each in settings)
    return own, rungs


def _asked(config: Config) -> list[int]:
    """The micro-batches that the config leaves open."""
    train = config.train
    if train.micro_batch or train.optimizer_in_backward:
        return [train.micro_batch or train.global_batch_tokens // train.sequence_length]
    return choices(train)


def _memory(config: Config, own: "Plan", card_bytes: int) -> dict[str, Any]:
    asked = _asked(config)
    found = own.largest(asked, card_bytes)
    shown = found or own.estimate(min(asked), card_bytes)
    return {
        "fits": found is not None,
        "micro_batch": shown.windows,
        "peak_in": shown.phase,
        "by_kind_gib": {kind: round(n / GIB, 2) for kind, n in shown.by_kind.items()},
        "traced_gib": round(shown.traced_bytes / GIB, 2),
        "needed_gib": round(shown.needed_bytes / GIB, 2),
        "card_gib": round(card_bytes / GIB, 2),
        "basis": MEMORY_BASIS,
    }


def _first_that_fits(config: Config, plans: list["Plan"], gib: int) -> dict[str, Any] | None:
    """The fastest rung of the ladder that a card of this size can take, with its largest micro-batch."""
    windows = config.train.global_batch_tokens // config.train.sequence_length
    for rung, plan in zip(LADDER, plans, strict=True):
        found = plan.largest([n for n in (32, 16, 8, 4, 2, 1) if n <= windows], gib * GIB)
        if found is not None:
            return {**rung, "micro_batch": found.windows, "needed_gib": round(found.needed_bytes / GIB, 2)}
    return None


def _source(config: Config) -> dict[str, Any] | None:
    """What is known of the checkpoint that the config starts from, wherever it lies."""
    known = source_of(config)
    if known is None:
        return None
    parameters = known.shape.parameters
    return {"name": known.name, "parameters": parameters, "tokens": known.tokens, "license": known.terms}


def _epochs(config: Config, text: Mapping[str, Any], bought: Mapping[str, Any]) -> dict[str, list[float] | None]:
    """Of each source, as [least, most] for the tokens that the hours buy; None where it cannot be known."""
    if "tokens" not in bought:
        return dict.fromkeys(text["sources"])
    least, most = (epochs_of(config, text, n) for n in bought["tokens"])
    return {name: None if value is None else [value, most[name]] for name, value in least.items()}  # type: ignore[list-item]


def _measured(config: Config, card: Mapping[str, Any], validation_tokens: int) -> dict[str, Any]:
    """A few real steps here; where this machine has the card that was asked for, also what the hours buy at that
    speed."""
    from pipeline.planner.measure import measure
    from pipeline.training.devices import find_card

    found = measure(config)
    speed = found["tokens_per_second"]
    same = find_card(found["device"]) == card
    return {**found, "hours": hours(config, card, validation_tokens, (speed, speed)) if same else None}
