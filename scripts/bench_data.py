"""The data stage beside stock datatrove, on one core and on text that every Python environment has.

    scripts/with_env.sh scripts/bench_data.py --json docs/data/bench_data.json
    scripts/with_env.sh scripts/bench_data.py --quick --only rules,near

Stock datatrove splits English with spaCy and hashes with xxhash below 4: `pip install -e '.[bench]'` in an environment
of its own. CPU time, medians of paired runs; every part is a fresh process, so that memory and caches are its own.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

Rows = list[dict[str, Any]]
LIBRARIES = ("datatrove", "numpy", "rensa", "tokenizers", "spacy", "xxhash", "orjson")


def _near(quick: bool) -> Rows:
    from scripts.data_bench import near

    return near.run(4 if quick else 16, quick)


def _scale(quick: bool) -> Rows:
    from scripts.data_bench import near

    return near.run_scale(200_000 if quick else 10_000_000)


def _tokens(quick: bool) -> Rows:
    from scripts.data_bench import tokens

    return tokens.run(4 if quick else 40, quick)


def _rules(quick: bool) -> Rows:
    from scripts.data_bench import rules

    return rules.run(2 if quick else 20, quick)


def _chain(quick: bool) -> Rows:
    from scripts.data_bench import chain

    return chain.run(4 if quick else 24, quick)


def _memory(quick: bool) -> Rows:
    from scripts.data_bench import chain

    return chain.run_memory(4 if quick else 60)


def _decontaminate(quick: bool) -> Rows:
    from scripts.data_bench import decontaminate

    return decontaminate.run(6 if quick else 60, quick)


def _tiny(quick: bool) -> Rows:
    from scripts.data_bench import whole

    return whole.run_tiny()


def _determinism(quick: bool) -> Rows:
    from scripts.data_bench import whole

    return whole.run_determinism()


# part -> (its function, whether it keeps to one core, whether --quick leaves it out)
PARTS: dict[str, tuple[Callable[[bool], Rows], bool, bool]] = {
    "rules": (_rules, True, False),
    "near": (_near, True, False),
    "tokens": (_tokens, True, False),
    "chain": (_chain, True, False),
    "decontaminate": (_decontaminate, True, False),
    "memory": (_memory, True, False),
    "scale": (_scale, True, False),
    "tiny": (_tiny, False, True),
    "determinism": (_determinism, False, True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="file to write the rows to")
    parser.add_argument("--quick", action="store_true", help="little text, within two minutes: shows that it runs")
    parser.add_argument("--only", help=f"parts, of {', '.join(PARTS)}")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        _run_here(arguments.part, arguments.quick)
        return
    chosen = (
        arguments.only.split(",") if arguments.only else [n for n, p in PARTS.items() if not (arguments.quick and p[2])]
    )
    if unknown := [name for name in chosen if name not in PARTS]:
        raise SystemExit(f"--only: {', '.join(unknown)} is no part; expected some of {', '.join(PARTS)}")
    rows = [row for name in chosen for row in _run_apart(name, arguments.quick)]
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(_record(rows), indent=1) + "\n", encoding="utf-8")
    missed = [row["name"] for row in rows if row["met"] is False]
    print(f"{len(missed)} goals missed" + "".join(f"\n  {name}" for name in missed))


def _run_apart(name: str, quick: bool) -> Rows:
    """One part in a process of its own; its rows are printed as they come."""
    read, write = os.pipe()
    command = [sys.executable, str(Path(__file__).resolve()), "--part", name, *(["--quick"] if quick else [])]
    environment = {**os.environ, "HORNBOOK_BENCH_ROWS": str(write)}
    with tempfile.TemporaryFile("w+") as said:  # datatrove's loggers write a page a step
        process = subprocess.Popen(command, pass_fds=[write], env=environment, stdout=said, stderr=said)
        os.close(write)
        with os.fdopen(read, encoding="utf-8") as pipe:
            text = pipe.read()
        if process.wait():
            said.seek(0)
            raise SystemExit(f"{said.read()[-4000:]}\npart {name} failed, see above")
    rows: Rows = json.loads(text)
    for row in rows:
        goal = "" if row["goal"] is None else f"  {row['goal']:>10}  {'met' if row['met'] else 'NOT MET'}"
        value = f"{row['value']:,.4g}" if isinstance(row["value"], float) else str(row["value"])
        print(f"{row['name']:<88} {value:>12} {row['unit']:<9}{goal}", flush=True)
    return rows


def _run_here(name: str, quick: bool) -> None:
    function, one_core, _ = PARTS[name]
    from loguru import logger

    from scripts.data_bench import corpus

    logger.remove()
    if one_core:
        corpus.one_core()
    rows = [{**row, "part": name} for row in function(quick)]
    with os.fdopen(int(os.environ["HORNBOOK_BENCH_ROWS"]), "w", encoding="utf-8") as pipe:
        json.dump(rows, pipe)


def _record(rows: Rows) -> dict[str, Any]:
    from scripts.data_bench.corpus import sample

    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=ROOT).stdout.strip()
    versions = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            versions[library] = "not installed"
    return {
        "bench": "data",
        "commit": commit,
        "machine": f"{_processor()}, {os.cpu_count()} CPUs, one core used but for tiny and determinism",
        "versions": versions,
        "input_sha256": sample(20).sha256,
        "rows": rows,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
