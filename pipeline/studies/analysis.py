"""What a study shows, worked out from its members' manifests: rows, effects, fronts, sentences, verdicts on its claims.

In: the study and its members. Out: plain JSON values. Nothing here knows a result beforehand.

- A row is one member. `state`: done, stopped (early, by the study's rule), failed, or missing (not run yet). Its hours
  and FLOPs are those of source, pretraining and tuning; making a quantized form is not in them.
- The effect of a level is the mean difference between members that have it and members that have the axis's reference
  and are otherwise the same, the seed included. An interaction of two levels is what both together change beyond the
  sum of each alone: (y11 - y01) - (y10 - y00). No model is fitted: a combination that a fractional design lacks gives
  no difference.
- Differences are averaged within a seed first; the interval is Student's t over seeds, so it covers other seeds, not
  other texts or sizes.
- A study looks at many differences. They are tested together by Holm (1979): the smallest of m p-values against
  0.05 / m, the next against 0.05 / (m - 1), and so on until one fails. The differences that claims rest on are one
  family, all others another. A difference is called clear where this test finds it; `interval_holm` is the interval at
  the level of its test. With one seed nothing is clear.
- That a difference is not clear does not show that there is none: two things are called the same, and two changes are
  said to add up, only where the whole interval lies within the measure's margin of equivalence (`Measure.margin`).
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from pipeline.corpus.text.intervals import CONFIDENCE, t_quantile, within
from pipeline.corpus.text.shards import TEXTBOOK, TokenShards
from pipeline.runs import DONE, state
from pipeline.stages import source_config, source_is_experiment
from pipeline.storage.experiment import Experiment
from pipeline.storage.steps import read_manifest
from pipeline.studies import run
from pipeline.studies.design import MEASURES, QUALITY, TARGET, TASKS, Measure
from pipeline.studies.file import FORM, Study
from pipeline.studies.members import Member, Training, flops_per_token, tuning_flops_per_token

FIGURES = (QUALITY, TARGET, "target_before", *TASKS, "gpu_hours", "training_flops", "tokens", "epochs", "parameters",
           "inference_bytes", "disk_bytes", "inference_tokens_per_second", "train_tokens_per_second",
           "peak_memory_bytes", "trainable_share")  # fmt: skip
SIXTEEN_BITS = ("bf16", "fp16")  # as full models are served
Row = Mapping[str, Any]
Rows = Sequence[Row]
Change = tuple[str, str, str]
"""Axis, level, and the level that it is compared with."""


# ---- rows


def rows(study: Study, members: Sequence[Member]) -> list[dict[str, Any]]:
    """One row a member, in the study's order. A figure that is not there is None."""
    out, failed = run.stopped(study), run.failed(study)
    made = {member.training.name: _manifests(member.training) for member in members}
    found = []
    for member in members:
        name = member.training.name
        forms = {row["kind"]: row for row in (made[name]["quantize"] or {"rows": []})["rows"]}
        form = forms.get(member.form, {})
        done = "scores" in form
        found.append(
            {
                "experiment": name,
                "cell": dict(member.cell),
                "label": _label(study, member),
                "seed": member.seed,
                "form": member.form,
                "state": "done" if done else "stopped" if name in out else "failed" if name in failed else "missing",
                "stopped_at": out[name]["at"] if name in out else None,
                "why_not": form.get("unavailable"),
                **_figures(made[name], form if done else {}, member.training),
            }
        )
    return found


def _label(study: Study, member: Member) -> str:
    """The levels that are not the reference."""
    levels = study.levels
    return " ".join(level for axis, level in member.cell.items() if level != levels[axis][0]) or "reference"


def _manifests(one: Training) -> dict[str, Any]:
    """Stage (and `source`) -> its manifest, all None for an experiment that is not finished."""
    made: dict[str, Any] = dict.fromkeys(("pretrain", "finetune", "quantize", "source"))
    if run.is_finished(one):
        for stage in ("pretrain", "finetune", "quantize"):
            made[stage] = _manifest(Experiment(one.config).stage_folder(stage))
        if source_is_experiment(one.config):
            source = source_config(one.config)
            made["source"] = _manifest(Experiment(source).stage_folder("pretrain"))
    return made


def _manifest(folder: Path | None) -> dict[str, Any] | None:
    return read_manifest(folder) if folder is not None and state(folder) == DONE else None


