"""Which combinations of levels a study has: all of them, or a stated fraction. Plain Python.

In: axes (name -> names of levels, the first one the reference). Out: cells, each with one level of every axis.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.config.keys import nearest
from pipeline.system.errors import UserError

Cell = dict[str, str]
"""Axis -> level."""


def full(axes: Mapping[str, Sequence[str]]) -> list[Cell]:
    """Every combination."""
    return [dict(zip(axes, levels, strict=True)) for levels in itertools.product(*axes.values())]


def pairs(axes: Mapping[str, Sequence[str]], named: Sequence[Sequence[str]]) -> list[Cell]:
    """The reference, every single change of it, and every combination of the two axes of each named pair."""
    reference = {axis: levels[0] for axis, levels in axes.items()}
    cells = [reference]
    cells += [{**reference, axis: level} for axis, levels in axes.items() for level in levels]
    for one, other in named:
        cells += [{**reference, one: a, other: b} for a in axes[one] for b in axes[other]]
    return _once(cells)


def listed(axes: Mapping[str, Sequence[str]], entries: Sequence[Any]) -> list[tuple[Cell, Any]]:
    """Cells of an explicit list with the `seeds` of each entry (None: the study's). An entry maps axes to a level or a
    list of levels (all their combinations); an axis that it leaves out stays at its reference. Raises `UserError`."""
    found: dict[tuple[str, ...], tuple[Cell, Any]] = {}
    for number, entry in enumerate(entries, 1):
        where = f"members, entry {number}"
        if not isinstance(entry, Mapping):
            raise UserError(f"{where} is {entry!r}; expected axis: level pairs such as {{start: grown}}")
        chosen = {axis: [levels[0]] for axis, levels in axes.items()}
        for axis, value in entry.items():
            if axis == "seeds":
                continue
            if axis not in axes:
                raise UserError(f"{where}: unknown axis '{axis}'{nearest(str(axis), axes)}; expected of {_words(axes)}")
            chosen[axis] = value if isinstance(value, list) else [value]
            for level in chosen[axis]:
                if level not in axes[axis]:
                    hint = nearest(str(level), axes[axis])
                    raise UserError(
                        f"{where}: axis '{axis}' has no level '{level}'{hint}; expected of {_words(axes[axis])}"
                    )
        for cell in full(chosen):
            found.setdefault(tuple(cell.values()), (cell, entry.get("seeds")))
    return list(found.values())


def _once(cells: Sequence[Cell]) -> list[Cell]:
    return list({tuple(cell.values()): cell for cell in cells}.values())


def _words(names: Any) -> str:
    return ", ".join(map(str, names))
