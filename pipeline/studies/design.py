"""What a study compares and by which figures: combinations of levels, measures, claims.

In: axes (name -> names of levels, the first one the reference) and entries of the study's file. Out: cells, each with
one level of every axis; checked measures and claims. What is wrong raises `UserError`.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config import nearest
from pipeline.system.errors import UserError
from pipeline.system.progress import format_bytes

Cell = dict[str, str]
"""Axis -> level."""
Axes = Mapping[str, Sequence[str]]


def full(axes: Axes) -> list[Cell]:
    """Every combination."""
    return [dict(zip(axes, levels, strict=True)) for levels in itertools.product(*axes.values())]


def pairs(axes: Axes, named: Sequence[Sequence[str]]) -> list[Cell]:
    """The reference, every single change of it, and every combination of the two axes of each named pair."""
    reference = {axis: levels[0] for axis, levels in axes.items()}
    cells = [reference]
    cells += [{**reference, axis: level} for axis, levels in axes.items() for level in levels]
    for one, other in named:
        cells += [{**reference, one: a, other: b} for a in axes[one] for b in axes[other]]
    return list({tuple(cell.values()): cell for cell in cells}.values())


def listed(axes: Axes, entries: Sequence[Any]) -> list[tuple[Cell, Any]]:
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
            one_of(axis, axes, f"{where}: unknown axis '{axis}'")
            chosen[axis] = value if isinstance(value, list) else [value]
            for level in chosen[axis]:
                one_of(level, axes[axis], f"{where}: axis '{axis}' has no level '{level}'")
        for cell in full(chosen):
            found.setdefault(tuple(cell.values()), (cell, entry.get("seeds")))
    return list(found.values())


@dataclass(frozen=True)
class Measure:
    """`key`: in a member's row. `show`: formats a value, or a difference of two. `margin`: a difference smaller than
    this makes no difference to a user; None: no such difference is known."""

    key: str
    label: str
    lower_is_better: bool
    show: Callable[[float], str]
    margin: float | None = None


def _bytes(value: float) -> str:
    return ("-" if value < 0 else "") + format_bytes(abs(value))


_PERCENT, _RATE = "{:.1%}".format, "{:,.0f}".format
QUALITY, TARGET = "bits_per_byte", "target"
MEASURES = {
    measure.key: measure
    for measure in (
        Measure(QUALITY, "bits per byte", True, "{:.4f}".format, 0.01),
        Measure(TARGET, "accuracy on the tuned task", False, _PERCENT, 0.02),
        Measure("peak_memory_bytes", "peak memory of training", True, _bytes),
        Measure("train_tokens_per_second", "tokens per second of training", False, _RATE),
        Measure("inference_bytes", "memory at inference", True, _bytes),
        Measure("inference_tokens_per_second", "tokens per second at inference", False, _RATE),
        Measure("cloze", "cloze accuracy", False, _PERCENT, 0.02),
        Measure("arithmetic", "arithmetic accuracy", False, _PERCENT, 0.02),
        Measure("exercises", "exercises passed", False, _PERCENT, 0.02),
    )
}
TASKS = ("cloze", "arithmetic", "exercises")  # of the measures: those that the quantize stage scores if asked


def check_measures(found: Any, where: str) -> tuple[str, ...]:
    """The names of the measures, each once. Raises `UserError`."""
    if not isinstance(found, list) or not found:
        raise UserError(f"{where}: measures is {found!r}; expected a list of {', '.join(MEASURES)}")
    for name in found:
        one_of(name if isinstance(name, str) else str(name), MEASURES, f"{where}: measures has '{name}'")
    return tuple(dict.fromkeys(found))


CLAIM_KEYS = ("says", "kind", "measure", "levels", "expect")
CLAIM_CHOICES = {
    "kind": ("main", "direct", "interaction", "equal bytes"),
    "expect": ("better", "worse", "same"),
    "measure": tuple(MEASURES),
}


def check_claims(found: Any, axes: Axes, where: str) -> tuple[dict[str, Any], ...]:
    """The claims, each with `measure` and `expect` filled in. Raises `UserError`."""
    if not isinstance(found, list):
        raise UserError(f"{where}: claims is {found!r}; expected a list of {{{', '.join(CLAIM_KEYS)}}}")
    known = [level for levels in axes.values() for level in levels]
    checked = []
    for number, claim in enumerate(found, 1):
        place = f"{where}: claims, entry {number}"
        if not isinstance(claim, Mapping) or set(claim) - set(CLAIM_KEYS) or not {"says", "kind", "levels"} <= {*claim}:
            raise UserError(f"{place} is {claim!r}; expected the keys {', '.join(CLAIM_KEYS)}")
        filled = {"measure": QUALITY, "expect": "better", **claim}
        for key, allowed in CLAIM_CHOICES.items():
            one_of(filled[key], allowed, f"{place}.{key} is '{filled[key]}'")
        for level in filled["levels"]:
            one_of(level, known, f"{place}.levels has '{level}'")
        checked.append(filled)
    return tuple(checked)


def one_of(value: Any, known: Any, what: str) -> None:
    """Raises `UserError` that says `what` is wrong, the nearest of the `known` names, and all of them."""
    if value not in known:
        raise UserError(f"{what}{nearest(str(value), known)}; expected of {', '.join(map(str, known))}")