def _figures(made: Mapping[str, Any], form: Row, one: Training) -> dict[str, Any]:
    pretrain, tuning, source = made["pretrain"] or {}, made["finetune"] or {}, made["source"] or {}
    config, target = one.config, tuning.get("target") or {}
    found: dict[str, Any] = dict.fromkeys(FIGURES)
    if pretrain:
        found["gpu_hours"] = sum(part.get("gpu_hours", 0.0) for part in (pretrain, source, tuning))
        found["training_flops"] = (
            pretrain["tokens_seen"] * flops_per_token(config)
            + (source["tokens_seen"] * flops_per_token(source_config(config)) if source else 0.0)
            + (tuning["tokens_seen"] * tuning_flops_per_token(config) if tuning else 0.0)
        )
        found |= {"tokens": pretrain["tokens_seen"], "parameters": config.model.parameters}
        found["epochs"] = max(pretrain["epochs"].values(), default=None)
        found["train_tokens_per_second"] = (tuning or pretrain)["tokens_per_second"]
        found["peak_memory_bytes"] = (tuning or pretrain)["peak_memory_bytes"]
    found |= {TARGET: target.get("after"), "target_before": target.get("before")}
    found["trainable_share"] = tuning.get("trainable_share")
    if form:
        scores, data = form["scores"], Experiment(config).stage_folder("data")
        found[QUALITY] = _overall(scores, data) if data is not None else None
        found["inference_bytes"], found["disk_bytes"] = form["memory_bytes"], form["disk_bytes"]
        found["inference_tokens_per_second"] = form.get("tokens_per_second")
        for task in TASKS:
            parts = [s["score"] for name, s in scores.items() if name.startswith(task) and s["score"] is not None]
            found[task] = mean(parts) if parts else None
    return found


def _overall(scores: Mapping[str, Any], data: Path) -> float | None:
    """Bits per byte over the general held-out sets, by bytes, as pretraining's own overall figure is."""
    sets = {name: s for name, s in TokenShards.open(data).val.items() if name != TEXTBOOK}
    found = {name: scores[key]["score"] for name in sets if (key := f"bits_per_byte/{name}") in scores}
    total = sum(sets[name].n_bytes for name in found)
    return sum(value * sets[name].n_bytes for name, value in found.items()) / total if total else None


def means_over_seeds(found: Rows) -> list[dict[str, Any]]:
    """One row a combination: means over the seeds that have the figure."""
    groups: dict[tuple, list[Row]] = defaultdict(list)
    for row in found:
        groups[tuple(row["cell"].items())].append(row)
    combinations = []
    for cell, group in groups.items():
        values = {key: [row[key] for row in group if row.get(key) is not None] for key in FIGURES}
        combinations.append(
            {
                "cell": dict(cell),
                "label": group[0]["label"],
                "form": group[0]["form"],
                "seeds": [row["seed"] for row in group if row["state"] == "done"],
                "states": sorted({row["state"] for row in group}),
                **{key: sum(known) / len(known) if known else None for key, known in values.items()},
            }
        )
    return combinations


def pareto(found: Rows, cost: str, quality: str, lower_is_better: bool) -> list[Row]:
    """Rows that no other beats in both cost and quality, by rising cost. Rows that lack one of them are left out."""
    known = [row for row in found if row.get(cost) is not None and row.get(quality) is not None]
    sign = 1 if lower_is_better else -1
    front: list[Row] = []
    for row in sorted(known, key=lambda r: (r[cost], sign * r[quality])):
        if not front or sign * row[quality] < sign * front[-1][quality]:
            front.append(row)
    return front


# ---- effects


@dataclass(frozen=True)
class Estimate:
    """Mean of `differences` differences with its 95% interval over seeds and the p-value of a two-sided t test, None
    with a single seed."""

    mean: float
    interval: list[float] | None
    seeds: int
    differences: int
    p: float | None = None


def effect(found: Rows, key: str, *changes: Change) -> Estimate | None:
    """Main effect of one change, or interaction of two. None where no members differ in these changes alone."""
    values = {(row["seed"], *sorted(row["cell"].items())): row[key] for row in found}
    subsets = [s for size in range(len(changes) + 1) for s in itertools.combinations(changes, size)]
    by_seed: dict[int, list[float]] = defaultdict(list)
    for row in found:
        if any(row["cell"][axis] != level for axis, level, _ in changes):
            continue
        # Every way of taking changes back: an odd number of them counts against, an even number for.
        cells = [{**row["cell"], **{axis: low for axis, _, low in subset}} for subset in subsets]
        corners = [values.get((row["seed"], *sorted(cell.items()))) for cell in cells]
        known = [value for value in corners if value is not None]
        if len(known) == len(subsets):
            by_seed[row["seed"]].append(sum((-1) ** len(s) * value for s, value in zip(subsets, known, strict=True)))
    return estimate(by_seed)


def estimate(by_seed: Mapping[int, Sequence[float]]) -> Estimate | None:
    """Mean over seeds of the means within each, with its interval."""
    means = [mean(values) for values in by_seed.values() if values]
    if not means:
        return None
    centre, count = mean(means), sum(map(len, by_seed.values()))
    if len(means) < 2:
        return Estimate(centre, None, len(means), count)
    freedom, error = len(means) - 1, stdev(means) / math.sqrt(len(means))
    half = t_quantile(freedom) * error
    p = 1 - within(abs(centre) / error, freedom) if error else float(centre == 0)
    return Estimate(centre, [centre - half, centre + half], len(means), count, p)


