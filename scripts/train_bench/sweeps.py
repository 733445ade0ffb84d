"""What the recipe's values do at toy scale: schedules, z-loss, and which learning rate suits which width.

Fixed steps on the task's text, so that the figures do not depend on the machine; seeds are averaged, their spread is
shown. A difference below the spread is noise.
"""

from statistics import mean

from model.schedules import DecaySegment
from scripts.bench_rows import Rows, row
from scripts.train_bench import ours, task
from scripts.train_bench.shapes import Shape

STEPS, WARMUP_STEPS = 250, 20
BASE = Shape(layers=2, hidden=96, heads=3, windows=4, tokens=128)
VARIANTS: dict[str, dict[str, object]] = {
    "wsd, linear over the last 0.3 (default)": {},
    "wsd, 1 - sqrt over the last 0.3": {"decay": "one_minus_sqrt"},
    "wsd, linear over the last 0.6": {"decay_share": 0.6},
    "cosine from the warm-up's end": {"decay": "cosine", "decay_share": 0.92},
    "z-loss 1e-4": {"z_loss": 1e-4},
    "z-loss 1e-2": {"z_loss": 1e-2},
    "no decay of weights": {"weight_decay": 0.0},
    "no clipping": {"clip_norm": 0.0},
}
WIDTHS, RATES = (48, 96, 192), (1.5e-3, 3e-3, 6e-3, 1.2e-2)


def run(quick: bool) -> Rows:
    """Bits per byte on held-out text."""
    text, seeds = task.load(), (0,) if quick else (0, 1)
    steps = 20 if quick else STEPS
    rows = []
    for name, values in VARIANTS.items():
        results = [train(text, BASE, steps, seed, **values) for seed in seeds]
        spread = max(results) - min(results)
        rows.append(row(f"{steps} steps of {BASE.step_tokens}: {name}", round(mean(results), 4), "bits/byte"))
        rows.append(row("spread of the seeds", round(spread, 4), "bits/byte"))
    for width in WIDTHS:
        shape = Shape(BASE.layers, width, 3, BASE.windows, BASE.tokens)
        found = {rate: train(text, shape, steps, 0, learning_rate=rate) for rate in RATES}
        rows += [row(f"width {width}, rate {rate:g}", round(value, 4), "bits/byte") for rate, value in found.items()]
        rows.append(row(f"width {width}: best rate", min(found, key=lambda rate: found[rate]), ""))
    return rows


def train(text: task.Task, shape: Shape, steps: int, seed: int, **values: object) -> float:
    """Bits per byte of a fresh network after `steps`, with `values` in `train`."""
    from pipeline.training.batches import TokenBatches
    from pipeline.training.validation import Validation

    config = ours.experiment(shape, **{"learning_rate": 3e-3, "warmup_steps": WARMUP_STEPS, **values})
    config.seed = seed
    module, _ = ours.module_of(config)
    module.segments = [DecaySegment(steps - round(steps * config.train.decay_share), steps)]
    for number, batch in enumerate(TokenBatches({"train": text.train}, config)):
        module.training_step(batch, number)
        if module.step == steps:
            break
    result = Validation({"held_out": text.held_out}, shape.tokens).run(module.network)
    assert result is not None
    return result["held_out"]
