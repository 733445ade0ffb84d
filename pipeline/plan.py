"""`hornbook plan`: what a config needs and buys on a GPU, computed on a machine that has none.

In: a config and a GPU of configs/gpus.yaml. Out: parameters, FLOPs, peak memory by kind from a traced training step
(`model/estimate.py`), the largest micro-batch, the memory savers that each size of GPU needs, tokens, epochs, hours and
cost of the cap on this and every other GPU, time outside training steps, disk, and what else the same hours would buy.
Speeds are the range of MFU that published trainings of this size reach. None of it was measured on a GPU by us yet, and
the answer says so. `--measure` adds a few real steps on this machine.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipeline.config import Config
from pipeline.pages import html
from pipeline.planner import growth
from pipeline.planner.advice import TOKENS_PER_PARAMETER, advice, source_of, verdict
from pipeline.planner.answer import answer
from pipeline.planner.cards import card_of
from pipeline.planner.costs import basis_of, cards, disk, epochs_of, hours, overhead, text_of, unique_tokens
from pipeline.planner.data_cost import data_cost
from pipeline.planner.roofline import roofline
from pipeline.planner.savers import FP32_LADDER, LADDER, asked, first_that_fits, own_settings, traces
from pipeline.stages import check_source, source_config, source_is_experiment
from pipeline.training.devices import find_card, gpu_table
from pipeline.training.memory import memory_plan

if TYPE_CHECKING:
    from model.estimate import Plan

GIB = 2**30
CARD_GIB = (8, 12, 16, 24, 40, 80, 140)
MEMORY_BASIS = (
    "a training step on fake tensors, traced at 2 and 3 blocks; needed_gib adds 4% and 1.2 GiB for what no trace sees, "
    "both unmeasured"
)


def make_plan(config: Config, card_name: str | None, measured: bool = False, full: bool = True) -> dict[str, Any]:
    """The answers as plain JSON values; `answer` has them in five lines. Without `full` the memory savers of other
    sizes are not traced, which takes most of the time. Raises `UserError` for a card that the table does not have, and
    where `measured` asks for steps that this machine cannot hold."""
    _check_growth(config)
    name, card = card_of(card_name)
    card_bytes = int(card["memory_gb"] * 1e9)
    own, rungs = traces(config, card) if full else (memory_plan(config.model, own_settings(config, card)), None)
    text = text_of(config)
    unique = unique_tokens(text)
    held_out = text["validation_tokens"]
    bought = hours(config, card, held_out)
    ranked = advice(config, bought, card, unique)
    memory = _memory(config, own, card)
    found = {
        "name": config.name,
        "card": name,
        "parameters": config.model.parameters,
        "flops_per_token": config.model.flops_per_token(config.train.sequence_length),
        "memory": memory,
        "fitting": None if memory["fits"] or card.get("cpu") else _first_that_fits(config, card_bytes, rungs, card),
        "expected": None if card.get("cpu") else roofline(config, name, card, memory["micro_batch"]),
        "savers": {size: _first_that_fits(config, size * GIB, rungs) for size in CARD_GIB} if rungs else {},
        "hours": {**bought, "price_per_hour": card["price_per_hour"], "basis": basis_of(card)},
        "overhead": overhead(config, card, held_out),
        "source": _source(config),
        "continues": config.init.source if config.init.method == "continue" else None,
        "text": {**text, "unique_tokens": unique, "epochs": _epochs(config, text, bought)},
        "disk_gb": disk(config, unique),
        "data_stage": data_cost(unique),
        "cards": cards(config, gpu_table(), lambda n: own.largest(asked(config, {}), n), held_out),
        "advice": ranked,
        "verdict": verdict(config, ranked),
        "growth": _way(config, bought),
        "measured": _measured(config, card, held_out) if measured else None,
    }
    return {**found, "answer": answer(config, found)}


def _check_growth(config: Config) -> None:
    """A growth that init would refuse needs no forecast."""
    check_source(config)
    if config.init.source is not None:
        from pipeline.init import tensor_map

        tensor_map(config)


def show(plan: Mapping[str, Any], full: bool = False) -> str:
    """A plan for a person: its five lines, then what was measured; with `full` all of it."""
    if full:
        return html.render("plan.txt", plan=plan, tokens_per_parameter=TOKENS_PER_PARAMETER).rstrip("\n")
    lines = [f"{'memory' if name == 'fits' else name:<8}{said}" for name, said in plan["answer"].items()]
    return "\n".join(lines) + html.render("plan_measured.txt", measured=plan["measured"]).rstrip("\n")


def _memory(config: Config, own: "Plan", card: Mapping[str, Any]) -> dict[str, Any]:
    windows, card_bytes = asked(config, card), int(card["memory_gb"] * 1e9)
    found = own.largest(windows, card_bytes)
    shown = found or own.estimate(min(windows), card_bytes)
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


def _first_that_fits(
    config: Config, card_bytes: int, plans: list["Plan"] | None, card: Mapping[str, Any] | None = None
) -> dict[str, Any] | None:
    """Settings and the memory that they need, as plain values."""
    emulates = card is not None and card.get("emulates_bf16")
    found = first_that_fits(config, card_bytes, None if emulates else plans, FP32_LADDER if emulates else LADDER)
    if found is None:
        return None
    rung, estimate = found
    return {**rung, "micro_batch": estimate.windows, "needed_gib": round(estimate.needed_bytes / GIB, 2)}


def _source(config: Config) -> dict[str, Any] | None:
    """What is known of the checkpoint that the config starts from, wherever it lies."""
    known = source_of(config)
    if known is None:
        return None
    parameters = known.shape.parameters
    return {"name": known.name, "parameters": parameters, "tokens": known.tokens, "license": known.terms}


def _way(config: Config, bought: Mapping[str, Any]) -> dict[str, Any] | None:
    """Train from scratch, train a smaller shape, grow, or continue a base; None where the config sets no end."""
    size, public = config.model.parameters, source_of(config)
    if "tokens" not in bought or (config.init.method == "continue" and public is None):
        return None
    own = source_config(config).model.parameters if source_is_experiment(config) else None
    tokens = [n / size for n in bought["tokens"]]
    return growth.answer(size, tokens, public.shape.parameters if public else own, public is not None)


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

    found = measure(config)
    speed = found["tokens_per_second"]
    same = find_card(found["device"]) == card
    return {**found, "hours": hours(config, card, validation_tokens, (speed, speed)) if same else None}
