"""Every chart of the pages as SVG: curves, a scatter, stacked bars, a ROC curve, and the map of a grown model's blocks.

In: plain numbers. Out: SVG as `Markup`, whose text is escaped; empty where there is nothing to draw. Colours are CSS
variables of templates/style.css, so a chart is readable in light and dark. There is no chart library here, because
importing one takes a second of the GPU-hour cap, and none follows the reader's colour scheme. Charts of curves are as
wide as a phone, so that their text has the size it was drawn in there and in the columns of a wide page; names and last
values stand in rows above the plot, where no curve is. templates/hover.js shows values under the pointer.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from pipeline.system.progress import format_count

STYLESHEET = Path(__file__).with_name("templates") / "style.css"
MAX_POINTS = 400  # of a curve: a long run stays a small file
COLOURS = ("--a", "--b", "--c", "--d")
KEY_ROW, CHARACTER = 17, 7.3  # pixels: height of a row of names above a plot, width of a character of theirs
STACK_COLOURS = ("--a", "--b", "--rest")
LABEL_GAP = 13.0  # pixels between two labels of a scatter
BOX, GAP, FULL, SOURCE_X, GROWN_X = 15, 5, 210, 20, 330  # pixels of the map of blocks
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """One curve: points in data units, a CSS colour variable such as `--a`, and whether each point has a dot."""

    name: str
    points: Points
    colour: str
    marks: bool = False
    dashed: bool = False


@dataclass(frozen=True)
class Dot:
    """One dot of a scatter. `low`, `high`: the range over its seeds. `group`: its colour, named in the legend."""

    x: float
    y: float
    low: float
    high: float
    label: str
    group: str
    on_front: bool = False


@dataclass
class Plot:
    """An SVG with axes. Places are shares of the plot: (0, 0) is its lower left corner, (1, 1) its upper right."""

    width: int = 720
    height: int = 300
    left: int = 70
    right: int = 132
    top: int = 14
    bottom: int = 42
    parts: list[Markup] = field(default_factory=list)
    hover: dict[str, Any] = field(default_factory=dict)
    """What hover.js shows of the curves: their points in data units, and the ends of both axes."""

    def at(self, x: float, y: float) -> tuple[float, float]:
        """The pixels of a place."""
        across, up = self.width - self.left - self.right, self.height - self.top - self.bottom
        return self.left + across * x, self.top + up * (1 - y)

    def add(self, name: str, text: str = "", **attributes: Any) -> None:
        self.parts.append(_element(name, text, **attributes))

    def text(self, x: float, y: float, words: str, classes: str = "tick", **attributes: Any) -> None:
        """`x`, `y`: pixels. `classes`: of the stylesheet; `halo` is a rim of the page's colour."""
        self.add("text", words, class_=classes, x=x, y=y, **attributes)

    def axes(
        self, x_ticks: Sequence[tuple[float, str]], y_ticks: Sequence[tuple[float, str]], x_name: str, y_name: str = ""
    ) -> None:
        """The grid, and the numbers and names of both axes. Ticks are (place, words)."""
        (left, bottom), (right, top) = self.at(0, 0), self.at(1, 1)
        for place, words in y_ticks:
            y = self.at(0, place)[1]
            self.add("line", class_="grid", x1=left, x2=right, y1=y, y2=y)
            self.text(left - 8, y + 4, words, text_anchor="end")
        for place, words in x_ticks:
            self.text(self.at(place, 0)[0], bottom + 18, words, text_anchor="middle")
        self.text((left + right) / 2, self.height - 5, x_name, "axis", text_anchor="middle")
        if y_name:
            middle = (top + bottom) / 2
            self.text(13, middle, y_name, "axis", text_anchor="middle", transform=f"rotate(-90 13 {middle:.1f})")

    def keys(self, entries: Sequence[tuple[str, str, bool | None]]) -> None:
        """Rows of (words, colour, whether its line is dashed; None: a ring) above the plot, which moves down."""
        x, y = 10.0, 14.0
        for words, colour, dashed in entries:
            width = 26 + CHARACTER * len(words)
            if x > 10 and x + width > self.width:
                x, y = 10.0, y + KEY_ROW
            if dashed is None:
                self.add("circle", cx=x + 8, cy=y - 4, r=5, fill="none", stroke=f"var({colour})")
            else:
                dashes = {"stroke_dasharray": "5 4"} if dashed else {}
                ends = {"x1": x, "x2": x + 16, "y1": y - 4, "y2": y - 4}
                self.add("line", stroke=f"var({colour})", stroke_width=3, **ends, **dashes)
            self.text(x + 21, y, words, "name", fill=f"var({colour})")
            x += width
        self.top += round(y)
        self.height += round(y)

    def path(self, places: Points, colour: str, width: float = 2, dashed: bool = False) -> None:
        points = " ".join("{:.1f},{:.1f}".format(*self.at(x, y)) for x, y in places)
        dashes = {"stroke_dasharray": "5 4"} if dashed else {}
        self.add("polyline", fill="none", stroke=f"var({colour})", stroke_width=width, points=points, **dashes)

    def svg(self, label: str) -> Markup:
        """`label`: what a screen reader says of the chart."""
        (left, bottom), (right, top) = self.at(0, 0), self.at(1, 1)
        inside = {"left": left, "right": right, "top": top, "bottom": bottom}
        hover = {"data_hover": json.dumps({**inside, **self.hover}), "tabindex": 0} if self.hover else {}
        size = f"0 0 {self.width} {self.height:g}"
        return _element("svg", Markup("").join(self.parts), viewBox=size, role="img", aria_label=label, **hover)


