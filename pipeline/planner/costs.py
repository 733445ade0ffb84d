"""What a run costs besides its steps: hours and money on each card, time for all that is no training, disk.

In: a config, a card of configs/gpus.yaml, how much text there is. Out: plain values, each with what it rests on.
Speeds come from the MFU that published trainings of this size reach; `ASSUMED_SECONDS` and the disk's speed are
assumptions, unmeasured on a card so far.
"""

import math
from collections.abc import Mapping
from typing import Any

from model.config import ModelConfig
from pipeline.config import Config
from pipeline.corpus.text.source import BYTES_PER_TOKEN
from pipeline.training.budget import FLOAT32_MAX_BYTES, SAVE_BYTES_PER_SECOND, save_interval_seconds

MFU = {"none": (0.35, 0.50), "selective": (0.34, 0.49), "full": (0.27, 0.39)}  # recomputing all costs 4/3 of the FLOPs
MFU_BASIS = "MFU of published trainings of 1 to 7B (35 to 50%, less what is recomputed): unmeasured here"
MOMENT_BYTES = {"adamw8bit": 2.03, "adamw4bit": 1.06, "muon": 6.0}  # a parameter; 8 for the others
ASSUMED_SECONDS = {"start": 60.0, "compile": 90.0}  # of each process on a card: imports and loading; torch.compile
MUCH_VALIDATION = 0.25  # of the work of all training steps
TOKEN_COPIES = 2  # encoded shards, and the token sets that training reads
TEXT_COPIES = 2  # JSON lines as read, and as repaired


def tokens_per_second(config: Config, model: ModelConfig, card: Mapping[str, Any]) -> tuple[float, float]:
    """Least and most, by `MFU`."""
    peak, (low, high) = card["bf16_dense_tflops"] * 1e12, MFU[config.train.activation_checkpointing]
    flops = model.flops_per_token(config.train.sequence_length)
    return peak * low / flops, peak * high / flops


def hours(
    config: Config, card: Mapping[str, Any], validation_tokens: int = 0, speeds: tuple[float, float] | None = None
) -> dict[str, Any]:
    """What the cap buys: tokens or hours, and the cost, each as [least, most].

    Seconds that are no training (`overhead`) are taken off a cap and added to a number of tokens.
    `validation_tokens`: of the held-out text. `speeds`: measured tokens a second, instead of the card's.
    """
    slow, fast = speeds or tokens_per_second(config, config.model, card)
    cap, tokens = config.budget.max_gpu_hours, config.budget.max_tokens
    price, own = card["price_per_hour"], config.budget.gpu_hour_price
    if cap is None and tokens is None:
        return {"tokens_per_second": [round(slow), round(fast)]}
    spent, bought = [], []
    for speed in (fast, slow):
        lost = sum(_lost_seconds(config, speed, validation_tokens)[0].values())
        spent.append(min(cap or math.inf, ((tokens or math.inf) / speed + lost) / 3600))
        bought.append(min(tokens or math.inf, speed * max(0.0, (cap or math.inf) * 3600 - lost)))
    bought.reverse()
    return {
        "tokens_per_second": [round(slow), round(fast)],
        "gpu_hours": [round(h, 3) for h in spent],
        "tokens": [round(n) for n in bought],
        "tokens_per_parameter": [round(n / config.model.parameters, 3) for n in bought],
        "cost_usd": [round(h * price, 2) for h in spent],
        "price_per_hour": price,
        **({"cost_at_own_price": [round(h * own, 2) for h in spent]} if own not in (None, price) else {}),
    }


def _validations(config: Config) -> int:
    """Before the first step, and each time the share `train.validate_every_share` of the run is over."""
    return 1 + math.ceil(1 / config.train.validate_every_share)


def validation_cost(config: Config, tokens: int) -> tuple[str, str | None]:
    """What all validations of `tokens` held-out tokens cost, in words, and a warning where that is much of the run. In
    tokens of training, so that it is known before anything is measured: a forward pass is a third of a step."""
    times = _validations(config)
    work, most = times * tokens / 3, config.budget.max_tokens
    words = f"{times} validations of {tokens:,} tokens cost as much as training on {work:,.0f} tokens"
    if not most or work <= MUCH_VALIDATION * most:
        return words, None
    return words, (
        f"{words}, {100 * work / most:,.0f}% of budget.max_tokens; lower data.validation.max_bytes (what is not needed "
        "is train text), or raise train.validate_every_share"
    )


