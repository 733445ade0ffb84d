"""The report's tables of the stages after pretraining: evaluate, quantize, finetune, before and after.

In: their manifests. Out: the figures that `report.json` holds, and HTML of them.
"""

from collections.abc import Mapping
from html import escape
from typing import Any

from pipeline.corpus.text.intervals import beside, over_documents
from pipeline.pages.html import table
from pipeline.release.savings import no_memory_saved, no_saving_lines

AFTER = ("evaluate", "quantize", "finetune")
KEYS = {
    "evaluate": ("scores",),
    "quantize": ("rows", "price_per_hour", "price_source", "on_device"),
    "finetune": (
        "method", "parameters", "trainable_parameters", "trainable_share", "initial_bits_per_byte", "bits_per_byte",
        "bits_per_byte_interval", "validation_documents",
        "target", "memory_bytes", "tokens_per_second", "gpu_hours", "max_gpu_hours", "steps", "annealed",
    ),
}  # fmt: skip


def after_facts(stage: str, manifest: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What the page shows of a stage's manifest; None where the stage has not run."""
    return None if manifest is None else {key: manifest[key] for key in KEYS[stage] if key in manifest}


def after_section(stage: str, facts: Mapping[str, Any]) -> str:
    return {"evaluate": _evaluate, "quantize": _quantize, "finetune": _finetune}[stage](facts)


def _evaluate(facts: Mapping[str, Any]) -> str:
    rows = [
        (escape(name), _score(found), f"{found['items']:,}" if found.get("items") else "",
         f"{found['chance']:.3f}" if found.get("chance") else "", escape(found.get("why") or over_documents(found)))
        for name, found in facts["scores"].items()
    ]  # fmt: skip
    return f"<h2>Evaluation</h2>{table(('task', '#score', '#items', '#guessing', ''), rows)}"


def _quantize(facts: Mapping[str, Any]) -> str:
    """Sizes, speed and cost of each kind; then its scores, kinds across."""
    ran = [row for row in facts["rows"] if "unavailable" not in row]
    base = ran[0]
    sizes = [
        (escape(row["kind"]), _bytes(row["disk_bytes"]), _ratio(row["disk_bytes"], base["disk_bytes"]),
         _bytes(row["memory_bytes"]), _speed(row), _dollars(row.get("cost_per_million_tokens")))
        for row in ran
    ]  # fmt: skip
    heads = ("kind", "#MB on disk", "#of the size", "#MB in memory", "#tokens/s", "#USD per M tokens")
    names = list(base["scores"])
    scores = [(escape(row["kind"]), *(_score(row["scores"][name]) for name in names)) for row in ran]
    missing = "; ".join(f"{row['kind']}: {row['unavailable']}" for row in facts["rows"] if "unavailable" in row)
    silent = "; ".join(f"{row['kind']}: {row['speed_why']}" for row in ran if row.get("speed_why"))
    useless = "; ".join(no_saving_lines(ran))
    note = "".join(f"<p class=note>{escape(words)}.</p>" for words in (silent, missing, useless) if words)
    score_heads = ("kind", *(f"#{name}" for name in names))
    return (
        f"<h2>Quantization, on {escape(facts['on_device'])}</h2>{table(heads, sizes)}{table(score_heads, scores)}{note}"
    )


def _finetune(facts: Mapping[str, Any]) -> str:
    before = facts["initial_bits_per_byte"] or {}
    rows = [
        (f"bits per byte learnt, {escape(name)}", f"{before[name]:.4f}" if name in before else "",
         f"{after:.4f} ({beside(facts, name)})")
        for name, after in (facts["bits_per_byte"] or {}).items()
    ]  # fmt: skip
    if target := facts["target"]:
        error = f" ± {100 * target['standard_error']:.1f}"
        rows.append(
            (f"{escape(target['name'])}, {target['items']:,} items, guessing {100 * target['chance']:.0f}%",
             f"{100 * target['before']:.1f}%", f"{100 * target['after']:.1f}%{error}")
        )  # fmt: skip
    cap = f" of {facts['max_gpu_hours']:g}" if facts["max_gpu_hours"] else ""
    sizes = [
        f"{escape(name)} {_bytes(size)} MB" if size else f"{escape(name)} did not fit"
        for name, size in (facts["memory_bytes"] or {}).items()
    ]
    memory = f"; memory of a step: {', '.join(sizes)}{no_memory_saved(facts)}" if sizes else ""
    return (
        f"<h2>Fine-tuning: {escape(facts['method'])}</h2>{table(('', '#before', '#after'), rows)}"
        f"<p class=note>{facts['trainable_parameters']:,} of {facts['parameters']:,} parameters trained "
        f"({100 * facts['trainable_share']:.2f}%), {facts['steps']:,} steps, {facts['gpu_hours']:.4f} "
        f"device-hours{cap}, {facts['tokens_per_second']:,.0f} tokens per second{memory}; "
        f"{'annealed' if facts['annealed'] else 'NOT annealed'}.</p>"
    )


def _score(found: Mapping[str, Any]) -> str:
    if found["score"] is None:
        return "not measured"
    error = found.get("standard_error")
    return f"{found['score']:.4f}" + (f" ± {error:.4f}" if error is not None else "")


def _bytes(count: float) -> str:
    return f"{count / 1e6:,.3f}" if count < 1e7 else f"{count / 1e6:,.1f}"


def _ratio(size: int, base: int) -> str:
    return f"{size / base:.2f}x" if base else ""


def _speed(row: Mapping[str, Any]) -> str:
    speed = row.get("tokens_per_second")
    return f"{speed:,.0f}" if speed else "not measured"


def _dollars(cost: float | None) -> str:
    return "" if cost is None else f"{cost:,.2f}"