def line_chart(
    lines: Sequence[Line],
    *,
    x_name: str,
    y_name: str,
    format_x: Callable[[float], str],
    format_y: Callable[[float], str] = "{:.3f}".format,
    notes: Sequence[tuple[float, float, str]] = (),
) -> Markup:
    """Curves, with their names and last values above the plot. `notes`: (x, y, words) at places worth a look, which get
    a ring; the words stand above, too."""
    lines = [replace(line, points=_thin(line.points)) for line in lines if line.points]
    if not lines:
        return Markup("")
    xs, ys = ([point[axis] for line in lines for point in line.points] for axis in (0, 1))
    x_end = max(max(xs), 1e-12)
    # The first loss of a fresh model is several times the rest: the axis ends where most of the curve is.
    y_ticks = _ticks(min(ys), _robust_top(ys))
    low, high = y_ticks[0], y_ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        return x / x_end, (min(y, high) - low) / (high - low)

    keys = [(f"{line.name} {format_y(line.points[-1][1])}", line.colour, line.dashed) for line in lines]
    keys += [(words, "--ink", None) for _, _, words in notes]
    plot = Plot(370, 190, left=68, right=14)
    plot.keys(keys)
    x_ticks = [(x / x_end, format_x(x)) for x in _ticks(0.0, max(xs), parts=4) if x <= x_end]
    plot.axes(x_ticks, [(place(0, y)[1], format_count(y)) for y in y_ticks], x_name, y_name)
    for line in lines:
        places = [place(x, y) for x, y in line.points]
        plot.path(places, line.colour, dashed=line.dashed)
        for x, y in (plot.at(*at) for at in places if line.marks):
            plot.add("circle", cx=x, cy=y, r=3.5, fill=f"var({line.colour})")
    for at_x, at_y, _ in notes:
        x, y = plot.at(*place(at_x, at_y))
        plot.add("circle", cx=x, cy=y, r=5, fill="none", stroke="var(--ink)")
    series = [{"name": line.name, "colour": line.colour, "points": _short(line.points)} for line in lines]
    plot.hover = {"x": x_name, "end": x_end, "low": low, "high": high, "lines": series}
    return plot.svg(f"{y_name} against {x_name}")


