"""Rows of a benchmark, one form for all: judged against a goal, printed as they come, written with the machine.

A row is {"name", "value", "unit", "goal", "met"}; `goal` None: reported, not judged. A part of a benchmark is a
function that returns rows, and runs in a process of its own, so that memory, caches and settings are its own.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]
ROOT = Path(__file__).resolve().parents[1]
ROWS = "rows: "  # begins the line in which a part's process gives its rows


@dataclass(frozen=True)
class Part:
    """`run(quick)` returns the rows. `one_core`: it and its children keep to one; `slow`: --quick leaves it out."""

    run: Callable[[bool], Rows]
    one_core: bool = True
    slow: bool = False


def row(name: str, value: Any, unit: str, goal: Any = None, met: bool | None = None) -> dict[str, Any]:
    """One line of the table."""
    return {"name": name, "value": value, "unit": unit, "goal": goal, "met": met}


def at_least(name: str, value: float, unit: str, goal: float) -> dict[str, Any]:
    return row(name, round(value, 4), unit, f">= {goal:g}", value >= goal)


def at_most(name: str, value: float, unit: str, goal: float) -> dict[str, Any]:
    return row(name, round(value, 4), unit, f"<= {goal:g}", value <= goal)


def main(
    script: str,
    description: str,
    bench: str,
    parts: Mapping[str, Part],
    libraries: Iterable[str],
    more: Callable[[], dict[str, Any]] = dict,
) -> None:
    """The command line of a benchmark: `--json FILE`, `--quick`, `--only PARTS`. `more`: further keys of the record.

    With `--only`, rows that the file has of other parts stay, with the commit that they were measured at."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="file to write the rows to")
    parser.add_argument("--quick", action="store_true", help="little work, within two minutes: shows that it runs")
    parser.add_argument("--only", help=f"parts, of {', '.join(parts)}")
    parser.add_argument("--part", choices=parts, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        _run_here(arguments.part, parts[arguments.part], arguments.quick)
        return
    quick = [name for name, part in parts.items() if not (arguments.quick and part.slow)]
    chosen = arguments.only.split(",") if arguments.only else quick
    if unknown := [name for name in chosen if name not in parts]:
        raise SystemExit(f"--only: {', '.join(unknown)} is no part; expected some of {', '.join(parts)}")
    rows: Rows = []
    kept = _kept(Path(arguments.json), set(parts) - set(chosen)) if arguments.json and arguments.only else []
    for name in chosen:
        rows += _run_apart(script, name, arguments.quick)
        if arguments.json:  # after every part: an hour of measuring is not lost to the failure of the next one
            ordered = sorted(kept + rows, key=lambda row: list(parts).index(row["part"]))
            content = {**record(bench, ordered, libraries), **more()}
            Path(arguments.json).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    missed = [row["name"] for row in rows if row["met"] is False]
    print(f"{len(missed)} goals missed" + "".join(f"\n  {name}" for name in missed))


def one_core() -> None:
    """This process and its children on one core, one thread each."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ[name] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _run_apart(script: str, name: str, quick: bool) -> Rows:
    """One part in a process of its own; its rows are printed when they come."""
    command = [sys.executable, script, "--part", name, *(["--quick"] if quick else [])]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{(done.stdout + done.stderr)[-4000:]}\npart {name} failed, see above")
    found = [line for line in done.stdout.splitlines() if line.startswith(ROWS)]  # libraries write a page a step
    rows: Rows = json.loads(found[-1].removeprefix(ROWS))
    for line in rows:
        goal = "" if line["goal"] is None else f"  {line['goal']:>10}  {'met' if line['met'] else 'NOT MET'}"
        value = f"{line['value']:,.4g}" if isinstance(line["value"], float) else str(line["value"])
        print(f"{line['name']:<88} {value:>12} {line['unit']:<9}{goal}", flush=True)
    return rows


def _run_here(name: str, part: Part, quick: bool) -> None:
    if part.one_core:
        one_core()
    print(f"\n{ROWS}{json.dumps([{**line, 'part': name} for line in part.run(quick)])}", flush=True)


def _kept(path: Path, others: set[str]) -> Rows:
    """The rows that a file has of parts that are not measured now."""
    if not path.is_file():
        return []
    earlier = json.loads(path.read_text(encoding="utf-8"))
    return [{"commit": earlier["commit"], **row} for row in earlier["rows"] if row.get("part") in others]


def record(bench: str, rows: Rows, libraries: Iterable[str]) -> dict[str, Any]:
    from pipeline.training.devices import cpu_name  # loads torch

    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=ROOT).stdout.strip()
    versions = {"python": platform.python_version()}
    for library in libraries:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            versions[library] = "not installed"
    return {
        "bench": bench,
        "commit": commit,
        "machine": f"{cpu_name()}, {os.cpu_count()} CPUs, one core used where the part does not say otherwise",
        "versions": versions,
        "rows": rows,
    }
