"""The speed to expect of a config on a card: milliseconds of a pass by kind, MFU with a range, and what would raise it.

Each kind of work takes its FLOPs or bytes over what the card sustains of its peak. Bytes of loss, sums and optimizer
are those of the traced kernels (docs/training); those of the blocks are rounded from one trace (67 values a token). The
range is from the lower shares of `SUSTAINED` with eager passes and `UNSEEN` of the time lost to the upper ones with
none. The shares are assumptions that were set with the published trainings of tests/pipeline/test_roofline.py in view,
so that holding most of these says little. Launches are not modelled. Nothing was measured on a card.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from model.config import ModelConfig
from model.loss import GPU_CHUNK_TOKENS
from pipeline.config import Config, TrainConfig

# Least and most of the peak that matrix products and attention sustain, by the start of a card's name; of others: "".
SUSTAINED = {
    "h": ((0.60, 0.69), (0.33, 0.50)), "gh": ((0.60, 0.69), (0.33, 0.50)), "b": ((0.60, 0.69), (0.33, 0.50)),
    "a100": ((0.75, 0.85), (0.45, 0.62)), "mi": ((0.45, 0.60), (0.25, 0.45)), "": ((0.85, 0.96), (0.55, 0.80)),
}  # fmt: skip
BANDWIDTH = (0.75, 0.90)
UNSEEN = 0.15  # of the time, at the range's lower end: host gaps, exchange between cards, passes that do not overlap
BLOCK_VALUES = (80, 60)  # bf16 values of the width that the passes of a block move per token: eager, compiled
LOSS_BYTES = (12, 8)  # a logit: the logits written, and their pass; and read by both products
STEP_BYTES = {"adamw8bit": 10, "adamw4bit": 35}  # a parameter; of fp32 moments and masters:
FP32_STEP_BYTES = 42
SUM_BYTES = {"bf16-sr": 6, "bf16-true": 6}  # a parameter and pass; in fp32:
FP32_SUM_BYTES = 10
RECOMPUTED = {"none": 0.0, "selective": 0.0, "full": 1.0}  # forward passes more
LEAST_GAIN = 0.01  # of MFU: what raises it by less is not named
CHANGES: tuple[dict[str, Any], ...] = (
    {"activation_checkpointing": "none"},
    {"optimizer_in_backward": False},
    {"precision": "bf16-sr", "optimizer": "adamw8bit"},
    {"global_batch_tokens": 2},
    {"micro_batch": 2},
)  # numbers: times what the config has


def roofline(config: Config, card_name: str, card: Mapping[str, Any], windows: int) -> dict[str, Any]:
    """Plain values for a micro-batch of `windows`: `mfu`, `tokens_per_second` and `milliseconds` by kind, each as
    [least, most] speed; `raised_by`: up to three changes with the MFU at the upper end that each would reach."""
    found = expected(config.model, config.train, card_name, card, windows)
    raised = []
    for change in CHANGES:
        values = {
            key: value * (windows if key == "micro_batch" else getattr(config.train, key))
            if type(value) is int
            else value
            for key, value in change.items()
        }
        train = replace(config.train, **values)
        more = expected(config.model, train, card_name, card, values.get("micro_batch", windows))["mfu"][1]
        raised.append({**{f"train.{key}": value for key, value in values.items()}, "mfu": more})
    raised = [change for change in raised if change["mfu"] > found["mfu"][1] + LEAST_GAIN]
    return {**found, "raised_by": sorted(raised, key=lambda change: -change["mfu"])[:3]}


def expected(
    model: ModelConfig, train: TrainConfig, card_name: str, card: Mapping[str, Any], windows: int
) -> dict[str, Any]:
    """The speeds of `roofline`."""
    tokens = windows * train.sequence_length
    passes = 1 if train.optimizer_in_backward else max(1, train.global_batch_tokens // tokens)
    peak = card["bf16_dense_tflops"] * 1e12
    flops = model.flops_per_token(train.sequence_length) * tokens
    ends = []
    for end in (0, 1):
        kinds = _milliseconds(model, train, card_name, card, tokens, passes, end)
        ends.append((kinds, sum(kinds.values()) / (1 - UNSEEN if end == 0 else 1)))
    return {
        "mfu": [round(1000 * flops / total / peak, 4) for _, total in ends],
        "tokens_per_second": [round(1000 * tokens / total) for _, total in ends],
        "milliseconds": {kind: [round(kinds[kind], 2) for kinds, _ in ends] for kind in ends[0][0]},
    }


def _milliseconds(
    model: ModelConfig, train: TrainConfig, card_name: str, card: Mapping[str, Any], tokens: int, passes: int, end: int
) -> dict[str, float]:
    """Of one pass, with its share of the optimizer's step. `end`: 0 for the slow one, 1 for the fast one."""
    peak = card["bf16_dense_tflops"] * 1e12
    shares = next(found for start, found in SUSTAINED.items() if card_name.rpartition("(")[2].startswith(start))
    products, attention = (peak * share[end] for share in shares)
    bandwidth = card["bandwidth_gb_per_second"] * 1e9 * BANDWIDTH[end]
    again = RECOMPUTED[train.activation_checkpointing]
    head, width = model.vocab_size * model.hidden_size, model.num_attention_heads * model.head_size
    in_blocks = model.non_embedding_parameters - head
    seen = model.num_hidden_layers * train.sequence_length * width * tokens  # half of the pairs, products of K twice
    blocks = BLOCK_VALUES[end] * (1 + again / 3) * 2 * model.hidden_size * model.num_hidden_layers * tokens
    logits = LOSS_BYTES[end] * model.vocab_size * tokens + 8 * head * max(1, tokens / GPU_CHUNK_TOKENS)
    step = STEP_BYTES.get(train.optimizer, FP32_STEP_BYTES) * model.parameters
    summed = SUM_BYTES.get(train.precision, FP32_SUM_BYTES) * model.parameters if passes > 1 else 0
    seconds = {
        "products": ((6 + 2 * again) * in_blocks + 6 * head) * tokens / products,
        "attention": (2 * 3.5 + 2 * again) * seen / attention,  # its backward pass has 2.5 times the products
        "elementwise": blocks / bandwidth,
        "loss": logits / bandwidth,
        "accumulation": summed * (passes - 1) / passes / bandwidth,
        "optimizer": step / passes / bandwidth,
    }
    return {kind: 1000 * value for kind, value in seconds.items()}
