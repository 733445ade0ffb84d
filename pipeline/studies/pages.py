"""The results of a study for people and for programs: `study.json`, `study.md`, `study.html` and two charts.

In: the study and its members. Out: the facts, and these files in `runs/<study>/`.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.pages import html
from pipeline.pages.charts import Dot, chart_file, scatter
from pipeline.storage.files import code_state, root, write_json, write_text
from pipeline.studies import run
from pipeline.studies.analysis import effects, means_over_seeds, pareto, rows, sentence, verdicts
from pipeline.studies.design import MEASURES
from pipeline.studies.file import Study
from pipeline.studies.members import Member
from pipeline.system.progress import format_bytes, format_count

COLUMNS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("bits_per_byte", "bits per byte", "{:.4f}".format),
    ("target_before", "task before", "{:.1%}".format),
    ("target", "task after", "{:.1%}".format),
    ("cloze", "cloze", "{:.1%}".format),
    ("arithmetic", "arithmetic", "{:.1%}".format),
    ("exercises", "exercises", "{:.1%}".format),
    ("parameters", "parameters", format_count),
    ("trainable_share", "tuned share", "{:.1%}".format),
    ("tokens", "tokens", format_count),
    ("epochs", "epochs", "{:.2f}".format),
    ("training_flops", "FLOPs", "{:.2e}".format),
    ("gpu_hours", "GPU-hours", "{:.4f}".format),
    ("inference_bytes", "at inference", format_bytes),
    ("inference_tokens_per_second", "tokens/s", "{:,.0f}".format),
    ("train_tokens_per_second", "tokens/s trained", "{:,.0f}".format),
    ("peak_memory_bytes", "peak memory", format_bytes),
)


HOURS, BYTES = "GPU-hours of source, pretraining and tuning", "bytes at inference"
# Charts of quality against one cost: its key in every combination, the caption, the axis.
PICTURES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "hours": ("gpu_hours", "Quality against GPU-hours", {"x_name": HOURS, "format_x": "{:.4g}".format}),
    "bytes": (
        "inference_bytes", f"Quality against {BYTES}", {"x_name": BYTES, "format_x": format_bytes, "logarithmic": True},
    ),
}  # fmt: skip


def write(study: Study, members: Sequence[Member]) -> dict[str, Any]:
    """Reads the manifests, works everything out, writes the files; returns the facts."""
    facts = collect(study, members)
    folder = Path(facts["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    charts = {name: chart for name in PICTURES if (chart := draw(facts, name))}
    for name, svg in charts.items():
        write_text(folder / f"study-{name}.svg", chart_file(svg))
    write_json(folder / "study.json", {**facts, "folder": f"runs/{study.name}"})
    for name in ("study.md", "study.html"):
        write_text(folder / name, page(name, facts, charts))
    return facts


def collect(study: Study, members: Sequence[Member]) -> dict[str, Any]:
    """Everything that the pages say, as plain JSON values."""
    found = rows(study, members)
    measure = MEASURES[study.measures[0]]
    combinations = means_over_seeds(found)
    for row in combinations:
        values = [r[measure.key] for r in found if r["cell"] == row["cell"] and r[measure.key] is not None]
        row["range"] = [min(values), max(values)] if values else None
        row["seed_range"] = max(values) - min(values) if values else None
    found_effects = effects(study, found)
    for cost, _, _ in PICTURES.values():
        front = pareto(combinations, cost, measure.key, measure.lower_is_better)
        for row in combinations:
            row[f"on_front_{cost}"] = row in front
    return {
        "study": study.name,
        "about": study.about,
        "base": study.base.name,
        "equal": {study.equal[0]: study.equal[1]},
        "stop": None if study.stop is None else {"at": list(study.stop.at), "keep": study.stop.keep},
        "stops": list({record["at"]: record for record in run.stopped(study).values()}.values()),
        "reference": {axis: levels[0] for axis, levels in study.levels.items()},
        "axes": study.levels,
        "measures": list(study.measures),
        "folder": str(root() / "runs" / study.name),
        **code_state(),
        "experiments": len({row["experiment"] for row in found}),
        "done": sum(row["state"] == "done" for row in found),
        "gpu_hours": sum({row["experiment"]: row["gpu_hours"] or 0.0 for row in found}.values()),
        "combinations": combinations,
        "effects": found_effects,
        "findings": [sentence(entry) for entry in found_effects],
        "claims": verdicts(study.claims, found_effects),
        "rows": found,
    }


def draw(facts: Mapping[str, Any], name: str) -> str:
    """One of the two charts: quality against `hours`, or against `bytes` at inference."""
    (cost, _, axis), measure = PICTURES[name], MEASURES[facts["measures"][0]]
    known = [r for r in facts["combinations"] if r[measure.key] is not None and r[cost]]
    if name == "hours":  # forms of one training have the same hours: the first stands for them
        known = list({r[cost]: r for r in reversed(known)}.values())[::-1]
    dots = [
        Dot(r[cost], r[measure.key], r["range"][0], r["range"][1], r["label"], r["form"], r[f"on_front_{cost}"])
        for r in known
    ]
    return scatter(dots, y_name=measure.label, cut_top=measure.lower_is_better, **axis)


def show(facts: Mapping[str, Any]) -> str:
    """For a terminal."""
    lines = [f"study {facts['study']}: {facts['done']} of {len(facts['rows'])} members done"]
    lines += [f"  - {sentence.replace('**', '')}" for sentence in facts["findings"]]
    return "\n".join([*lines, f"  table and pictures: {facts['folder']}/study.md, study.html, study.json"])


def page(template: str, facts: Mapping[str, Any], charts: Mapping[str, str]) -> str:
    """The page as HTML or as Markdown, by its template."""
    heads, members = _table(facts)
    return html.render(
        template,
        **{key: facts[key] for key in ("study", "about", "claims", "findings")},
        frame=_frame(facts),
        charts=charts,
        captions={name: caption for name, (_, caption, _) in PICTURES.items()},
        heads=heads,
        members=members,
        notes=_notes(facts),
    )


def _table(facts: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Heads (# for a column of numbers) and cells: a row per combination with results, a column per figure of any."""
    rows_ = facts["combinations"]
    columns = [column for column in COLUMNS if any(row[column[0]] is not None for row in rows_)]
    head = ["combination", "#form", "#seeds", "#seeds' spread", *(f"#{name}" for _, name, _ in columns)]
    body = []
    for row in rows_:
        if row["seeds"]:
            spread = "" if row["seed_range"] is None else f"{row['seed_range']:.4f}"
            cells = ["" if row[key] is None else form(row[key]) for key, _, form in columns]
            body.append([row["label"], row["form"], str(len(row["seeds"])), spread, *cells])
    return head, body


