"""Who is not beaten: Pareto fronts, and what quantized models are worth at the bytes of full ones. Plain Python."""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.studies.effects import Estimate, estimate
from pipeline.studies.measures import QUALITY

Row = Mapping[str, Any]


def pareto(rows: Sequence[Row], cost: str, quality: str, lower_is_better: bool) -> list[Row]:
    """Rows that no other beats in both cost and quality, by rising cost. Rows without both are passed over."""
    known = [row for row in rows if row.get(cost) is not None and row.get(quality) is not None]
    sign = 1 if lower_is_better else -1
    front: list[Row] = []
    for row in sorted(known, key=lambda r: (r[cost], sign * r[quality])):
        if not front or sign * row[quality] < sign * front[-1][quality]:
            front.append(row)
    return front


def at_equal_bytes(
    rows: Sequence[Row], form_axis: str, size_axis: str, reference: str, quality: str = QUALITY
) -> dict[tuple[str, str], Estimate]:
    """(form, size) -> quality minus that of reference-form models at the same bytes at inference.

    The reference form's quality at any bytes is read off its own models of other sizes, seed by seed, by straight lines
    over the logarithm of bytes; a model outside their range is left out, for nothing is known there.
    """
    curves: dict[tuple, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        if row["cell"][form_axis] == reference and row.get(quality) is not None and row.get("inference_bytes"):
            curves[_others(row, form_axis, size_axis)].append((math.log(row["inference_bytes"]), row[quality]))
    found: dict[tuple[str, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        form, size = row["cell"][form_axis], row["cell"][size_axis]
        if form != reference and row.get(quality) is not None and row.get("inference_bytes"):
            full = read_off(sorted(curves[_others(row, form_axis, size_axis)]), math.log(row["inference_bytes"]))
            if full is not None:
                found[form, size][row["seed"]].append(row[quality] - full)
    return {key: result for key, by_seed in found.items() if (result := estimate(by_seed)) is not None}


def read_off(curve: Sequence[tuple[float, float]], x: float) -> float | None:
    """The value at `x` by straight lines between the points (sorted by x); None outside them."""
    for (x1, y1), (x2, y2) in itertools.pairwise(curve):
        if x1 <= x <= x2:
            return y1 if x1 == x2 else y1 + (y2 - y1) * (x - x1) / (x2 - x1)
    return None


def means_over_seeds(rows: Sequence[Row], keys: Sequence[str]) -> list[dict[str, Any]]:
    """One row a combination: means over the seeds that have the figure."""
    groups: dict[tuple, list[Row]] = defaultdict(list)
    for row in rows:
        groups[tuple(row["cell"].items())].append(row)
    mean: Callable[[list[float]], float | None] = lambda values: sum(values) / len(values) if values else None  # noqa: E731
    return [
        {
            "cell": dict(cell),
            "label": group[0]["label"],
            "form": group[0]["form"],
            "seeds": [row["seed"] for row in group if row["state"] == "done"],
            "states": sorted({row["state"] for row in group}),
            **{key: mean([row[key] for row in group if row.get(key) is not None]) for key in keys},
        }
        for cell, group in groups.items()
    ]


def _others(row: Row, *axes: str) -> tuple:
    return (row["seed"], *((a, level) for a, level in row["cell"].items() if a not in axes))