def effects(study: Study, found: Rows) -> list[dict[str, Any]]:
    """As plain values, for every measure: main effects, interactions of the named pairs, two levels of one axis of
    which neither is the reference beside each other (`direct`: LoRA and full tuning). Last, quantized models beside
    full ones of the same bytes."""
    levels = study.levels
    main: list[list[Change]] = [[(a, level, names[0])] for a, names in levels.items() for level in names[1:]]
    squares = [
        [(one, a, levels[one][0]), (other, b, levels[other][0])]
        for one, other in study.pairs
        for a, b in itertools.product(levels[one][1:], levels[other][1:])
    ]
    trained = [axis for axis, options in study.axes.items() if not any(FORM in o for o in options.values())]
    direct = [[(a, level, low)] for a in trained for low, level in itertools.combinations(levels[a][1:], 2)]
    planned = [(kind, key, c) for key in study.measures for kind, cs in (("main", main), ("interaction", squares))
               for c in cs]  # fmt: skip
    planned += [("direct", key, c) for key in study.measures for c in direct]
    entries = [_entry(kind, key, c, e) for kind, key, c in planned if (e := effect(found, key, *c)) is not None]
    return corrected([*entries, *_equal_bytes(study, found)], study.claims)


def corrected(entries: Rows, claims: Rows) -> list[dict[str, Any]]:
    """The entries with `clear` and `interval_holm` by Holm's test within each of two families."""
    claimed = {index for claim in claims if (index := _rests_on(claim, entries)) is not None}
    return [
        {**entry, "clear": clear, "interval_holm": None if level is None else _interval_at(entry, level)}
        for entry, (clear, level) in zip(entries, _holm(entries, claimed), strict=True)
    ]


def _holm(entries: Rows, claimed: set[int]) -> list[tuple[bool, float | None]]:
    """For every entry whether it is clear, and the confidence of its test; None where it has no p-value."""
    found: list[tuple[bool, float | None]] = [(False, None)] * len(entries)
    tested = [index for index, entry in enumerate(entries) if entry["p"] is not None]
    for family in ([i for i in tested if i in claimed], [i for i in tested if i not in claimed]):
        clear = True
        for rank, index in enumerate(sorted(family, key=lambda i: entries[i]["p"])):
            allowed = (1 - CONFIDENCE) / (len(family) - rank)
            clear = clear and entries[index]["p"] < allowed
            found[index] = (clear, 1 - allowed)
    return found


def _interval_at(entry: Row, confidence: float) -> list[float]:
    """The entry's interval, widened from 95% to another confidence."""
    freedom, (low, high) = entry["seeds"] - 1, entry["interval"]
    half = (high - low) / 2 * t_quantile(freedom, confidence) / t_quantile(freedom)
    return [entry["mean"] - half, entry["mean"] + half]


def _equal_bytes(study: Study, found: Rows) -> list[dict[str, Any]]:
    """Where an axis has forms and another has sizes. Full: in 16 bits where the study has such a form, else the
    reference."""
    forms = [axis for axis, levels in study.axes.items() if any(FORM in o for o in levels.values())]
    sizes = [
        axis for axis, levels in study.axes.items() if any(k.startswith("model") for o in levels.values() for k in o)
    ]
    if not forms or not sizes:
        return []
    form_axis, size_axis = forms[0], sizes[0]
    served = [level for level, overrides in study.axes[form_axis].items() if overrides.get(FORM) in SIXTEEN_BITS]
    reference = (served or study.levels[form_axis])[0]
    return [
        _entry("equal bytes", QUALITY, [(form_axis, form, reference), (size_axis, size, "")], difference)
        for (form, size), difference in at_equal_bytes(found, form_axis, size_axis, reference).items()
        if FORM in study.axes[form_axis][form]
    ]


