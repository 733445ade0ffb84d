"""The data part of the report: where every document went, and why.

In: the account of a data stage (`data.report.json`, pipeline/corpus/account.py). Out: the values that
pipeline/pages/templates/data.html shows besides the account itself: what has to be sorted, summed or drawn.
"""

from collections.abc import Mapping
from typing import Any

from pipeline.pages.charts import STACK_COLOURS, length_chart, roc_chart, score_chart
from pipeline.pages.data_card import NO_ADVICE, causes, cut_words, skipped_words

ROWS_SHOWN = 12  # of a long table; the rest is folded
UNITS = ("documents", "bytes", "tokens")
STEP_NAMES = {
    "read": "reading",
    "exact_dedup": "exact dedup",
    "near_dedup": "near dedup",
    "contamination": "decontamination",
    "cut": "quality cut",
}


def data_view(data: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the template data.html, by name."""
    quality, sources, flow = data["quality"], data["sources"], data["funnel"]
    dropped = [drop for step in flow["steps"] for drop in step["drops"]]
    thresholds = quality["thresholds"]
    return {
        "data": data,
        "shown": ROWS_SHOWN,
        "sources_with_files": [(name, s["files"]) for name, s in sources.items() if s.get("files", {}).get("found")],
        "files_left": _files_left(data.get("files")),
        "lost_files": [(name, file) for name, source in sources.items() for file in source.get("lost_files", ())],
        "funnel": _funnel(flow),
        # The report shows that every unit closes to zero: what was read, less what was kept, less every drop.
        "left": {u: flow["read"][u] - flow["kept"][u] - sum(d[u] for d in dropped) for u in UNITS},
        "drops": sorted((d for d in dropped if d["filter"] != "unreadable"), key=lambda drop: -drop["documents"]),
        "unreadable": [(name, *found) for name, s in sources.items() for found in s["unreadable_causes"].items()],
        "score_charts": {n: score_chart(parts, thresholds.get(n)) for n, parts in quality["histograms"].items()},
        "stack_colours": STACK_COLOURS,
        "roc": roc_chart(quality["rated"]["roc"], next(iter(thresholds.values()), None))
        if quality["sources"] and quality["rated"]["roc"]
        else "",
        "lengths": length_chart(data["lengths"]),
        "diversity": [(name, source["diversity"]) for name, source in sources.items() if source["diversity"]],
        "gallery": [entry for entry in data["gallery"] if entry["examples"] or entry["near_misses"]],
        "cut_words": cut_words(quality, {}),
        "no_advice": NO_ADVICE,
        "causes": causes,
        "skipped_words": skipped_words,
        "measured": measured,
    }


def _files_left(files: Mapping[str, Any] | None) -> dict[str, int]:
    """Found less every other count, of files and bytes; a folder of an earlier version counted no files."""
    if files is None:
        return {}
    known = files["read"] + files["lost"] + files["beyond_limit"] + sum(files["skipped"].values())
    sizes = files["bytes"]
    return {"files": files["found"] - known, "bytes": 2 * sizes["found"] - sum(sizes.values())}


def _funnel(flow: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was left after each step that dropped something."""
    rows = [{"name": "(found)", "left": flow["read"], "lost": 0, "share": 1.0}]
    for step in flow["steps"]:
        if lost := sum(drop["documents"] for drop in step["drops"]):
            share = step["left"]["documents"] / max(1, flow["read"]["documents"])
            name = STEP_NAMES.get(step["step"], step["step"])
            rows.append({"name": name, "left": step["left"], "lost": lost, "share": share})
    return rows


def measured(record: Mapping[str, Any]) -> str:
    """`measured 89; limit 100`: what a rule found in an example."""
    value, threshold = record.get("value"), record.get("threshold")
    parts = [
        None if value is None else f"measured {_number(value)}",
        None if threshold is None else f"limit {_number(threshold)}",
        record.get("detail"),
    ]
    return "; ".join(part for part in parts if part)


def _number(value: float | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value
