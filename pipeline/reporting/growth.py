"""What growth did: loss against what was spent, by both accountings, and the map of blocks.

`growth_facts` gathers what `report.json` holds of it: the source's metrics are read from its own folder, and so are
those of the same config from fresh weights, where that was trained. `growth_view` makes charts and sentences of it for
pipeline/pages/templates/growth.html.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from model.config import ModelConfig
from pipeline.config import Config, InitConfig
from pipeline.pages.charts import Line, block_map, line_chart
from pipeline.planner import growth
from pipeline.stages import pretrain_step, source_config, source_is_experiment
from pipeline.storage.files import read_metrics
from pipeline.system.errors import UserError
from pipeline.system.progress import format_count

SMOOTH_SHARE = 0.02  # of a run's rows, on either side
MOST_ROWS = 2_000
DRAWN = ("train/loss", "train/lr", "train/grad_norm", "perf/tokens_per_second", "perf/peak_memory_bytes",
         "budget/tokens", "budget/gpu_hours")  # fmt: skip
Rows = Sequence[Mapping[str, Any]]
Points = list[tuple[float, float]]


def growth_facts(config: Config, init: Mapping[str, Any]) -> dict[str, Any] | None:
    """The rows of the source and of the same model from fresh weights, the source's cost per token over the grown
    model's, and that model's shape. None where nothing grew."""
    if not init.get("blocks"):
        return None
    window = config.train.sequence_length
    return {
        "name": config.name,
        "source": thin(_source_rows(config)),
        "scratch": thin(_rows(dataclasses.replace(config, init=InitConfig()))),
        "cost": ModelConfig(**init["source_model"]).flops_per_token(window) / config.model.flops_per_token(window),
        "model": config.model.identity(),
    }


def thin(rows: Rows) -> list[dict[str, Any]]:
    """The rows that the report draws: every validation, and at most about `MOST_ROWS` others."""
    every = -(-len(rows) // MOST_ROWS)
    return [
        {key: _finite(value) for key, value in row.items() if key in DRAWN or key.startswith("val/")}
        for i, row in enumerate(rows)
        if i % max(1, every) == 0 or i + 1 == len(rows) or any(key.startswith("val/") for key in row)
    ]


def growth_view(facts: Mapping[str, Any] | None, init: Mapping[str, Any], metrics: Rows) -> dict[str, Any] | None:
    """`{charts, sentences, scratch_name, block_map}`; None where nothing grew, no charts before pretraining."""
    if facts is None:
        return None
    view: dict[str, Any] = {"charts": {}, "sentences": [], "scratch_name": None}
    if metrics and facts["source"]:
        view = _curves(facts, metrics)
    view["without"] = _without(facts, init, metrics) if metrics else None
    return {**view, "block_map": block_map(init, facts["model"]["hidden_size"])}


def _without(facts: Mapping[str, Any], init: Mapping[str, Any], metrics: Rows) -> str:
    """What the same FLOPs would have given without growth."""
    if not facts["source"]:
        return growth.NOT_MEASURED
    sizes = init["parameters"]
    tokens = _spent(metrics, "budget/tokens") + facts["cost"] * _spent(facts["source"], "budget/tokens")
    return growth.without_growth(sizes["grown"], tokens / sizes["grown"], sizes["source"])


def _curves(facts: Mapping[str, Any], metrics: Rows) -> dict[str, Any]:
    source, scratch = facts["source"], facts["scratch"]
    charts, sentences = {}, []
    for key, factor, name, unit in (
        ("budget/tokens", facts["cost"], "tokens of the grown model", "tokens"),
        ("budget/gpu_hours", 1.0, "device-hours", "device-hours"),
    ):
        paid = _spent(source, key) * factor  # by the source, before the grown model's first step
        grown = _points(metrics, key)
        lines = [
            Line("source", _points(source, key, factor), "--b"),
            Line("grown", [(x + paid, y) for x, y in grown], "--a"),
            Line("source free", grown, "--a", dashed=True),
        ]
        if fresh := _points(scratch, key):
            lines.append(Line("scratch", fresh, "--ink"))
            sentences.append(_gain(grown, fresh, paid, unit))
        top, rise, back = bump(grown)
        notes = [(grown[top][0] + paid, grown[top][1], f"re-warm bump +{rise:.2f}")] if rise > 0 else []
        if key == "budget/tokens":
            sentences.insert(0, _bump_words(rise, None if back is None else grown[back][0]))
        charts[name] = line_chart(lines, x_name=name, y_name="nats per token", format_x=format_count, notes=notes)
    sentences.append(_held_out(metrics, scratch, _spent(source, "budget/gpu_hours")))
    return {
        "charts": charts,
        "sentences": [sentence for sentence in sentences if sentence],
        "scratch_name": None if scratch else f"{facts['name']}-scratch",
    }


def bump(points: Points) -> tuple[int, float, int | None]:
    """Where the loss is highest after its start, how far above it, and where it is back below it for good: 0 where it
    never rose, None where it never came back. The points are smoothed already; the first of them is the start."""
    start = points[0][1]
    top = max(range(len(points)), key=lambda index: points[index][1])
    above = [index for index, (_, loss) in enumerate(points) if loss > start]
    back = above[-1] + 1 if above and above[-1] + 1 < len(points) else None
    return top, points[top][1] - start, back if above else 0


def _bump_words(rise: float, back: float | None) -> str:
    if rise <= 0:
        return "The loss never rose above its start: no re-warm bump."
    after = "not back by the end" if back is None else f"back after {format_count(back)} tokens"
    return f"Re-warm bump: {rise:.3f} nats above the start, {after}."


def _gain(grown: Points, scratch: Points, paid: float, unit: str) -> str:
    """The share of scratch's spending that the grown model needed to reach its last loss, by both accountings."""
    last, whole = scratch[-1][1], scratch[-1][0]
    above = [index for index, (_, loss) in enumerate(grown) if loss > last]
    if above and above[-1] + 1 == len(grown):
        return f"Scratch's last training loss ({last:.3f}) was not reached ({unit})."
    spent = grown[above[-1] + 1][0] if above else 0.0
    return (
        f"To scratch's last training loss ({last:.3f}): {(spent + paid) / whole:.2f} of its {unit} with the source "
        f"counted, {spent / whole:.2f} with the source free."
    )


