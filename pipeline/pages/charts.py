"""Small SVG charts for reports: no library, no script, readable in light and dark (colours are CSS variables)."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 720, 300
LEFT, RIGHT, TOP, BOTTOM = 70, 132, 14, 42
MAX_POINTS = 400
COLOURS = """
:root{--paper:#fdfcf9;--ink:#26221c;--dim:#7a7266;--rule:#e4dfd4;--a:#9c4a1a;--b:#2f6f73;--c:#7a5ea8;--d:#6b7d1e}
@media(prefers-color-scheme:dark){:root{--paper:#1b1917;--ink:#ece6da;--dim:#a39a8a;--rule:#3a352e;--a:#e08a4f;
--b:#6dbcc0;--c:#b79fe0;--d:#b5c95a}}
.grid{stroke:var(--rule)}.tick,.axis,.name{font:12px system-ui,sans-serif}.tick,.axis{fill:var(--dim)}
.halo{paint-order:stroke;stroke:var(--paper);stroke-width:5px;stroke-linejoin:round}
"""


@dataclass(frozen=True)
class Line:
    """One curve: points in data units, a CSS colour variable such as `--a`, dots drawn when `marks`."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: str
    marks: bool = False
    dashed: bool = False


def line_chart(
    lines: Sequence[Line],
    *,
    x_name: str,
    y_name: str,
    format_x: Callable[[float], str],
    notes: Sequence[tuple[float, float, str]] = (),
) -> str:
    """An SVG with labelled axes and the name of every curve at its end. Empty string where there is nothing to draw.

    `notes`: (x, y, words) at places that are worth a look.
    """
    lines = [dataclasses.replace(c, points=_thin(c.points)) for c in lines if c.points]
    if not lines:
        return ""
    xs = [x for c in lines for x, _ in c.points]
    ys = [y for c in lines for _, y in c.points]
    x_ticks, y_ticks = ticks(0.0, max(xs)), ticks(min(ys), robust_top(ys))
    x_end, y_low, y_high = max(max(xs), 1e-12), y_ticks[0], y_ticks[-1]

    def place_x(x: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * x / x_end

    def place_y(y: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (y_high - min(y, y_high)) / (y_high - y_low)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(y_name)} against {escape(x_name)}">']
    x_places = [(place_x(x), format_x(x)) for x in x_ticks if x <= x_end]
    parts += axes([(place_y(y), y) for y in y_ticks], x_places, x_name, y_name)
    parts += _curves(lines, place_x, place_y)
    for x, y, words in notes:
        parts.append(f'<circle cx="{place_x(x):.1f}" cy="{place_y(y):.1f}" r="5" fill="none" stroke="var(--ink)"/>')
        at = f'x="{place_x(x) + 9:.1f}" y="{place_y(y) - 7:.1f}"'
        parts.append(f'<text class="tick halo" {at}>{escape(words)}</text>')
    return "".join([*parts, "</svg>"])


def axes(
    y_ticks: Sequence[tuple[float, float]],
    x_ticks: Sequence[tuple[float, str]],
    x_name: str,
    y_name: str,
    height: int = HEIGHT,
    right: int = RIGHT,
) -> list[str]:
    """Grid, numbers and names of both axes. `y_ticks`: (place, value); `x_ticks`: (place, what stands there)."""
    parts = []
    for place, y in y_ticks:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - right}" y1="{place:.1f}" y2="{place:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{place + 4:.1f}" text-anchor="end">{y:g}</text>')
    for place, words in x_ticks:
        where = f'x="{place:.1f}" y="{height - BOTTOM + 18}" text-anchor="middle"'
        parts.append(f'<text class="tick" {where}>{escape(words)}</text>')
    middle = f'x="{(LEFT + WIDTH - right) / 2}" y="{height - 6}" text-anchor="middle"'
    turned = f'x="14" y="{height / 2}" text-anchor="middle" transform="rotate(-90 14 {height / 2})"'
    names = [
        f'<text class="axis" {middle}>{escape(x_name)}</text>',
        f'<text class="axis" {turned}>{escape(y_name)}</text>',
    ]
    return [*parts, *names]


def chart_file(svg: str) -> str:
    """A chart as a file of its own: with its colours, and a paper to stand on."""
    head, rest = svg.split(">", 1)
    paper = 'xmlns="http://www.w3.org/2000/svg" style="background:var(--paper)"'
    return f"{head} {paper}><style>{COLOURS}</style>{rest}\n"


def bar(share: float, colour: str = "--a") -> str:
    """A horizontal bar for a table cell; `share` of its full width."""
    width = 100 * min(1.0, max(0.0, share))
    return f'<span class="bar"><span style="width:{width:.1f}%;background:var({colour})"></span></span>'


def _curves(lines: Sequence[Line], place_x: Callable[[float], float], place_y: Callable[[float], float]) -> list[str]:
    parts, labels, label_ys = [], [], []
    for curve in lines:
        path = " ".join(f"{place_x(x):.1f},{place_y(y):.1f}" for x, y in curve.points)
        dashes = ' stroke-dasharray="5 4"' if curve.dashed else ""
        parts.append(f'<polyline fill="none" stroke="var({curve.colour})" stroke-width="2"{dashes} points="{path}"/>')
        if curve.marks:
            parts += [
                f'<circle cx="{place_x(x):.1f}" cy="{place_y(y):.1f}" r="3.5" fill="var({curve.colour})"/>'
                for x, y in curve.points
            ]
        x, y = curve.points[-1]
        label_y = place_y(y) + 4
        while any(abs(label_y - other) < 15 for other in label_ys):  # names never overlap
            label_y -= 15
        label_ys.append(label_y)
        labels.append(
            f'<text class="name halo" x="{place_x(x) + 8:.1f}" y="{label_y:.1f}" fill="var({curve.colour})">'
            f"{escape(curve.name)} {y:.3f}</text>"
        )
    return [*parts, *labels]  # names last, on a rim of paper: no curve crosses one


def _thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Means over neighbours, so that a long run stays a small file; the last point is kept as it is."""
    if len(points) <= MAX_POINTS:
        return list(points)
    size = math.ceil(len(points) / MAX_POINTS)
    groups = [points[i : i + size] for i in range(0, len(points) - 1, size)]
    means = [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]
    return [*means, points[-1]]


def robust_top(values: Sequence[float]) -> float:
    """The first loss of a fresh model is several times the rest; the axis ends where most of the curve is."""
    ordered = sorted(values)
    return min(ordered[-1], ordered[0] + 2.5 * max(1e-9, ordered[len(ordered) * 3 // 4] - ordered[0]))


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers that cover low..high."""
    span = max(high - low, abs(high) * 1e-3, 1e-9)
    raw = span / about
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]
