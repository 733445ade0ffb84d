"""What a study leaves for people and for programs: `study.json`, `study.md`, `study.html`, two pictures.

In: the study and its members. Out: the facts, written into `runs/<study>/`.
"""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from pipeline.pages.charts import chart_file
from pipeline.pages.html import STYLE
from pipeline.storage.files import code_state, root, write_json, write_text
from pipeline.studies import run
from pipeline.studies.analysis import effects, means_over_seeds, pareto, rows, sentence, verdicts
from pipeline.studies.design import MEASURES, Measure
from pipeline.studies.file import Study
from pipeline.studies.members import Member
from pipeline.studies.picture import Dot, scatter
from pipeline.system.progress import format_bytes, format_count

Shown = tuple[str, str, Any]
COLUMNS: tuple[Shown, ...] = (
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
COSTS = (("gpu_hours", "hours", "{:.4g}".format, False), ("inference_bytes", "bytes", format_bytes, True))


def write(study: Study, members: Sequence[Member]) -> dict[str, Any]:
    """Reads the manifests, works everything out, writes the files; returns the facts."""
    facts = collect(study, members)
    folder = Path(facts["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {name: picture for name in ("hours", "bytes") if (picture := draw(facts, name))}
    for name, svg in pictures.items():
        write_text(folder / f"study-{name}.svg", chart_file(svg))
    write_json(folder / "study.json", {**facts, "folder": f"runs/{study.name}"})
    write_text(folder / "study.md", markdown(facts, pictures))
    write_text(folder / "study.html", page(facts, pictures))
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
    for cost, *_ in COSTS:
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
        "gpu_hours": _spent(found),
        "combinations": combinations,
        "effects": found_effects,
        "findings": [sentence(entry) for entry in found_effects],
        "claims": verdicts(study.claims, found_effects),
        "rows": found,
    }


def draw(facts: Mapping[str, Any], name: str) -> str:
    """One of the two pictures: quality against `hours`, or against `bytes` at inference."""
    cost, _, form, logarithmic = next(c for c in COSTS if c[1] == name)
    measure: Measure = MEASURES[facts["measures"][0]]
    known = [r for r in facts["combinations"] if r[measure.key] is not None and r[cost]]
    if name == "hours":  # forms of one training lie on one place: the first stands for them
        known = list({r[cost]: r for r in reversed(known)}.values())[::-1]
    dots = [
        Dot(r[cost], r[measure.key], r["range"][0], r["range"][1], r["label"], r["form"], r[f"on_front_{cost}"])
        for r in known
    ]
    x_name = "GPU-hours of source, pretraining and tuning" if name == "hours" else "bytes at inference"
    names = {"x_name": x_name, "y_name": measure.label, "format_x": form}
    return scatter(dots, **names, logarithmic=logarithmic, cut_top=measure.lower_is_better)


def show(facts: Mapping[str, Any]) -> str:
    """For a terminal."""
    lines = [f"study {facts['study']}: {facts['done']} of {len(facts['rows'])} members done"]
    lines += [f"  - {sentence.replace('**', '')}" for sentence in facts["findings"]]
    return "\n".join([*lines, f"  table and pictures: {facts['folder']}/study.md, study.html, study.json"])


def markdown(facts: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    head, body = _table(facts)
    lines = [f"# Study {facts['study']}", "", facts["about"], "", _frame(facts), "", "## What it shows", ""]
    lines += claims_table(facts)
    lines += [f"- {sentence}" for sentence in facts["findings"]] or ["Nothing to compare yet."]
    lines += ["", *(f"![{_caption(name)}](study-{name}.svg)" for name in pictures), "", "## Members", ""]
    lines += ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(cells) + " |" for cells in body]
    return "\n".join([*lines, "", *(f"- {line}" for line in _notes(facts))]) + "\n"


def claims_table(facts: Mapping[str, Any]) -> list[str]:
    """Each claim, the verdict of this study, and the figure behind it, as lines of Markdown."""
    if not facts["claims"]:
        return []
    rows_ = [
        f"| {claim['says']} | {claim['verdict']} | "
        f"{'' if claim['effect'] is None else facts['findings'][claim['effect']]} |"
        for claim in facts["claims"]
    ]
    return ["| claim | verdict | figure |", "|---|---|---|", *rows_, ""]


def page(facts: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    head, body = _table(facts)
    found = "".join(f"<li>{_bold(sentence)}" for sentence in facts["findings"]) or "<li>Nothing to compare yet."
    figures = "".join(f"<figure><figcaption>{_caption(n)}</figcaption>{svg}</figure>" for n, svg in pictures.items())
    rows_ = "".join("<tr><td>" + "<td class=n>".join(escape(cell) for cell in cells) for cells in body)
    title = f"Study {escape(facts['study'])}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{title}</title><style>{STYLE}</style><main><h1>{title}</h1><p>{escape(facts['about'])}"
        f"<p class=note>{escape(_frame(facts))}<h2>What it shows</h2>{_claims(facts)}<ul>{found}</ul>"
        f"{figures}<h2>Members</h2>"
        f"<table><tr><th>{'<th class=n>'.join(map(escape, head))}{rows_}</table><ul>"
        + "".join(f"<li>{escape(line)}" for line in _notes(facts))
        + "</ul></main></html>\n"
    )


def _claims(facts: Mapping[str, Any]) -> str:
    rows_ = "".join(
        f"<tr><td>{escape(claim['says'])}<td>{escape(claim['verdict'])}<td>"
        + ("" if claim["effect"] is None else _bold(facts["findings"][claim["effect"]]))
        for claim in facts["claims"]
    )
    return f"<table><tr><th>claim<th>verdict<th>figure{rows_}</table>" if rows_ else ""


def _table(facts: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    combinations = facts["combinations"]
    columns = [c for c in COLUMNS if any(row[c[0]] is not None for row in combinations)]
    head = ["combination", "form", "seeds", "seeds' spread", *(name for _, name, _ in columns)]
    body = []
    for row in combinations:
        if row["seeds"]:
            cells = [row["label"], row["form"], str(len(row["seeds"])), f"{row['seed_range']:.4f}"
                     if row["seed_range"] is not None else ""]  # fmt: skip
            body.append([*cells, *("" if row[key] is None else show_(row[key]) for key, _, show_ in columns)])
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
    notes = ["Means over seeds. A filled dot lies on the Pareto front; the line through a dot spans its seeds."]
    for record in facts["stops"]:
        notes.append(
            f"Stopped early at {record['at']:g} of the budget by {record['rule']}, the best {record['keep']:g} going "
            + "on: "
            + (", ".join(record["stopped"]) or "none")
        )
    for row in facts["rows"]:
        if row["why_not"]:
            notes.append(f"{row['experiment']}, {row['form']}: {row['why_not']}")
        elif row["state"] == "failed":
            notes.append(f"{row['experiment']} failed; its logs lie in its folder")
    return list(dict.fromkeys(notes))


def _spent(found: Sequence[Mapping[str, Any]]) -> float:
    return sum({row["experiment"]: row["gpu_hours"] or 0.0 for row in found}.values())


def _caption(name: str) -> str:
    return "Quality against GPU-hours" if name == "hours" else "Quality against bytes at inference"


def _bold(sentence: str) -> str:
    words = escape(sentence).split("**")
    return "".join(f"<b>{word}</b>" if i % 2 else word for i, word in enumerate(words))
