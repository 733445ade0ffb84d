"""Rows of a benchmark: figures with their goals, as a table and as the record that goes to disk."""

import operator
import platform
import subprocess
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from statistics import mean
from typing import Any

from scripts.growth_bench.lab import Run

Row = dict[str, Any]
Figure = Callable[[dict[str, Run]], float | None]


def row(name: str, value: float | None, unit: str, goal: str = "", reach: str = "", **more: Any) -> Row:
    """`goal` and `reach` as in "<= 0.60"; "" where there is none."""
    made: Row = {"name": name, "value": value, "unit": unit, "goal": goal or None, "met": _met(value, goal)}
    return made | ({"reach": reach, "reached": _met(value, reach)} if reach else {}) | more


def over_seeds(seeds: list[dict[str, Run]], name: str, of: Figure, unit: str, goal: str = "", reach: str = "") -> Row:
    """The mean over seeds, with its values per seed; None where a seed has none."""
    values = [of(runs) for runs in seeds]
    known = [value for value in values if value is not None]
    value = mean(known) if len(known) == len(values) else None
    return row(name, value, unit, goal, reach, per_seed=values)


def _met(value: float | None, goal: str) -> bool | None:
    if not goal:
        return None
    relation, limit = goal.split()
    holds = {"<=": operator.le, ">=": operator.ge, ">": operator.gt}[relation]
    return value is not None and holds(value, float(limit))


def show(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    lines = ["| figure | value | goal | met | reach |", "|---|---|---|---|---|"]
    for one in rows:
        value = "never" if one["value"] is None else f"{one['value']:.3f} {one['unit']}"
        met = {True: "yes", False: "**no**", None: ""}[one["met"]]
        reach = f"{one['reach']} {'yes' if one['reached'] else 'no'}" if one.get("reach") else ""
        lines.append(f"| {one['name']} | {value} | {one['goal'] or ''} | {met} | {reach} |")
    return "\n".join(lines)


def record(rows: list[Row], device: str = "cpu", **more: Any) -> dict[str, Any]:
    """What a benchmark writes: where it ran, on which commit, the rows."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    versions = {"python": platform.python_version(), "torch": metadata.version("torch")}
    machine = f"{platform.machine()}, one thread" if device == "cpu" else _card(device)
    facts = {"bench": "growth", "commit": commit.stdout.strip(), "machine": machine, "versions": versions}
    return facts | {"rows": rows, **more}


def _card(device: str) -> str:
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else device
