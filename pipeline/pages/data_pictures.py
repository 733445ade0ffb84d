"""Pictures of the data part of the report: scores and lengths as bars, the scorer as a ROC curve. SVG, no script.

In: values of `data.report.json`. Out: SVG, or "" where there is nothing to draw.
"""

from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 400, 250, 52, 12, 26, 40
STACK_COLOURS = ("--a", "--b", "--rest")


def score_chart(parts: Mapping[str, Sequence[int]], cut: float | None) -> str:
    """Documents by score, stacked by what became of them, with the cut as a line."""
    bins = len(next(iter(parts.values())))
    return _bars(
        parts,
        [f"{i / bins:g}" if i % (bins // 5) == 0 else "" for i in range(bins)] + ["1"],
        "quality score",
        None if cut is None else (cut * bins, f"cut at {cut:g}"),
    )


def length_chart(lengths: Sequence[Mapping[str, int]]) -> str:
    """Documents by length in powers of two."""
    if not lengths:
        return ""
    edges = [row["from_tokens"] for row in lengths]
    marks = [_binary(edge) if i % 2 == 0 else "" for i, edge in enumerate(edges)] + [""]
    return _bars({"documents": [row["documents"] for row in lengths]}, marks, "tokens in a document", None)


def roc_chart(roc: Sequence[Sequence[float]], cut: float | None) -> str:
    """True against false positive rate on rated documents; a dot at the cut. `roc`: (false, true, score), by score."""
    size, left, top = 190, 52, TOP

    def place(x: float, y: float) -> str:
        return f"{left + size * x:.1f},{top + size * (1 - y):.1f}"

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="ROC curve of the scorer">']
    for share in (0.0, 0.5, 1.0):
        y, x = top + size * (1 - share), left + size * share
        parts.append(f'<line class="grid" x1="{left}" x2="{left + size}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="tick" x="{left - 8}" y="{y + 4}" text-anchor="end">{100 * share:.0f}%</text>')
        parts.append(f'<text class="tick" x="{x}" y="{top + size + 17}" text-anchor="middle">{100 * share:.0f}%</text>')
    ends = place(0, 0).split(","), place(1, 1).split(",")
    parts.append(
        f'<line x1="{ends[0][0]}" y1="{ends[0][1]}" x2="{ends[1][0]}" y2="{ends[1][1]}" stroke="var(--dim)" '
        'stroke-dasharray="4 4"/>'
    )
    curve = " ".join(place(x, y) for x, y, _ in roc)
    parts.append(f'<polyline fill="none" stroke="var(--a)" stroke-width="2" points="{curve}"/>')
    if cut is not None:
        x, y, _ = min(roc, key=lambda point: abs(point[2] - cut))
        at = place(x, y).split(",")
        parts.append(f'<circle cx="{at[0]}" cy="{at[1]}" r="4.5" fill="var(--a)"/>')
        words = (f"cut at {cut:g}:", f"{100 * y:.0f}% of the good stay,", f"{100 * x:.0f}% of the others")
        parts += [
            f'<text class="tick halo" x="{float(at[0]) + 10:.1f}" y="{float(at[1]) + 12 + 15 * i:.1f}">{line}</text>'
            for i, line in enumerate(words)
        ]
    parts.append(
        f'<text class="axis" x="{left + size / 2}" y="{HEIGHT - 3}" text-anchor="middle">rated 0 to 2 and kept</text>'
    )
    middle = top + size / 2
    parts.append(
        f'<text class="axis" x="12" y="{middle}" text-anchor="middle" transform="rotate(-90 12 {middle})">'
        "rated 3 to 5 and kept</text>"
    )
    return "".join([*parts, "</svg>"])


def _bars(parts: Mapping[str, Sequence[int]], marks: Sequence[str], x_name: str, line: tuple[float, str] | None) -> str:
    """Stacked bars; `marks`: words at the edges; `line`: (place in bars, words)."""
    stacks = list(zip(*parts.values(), strict=True))
    top = _round_top(max(map(sum, stacks), default=0))
    if not top:
        return ""
    wide, high = (WIDTH - LEFT - RIGHT) / len(stacks), HEIGHT - TOP - BOTTOM
    out = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="documents by {escape(x_name)}">']
    for share in (0, 0.5, 1):
        y = TOP + high * (1 - share)
        out.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        out.append(f'<text class="tick" x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{_short(top * share)}</text>')
    for i, stack in enumerate(stacks):
        base = TOP + float(high)
        for count, colour in zip(stack, STACK_COLOURS, strict=False):
            tall = high * count / top
            base -= tall
            out.append(
                f'<rect x="{LEFT + i * wide + 1:.1f}" y="{base:.1f}" width="{wide - 2:.1f}" height="{tall:.1f}" '
                f'fill="var({colour})"/>'
            )
    for i, mark in enumerate(marks):
        out.append(
            f'<text class="tick" x="{LEFT + i * wide:.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">'
            f"{mark}</text>"
        )
    if line is not None:
        x = LEFT + line[0] * wide
        anchor, shift = ("start", 5) if x < WIDTH * 0.6 else ("end", -5)
        out.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 16}" y2="{HEIGHT - BOTTOM}" stroke="var(--ink)" '
            f'stroke-dasharray="4 3"/><text class="tick halo" x="{x + shift:.1f}" y="{TOP - 7}" text-anchor="{anchor}">'
            f"{escape(line[1])}</text>"
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    out.append(f'<text class="axis" x="{middle}" y="{HEIGHT - 3}" text-anchor="middle">{escape(x_name)}</text>')
    return "".join([*out, "</svg>"])


def legend(parts: Sequence[str]) -> str:
    """Names of a stack's colours."""
    return "".join(
        f'<span class="key"><i style="background:var({colour})"></i>{escape(name)}</span>'
        for name, colour in zip(parts, STACK_COLOURS, strict=False)
    )


def _round_top(count: int) -> float:
    """The next number that halves to a round one."""
    if not count:
        return 0
    size = 10 ** (len(str(count)) - 1)
    return next(m * size for m in (1, 1.2, 1.6, 2, 3, 4, 6, 8, 10) if m * size >= count) if size > 1 else count


def _short(count: float) -> str:
    shorten: Sequence[tuple[float, str]] = ((1e6, "M"), (1e3, "k"))
    return next((f"{count / size:.3g}{letter}" for size, letter in shorten if count >= size), f"{count:g}")


def _binary(count: int) -> str:
    return f"{count >> 20}M" if count >= 1 << 20 else f"{count >> 10}k" if count >= 1 << 10 else str(count)
