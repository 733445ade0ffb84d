"""The growth comparison at 100M to 350M parameters on a GPU, inside a number of minutes.

In: a scale, a device, minutes. The speed of both shapes is measured first, and the scratch run gets as many steps as
fit (at most 20 tokens per parameter). Out: runs at equal total FLOPs (scratch, grown from a source that never decays,
grown from one that does), rows, and a picture. Nothing of this has been run on a GPU yet; it is tried on a CPU.
"""

import time
from pathlib import Path

import torch

from model.config import ModelConfig
from model.optim import MasterWeights, adamw
from model.transformer import Transformer
from pipeline.pages.charts import Line, chart_file, line_chart
from scripts.growth_bench import schedule
from scripts.growth_bench.lab import DECAY_SHARE, SCALES, Lab, Run, Scale, Text, precision

SHARE, CHOICES = 0.35, ("stable", "decayed")
MOST_TOKENS_PER_PARAMETER = 20
TRAINING_SHARE = 0.75  # of the minutes; the rest is for text, held-out losses, growth and starting up


def run(shape: str, device: str, minutes: float) -> tuple[dict[str, Run], Lab]:
    """All runs of one seed. Raises SystemExit where the minutes are too few for a training."""
    scale = SCALES[shape]
    steps = _steps_that_fit(scale, device, 60 * minutes)
    tokens = steps * scale.step_tokens
    parameters = scale.target.parameters
    print(f"{shape}: {parameters:,} parameters, {steps} steps of {scale.step_tokens:,} tokens for scratch", flush=True)
    print(f"  {tokens / parameters:.2f} tokens per parameter of {MOST_TOKENS_PER_PARAMETER}; more --minutes give more")
    text = Text(scale, round(1.5 * steps))
    if text.repeats > 1:
        print(f"  note: the text of this machine is read {text.repeats:.1f} times")
    lab = Lab(text, 1, steps, device)
    return schedule.sweep(lab, (SHARE,), CHOICES), lab


def _steps_that_fit(scale: Scale, device: str, seconds: float) -> int:
    target, source = (_step_seconds(config, scale, device) for config in (scale.target, scale.source))
    ratio = scale.share(scale.source)
    # Of a scratch run of one step: itself, the source and once more its decay, and a target for each choice.
    cost = target * (1 + len(CHOICES) * (1 - SHARE)) + source * SHARE / ratio * (1 + DECAY_SHARE)
    most = MOST_TOKENS_PER_PARAMETER * scale.target.parameters // scale.step_tokens
    steps = min(most, int(TRAINING_SHARE * seconds / cost))
    if steps < 32:
        raise SystemExit(
            f"{seconds:.0f} s give {steps} steps of {target:.2f} s; take more --minutes or a smaller --shape"
        )
    return steps


def _step_seconds(config: ModelConfig, scale: Scale, device: str) -> float:
    """Of one training step, the mean of a few after the first."""
    network = Transformer(config).initialize(0).to(device)
    optimizer = MasterWeights(network, lambda groups: adamw(groups, 1e-6), precision(device))
    ids_BT = torch.randint(0, config.vocab_size, (scale.batch_windows, scale.window + 1), device=device)
    began = 0.0
    for step in range(6):
        if step == 2:
            began = _now(device)
        for part_BT in ids_BT.split(scale.micro_windows):
            network.loss(part_BT[:, :-1], part_BT[:, 1:])[0].backward()
            optimizer.accumulate()
        optimizer.step(1.0)
    return (_now(device) - began) / 4


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.monotonic()


def picture(runs: dict[str, Run], lab: Lab, path: Path) -> None:
    """Held-out loss against what was spent, in tokens of the target: the source counted (solid) and free (dashed)."""
    tokens = lab.scale.step_tokens

    def line(name: str, label: str, colour: str, counted: bool = True) -> Line:
        one = runs[name]
        start = one.source_cost if counted else 0.0
        points = [((start + step * one.share) * tokens, loss) for step, loss in one.curve]
        return Line(label, points, colour, dashed=not counted)

    lines = [
        line("scratch", "scratch", "--ink"),
        line(f"{SHARE:g} stable source", "source", "--b"),
        line(f"{SHARE:g} stable", "grown", "--a"),
        line(f"{SHARE:g} stable", "source free", "--a", counted=False),
        line(f"{SHARE:g} decayed", "from decayed", "--c"),
    ]
    svg = line_chart(
        lines, x_name="tokens of the target", y_name="held-out nats per token", format_x=lambda x: f"{x / 1e6:g}M"
    )
    path.write_text(chart_file(svg), encoding="utf-8")
