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
from pipeline.planner.advice import TOKENS_PER_PARAMETER, advice, growth_advice, verdict
from pipeline.planner.costs import MFU_BASIS, cards, disk, epochs_of, hours, overhead, text_of, unique_tokens
from pipeline.stages import check_source
from pipeline.system.errors import UserError
from pipeline.system.progress import format_count, format_seconds
from pipeline.training.memory import choices, train_settings

if TYPE_CHECKING:
    from model.estimate import Plan

GIB = 2**30
CARD_GIB = (16, 24, 40, 80, 140)
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
    check_source(config)
    name, card, table = _card(card_name)
    own, rungs = _traces(config)
    text = text_of(config)
    unique = unique_tokens(text)
    held_out = text["validation_tokens"]
    bought = hours(config, card, held_out)
    ranked = advice(config, bought, card, unique)
    return {
        "name": config.name,
        "card": name,
        "parameters": config.model.parameters,
        "flops_per_token": config.model.flops_per_token(config.train.sequence_length),
        "memory": _memory(config, own, int(card["memory_gb"] * 1e9)),
        "savers": {size: _first_that_fits(config, rungs, size) for size in CARD_GIB},
        "hours": {**bought, "basis": MFU_BASIS},
        "overhead": overhead(config, card, held_out),
        "text": {**text, "unique_tokens": unique, "epochs": _epochs(config, text, bought)},
        "disk_gb": disk(config, unique),
        "cards": cards(config, table, lambda n: own.largest(_asked(config), n), held_out),
        "advice": ranked,
        "verdict": verdict(config, ranked),
        "growth": growth_advice(),
        "measured": _measured(config, card, held_out) if measured else None,
    }


def show(plan: Mapping[str, Any]) -> str:
    """A plan as lines for a person."""
    lines = [
        f"{plan['name']} on {plan['card']}: {plan['parameters']:,} parameters, "
        f"{plan['flops_per_token'] / 1e9:.3g} GFLOP per token",
        *_memory_lines(plan),
        *_hours_lines(plan),
        *_overhead_lines(plan["overhead"]),
        *_text_lines(plan["text"]),
        _disk_line(plan["disk_gb"]),
        *_cards_lines(plan["cards"]),
        *_growth_lines(plan["growth"]),
        *_advice_lines(plan["advice"], plan["verdict"]),
        *_measured_lines(plan["measured"]),
    ]
    return "\n".join(lines)


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


def _memory_lines(plan: Mapping[str, Any]) -> list[str]:
    memory = plan["memory"]
    kinds = ", ".join(f"{kind} {gib:g}" for kind, gib in memory["by_kind_gib"].items())
    lines = [
        f"  memory    {'fits' if memory['fits'] else 'DOES NOT FIT'}: {memory['needed_gib']:g} GiB of the card's "
        f"{memory['card_gib']:g} at micro-batch {memory['micro_batch']} "
        f"({memory['traced_gib']:g} traced: {kinds}; peak in the {memory['peak_in']})",
        "  fastest settings that fit a card of",
    ]
    return lines + [f"    {size:>4} GiB  {_rung_words(rung)}" for size, rung in plan["savers"].items()]


def _rung_words(rung: Mapping[str, Any] | None) -> str:
    if rung is None:
        return "no setting fits: a smaller model or a shorter train.sequence_length"
    words = [f"{k}={v}" for k, v in rung.items() if k not in ("needed_gib", "micro_batch")]
    return f"{' '.join(words)} micro_batch={rung['micro_batch']}: {rung['needed_gib']:g} GiB"


def _hours_lines(plan: Mapping[str, Any]) -> list[str]:
    hours = plan["hours"]
    slow, fast = hours["tokens_per_second"]
    lines = [f"  speed     {slow:,} to {fast:,} tokens/s by the {hours['basis']}"]
    if "tokens" in hours:
        lines.append(
            f"  buys      {_span(hours['tokens'])} tokens in {_span(hours['gpu_hours'])} GPU-hours for "
            f"{_span(hours['cost_usd'])} USD; {_span(hours['tokens_per_parameter'])} tokens per parameter "
            f"(compute-optimal: about {TOKENS_PER_PARAMETER})"
        )
    if "cost_at_own_price" in hours:
        lines.append(f"            {_span(hours['cost_at_own_price'])} at the config's budget.gpu_hour_price")
    return lines


def _overhead_lines(overhead: Mapping[str, Any]) -> list[str]:
    if not overhead:
        return []
    parts = ", ".join(
        f"{kind} {100 * share:.2g}% ({format_seconds(overhead['seconds'][kind])})"
        for kind, share in overhead["share_by_kind"].items()
    )
    said = f"{100 * overhead['share']:.1f}% of the hours to what is no training"
    if overhead["nothing_left"]:
        total = format_seconds(sum(overhead["seconds"].values()))
        said = f"ALL of the hours: what is no training takes {total}; raise budget.max_gpu_hours"
    return [
        f"  lost      {said}: {parts}",
        f"            {overhead['basis']}; data: {overhead['data']}",
    ]


