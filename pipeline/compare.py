"""`hornbook compare A B`: two runs side by side: what differs in their configs, and what each reached.

In: two experiments (names under `runs/`, or configs) whose pretraining has rows of metrics. Out: a table on the
terminal, and `runs/<A>/compare-<B>.html` with the curves over tokens, device-hours and money. Where one run reaches the
other's loss is an estimate: it is read off the validation curve by straight lines between its points.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline import config as configs
from pipeline import runs
from pipeline.config import Config
from pipeline.pages import html
from pipeline.pages.charts import Line, line_chart
from pipeline.storage.files import read_metrics, root, write_text
from pipeline.storage.steps import read_manifest
from pipeline.system.errors import UserError
from pipeline.system.progress import aligned, format_bytes, format_count

LOSS = "val/bits_per_byte"
AXIS_NAMES = {"hours": "device-hours"}
FIGURES: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("parameters", "parameters", format_count),
    ("tokens_seen", "tokens", format_count),
    ("gpu_hours_total", "device-hours", "{:.4f}".format),
    ("cost", "cost", "{:.2f}".format),
    ("tokens_per_second", "tokens per second", "{:,.0f}".format),
    ("mfu", "MFU", "{:.1%}".format),
    ("peak_memory_bytes", "peak memory", format_bytes),
    ("val_bits_per_byte", "bits per byte", "{:.4f}".format),
    ("val_bits_per_byte_interval", "95% interval", lambda found: f"{found[0]:.4f} to {found[1]:.4f}"),
)


def compare(first: str, second: str) -> dict[str, Any]:
    """`{names, differences {key: [a, b]}, figures {name: [a, b]}, equal_loss, curves}` as plain JSON values.

    Raises `UserError` for an unknown experiment, or one that has not trained yet.
    """
    loaded = [runs.load(word) for word in (first, second)]
    sides = [_side(config) for config in loaded]
    flat = [configs.flat(configs.to_values(config)) for config in loaded]
    keys = [key for key in {**flat[0], **flat[1]} if flat[0].get(key) != flat[1].get(key)]
    figures = {label: [side["facts"].get(key) for side in sides] for key, label, _ in FIGURES}
    sets = dict.fromkeys(name for side in sides for name in side["facts"].get("bits_per_byte", {}))
    figures |= {f"  {name}": [side["facts"].get("bits_per_byte", {}).get(name) for side in sides] for name in sets}
    curves = [side["curve"] for side in sides]
    return {
        "names": [config.name for config in loaded],
        "differences": {key: [flat[0].get(key), flat[1].get(key)] for key in keys if key != "name"},
        "figures": {name: pair for name, pair in figures.items() if pair != [None, None]},
        "equal_loss": _equal_loss(curves),
        "curves": curves,
    }


def write_page(facts: Mapping[str, Any]) -> Path:
    """The self-contained page beside the first run's report; returns its path."""
    a, b = facts["names"]
    path = root() / "runs" / a / f"compare-{b.replace('/', '-')}.html"
    axes: dict[str, Callable[[Any], str]] = {"tokens": format_count, "hours": "{:g}".format, "cost": "{:g}".format}
    charts = {AXIS_NAMES.get(key, key): _chart(facts, key, form) for key, form in axes.items()}
    page = html.render(
        "compare.html",
        heading=f"{a} and {b}",
        heads=["", f"#{a}", f"#{b}"],
        figures=[[name.strip(), *(_figure(name, value) for value in pair)] for name, pair in facts["figures"].items()],
        differences=[[key, *map(_plain, pair)] for key, pair in facts["differences"].items()],
        sentence=_sentence(facts),
        charts=charts,
    )
    write_text(path, page)
    return path


