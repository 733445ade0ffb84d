"""`hornbook plan`: what a config needs and buys on a card, on a machine that has none.

In: a config and a card of configs/gpus.yaml. Out: parameters, FLOPs, peak memory by kind from a traced training step
(`model/estimate.py`), the largest micro-batch, what memory saver each size of card needs, tokens, hours and cost of the
cap, disk, and how the expected loss compares with other sizes for the same hours. Speeds are a range of MFU that
published trainings of this size reach; nothing of it was measured on a GPU by us yet, and the answer says so.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from model.config import ModelConfig
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.progress import format_count
from pipeline.training.micro_batch import choices, train_settings

if TYPE_CHECKING:
    from model.estimate import Plan, TrainSettings

GIB = 2**30
GROWTH_TABLE = Path(__file__).resolve().parents[1] / "docs" / "growth" / "schedule.json"
MFU = {"none": (0.35, 0.50), "selective": (0.34, 0.49), "full": (0.27, 0.39)}  # recomputing all costs 4/3 of the FLOPs
CARD_GIB = (16, 24, 40, 80, 140)
# Fastest first: what a card too small for one rung can take next.
LADDER: tuple[dict[str, Any], ...] = (
    {"precision": "bf16-mixed", "optimizer": "adamw", "activation_checkpointing": "none"},
    {"precision": "bf16-sr", "optimizer": "adamw8bit", "activation_checkpointing": "selective"},
    {"precision": "bf16-sr", "optimizer": "adamw8bit", "activation_checkpointing": "full"},
    {"precision": "bf16-sr", "optimizer": "adamw4bit", "activation_checkpointing": "full",
     "optimizer_in_backward": True},
)  # fmt: skip
SHRINK = (0.5, 0.25, 0.1)  # of the parameters: other sizes that the same hours are compared at
TOKENS_PER_PARAMETER = 20  # compute-optimal (Hoffmann et al. 2022, arXiv 2203.15556)
STARVED = 2  # tokens per parameter under which fresh weights learn little that a smaller model would not learn better
# Loss against parameters and tokens, the fit of Besiroglu et al. 2024 (arXiv 2404.10102) to Hoffmann's data: for
# ranking sizes by the same hours, not for predicting a loss on other text.
FIT = {"floor": 1.82, "a": 482.0, "alpha": 0.348, "b": 2085.0, "beta": 0.366}


def weight_bytes(parameters: float, bits: float) -> float:
    """What the weights alone take: all that inference needs besides its cache."""
    return parameters * bits / 8


def state_bytes(parameters: float, weight: float = 4, gradient: float = 4, optimizer: float = 8) -> float:
    """Weights, gradients and optimizer of a training, in bytes a parameter; mixed precision with AdamW by default."""
    return parameters * (weight + gradient + optimizer)


def training_seconds(tokens: float, flops_per_token: float, peak_flops: float, mfu: float) -> float:
    return tokens * flops_per_token / (peak_flops * mfu)


def expected_loss(parameters: float, tokens: float) -> float:
    """Nats per token by `FIT`."""
    return FIT["floor"] + FIT["a"] / parameters ** FIT["alpha"] + FIT["b"] / tokens ** FIT["beta"]


def make_plan(config: Config, card_name: str | None) -> dict[str, Any]:
    """The answers as plain JSON values. Raises `UserError` for a card that the table does not have."""
    name, card = _card(card_name)
    train, model = config.train, config.model
    precision = "bf16-mixed" if train.precision == "auto" else train.precision
    settings = [train_settings(train, precision)]
    settings += [
        train_settings(dataclasses.replace(train, **{"optimizer_in_backward": False, **rung}), rung["precision"])
        for rung in LADDER
    ]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        plans = list(pool.map(_traced, [(model, own) for own in settings]))
    windows = train.global_batch_tokens // train.sequence_length
    asked = [train.micro_batch or windows] if train.micro_batch or train.optimizer_in_backward else choices(train)
    card_bytes = int(card["memory_gb"] * 1e9)
    own = plans[0].largest(asked, card_bytes)
    shown = own or plans[0].estimate(1, card_bytes)
    return {
        "name": config.name,
        "card": name,
        "parameters": model.parameters,
        "flops_per_token": model.flops_per_token(train.sequence_length),
        "memory": {
            "fits": own is not None,
            "micro_batch": shown.windows,
            "by_kind_gib": {kind: round(n / GIB, 2) for kind, n in shown.by_kind.items()},
            "traced_gib": round(shown.traced_bytes / GIB, 2),
            "needed_gib": round(shown.needed_bytes / GIB, 2),
        },
        "savers": {size: _first_that_fits(plans[1:], size, windows) for size in CARD_GIB},
        "hours": _hours(config, card),
        "disk_gb": _disk(config),
        "advice": advice(config, card),
        "growth": growth_advice(),
    }


def _card(name: str | None) -> tuple[str, Mapping[str, Any]]:
    from pipeline.training.devices import gpu_table

    table = gpu_table()
    name = name or "h100-80"
    if name not in table:
        raise UserError(f"--card is '{name}'; expected one of configs/gpus.yaml: {', '.join(table)}")
    return name, table[name]


def _traced(job: tuple[ModelConfig, "TrainSettings"]) -> "Plan":
    from model.estimate import Plan

    return Plan(*job)


def _first_that_fits(plans: list[Any], gib: int, windows: int) -> dict[str, Any] | None:
    """The fastest rung of the ladder that a card of this size can take, with its largest micro-batch."""
    for rung, plan in zip(LADDER, plans, strict=True):
        found = plan.largest([n for n in (32, 16, 8, 4, 2, 1) if n <= windows], gib * GIB)
        if found is not None:
            return {**rung, "micro_batch": found.windows, "needed_gib": round(found.needed_bytes / GIB, 2)}
    return None


def _tokens_per_second(config: Config, model: ModelConfig, card: Mapping[str, Any]) -> tuple[float, float]:
    peak, (low, high) = card["bf16_dense_tflops"] * 1e12, MFU[config.train.activation_checkpointing]
    flops = model.flops_per_token(config.train.sequence_length)
    return peak * low / flops, peak * high / flops


def _hours(config: Config, card: Mapping[str, Any]) -> dict[str, Any]:
    """What the cap buys: tokens or hours, and the cost, each as (least, most)."""
    slow, fast = _tokens_per_second(config, config.model, card)
    cap, tokens = config.budget.max_gpu_hours, config.budget.max_tokens
    price = config.budget.gpu_hour_price or card["price_per_hour"]
    if cap is None and tokens is None:
        return {"tokens_per_second": [round(slow), round(fast)]}
    hours = [min(cap or math.inf, (tokens or math.inf) / speed / 3600) for speed in (fast, slow)]
    bought = [min(tokens or math.inf, speed * (cap or math.inf) * 3600) for speed in (slow, fast)]
    return {
        "tokens_per_second": [round(slow), round(fast)],
        "gpu_hours": [round(h, 3) for h in hours],
        "tokens": [round(n) for n in bought],
        "tokens_per_parameter": [round(n / config.model.parameters, 3) for n in bought],
        "cost_usd": [round(h * price, 2) for h in hours],
        "price_per_hour": price,
    }


def _disk(config: Config) -> dict[str, float]:
    """GB of checkpoints (fp32 weights and moments; the newest, one from before the decay, one being written) and of
    the exported model."""
    moments = {"adamw8bit": 2.03, "adamw4bit": 1.06}.get(config.train.optimizer, 8)
    kept = config.train.keep_checkpoints + 2 + len(config.budget.branches)
    parameters = config.model.parameters
    return {"checkpoints": round(kept * parameters * (4 + moments) / 1e9, 2), "model": round(parameters * 2 / 1e9, 2)}


def advice(config: Config, card: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Choices for the same hours, best first by `FIT`, each with a range for the range of
    speeds; the fit's own error is about 0.05 nats. Empty without a cap."""
    tokens = _hours(config, card).get("tokens")
    if tokens is None:
        return []
    choices = []
    for share in (1.0, *SHRINK):
        model = _shrunk(config.model, share)
        factor = config.model.flops_per_token(config.train.sequence_length) / model.flops_per_token(
            config.train.sequence_length
        )
        low, high = (expected_loss(model.parameters, n * factor) for n in reversed(tokens))
        choices.append(
            {
                "choice": "this size" if share == 1.0 else f"{share:g} of the size",
                "parameters": model.parameters,
                "tokens": [round(n * factor) for n in tokens],
                "expected_loss": [round(low, 3), round(high, 3)],
                "starved": tokens[1] * factor < STARVED * model.parameters,
            }
        )
    return sorted(choices, key=lambda choice: sum(choice["expected_loss"]))