def scatter(
    dots: Sequence[Dot],
    *,
    x_name: str,
    y_name: str,
    format_x: Callable[[float], str],
    logarithmic: bool = False,
    cut_top: bool = False,
) -> Markup:
    """One dot a combination, a line through it over its seeds, and a dashed line through the dots of the Pareto front.

    `cut_top`: the axis ends where most dots are; those above stand at its end with their value.
    """
    if not dots:
        return Markup("")
    scale: Callable[[float], float] = math.log if logarithmic else float
    start, end = _with_margin([scale(dot.x) for dot in dots])
    # A dot far above the others would press them into one line: it is drawn at the end of the axis, with its value.
    top = _robust_top([dot.y for dot in dots]) if cut_top else max(dot.high for dot in dots)
    dots = [_under(dot, top) for dot in dots]
    y_ticks = _ticks(min(d.low for d in dots), max(d.high for d in dots))
    low, high = y_ticks[0], y_ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        return (scale(x) - start) / (end - start), (y - low) / (high - low)

    plot = Plot(height=400, right=150)
    x_ticks = [(place(x, low)[0], format_x(x)) for x in _scatter_ticks(dots, logarithmic)]
    plot.axes(x_ticks, [(place(dots[0].x, y)[1], f"{y:g}") for y in y_ticks], x_name, y_name)
    groups = list(dict.fromkeys(dot.group for dot in dots))
    colours = {group: f"var({COLOURS[i % len(COLOURS)]})" for i, group in enumerate(groups)}
    plot.path([place(d.x, d.y) for d in sorted(dots, key=lambda d: d.x) if d.on_front], "--dim", 1.5, dashed=True)
    _label_dots(plot, [(dot, plot.at(*place(dot.x, dot.y)), colours[dot.group]) for dot in dots])
    for dot in dots:
        (x, y), colour = plot.at(*place(dot.x, dot.y)), colours[dot.group]
        low_y, high_y = (plot.at(*place(dot.x, y))[1] for y in (dot.low, dot.high))
        plot.add("line", x1=x, x2=x, y1=low_y, y2=high_y, stroke=colour, stroke_width=1.5, opacity=0.6)
        fill = colour if dot.on_front else "var(--paper)"
        words = _title(f"{dot.label}: {dot.y:.4g} {y_name}, {format_x(dot.x)} {x_name}")
        plot.add("circle", words, cx=x, cy=y, r=4.5, fill=fill, stroke=colour, stroke_width=2)
    for i, group in enumerate(groups if len(groups) > 1 else []):
        x, y = plot.width - plot.right + 70, plot.top + 12 + 18 * i
        plot.add("circle", cx=x, cy=y - 4, r=4.5, fill=colours[group])
        plot.text(x + 10, y, group)
    return plot.svg(f"{y_name} against {x_name}")