def show(facts: Mapping[str, Any], page: Path) -> str:
    """For a person: figures side by side, the keys that differ, where the page is."""
    a, b = facts["names"]
    rows = [["", a, b], *([name, *(_figure(name, v) for v in pair)] for name, pair in facts["figures"].items())]
    lines = [*aligned(rows, left=1), _sentence(facts), "config:"]
    rows = [[key, *map(_plain, pair)] for key, pair in facts["differences"].items()]
    lines += [f"  {line}" for line in aligned(rows, left=1)] if rows else ["  no difference but the name"]
    return "\n".join([*lines, f"curves: {page}"])


def _side(config: Config) -> dict[str, Any]:
    folder = runs.links(config.name).get("pretrain") if (root() / "runs" / config.name).is_dir() else None
    metrics = folder / "metrics.jsonl" if folder else None
    if folder is None or metrics is None or not metrics.is_file():
        raise UserError(f"'{config.name}' has not trained yet; run: hornbook pretrain <its config>")
    price = config.budget.gpu_hour_price
    facts = dict(read_manifest(folder)) if runs.state(folder) == runs.DONE else {}
    facts["parameters"] = config.model.parameters
    facts["cost"] = facts["gpu_hours_total"] * price if price and "gpu_hours_total" in facts else None
    curve = [
        {
            "tokens": row["budget/tokens"],
            "hours": row.get("budget/gpu_hours"),
            "cost": row["budget/gpu_hours"] * price if price and row.get("budget/gpu_hours") is not None else None,
            "bits_per_byte": row[LOSS],
        }
        for row in read_metrics(metrics)
        if row.get(LOSS) is not None and row.get("budget/tokens") is not None
    ]
    return {"facts": facts, "curve": curve}


def _equal_loss(curves: Sequence[Sequence[Mapping[str, float]]]) -> dict[str, Any] | None:
    """Where the better run reached the other's last loss: its share of the other's tokens and hours."""
    if not all(curves):
        return None
    ends = [curve[-1]["bits_per_byte"] for curve in curves]
    better = ends.index(min(ends))
    goal, other = ends[1 - better], curves[1 - better][-1]
    shares = {"better": better, "bits_per_byte": goal}
    for key in ("tokens", "hours"):
        reached = _reached(curves[better], key, goal)
        shares[key] = reached / other[key] if reached is not None and other[key] else None
    return shares


def _reached(curve: Sequence[Mapping[str, float]], key: str, goal: float) -> float | None:
    """Where a curve first comes down to `goal`, by a straight line between the points on either side."""
    for before, after in itertools.pairwise(curve):
        if before["bits_per_byte"] > goal >= after["bits_per_byte"] and None not in (before[key], after[key]):
            share = (before["bits_per_byte"] - goal) / (before["bits_per_byte"] - after["bits_per_byte"])
            return before[key] + share * (after[key] - before[key])
    return None


def _sentence(facts: Mapping[str, Any]) -> str:
    equal = facts["equal_loss"]
    if equal is None:
        return "one of them has not been validated yet"
    better, other = facts["names"][equal["better"]], facts["names"][1 - equal["better"]]
    shares = [f"{equal[key]:.2f} of its {key}" for key in ("tokens", "hours") if equal[key]]
    reached = f", read off its curve, after about {' and '.join(shares)}" if shares else ""
    return f"{better} reaches the last {equal['bits_per_byte']:.4f} bits per byte of {other}{reached}"


def _chart(facts: Mapping[str, Any], key: str, form: Callable[[float], str]) -> str:
    lines = [
        Line(name, [(row[key], row["bits_per_byte"]) for row in curve if row[key] is not None], colour, marks=True)
        for name, curve, colour in zip(facts["names"], facts["curves"], ("--a", "--b"), strict=True)
    ]
    return line_chart(lines, x_name=AXIS_NAMES.get(key, key), y_name="bits per byte", format_x=form)


def _figure(name: str, value: Any) -> str:
    if value is None:
        return "-"
    form = next((form for _, label, form in FIGURES if label == name), "{:.4f}".format)
    return form(value)


def _plain(value: Any) -> str:
    return "null" if value is None else str(value)