def _held_out(grown: Rows, scratch: Rows, source_hours: float) -> str:
    """The verdict that does not depend on which text the last steps read; empty without a scratch run."""
    last = [next((r for r in reversed(rows) if "val/bits_per_byte" in r), None) for rows in (grown, scratch)]
    if last[0] is None or last[1] is None:
        return ""
    ends = [(row["val/bits_per_byte"], row["budget/gpu_hours"]) for row in last if row is not None]
    return (
        f"On held-out text: grown {ends[0][0]:.4f} bits per byte after {ends[0][1] + source_hours:.4f} device-hours, "
        f"the source's counted; scratch {ends[1][0]:.4f} after {ends[1][1]:.4f}."
    )


def _source_rows(config: Config) -> Rows:
    return _rows(source_config(config)) if source_is_experiment(config) else []


def _rows(config: Config) -> Rows:
    """The metrics of a config's finished pretraining, or nothing."""
    try:
        step = pretrain_step(config)
        if not step.finished:
            return []
    except UserError:  # an untrained source: there is nothing to draw
        return []
    return read_metrics(step.path / "metrics.jsonl")


def _spent(rows: Rows, key: str) -> float:
    return max(row.get(key, 0.0) for row in rows)


def _points(rows: Rows, key: str, factor: float = 1.0) -> Points:
    """(what was spent, mean training loss around it)."""
    points = [(factor * row[key], row["train/loss"]) for row in rows if row.get("train/loss") is not None]
    return smooth(points, max(2, round(SMOOTH_SHARE * len(points))))


def smooth(points: Points, half: int) -> Points:
    """A running mean over `half` points on either side: the loss of one small step says little."""
    windows = [points[max(0, i - half) : i + half + 1] for i in range(len(points))]
    return [(x, sum(y for _, y in w) / len(w)) for (x, _), w in zip(points, windows, strict=True)]


def _finite(value: Any) -> Any:
    """A skipped step may have a loss that is no number, for which JSON has no word."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