def at_equal_bytes(found: Rows, form_axis: str, size_axis: str, reference: str) -> dict[tuple[str, str], Estimate]:
    """(form, size) -> bits per byte minus those of reference-form models with the same bytes at inference.

    Those are read off the reference form's models of other sizes, seed by seed, by straight lines over the logarithm of
    bytes; a model outside their range is left out, because nothing is known there.
    """

    def others(row: Row) -> tuple:
        return (row["seed"], *((a, level) for a, level in row["cell"].items() if a not in (form_axis, size_axis)))

    known = [row for row in found if row.get(QUALITY) is not None and row.get("inference_bytes")]
    curves: dict[tuple, list[tuple[float, float]]] = defaultdict(list)
    for row in known:
        if row["cell"][form_axis] == reference:
            curves[others(row)].append((math.log(row["inference_bytes"]), row[QUALITY]))
    by_model: dict[tuple[str, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in known:
        form, size = row["cell"][form_axis], row["cell"][size_axis]
        if form != reference:
            full = _read_off(sorted(curves[others(row)]), math.log(row["inference_bytes"]))
            if full is not None:
                by_model[form, size][row["seed"]].append(row[QUALITY] - full)
    return {key: result for key, by_seed in by_model.items() if (result := estimate(by_seed)) is not None}


def _read_off(curve: Sequence[tuple[float, float]], x: float) -> float | None:
    """The value at `x` by straight lines between the points (sorted by x); None outside them."""
    for (x1, y1), (x2, y2) in itertools.pairwise(curve):
        if x1 <= x <= x2:
            return y1 if x1 == x2 else y1 + (y2 - y1) * (x - x1) / (x2 - x1)
    return None


def _entry(kind: str, measure: str, changes: Sequence[Change], found: Estimate) -> dict[str, Any]:
    shown = [{"axis": axis, "level": level, "reference": low} for axis, level, low in changes]
    return {"kind": kind, "measure": measure, "changes": shown, **asdict(found)}


# ---- in words


def sentence(entry: Row) -> str:
    """An effect as a plain sentence."""
    measure, seeds = MEASURES[entry["measure"]], _seeds(entry)
    verdict = f"no clear difference with {seeds}"
    if entry["clear"]:
        verdict = "better" if _is_better(entry) else "worse"
    elif _is_equivalent(entry):
        verdict = f"the same within {measure.show(measure.margin or 0.0)}"
    amount = _amount(entry, measure)
    one, *more = entry["changes"]
    if entry["kind"] == "equal bytes":
        what = f"**{more[0]['level']}** in {one['level']} beside {one['reference']} models of the same bytes"
        return f"{what}: {measure.label} differ by {amount}: {verdict}."
    if entry["kind"] != "interaction":
        what = f"{one['axis']}: **{one['level']}** rather than {one['reference']}"
        return f"{what} changes {measure.label} by {amount}: {verdict}."
    if entry["clear"]:
        verdict = f"together they give {'more' if _is_better(entry) else 'less'} than the sum of each alone"
    elif _is_equivalent(entry):
        verdict = f"they add up, within {measure.show(measure.margin or 0.0)}"
    else:
        verdict = f"{seeds} do not show whether they add up"
    what = f"**{one['level']}** ({one['axis']}) with **{more[0]['level']}** ({more[0]['axis']})"
    return f"{what}: beyond the sum of each alone {measure.label} changes by {amount}: {verdict}."


def verdicts(claims: Rows, entries: Rows) -> list[dict[str, Any]]:
    """`{says, verdict, effect}` a claim; `effect` is the index of the effect that it rests on, or None."""
    found = []
    for claim in claims:
        index = _rests_on(claim, entries)
        words = "not measured yet" if index is None else _verdict(entries[index], claim["expect"])
        found.append({"says": claim["says"], "verdict": words, "effect": index})
    return found


def _rests_on(claim: Row, entries: Rows) -> int | None:
    """The index of the effect that a claim is about."""
    wanted = (claim["kind"], claim["measure"], sorted(claim["levels"]))
    answers = [(e["kind"], e["measure"], sorted(change["level"] for change in e["changes"])) for e in entries]
    return answers.index(wanted) if wanted in answers else None


def _is_equivalent(entry: Row) -> bool:
    """Whether the whole interval lies within the measure's margin of equivalence."""
    margin, interval = MEASURES[entry["measure"]].margin, entry["interval"]
    return margin is not None and interval is not None and max(map(abs, interval)) < margin


def _verdict(entry: Row, expected: str) -> str:
    seeds = _seeds(entry)
    if expected == "same" and _is_equivalent(entry):
        measure = MEASURES[entry["measure"]]
        return f"holds here within {measure.show(measure.margin or 0.0)}, with {seeds}"
    if not entry["clear"]:
        return f"not shown by {seeds}"
    came = "better" if _is_better(entry) else "worse"
    return f"holds here, with {seeds}" if came == expected else f"does not hold here: {came}, with {seeds}"


def _is_better(entry: Row) -> bool:
    return (entry["mean"] < 0) == MEASURES[entry["measure"]].lower_is_better


def _amount(entry: Row, measure: Measure) -> str:
    sign, interval = "+" if entry["mean"] >= 0 else "", entry["interval"]
    within = f"95% interval {measure.show(interval[0])} to {measure.show(interval[1])}, " if interval else ""
    return f"{sign}{measure.show(entry['mean'])} ({within}{_seeds(entry)})"


def _seeds(entry: Row) -> str:
    return f"{entry['seeds']} seed{'' if entry['seeds'] == 1 else 's'}"