def overhead(config: Config, card: Mapping[str, Any], validation_tokens: int) -> dict[str, Any]:
    """Seconds of the run that are no training step, by kind, and their share of it: at most all of the cap, where
    nothing of it is left for a step. Empty without an end."""
    slow, _ = tokens_per_second(config, config.model, card)
    stepping, capped = _stepping_seconds(config, slow), _capped_seconds(config)
    if min(stepping, capped) == math.inf:
        return {}
    by_kind, (validations, saves, one_save) = _lost_seconds(config, slow, validation_tokens)
    lost = sum(by_kind.values())
    run = min(capped, stepping + lost)
    return {
        "seconds": {kind: round(value, 1) for kind, value in by_kind.items()},
        "share": round(min(1.0, lost / run), 4),
        "share_by_kind": {kind: round(value / max(run, lost), 4) for kind, value in by_kind.items()},
        "nothing_left": lost >= run,
        "validations": validations,
        "validation_tokens": validation_tokens,
        "saves": saves,
        "seconds_per_save": round(one_save, 1),
        "data": "none where the data stage ran before, as its own job on CPUs; batches are read ahead while steps run",
        "basis": f"start and compile assumed ({ASSUMED_SECONDS['start']:.0f} and {ASSUMED_SECONDS['compile']:.0f} s), "
        f"evaluation from FLOPs, saving at {SAVE_BYTES_PER_SECOND / 1e6:.0f} MB/s; one process, unmeasured on a card",
    }


def _stepping_seconds(config: Config, speed: float) -> float:
    return math.inf if config.budget.max_tokens is None else config.budget.max_tokens / speed


def _capped_seconds(config: Config) -> float:
    return math.inf if config.budget.max_gpu_hours is None else 3600 * config.budget.max_gpu_hours


def _lost_seconds(
    config: Config, speed: float, validation_tokens: int
) -> tuple[dict[str, float], tuple[int, int, float]]:
    """What is no training step, by kind; and validations, saves, seconds of a save."""
    train = config.train
    seconds = min(_stepping_seconds(config, speed), _capped_seconds(config))
    validations = _validations(config)
    one_save = checkpoint_bytes(config) / SAVE_BYTES_PER_SECOND
    interval = save_interval_seconds(train.checkpoint_every_seconds, one_save)
    saves = 2 + math.floor(seconds / interval)  # before the decay, and the last one
    by_kind = {
        "start": ASSUMED_SECONDS["start"],
        "compile": ASSUMED_SECONDS["compile"] if train.compile != "false" else 0.0,
        "evaluation": validations * validation_tokens / (3 * speed),  # forward only
        "saving": saves * one_save + model_bytes(config) / SAVE_BYTES_PER_SECOND,
    }
    return by_kind, (validations, saves, one_save)


def checkpoint_bytes(config: Config) -> float:
    """fp32 weights and the optimizer's moments."""
    return config.model.parameters * (4 + MOMENT_BYTES.get(config.train.optimizer, 8))


def model_bytes(config: Config) -> float:
    """The exported model."""
    return config.model.parameters * (4 if config.model.parameters * 4 <= FLOAT32_MAX_BYTES else 2)


def disk(config: Config, unique_tokens: int | None) -> dict[str, Any]:
    """GB of checkpoints (the newest, one from before the decay, one being written, one a branch), of the exported
    model, of tokens, and of the text that the data stage keeps; None where the text's size is unknown."""
    kept = config.train.keep_checkpoints + 2 + len(config.budget.branches)
    width = 2 if config.model.vocab_size <= 2**16 else 4
    tokens = None if unique_tokens is None else unique_tokens * width * TOKEN_COPIES / 1e9
    text = None if unique_tokens is None else unique_tokens * BYTES_PER_TOKEN * TEXT_COPIES / 1e9
    return {
        "checkpoints": round(kept * checkpoint_bytes(config) / 1e9, 2),
        "model": round(model_bytes(config) / 1e9, 2),
        "tokens": None if tokens is None else round(tokens, 3),
        "text": None if text is None else round(text, 3),
        "basis": f"{kept} checkpoints; {width} bytes a token, encoded and as token sets; {BYTES_PER_TOKEN:g} bytes of "
        "text a token, as read and as repaired, not compressed; what filters will drop is not known and not counted",
    }


def cards(
    config: Config, table: Mapping[str, Mapping[str, Any]], largest: Any, validation_tokens: int
) -> list[dict[str, Any]]:
    """The config on every card of the table. `largest`: bytes of a card -> what fits there, or None."""
    rows = []
    for name, card in table.items():
        fits = largest(int(card["memory_gb"] * 1e9))
        facts = {"card": name, "memory_gb": card["memory_gb"], "price_per_hour": card["price_per_hour"]}
        rows.append({**facts, **hours(config, card, validation_tokens), "micro_batch": fits.windows if fits else None})
    return rows
