"""The curves of pretrainings over their tokens, of one run or of several beside each other.

In: rows of `metrics.jsonl`. Out: charts by caption (pipeline/pages/charts.py).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.pages.charts import COLOURS, Line, line_chart
from pipeline.reporting.growth import smooth
from pipeline.system.progress import format_count

HELD_OUT = "val/bits_per_byte"
SMOOTH_ROWS = 9


@dataclass(frozen=True)
class Curve:
    """A figure of the rows of metrics that is drawn over the tokens. `name`: of its line where there is one run."""

    caption: str
    key: str
    name: str
    unit: str
    form: Callable[[float], str] = "{:.3f}".format
    scale: float = 1.0
    half: int = 0
    """Rows on either side that a mean is taken over."""
    marks: bool = False

    def points(self, rows: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
        found = [(row.get("budget/tokens"), row.get(self.key)) for row in rows]
        # A skipped step may have a loss that is not finite.
        known = [(at, y * self.scale) for at, y in found if at is not None and y is not None and math.isfinite(y)]
        return smooth(known, self.half) if self.half else known


CURVES = (
    Curve(f"Training loss, mean of {SMOOTH_ROWS} rows", "train/loss", "train", "nats per token", half=SMOOTH_ROWS // 2),
    Curve("Held-out text", HELD_OUT, "all", "bits per byte", marks=True),
    Curve("Speed", "perf/tokens_per_second", "speed", "tokens per second", format_count),
    Curve("Gradient norm", "train/grad_norm", "norm", "norm before clipping", "{:.3g}".format),
    Curve("Learning rate", "train/lr", "rate", "learning rate", "{:.3g}".format),
    Curve("Peak memory", "perf/peak_memory_bytes", "peak", "GB", "{:.3g}".format, scale=1e-9),
)


def curves(runs: Mapping[str, Sequence[Mapping[str, Any]]], sets: Sequence[str] | None = None) -> dict[str, str]:
    """Charts of pretrainings by caption. `runs`: rows of metrics by the run's name; `sets`: names of the validation
    sets, which get curves of their own on the page of one run; None: every line has its run's name."""
    charts = {}
    for curve in CURVES:
        lines = [
            Line(name if sets is None else curve.name, curve.points(rows), COLOURS[i % len(COLOURS)],
                 marks=curve.marks, dashed=i >= len(COLOURS))
            for i, (name, rows) in enumerate(runs.items())
        ]  # fmt: skip
        if curve.key == HELD_OUT and sets is not None:
            rows = next(iter(runs.values()))
            of_sets = [replace(curve, key=f"val/{name}/bits_per_byte").points(rows) for name in sets]
            lines = [replace(lines[0], colour="--ink")] + [
                Line(name, points, COLOURS[i % len(COLOURS)], marks=True)
                for i, (name, points) in enumerate(zip(sets, of_sets, strict=True))
            ]
        charts[curve.caption] = line_chart(
            lines, x_name="tokens", y_name=curve.unit, format_x=format_count, format_y=curve.form
        )
    return charts