def _text_lines(text: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, source in text["sources"].items():
        epochs = text["epochs"].get(name)
        size = "unknown size" if source["tokens"] is None else f"{format_count(source['tokens'])} tokens"
        seen = "epochs unknown" if epochs is None else f"{_span(epochs)} epochs"
        lines.append(f"    {name:<16} {size} (by {source['from']}), {seen}")
    why = f" ({text['why']})" if text["why"] else ""
    return [f"  text{why}", *lines] if lines else []


def _disk_line(disk: Mapping[str, Any]) -> str:
    known = {kind: disk[kind] for kind in ("tokens", "text")}
    more = ", ".join(f"{'unknown' if gb is None else f'{gb:g} GB'} of {kind}" for kind, gb in known.items())
    return f"  disk      {disk['checkpoints']:g} GB of checkpoints at most, {disk['model']:g} GB of model, {more}"


def _cards_lines(cards: list[Mapping[str, Any]]) -> list[str]:
    lines = ["  cards     prices of configs/gpus.yaml, the micro-batch that fits"]
    for row in cards:
        fits = f"micro-batch {row['micro_batch']}" if row["micro_batch"] else "does not fit as it is set"
        cost = f"{_span(row['cost_usd'])} USD" if "cost_usd" in row else f"{row['price_per_hour']:g} USD an hour"
        buys = f"{_span(row['tokens'])} tokens in {_span(row['gpu_hours'])} h, " if "tokens" in row else ""
        lines.append(f"    {row['card']:<10} {row['memory_gb']:>4} GB  {buys}{cost}, {fits}")
    return lines


def _growth_lines(growth: Mapping[str, Any] | None) -> list[str]:
    if growth is None:
        return []
    share, gain = growth["source_share"], growth["gain_nats"]
    return [
        f"  growth    a smaller source first, on {100 * share[0]:.0f} to {100 * share[1]:.0f}% of the FLOPs "
        f"({growth['meaning']}): {gain[0]:.2f} to {gain[1]:.2f} nats better than fresh weights in "
        f"{growth['runs']} runs of {format_count(growth['measured_at_parameters'])} parameters; larger ones unmeasured"
    ]


def _advice_lines(choices: list[Mapping[str, Any]], verdict: Mapping[str, Any]) -> list[str]:
    if not choices:
        return [f"  advice    {verdict['why']}"]
    close = f" (not told apart from: {'; '.join(verdict['not_told_apart'])})" if verdict["not_told_apart"] else ""
    best = f"            best of what these hours can train: {verdict['best_trained']}{close}"
    lines = [
        f"  advice    {verdict['why']}",
        *([best] if verdict["best_trained"] else []),
        f"            expected loss on general text{', best first' if verdict['best_trained'] else ''}:",
    ]
    notes = list(dict.fromkeys(choice["basis"] for choice in choices))
    for choice in choices:
        ends = dict.fromkeys(f"{end:.2f}" for end in choice["expected_loss"] or ())
        loss = (" to ".join(ends) or "unknown").ljust(12)
        tokens = f", {_span(choice['tokens'])} tokens" if choice["tokens"] else ""
        starved = "; starved: too few tokens for its size" if choice["starved"] else ""
        lines.append(
            f"    {loss}  {choice['choice']} ({format_count(choice['parameters'])}{tokens})"
            f"{starved} [{notes.index(choice['basis']) + 1}]"
        )
    return [*lines, *(f"    [{number}] {note}" for number, note in enumerate(notes, 1))]


def _measured_lines(measured: Mapping[str, Any] | None) -> list[str]:
    if measured is None:
        return []
    mfu = f", MFU {100 * measured['mfu']:.0f}%" if measured["mfu"] else ""
    ratio = measured["forecast_over_measured"]
    lines = [
        f"  measured  {measured['device']}, {measured['precision']}: "
        f"{measured['tokens_per_second']:,.0f} tokens/s{mfu} "
        f"at micro-batch {measured['micro_batch']}; first step {format_seconds(measured['first_step_seconds'])}",
        f"            memory {measured['peak_memory_bytes'] / 2**30:.2f} GiB, forecast "
        f"{measured['forecast_bytes'] / 2**30:.2f}" + (f" ({ratio:g}x)" if ratio else ""),
        f"            {measured['basis']}",
    ]
    if hours := measured["hours"]:
        bought = _span(hours["tokens"]) if "tokens" in hours else "no end is set:"
        lines.append(f"            at this speed the hours buy {bought} tokens")
    return lines


def _span(values: list[float]) -> str:
    low, high = map(format_count, values)
    return low if low == high else f"{low} to {high}"
