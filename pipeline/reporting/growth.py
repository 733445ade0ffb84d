"""What growth did, as pictures: loss against what was spent, by both accountings, and the map of blocks.

`growth_facts` gathers what they need from disk: the source's metrics are read from its own folder, and so are those of
the same config from fresh weights, where that was trained. `growth_pictures` draws it: HTML with SVG; "" where nothing
grew.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from model.config import ModelConfig
from pipeline.config import Config, InitConfig
from pipeline.pages.charts import Line, line_chart
from pipeline.stages import pretrain_step
from pipeline.storage.files import read_metrics
from pipeline.system.errors import UserError
from pipeline.system.progress import format_count

SMOOTH_SHARE = 0.02  # of a run's rows, on either side
MOST_ROWS = 2_000
DRAWN = ("train/loss", "train/lr", "budget/tokens", "budget/gpu_hours")
Rows = Sequence[Mapping[str, Any]]
Points = list[tuple[float, float]]


def growth_facts(config: Config, init: Mapping[str, Any]) -> dict[str, Any] | None:
    """The rows of the source and of the same model from fresh weights, the source's cost per token over the grown
    model's, and that model's shape. None where nothing grew."""
    if not init.get("blocks"):
        return None
    return {
        "name": config.name,
        "source": thin(_source_rows(config)),
        "scratch": thin(_rows(dataclasses.replace(config, init=InitConfig()))),
        "cost": _cost(config, init),
        "model": dataclasses.asdict(config.model),
    }


def growth_pictures(facts: Mapping[str, Any] | None, init: Mapping[str, Any], metrics: Rows) -> str:
    """Everything below the table of the initialization."""
    if facts is None:
        return ""
    return _curves(facts, metrics) + block_map(ModelConfig(**facts["model"]), init)


def thin(rows: Rows) -> list[dict[str, Any]]:
    """Of a run's metrics what the report draws: every validation and at most about `MOST_ROWS` rows besides."""
    every = -(-len(rows) // MOST_ROWS)
    return [
        {key: _finite(value) for key, value in row.items() if key in DRAWN or key.startswith("val/")}
        for i, row in enumerate(rows)
        if i % max(1, every) == 0 or i + 1 == len(rows) or any(key.startswith("val/") for key in row)
    ]


def _finite(value: Any) -> Any:
    """A skipped step may have a loss that is no number, for which JSON has no word."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _curves(facts: Mapping[str, Any], metrics: Rows) -> str:
    source, scratch, cost = facts["source"], facts["scratch"], facts["cost"]
    if not metrics or not source:
        return ""
    end = {x: max(row.get(x, 0.0) for row in source) for x in ("budget/tokens", "budget/gpu_hours")}
    charts, words = [], []
    for key, factor, name, unit in (
        ("budget/tokens", cost, "tokens of the grown model", "tokens"),
        ("budget/gpu_hours", 1.0, "device-hours", "device-hours"),
    ):
        paid = end[key] * factor
        grown, alone = _points(metrics, key), _points(source, key, factor)
        lines = [
            Line("source", alone, "--b"),
            Line("grown", [(x + paid, y) for x, y in grown], "--a"),
            Line("source free", grown, "--a", dashed=True),
        ]
        if fresh := _points(scratch, key):
            lines.append(Line("scratch", fresh, "--ink"))
            words.append(_gain(grown, fresh, paid, unit))
        top, rise, back = bump(grown)
        notes = [(grown[top][0] + paid, grown[top][1], f"re-warm bump +{rise:.2f}")] if rise > 0 else []
        if key == "budget/tokens":
            words.insert(0, _bump_words(rise, None if back is None else grown[back][0]))
        chart = line_chart(lines, x_name=name, y_name="nats per token", format_x=format_count, notes=notes)
        charts.append(f"<figure><figcaption>Training loss against {name}</figcaption>{chart}</figure>")
    words.append(_held_out(metrics, scratch, end["budget/gpu_hours"]))
    note = "Solid: the source counted (its tokens at their cost in FLOPs). Dashed: the source free. Loss smoothed."
    if not scratch:
        note += (
            f" To compare: run the same config with name={facts['name']}-scratch init.method=random init.source=null, "
            "then hornbook report."
        )
    return f"{''.join(charts)}<p class=note>{' '.join(word for word in words if word)} {note}</p>"


def bump(points: Points) -> tuple[int, float, int | None]:
    """Where the loss is highest after its start, how far above, and where it is back for good; 0 where it never rose.

    The points are smoothed already; the first of them is the start.
    """
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
    """Share of what scratch spent that the grown model needed to scratch's last loss, by both accountings."""
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
    from pipeline.stages import source_config, source_is_experiment  # which writes reports itself

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


def _points(rows: Rows, key: str, factor: float = 1.0) -> Points:
    """(what was spent, mean training loss around it)."""
    points = [(factor * row[key], row["train/loss"]) for row in rows if row.get("train/loss") is not None]
    half = max(2, round(SMOOTH_SHARE * len(points)))
    windows = [points[max(0, i - half) : i + half + 1] for i in range(len(points))]
    return [(x, sum(y for _, y in w) / len(w)) for (x, _), w in zip(points, windows, strict=True)]


def _cost(config: Config, init: Mapping[str, Any]) -> float:
    """FLOPs per token of the source over those of the grown model."""
    window = config.train.sequence_length
    return ModelConfig(**init["source_model"]).flops_per_token(window) / config.model.flops_per_token(window)


BOX, GAP, FULL, LEFT_X, RIGHT_X = 15, 5, 210, 20, 330


def block_map(target: ModelConfig, init: Mapping[str, Any]) -> str:
    """Source blocks on the left, target blocks on the right, as wide as their hidden size; what is new is pale."""
    source, blocks = ModelConfig(**init["source_model"]), init["blocks"]
    wide = max(source.hidden_size, target.hidden_size)
    small, large = FULL * source.hidden_size / wide, FULL * target.hidden_size / wide
    step = BOX + GAP
    height = step * (max(source.num_hidden_layers, len(blocks)) + 2) + 44
    rows = {"embedding": 0, **{i: i + 1 for i in range(len(blocks))}, "head": len(blocks) + 1}
    spread = (len(blocks) + 1) / (source.num_hidden_layers + 1)  # the shorter stack is spread over the same height
    parts = [
        f'<svg viewBox="0 0 720 {height}" role="img" aria-label="Which block comes from which">',
        _words(LEFT_X, 14, f"source: {source.num_hidden_layers} blocks, {source.hidden_size} wide"),
        _words(RIGHT_X, 14, f"grown: {len(blocks)} blocks, {target.hidden_size} wide"),
    ]

    def left_y(row: float) -> float:
        return 24 + step * row * spread

    for name, row in {"embedding": 0, **{i: i + 1 for i in range(source.num_hidden_layers)}}.items():
        parts += [_box(LEFT_X, left_y(row), small), _words(LEFT_X + 6, left_y(row) + 12, _name(name), "--paper")]
    end = source.num_hidden_layers + 1
    parts += [_box(LEFT_X, left_y(end), small), _words(LEFT_X + 6, left_y(end) + 12, "head", "--paper")]
    live = {block["source"]: index for index, block in reversed(list(enumerate(blocks))) if not block["silent"]}
    for name, row in rows.items():
        y = 24 + step * row
        block = blocks[name] if isinstance(name, int) else None
        origin = {"embedding": 0, "head": end}.get(str(name), 0) if block is None else block["source"] + 1
        new = block is not None and live.get(block["source"]) != name
        colour, dashes = ("--dim", ' stroke-dasharray="4 3"') if new else ("--b", "")
        parts.append(
            f'<line x1="{LEFT_X + small:.0f}" x2="{RIGHT_X}" y1="{left_y(origin) + BOX / 2:.1f}" y2="{y + BOX / 2}" '
            f'stroke="var({colour})"{dashes}/>'
        )
        parts.append(_box(RIGHT_X, y, large, pale=True))
        parts.append("" if new else _box(RIGHT_X, y, min(small, large)))
        parts.append(_words(RIGHT_X + 6, y + 12, _name(name), "--ink" if new else "--paper"))
        if block and new:
            what = "silent copy of" if block["silent"] else "live copy of"
            parts.append(_words(RIGHT_X + large + 10, y + 12, f"{what} block {block['source']}"))
    share = init["parameters"]["source"] / init["parameters"]["grown"]
    caption = f"Which block comes from which: {100 * min(1.0, share):.0f}% of the parameters were there, pale is new"
    return f"<figure><figcaption>{caption}</figcaption>{''.join(parts)}</svg></figure>"


def _name(name: int | str) -> str:
    return f"block {name}" if isinstance(name, int) else name


def _box(x: float, y: float, width: float, pale: bool = False) -> str:
    fill = "var(--rule)" if pale else "var(--b)"
    return f'<rect x="{x}" y="{y:.1f}" width="{width:.1f}" height="{BOX}" rx="3" fill="{fill}"/>'


def _words(x: float, y: float, text: str, colour: str = "--dim") -> str:
    return f'<text class="name" x="{x:.0f}" y="{y:.1f}" fill="var({colour})">{text}</text>'