def _frame(facts: Mapping[str, Any]) -> str:
    (kind, amount), missing = next(iter(facts["equal"].items())), len(facts["rows"]) - facts["done"]
    budget = f"{amount:g} GPU-hours" if kind == "gpu_hours" else f"{amount:.2e} training FLOPs"
    reference = ", ".join(f"{axis} {level}" for axis, level in facts["reference"].items())
    return (
        f"{len(facts['rows'])} members of {facts['experiments']} experiments, {budget} for source, pretraining and "
        f"tuning of each; {facts['done']} done{f', {missing} not' if missing else ''}; {facts['gpu_hours']:.3f} "
        f"device-hours in all. The reference is {reference}; a label says what differs from it."
    )


def _notes(facts: Mapping[str, Any]) -> list[str]:
    notes = [
        "Means over seeds. A filled dot lies on the Pareto front; the line through a dot spans its seeds.",
        "Intervals are of each difference alone. What is called better or worse also passed Holm's test of all "
        "differences together (the claims' apart from the others); two things are called the same only where the whole "
        "interval lies within the margin that is named.",
    ]
    for record in facts["stops"]:
        notes.append(
            f"Stopped early at {record['at']:g} of the budget by {record['rule']}, the best {record['keep']:g} going "
            f"on: {', '.join(record['stopped']) or 'none'}"
        )
    for row in facts["rows"]:
        if row["why_not"]:
            notes.append(f"{row['experiment']}, {row['form']}: {row['why_not']}")
        elif row["state"] == "failed":
            notes.append(f"{row['experiment']} failed; its logs lie in its folder")
    return list(dict.fromkeys(notes))
