"""A study's pictures: quality against what it costs, one dot a combination (mean over seeds, a line from the best seed
to the worst), the Pareto front drawn. SVG, as the other charts: no library, no script."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

from pipeline.pages.charts import BOTTOM, LEFT, TOP, WIDTH, axes, robust_top, ticks

HEIGHT, RIGHT = 400, 150
COLOURS = ("--a", "--b", "--c", "--d")
LABEL_GAP = 13.0  # pixels between two labels


@dataclass(frozen=True)
class Dot:
    """`low`, `high`: of its seeds. `group`: decides the colour; named in the legend."""

    x: float
    y: float
    low: float
    high: float
    label: str
    group: str
    on_front: bool = False


def scatter(
    dots: Sequence[Dot],
    *,
    x_name: str,
    y_name: str,
    format_x: Callable[[float], str],
    logarithmic: bool = False,
    cut_top: bool = False,
) -> str:
    """The SVG; empty where there is nothing to draw. The front is a line through the dots that lie on it.

    `cut_top`: the axis ends where most dots are; those above stand at its end with their value.
    """
    if not dots:
        return ""
    scale: Callable[[float], float] = math.log if logarithmic else float
    left, right = _range([scale(dot.x) for dot in dots])
    top = robust_top([dot.y for dot in dots]) if cut_top else max(dot.high for dot in dots)
    dots = [_under(dot, top) for dot in dots]
    y_ticks = ticks(min(d.low for d in dots), max(d.high for d in dots))
    low, high = y_ticks[0], y_ticks[-1]
    groups = list(dict.fromkeys(dot.group for dot in dots))
    colours = {group: COLOURS[i % len(COLOURS)] for i, group in enumerate(groups)}

    def at(x: float, y: float) -> tuple[float, float]:
        across = (scale(x) - left) / (right - left)
        return LEFT + (WIDTH - LEFT - RIGHT) * across, TOP + (HEIGHT - TOP - BOTTOM) * (high - y) / (high - low)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(y_name)} against {escape(x_name)}">']
    x_places = [(at(x, low)[0], format_x(x)) for x in _x_ticks(dots, logarithmic)]
    parts += axes([(at(dots[0].x, y)[1], y) for y in y_ticks], x_places, x_name, y_name, HEIGHT, RIGHT)
    front = sorted((dot for dot in dots if dot.on_front), key=lambda dot: dot.x)
    path = " ".join("{:.1f},{:.1f}".format(*at(dot.x, dot.y)) for dot in front)
    parts.append(
        f'<polyline fill="none" stroke="var(--dim)" stroke-width="1.5" stroke-dasharray="5 4" points="{path}"/>'
    )
    parts += _labels(dots, colours, at)  # below the dots: a rim of paper must hide none
    for dot in dots:
        (x, y), colour = at(dot.x, dot.y), colours[dot.group]
        ends = f'y1="{at(dot.x, dot.low)[1]:.1f}" y2="{at(dot.x, dot.high)[1]:.1f}"'
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" {ends} stroke="var({colour})" stroke-width="1.5" opacity=".6"/>')
        fill = f"var({colour})" if dot.on_front else "var(--paper)"
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{fill}" stroke="var({colour})" stroke-width="2"/>'
        )
    for i, group in enumerate(groups if len(groups) > 1 else []):
        x, y = WIDTH - RIGHT + 70, TOP + 12 + 18 * i
        parts.append(f'<circle cx="{x}" cy="{y - 4}" r="4.5" fill="var({colours[group]})"/>')
        parts.append(f'<text class="tick" x="{x + 10}" y="{y}">{escape(group)}</text>')
    return "".join([*parts, "</svg>"])


def _under(dot: Dot, top: float) -> Dot:
    if dot.y <= top:
        return replace(dot, high=min(dot.high, top))
    return replace(dot, y=top, low=top, high=top, label=f"{dot.label}: {dot.y:.2f}, above")


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    return low - margin, high + margin


def _x_ticks(dots: Sequence[Dot], logarithmic: bool) -> list[float]:
    low, high = min(d.x for d in dots), max(d.x for d in dots)
    if logarithmic and low > 0:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        return [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high] or [low, high]
    return [x for x in ticks(low, high) if low <= x <= high] or [low]


def _labels(dots: Sequence[Dot], colours: Mapping[str, str], at: Any) -> list[str]:
    """Beside the dots; one that would cover another moves down."""
    parts, taken = [], []
    for dot in sorted(dots, key=lambda d: at(d.x, d.y)[1]):
        x, y = at(dot.x, dot.y)
        y += 4
        while any(abs(y - other_y) < LABEL_GAP and abs(x - other_x) < 150 for other_x, other_y in taken):
            y += 2
        taken.append((x, y))
        parts.append(f'<text class="tick halo" x="{x + 9:.1f}" y="{y:.1f}" style="fill:var({colours[dot.group]})">'
                     f"{escape(dot.label)}</text>")  # fmt: skip
    return parts