def score_chart(parts: Mapping[str, Sequence[int]], cut: float | None) -> Markup:
    """Documents by quality score, stacked by what became of them, with the cut as a line."""
    bins = len(next(iter(parts.values())))
    marks = [*(f"{i / bins:g}" if i % (bins // 5) == 0 else "" for i in range(bins)), "1"]
    return _bars(list(parts.values()), marks, "quality score", cut)


def length_chart(lengths: Sequence[Mapping[str, int]]) -> Markup:
    """Documents by length in powers of two."""
    if not lengths:
        return Markup("")
    marks = [_binary(row["from_tokens"]) if i % 2 == 0 else "" for i, row in enumerate(lengths)]
    return _bars([[row["documents"] for row in lengths]], marks, "tokens in a document")


def roc_chart(roc: Sequence[Sequence[float]], cut: float | None) -> Markup:
    """True against false positive rate on rated documents; a dot at the cut. `roc`: (false, true, score), by score."""
    plot = Plot(370, 230, left=60, right=14)
    marked = [] if cut is None else [min(roc, key=lambda point: abs(point[2] - cut))]
    for x, y, _ in marked:
        plot.keys([(f"cut at {cut:g}: {100 * y:.0f}% of the good stay, {100 * x:.0f}% of others", "--a", None)])
    shares = [(share, f"{100 * share:.0f}%") for share in (0.0, 0.5, 1.0)]
    plot.axes(shares, shares, "rated 0 to 2 and kept", "rated 3 to 5 and kept")
    plot.path([(0, 0), (1, 1)], "--dim", 1, dashed=True)
    plot.path([(x, y) for x, y, _ in roc], "--a")
    for x, y, _ in marked:
        at_x, at_y = plot.at(x, y)
        plot.add("circle", cx=at_x, cy=at_y, r=5, fill="none", stroke="var(--a)")
    return plot.svg("ROC curve of the scorer")


def block_map(init: Mapping[str, Any], grown_size: int) -> Markup:
    """Source blocks on the left, grown ones on the right, as wide as their hidden sizes; what is new is pale."""
    source_size, source_blocks = (init["source_model"][key] for key in ("hidden_size", "num_hidden_layers"))
    blocks, step, wide = init["blocks"], BOX + GAP, max(source_size, grown_size)
    small, large = FULL * source_size / wide, FULL * grown_size / wide
    plot = Plot(height=step * (max(source_blocks, len(blocks)) + 2) + 44)
    plot.text(SOURCE_X, 14, f"source: {source_blocks} blocks, {source_size} wide", "name", fill="var(--dim)")
    plot.text(GROWN_X, 14, f"grown: {len(blocks)} blocks, {grown_size} wide", "name", fill="var(--dim)")
    spread = (len(blocks) + 1) / (source_blocks + 1)  # the shorter stack is spread over the height of the longer one
    source_ys = [24 + step * row * spread for row in range(source_blocks + 2)]
    for y, name in zip(source_ys, _stack_names(source_blocks), strict=True):
        _box(plot, SOURCE_X, y, small)
        plot.text(SOURCE_X + 6, y + 12, name, "name", fill="var(--paper)")
    # The original of a source block is its first copy that is not silent; every other copy is new.
    live = {block["source"]: i for i, block in reversed(list(enumerate(blocks))) if not block["silent"]}
    for row, name in enumerate(_stack_names(len(blocks))):
        y, block = 24 + step * row, blocks[row - 1] if 0 < row <= len(blocks) else None
        origin = block["source"] + 1 if block else 0 if row == 0 else source_blocks + 1
        new = block is not None and live.get(block["source"]) != row - 1
        dashes = {"stroke_dasharray": "4 3"} if new else {}
        from_y, to_y, colour = source_ys[origin] + BOX / 2, y + BOX / 2, "var(--dim)" if new else "var(--b)"
        plot.add("line", x1=SOURCE_X + small, x2=GROWN_X, y1=from_y, y2=to_y, stroke=colour, **dashes)
        _box(plot, GROWN_X, y, large, "--rule")
        if not new:
            _box(plot, GROWN_X, y, min(small, large))
        plot.text(GROWN_X + 6, y + 12, name, "name", fill="var(--ink)" if new else "var(--paper)")
        if block and new:
            what = f"{'silent' if block['silent'] else 'live'} copy of block {block['source']}"
            plot.text(GROWN_X + large + 10, y + 12, what, "name", fill="var(--dim)")
    return plot.svg("Which block comes from which")


def chart_file(svg: str) -> str:
    """A chart as a file of its own: with the colours of the stylesheet, and a paper to stand on."""
    head, rest = str(svg).split(">", 1)
    paper = 'xmlns="http://www.w3.org/2000/svg" style="background:var(--paper)"'
    style = STYLESHEET.read_text(encoding="utf-8")
    return f"{head} {paper}><style>{style}</style>{rest}\n"


def _element(name: str, text: str = "", **attributes: Any) -> Markup:
    """An SVG element. `stroke_width=2` is written as `stroke-width="2"`, and numbers with one decimal."""
    shown = {
        key.rstrip("_").replace("_", "-"): f"{value:.1f}" if isinstance(value, float) else escape(value)
        for key, value in attributes.items()
    }
    words = "".join(f' {key}="{value}"' for key, value in shown.items())
    return Markup(f"<{name}{words}>{escape(text)}</{name}>" if text else f"<{name}{words}/>")


def _title(words: str) -> Markup:
    """What a browser shows of the element around it under the pointer."""
    return _element("title", words)


def _bars(stacks: Sequence[Sequence[int]], marks: Sequence[str], x_name: str, cut: float | None = None) -> Markup:
    """Stacked bars. `marks`: words at the bars' left edges. `cut`: a share of the x axis."""
    columns = list(zip(*stacks, strict=True))
    top = _round_top(max(map(sum, columns), default=0))
    if not top:
        return Markup("")
    plot = Plot(370, 230, left=52, right=12, top=26, bottom=40)
    y_ticks = [(share, format_count(top * share)) for share in (0, 0.5, 1)]
    plot.axes([(i / len(columns), mark) for i, mark in enumerate(marks) if mark], y_ticks, x_name)
    for i, column in enumerate(columns):
        base = 0.0
        for count, colour in zip(column, STACK_COLOURS, strict=False):
            (x, y), (end, bottom) = plot.at(i / len(columns), base + count / top), plot.at((i + 1) / len(columns), base)
            size = {"width": end - x - 2, "height": bottom - y}
            plot.add("rect", _title(f"{count:,} documents"), x=x + 1, y=y, fill=f"var({colour})", **size)
            base += count / top
    if cut is not None:
        (x, top_y), (_, bottom_y) = plot.at(cut, 1), plot.at(cut, 0)
        plot.add("line", x1=x, x2=x, y1=top_y - 16, y2=bottom_y, stroke="var(--ink)", stroke_dasharray="4 3")
        anchor, shift = ("start", 5) if x < plot.width * 0.6 else ("end", -5)
        plot.text(x + shift, top_y - 7, f"cut at {cut:g}", "tick halo", text_anchor=anchor)
    return plot.svg(f"documents by {x_name}")


def _label_dots(plot: Plot, dots: Sequence[tuple[Dot, tuple[float, float], str]]) -> None:
    """Labels beside the dots; one that would cover another moves down. They are drawn before the dots, because their
    rim of paper must hide none."""
    taken: list[tuple[float, float]] = []
    for dot, (x, y), colour in sorted(dots, key=lambda each: each[1][1]):
        y += 4
        while any(abs(y - other_y) < LABEL_GAP and abs(x - other_x) < 150 for other_x, other_y in taken):
            y += 2
        taken.append((x, y))
        plot.text(x + 9, y, dot.label, "name halo", fill=colour)


def _under(dot: Dot, top: float) -> Dot:
    if dot.y <= top:
        return replace(dot, high=min(dot.high, top))
    return replace(dot, y=top, low=top, high=top, label=f"{dot.label}: {dot.y:.2f}, above")


def _with_margin(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    return low - margin, high + margin


def _scatter_ticks(dots: Sequence[Dot], logarithmic: bool) -> list[float]:
    low, high = min(d.x for d in dots), max(d.x for d in dots)
    if logarithmic and low > 0:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        return [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high] or [low, high]
    return [x for x in _ticks(low, high) if low <= x <= high] or [low]


def _stack_names(blocks: int) -> list[str]:
    return ["embedding", *(f"block {i}" for i in range(blocks)), "head"]


def _box(plot: Plot, x: float, y: float, width: float, colour: str = "--b") -> None:
    plot.add("rect", x=x, y=y, width=width, height=BOX, rx=3, fill=f"var({colour})")


def _thin(points: Points) -> Points:
    """Means over neighbours where there are many points; the last point is kept as it is."""
    if len(points) <= MAX_POINTS:
        return points
    size = math.ceil(len(points) / MAX_POINTS)
    groups = [points[i : i + size] for i in range(0, len(points) - 1, size)]
    means = [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]
    return [*means, points[-1]]


def _short(points: Points) -> list[list[float]]:
    """Points of five digits, as text for a page."""
    return [[float(f"{x:.5g}"), float(f"{y:.5g}")] for x, y in points]


def _robust_top(values: Sequence[float]) -> float:
    ordered = sorted(values)
    return min(ordered[-1], ordered[0] + 2.5 * max(1e-9, ordered[len(ordered) * 3 // 4] - ordered[0]))


def _ticks(low: float, high: float, parts: int = 5) -> list[float]:
    """About `parts` round numbers that cover low..high."""
    span = max(high - low, abs(high) * 1e-3, 1e-9)
    raw = span / parts
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


def _round_top(count: int) -> float:
    """The next number that halves to a round one."""
    if not count:
        return 0
    size = 10 ** (len(str(count)) - 1)
    return next(m * size for m in (1, 1.2, 1.6, 2, 3, 4, 6, 8, 10) if m * size >= count) if size > 1 else count


def _binary(count: int) -> str:
    return f"{count >> 20}M" if count >= 1 << 20 else f"{count >> 10}k" if count >= 1 << 10 else str(count)
