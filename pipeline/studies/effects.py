"""Main effects and interactions with intervals over seeds. Plain Python.

An effect of a level is the mean difference between members that have it and members that have the axis's reference and
are the same in everything else, the seed included. An interaction of two levels is what both together change beyond the
sum of each alone: (y11 - y01) - (y10 - y00). Differences are averaged within a seed first; the interval is Student's t
over seeds, so it speaks of other seeds, not of other texts or sizes. No model is fitted and nothing is aliased: a
combination that a fractional design lacks simply gives no difference.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from pipeline.corpus.text.intervals import t_quantile


@dataclass(frozen=True)
class Point:
    """One member's value of one measure."""

    cell: Mapping[str, str]
    seed: int
    value: float


@dataclass(frozen=True)
class Estimate:
    """`low`, `high`: None with a single seed. `differences`: how many the mean is over."""

    mean: float
    low: float | None
    high: float | None
    seeds: int
    differences: int

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def main_effect(points: Sequence[Point], axis: str, level: str, reference: str) -> Estimate | None:
    """None where no two members differ in this alone."""
    by_place = _by_place(points)
    found: dict[int, list[float]] = defaultdict(list)
    for point in points:
        other = by_place.get(_place({**point.cell, axis: reference}, point.seed))
        if point.cell[axis] == level and other is not None:
            found[point.seed].append(point.value - other)
    return estimate(found)


def interaction(points: Sequence[Point], one: tuple[str, str, str], other: tuple[str, str, str]) -> Estimate | None:
    """`one`, `other`: (axis, level, reference). None where no four members make the square."""
    (axis, level, low), (axis2, level2, low2) = one, other
    by_place = _by_place(points)
    found: dict[int, list[float]] = defaultdict(list)
    for point in points:
        if point.cell[axis] == level and point.cell[axis2] == level2:
            corners = [{axis: low}, {axis2: low2}, {axis: low, axis2: low2}]
            values = [by_place.get(_place({**point.cell, **corner}, point.seed)) for corner in corners]
            alone2, alone, neither = values
            if alone2 is not None and alone is not None and neither is not None:
                found[point.seed].append(point.value - alone2 - alone + neither)
    return estimate(found)


def estimate(by_seed: Mapping[int, Sequence[float]]) -> Estimate | None:
    """Mean over seeds of the means within each, with its interval."""
    means = [mean(values) for values in by_seed.values() if values]
    if not means:
        return None
    centre, count = mean(means), sum(map(len, by_seed.values()))
    if len(means) < 2:
        return Estimate(centre, None, None, len(means), count)
    half = t_quantile(len(means) - 1) * stdev(means) / math.sqrt(len(means))
    return Estimate(centre, centre - half, centre + half, len(means), count)


def _by_place(points: Sequence[Point]) -> dict[tuple, float]:
    return {_place(point.cell, point.seed): point.value for point in points}


def _place(cell: Mapping[str, str], seed: int) -> tuple:
    return (seed, *sorted(cell.items()))
