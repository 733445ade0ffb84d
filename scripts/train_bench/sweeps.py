"""What the recipe's values do at toy scale, one value moved at a time; and which learning rate suits which width.

A fixed number of tokens on the task's text, so that the figures do not depend on the machine. Seeds are averaged and
their spread is shown: a difference below the spread is noise.
"""

import math
import sys
from collections.abc import Mapping
from dataclasses import replace
from statistics import mean
from typing import Any

import numpy as np
import torch

from model.schedules import DecaySegment
from pipeline.corpus.text.shards import TokenSet
from scripts.bench_rows import Rows, row
from scripts.train_bench import ours, task
from scripts.train_bench.shapes import Shape

VOCAB_SIZE, HELD_OUT_TOKENS = 2048, 20_000
TOKENS, QUICK_TOKENS, WARMUP_SHARE = 61_440, 5_120, 0.05
BASE = Shape(layers=3, hidden=96, heads=3, windows=2, tokens=128, vocab_size=VOCAB_SIZE)
SEEDS = (0, 1)  # the second where the first is too close to the default's to tell
CLOSE_NATS = 0.03  # a token
MUON: dict[str, Any] = {"optimizer": "muon", "learning_rate": 1.2e-2}
GROWING_STEPS: dict[str, Any] = {
    "global_batch_tokens": 512,
    "batch_start_tokens": 128,
    "batch_warmup_tokens": 30_720,
}
BY_INPUTS = {"proj.weight": 5.1, "fc1.weight": 5.1, "dense.weight": 5.1, "fc2.weight": 2.55}
# What is moved: keys of `train`, and `init`: tensor name -> factor of its start value.
VARIANTS: dict[str, dict[str, Any]] = {
    "rate 1.5e-3": {"learning_rate": 1.5e-3},
    "rate 6e-3": {"learning_rate": 6e-3},
    "rate 1.2e-2": {"learning_rate": 1.2e-2},
    "muon": {"optimizer": "muon"},
    "muon, rate 6e-3": {"optimizer": "muon", "learning_rate": 6e-3},
    "muon, rate 1.2e-2": MUON,
    "muon, rate 2.4e-2": {**MUON, "learning_rate": 2.4e-2},
    "muon, rate 1.2e-2, steps of 512 tokens": {**MUON, "global_batch_tokens": 512},
    "muon, rate 1.2e-2, steps from 128 to 512 tokens over a half": {**MUON, **GROWING_STEPS},
    "muon, rate 1.2e-2, linear over the last 0.6": {**MUON, "decay_share": 0.6},
    "muon, rate 1.2e-2, 1 - sqrt over the last 0.3": {**MUON, "decay": "one_minus_sqrt"},
    "muon, rate 1.2e-2, start: head's bias at the tokens' log frequencies": {**MUON, "frequencies": True},
    "muon, rate 1.2e-2, start: matrices by 1 / sqrt(inputs)": {**MUON, "init": BY_INPUTS},
    "muon, rate 1.2e-2, start: residual writers at 0": {**MUON, "init": {"dense.weight": 0.0, "fc2.weight": 0.0}},
    "steps of 128 tokens": {"global_batch_tokens": 128},
    "steps of 512 tokens": {"global_batch_tokens": 512},
    "steps from 128 to 512 tokens over a half": GROWING_STEPS,
    "start: head's bias at the tokens' log frequencies": {"frequencies": True},
    "start: head at 0": {"init": {"lm_head.weight": 0.0}},
    "start: residual writers not scaled by depth": {"init": {"dense.weight": 6**0.5, "fc2.weight": 6**0.5}},
    "start: residual writers at 0": {"init": {"dense.weight": 0.0, "fc2.weight": 0.0}},
    "start: embedding x 5": {"init": {"embed_tokens.weight": 5.0}},
    "start: matrices by 1 / sqrt(inputs)": {"init": BY_INPUTS},
    "rate 6e-3, half of it for matrices and head": {"learning_rate": 6e-3, "learning_rate_base_width": 48},
    "1 - sqrt over the last 0.3": {"decay": "one_minus_sqrt"},
    "linear over the last 0.6": {"decay_share": 0.6},
    "cosine from the warm-up's end": {"decay": "cosine", "decay_share": 0.95},
    "no warm-up": {"warmup_steps": 0},
    "warm-up over 0.2": {"warmup_steps": 48},
    "adamw8bit": {"optimizer": "adamw8bit"},
    "z-loss 1e-4": {"z_loss": 1e-4},
    "no clipping": {"clip_norm": 0.0},
    "no decay of weights": {"weight_decay": 0.0},
    "beta2 0.99": {"beta2": 0.99},
}


