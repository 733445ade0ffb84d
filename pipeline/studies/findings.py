"""What a study shows, in plain sentences, every figure from its rows: nothing here knows a result beforehand.

A difference is called clear where its interval over seeds leaves out zero; else the sentence says that this many seeds
show none. With one seed nothing is called clear.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.studies.effects import Estimate, Point, interaction, main_effect
from pipeline.studies.fronts import at_equal_bytes
from pipeline.studies.measures import MEASURES, QUALITY, Measure
from pipeline.studies.study_file import FORM, Study

Rows = Sequence[Mapping[str, Any]]
SIXTEEN_BITS = ("bf16", "fp16")  # as full models are served


def effects(study: Study, rows: Rows) -> list[dict[str, Any]]:
    """Main effects of every level and interactions of the named pairs, for every measure, as plain values."""
    found = []
    for key in study.measures:
        points = [Point(row["cell"], row["seed"], row[key]) for row in rows if row[key] is not None]
        for axis, levels in study.levels.items():
            for level in levels[1:]:
                effect = main_effect(points, axis, level, levels[0])
                found += [_entry("main", key, [(axis, level, levels[0])], effect)] if effect else []
        for one, other in study.pairs:
            for a in study.levels[one][1:]:
                for b in study.levels[other][1:]:
                    square = [(one, a, study.levels[one][0]), (other, b, study.levels[other][0])]
                    effect = interaction(points, *square)
                    found += [_entry("interaction", key, square, effect)] if effect else []
    return [*found, *_direct(study, rows), *_equal_bytes(study, rows)]


def sentences(study: Study, found: Sequence[Mapping[str, Any]]) -> list[str]:
    """One a finding."""
    say = {"main": _main, "interaction": _interaction, "direct": _main, "equal bytes": _bytes}
    return [say[entry["kind"]](entry) for entry in found]


def _direct(study: Study, rows: Rows) -> list[dict[str, Any]]:
    """Two levels of one axis of which neither is the reference, beside each other: LoRA and full tuning."""
    found = []
    for key in study.measures:
        points = [Point(row["cell"], row["seed"], row[key]) for row in rows if row[key] is not None]
        for axis, levels in study.levels.items():
            if any(FORM in overrides for overrides in study.axes[axis].values()):
                continue
            for i, low in enumerate(levels[1:], 1):
                for level in levels[i + 1 :]:
                    effect = main_effect(points, axis, level, low)
                    found += [_entry("direct", key, [(axis, level, low)], effect)] if effect else []
    return found


def _equal_bytes(study: Study, rows: Rows) -> list[dict[str, Any]]:
    """Quantized models beside full ones of the same bytes, where an axis has forms and another has sizes. Full: in 16
    bits where the study has such a form, else the reference."""
    forms = [axis for axis, levels in study.axes.items() if any(FORM in o for o in levels.values())]
    sizes = [
        axis for axis, levels in study.axes.items() if any(k.startswith("model") for o in levels.values() for k in o)
    ]
    if not forms or not sizes:
        return []
    form_axis, size_axis = forms[0], sizes[0]
    served = [level for level, overrides in study.axes[form_axis].items() if overrides.get(FORM) in SIXTEEN_BITS]
    reference = (served or study.levels[form_axis])[0]
    found = at_equal_bytes(rows, form_axis, size_axis, reference)
    return [
        _entry("equal bytes", QUALITY, [(form_axis, form, reference), (size_axis, size, "")], estimate)
        for (form, size), estimate in found.items()
        if FORM in study.axes[form_axis][form]
    ]


def _entry(kind: str, measure: str, changes: list[tuple[str, str, str]], effect: Estimate) -> dict[str, Any]:
    return {
        "kind": kind,
        "measure": measure,
        "changes": [{"axis": axis, "level": level, "reference": low} for axis, level, low in changes],
        "mean": effect.mean,
        "interval": None if effect.low is None else [effect.low, effect.high],
        "seeds": effect.seeds,
        "differences": effect.differences,
        "clear": effect.is_clear,
    }


def _main(entry: Mapping[str, Any]) -> str:
    (change,), measure = entry["changes"], MEASURES[entry["measure"]]
    what = f"{change['axis']}: **{change['level']}** rather than {change['reference']}"
    return f"{what} changes {measure.label} by {_amount(entry, measure)}: {_verdict(entry, measure)}."


def _interaction(entry: Mapping[str, Any]) -> str:
    (one, other), measure = entry["changes"], MEASURES[entry["measure"]]
    what = f"**{one['level']}** ({one['axis']}) with **{other['level']}** ({other['axis']})"
    if not entry["clear"]:
        verdict = f"they add up, as far as {_seeds(entry)} can show"
    elif (entry["mean"] < 0) == measure.lower_is_better:
        verdict = "together they give more than the sum of each alone"
    else:
        verdict = "together they give less than the sum of each alone"
    return f"{what}: beyond the sum of each alone {measure.label} changes by {_amount(entry, measure)}: {verdict}."


def _bytes(entry: Mapping[str, Any]) -> str:
    (form, size), measure = entry["changes"], MEASURES[entry["measure"]]
    what = f"**{size['level']}** in {form['level']} beside {form['reference']} models of the same bytes"
    return f"{what}: {measure.label} differ by {_amount(entry, measure)}: {_verdict(entry, measure)}."


def _amount(entry: Mapping[str, Any], measure: Measure) -> str:
    sign = "+" if entry["mean"] >= 0 else ""
    interval = entry["interval"]
    within = f" (95% interval {measure.show(interval[0])} to {measure.show(interval[1])}" if interval else " ("
    return f"{sign}{measure.show(entry['mean'])}{within}{', ' if interval else ''}{_seeds(entry)})"


def _verdict(entry: Mapping[str, Any], measure: Measure) -> str:
    if entry["clear"]:
        return "better" if (entry["mean"] < 0) == measure.lower_is_better else "worse"
    return f"no clear difference with {_seeds(entry)}"


def _seeds(entry: Mapping[str, Any]) -> str:
    return f"{entry['seeds']} seed{'' if entry['seeds'] == 1 else 's'}"