def growth_advice(path: Path = GROWTH_TABLE) -> dict[str, Any] | None:
    """The way to spend a budget on growth that gained most over fresh weights at equal FLOPs, source counted, of those
    that `scripts/bench_growth.py --schedule` measured: its gains over all seeds, and at what scale. None without the
    table."""
    if not path.is_file():
        return None
    table = json.loads(path.read_text(encoding="utf-8"))
    gains: dict[str, list[float]] = {}
    for row in table["rows"]:
        gains.setdefault(row["choice"], []).extend(row["per_seed"])
    best = max(gains, key=lambda choice: mean(gains[choice]))
    shares = sorted({row["source_share"] for row in table["rows"] if row["choice"] == best})
    return {
        "choice": best,
        "meaning": table["choices"][best],
        "source_share": [shares[0], shares[-1]],
        "gain_nats": [min(gains[best]), max(gains[best])],
        "runs": len(gains[best]),
        "measured_at_parameters": table["target_parameters"],
    }


def _shrunk(model: ModelConfig, share: float) -> ModelConfig:
    """About `share` of the parameters: width and depth shrink alike, heads keep their size."""
    scale = share ** (1 / 3)
    heads = max(1, round(model.num_attention_heads * scale))
    width = heads * (model.hidden_size // model.num_attention_heads)
    key_heads = None if model.num_key_value_heads is None else heads
    return dataclasses.replace(
        model,
        hidden_size=width,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        intermediate_size=max(1, round(model.intermediate_size * width / model.hidden_size)),
        num_hidden_layers=max(1, round(model.num_hidden_layers * scale)),
    )


def show(plan: Mapping[str, Any]) -> str:
    """For a person."""
    memory, hours = plan["memory"], plan["hours"]
    kinds = ", ".join(f"{kind} {gib:g}" for kind, gib in memory["by_kind_gib"].items())
    lines = [
        f"{plan['name']} on {plan['card']}: {plan['parameters']:,} parameters, "
        f"{plan['flops_per_token'] / 1e9:.3g} GFLOP per token",
        f"  memory    {'fits' if memory['fits'] else 'DOES NOT FIT'}: {memory['needed_gib']:g} GiB at micro-batch "
        f"{memory['micro_batch']} ({memory['traced_gib']:g} traced: {kinds})",
    ]
    for size, rung in plan["savers"].items():
        lines.append(f"    {size:>4} GiB  {_rung(rung)}")
    slow, fast = hours["tokens_per_second"]
    lines.append(f"  speed     {slow:,} to {fast:,} tokens/s by the MFU of published trainings: unmeasured here")
    if "tokens" in hours:
        lines.append(
            f"  buys      {_span(hours['tokens'])} tokens in {_span(hours['gpu_hours'])} GPU-hours for "
            f"{_span(hours['cost_usd'])} USD; {_span(hours['tokens_per_parameter'])} tokens per parameter "
            f"(compute-optimal: about {TOKENS_PER_PARAMETER})"
        )
    disk = plan["disk_gb"]
    lines.append(f"  disk      {disk['checkpoints']:g} GB of checkpoints at most, {disk['model']:g} GB of model")
    if growth := plan["growth"]:
        share, gain = growth["source_share"], growth["gain_nats"]
        lines.append(
            f"  growth    a smaller source first, on {100 * share[0]:.0f} to {100 * share[1]:.0f}% of the FLOPs "
            f"({growth['meaning']}): {gain[0]:.2f} to {gain[1]:.2f} nats better than fresh weights in "
            f"{growth['runs']} runs of {format_count(growth['measured_at_parameters'])} parameters; larger ones "
            "unmeasured"
        )
    return "\n".join([*lines, *_advice_lines(plan["advice"])])


def _rung(rung: Mapping[str, Any] | None) -> str:
    if rung is None:
        return "no setting fits: a smaller model or a shorter train.sequence_length"
    words = [f"{k}={v}" for k, v in rung.items() if k not in ("needed_gib", "micro_batch")]
    return f"{' '.join(words)} micro_batch={rung['micro_batch']}: {rung['needed_gib']:g} GiB"


def _span(values: list[float]) -> str:
    low, high = map(format_count, values)
    return low if low == high else f"{low} to {high}"


def _advice_lines(choices: list[dict[str, Any]]) -> list[str]:
    if not choices:
        return []
    lines = ["  advice    sizes for the same hours from fresh weights, by a published fit (its error: about 0.05 nats)"]
    for choice in choices:
        starved = "  starved: continue, grow or fine-tune a public model instead" if choice["starved"] else ""
        low, high = choice["expected_loss"]
        lines.append(
            f"    {choice['choice']:<16} {choice['parameters'] / 1e9:>8.3g}B parameters, "
            f"{_span(choice['tokens'])} tokens, expected loss {low:.2f} to {high:.2f}{starved}"
        )
    if all(choice["starved"] for choice in choices):
        lines.append("    do not pretrain for these hours: none of these sizes sees enough text")
    return lines