WIDTHS, BASE_WIDTH = (64, 256), 64
RATES = (1.5e-3, 3e-3, 6e-3, 1.2e-2, 2.4e-2)


def run(quick: bool) -> Rows:
    """Bits per byte on held-out text after the same tokens, and how far each variant's is from the default's."""
    text, tokens, rows = load(), QUICK_TOKENS if quick else TOKENS, []
    default = {seed: train(text, BASE, tokens, seed) for seed in (SEEDS[:1] if quick else SEEDS)}
    print(f"default: {default}", file=sys.stderr, flush=True)
    rows.append(row(f"{tokens:,} tokens: default", round(mean(default.values()), 4), "bits/byte"))
    rows.append(row("spread of its seeds", round(max(default.values()) - min(default.values()), 4), "bits/byte"))
    close = CLOSE_NATS / math.log(2) / text.bytes_per_token
    gains: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for seed, base in default.items():
        for name, values in VARIANTS.items():
            if not gains[name] or abs(gains[name][0]) < close:
                gains[name].append(train(text, BASE, tokens, seed, **values) - base)
                print(f"{name}, seed {seed}: {gains[name][-1]:+.4f}", file=sys.stderr, flush=True)
    for name, found in gains.items():
        rows.append(row(f"{name} ({len(found)} seeds), against the default", round(mean(found), 4), "bits/byte"))
    return rows


def run_widths(quick: bool) -> Rows:
    """Which rate is best at which width, with one rate for all weights and with the rule of `model.optim`."""
    text, tokens, rows = load(), QUICK_TOKENS if quick else TOKENS // 2, []
    for base_width in (None, BASE_WIDTH):
        rule = "no rule" if base_width is None else f"base width {base_width}"
        for width in WIDTHS:
            if width == base_width:
                continue  # the rule's factors are 1
            shape = replace(BASE, layers=2, hidden=width, heads=width // 32)
            values: dict[str, Any] = {"learning_rate_base_width": base_width}
            found = {}
            for rate in RATES:
                found[rate] = train(text, shape, tokens, 0, learning_rate=rate, **values)
                print(f"{rule}, width {width}, rate {rate:g}: {found[rate]:.4f}", file=sys.stderr, flush=True)
            rows += [row(f"{rule}, width {width}, rate {r:g}", round(v, 4), "bits/byte") for r, v in found.items()]
            rows.append(row(f"{rule}, width {width}: best rate", min(found, key=lambda rate: found[rate]), ""))
    return rows


def load() -> task.Task:
    """The task with a small vocabulary, and the first part of its held-out text."""
    text = task.load(VOCAB_SIZE)
    return replace(text, held_out=_first(text.held_out, HELD_OUT_TOKENS))


def _first(tokens: TokenSet, count: int) -> TokenSet:
    """The documents that lie within the first `count` tokens."""
    index = tokens.index[tokens.index["offset"] + tokens.index["length"] <= count]
    return TokenSet(tokens.name, tokens.tokens[: int(index["length"].sum())], index)


def train(
    text: task.Task,
    shape: Shape,
    tokens: int,
    seed: int,
    init: Mapping[str, float] | None = None,
    frequencies: bool = False,
    **values: Any,
) -> float:
    """Bits per byte of a fresh network after `tokens`, with `values` in `train`. `init`: see `ours.module_of`;
    `frequencies`: the head's bias starts at the tokens' log frequencies (each counted once more than it occurs)."""
    from pipeline.training.batches import TokenBatches
    from pipeline.training.validation import Validation

    config = ours.experiment(shape, **{"learning_rate": 3e-3, **values})
    config.seed = seed
    batches = TokenBatches({"train": text.train}, config)
    steps = batches.sizes.whole_steps(tokens // shape.tokens)
    if "warmup_steps" not in values:
        config.train.warmup_steps = round(WARMUP_SHARE * steps)
    module, _ = ours.module_of(config, init)
    if frequencies:
        counts = np.bincount(text.train.tokens, minlength=shape.vocab_size) + 1.0
        module.optimizer.masters[module.optimizer.names.index("lm_head.bias")].data += torch.from_numpy(
            np.log(counts / counts.sum()).astype(np.float32)
        )
    module.segments = [DecaySegment(steps - round(steps * config.train.decay_share), steps)]
    for number, batch in enumerate(batches):
        module.training_step(batch, number)
        if module.step == steps:
            break
    result = Validation({"held_out": text.held_out}, shape.tokens).run(module.network)
    assert result is not None
    return result["held_out"]
