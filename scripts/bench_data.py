"""Figures of the data stage, on text that every machine has: packaged documentation and code, as prose.

`rules`: our prose rules against datatrove's classes with the same splitter. Every decision, reason and (C4) text must
be equal before any time is printed. CPU time of one process, stock and ours in turns, the median of the turns.
Each part is a function that returns rows; `--only` picks some.
"""

import argparse
import hashlib
import json
import os
import platform
import random
import subprocess
import sysconfig
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.filters.c4_filters import C4QualityFilter
from datatrove.pipeline.filters.fineweb_quality_filter import FineWebQualityFilter
from datatrove.pipeline.filters.gopher_quality_filter import GopherQualityFilter
from datatrove.pipeline.filters.gopher_repetition_filter import GopherRepetitionFilter
from datatrove.utils.text import split_into_parts

from data_filters.c4 import C4Quality
from data_filters.fineweb import FineWebQuality
from data_filters.gopher import GopherQuality
from data_filters.repetition import GopherRepetition
from data_filters.words import whitespace_splitter

Row = dict[str, Any]
Answer = tuple[str | None, str]
DOC_ENDINGS = (".md", ".rst", ".txt", "/METADATA")
TURNS, RULES_GOAL, RULES_MUST = 5, 10.0, 3.0


class Texts:
    """Installed packages' texts, `size` characters: all documentation, then code in a fixed order of files."""

    def __init__(self, size: int):
        root = Path(sysconfig.get_paths()["purelib"])
        files = sorted(f for f in root.rglob("*") if f.suffix in (".py", ".md", ".rst", ".txt") or f.name == "METADATA")
        random.Random(0).shuffle(files)
        files.sort(key=lambda f: not str(f).endswith(DOC_ENDINGS))
        self.docs: list[str] = []
        self.code: list[str] = []
        digest, left = hashlib.sha256(), size
        for file in files:
            is_doc = str(file).endswith(DOC_ENDINGS)
            if left <= (0 if not is_doc else size // 2) or not file.is_file():
                continue
            try:
                text = file.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue
            (self.docs if is_doc else self.code).append(text)
            digest.update(text.encode("utf-8", "surrogatepass"))
            left -= len(text)
        self.hash = digest.hexdigest()[:16]


def rules(texts: Texts, quick: bool) -> list[Row]:
    """Each rule on every text, and the four as a chain in which the first that drops a text is the last to see it."""
    splitter = whitespace_splitter()
    stock = {
        "gopher_repetition": GopherRepetitionFilter(language=splitter),
        "gopher_quality": GopherQualityFilter(language=splitter),
        "fineweb": FineWebQualityFilter(language=splitter),
        "c4": C4QualityFilter(language=splitter),
    }
    ours = {
        "gopher_repetition": GopherRepetition(),
        "gopher_quality": GopherQuality(),
        "fineweb": FineWebQuality(),
        "c4": C4Quality(remove_lines=True),
    }
    everything = [*texts.docs, *texts.code]
    turns = 1 if quick else TURNS
    jobs = [(name, [name], everything) for name in stock]
    jobs += [("all_four", list(stock), everything), ("chain", [], everything), ("chain_docs", [], texts.docs)]
    rows = []
    for name, names, inputs in jobs:
        megabytes = sum(len(text.encode("utf-8", "surrogatepass")) for text in inputs) / 1e6
        chain = not names
        chosen = names or list(stock)
        seconds: dict[str, list[float]] = {"stock": [], "ours": []}
        answers: dict[str, list[list[Answer]]] = {}
        for _ in range(turns):
            for side, filters in (("stock", stock), ("ours", ours)):
                split_into_parts.cache_clear()
                start = time.process_time()
                answers[side] = [_ask([filters[n] for n in chosen], text, chain) for text in inputs]
                seconds[side].append(time.process_time() - start)
        different = sum(a != b for a, b in zip(answers["stock"], answers["ours"], strict=True))
        if different:
            raise SystemExit(f"rules/{name}: {different} of {len(inputs)} texts are decided differently")
        ratio = median(seconds["stock"]) / median(seconds["ours"])
        goal = RULES_GOAL if name == "chain" else None
        rows += [
            _row(f"rules/{name}/equal_decisions", 100.0, "%", 100.0, True),
            _row(f"rules/{name}/stock", round(megabytes / median(seconds["stock"]), 2), "MB/s"),
            _row(f"rules/{name}/ours", round(megabytes / median(seconds["ours"]), 2), "MB/s"),
            _row(f"rules/{name}/ratio", round(ratio, 2), "x", goal, None if goal is None else ratio >= goal),
        ]
        if name == "chain":
            rows.append(_row("rules/chain/must", round(ratio, 2), "x", RULES_MUST, ratio >= RULES_MUST))
    return rows


def _ask(filters: list[Any], text: str, chain: bool) -> list[Answer]:
    """Reason and resulting text of each filter; in a chain up to the first that drops the document."""
    answers: list[Answer] = []
    doc = Document(text, "")
    for one in filters:
        if not chain:
            doc = Document(text, "")
        found = one.filter(doc)
        if found is not True:
            reason = found[1] if isinstance(found[1], str) else found[1].reason
            answers.append((reason, ""))
            if chain:
                break
        else:
            answers.append((None, doc.text))
    return answers


PARTS: dict[str, Callable[[Texts, bool], list[Row]]] = {"rules": rules}


def _row(name: str, value: float, unit: str, goal: float | None = None, met: bool | None = None) -> Row:
    return {"name": name, "value": value, "unit": unit, "goal": goal, "met": met}


def record(rows: list[Row], input_hash: str) -> dict[str, Any]:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    versions = {"python": platform.python_version()} | {n: metadata.version(n) for n in ("datatrove", "numpy")}
    return {
        "bench": "data",
        "commit": commit.stdout.strip(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, one process",
        "versions": versions,
        "input": input_hash,
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="file to write the rows to")
    parser.add_argument("--quick", action="store_true", help="1 MB and one turn: shows that it runs, proves nothing")
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts, of {', '.join(PARTS)}")
    parser.add_argument("--megabytes", type=float, default=20.0)
    arguments = parser.parse_args()
    chosen = arguments.only.split(",")
    if unknown := [name for name in chosen if name not in PARTS]:
        raise SystemExit(f"--only: {', '.join(unknown)} is no part; expected some of {', '.join(PARTS)}")
    texts = Texts(1_000_000 if arguments.quick else int(arguments.megabytes * 1e6))
    n = len(texts.docs) + len(texts.code)
    print(f"{n:,} texts ({len(texts.docs):,} documentation), input {texts.hash}")
    rows = [row for name in chosen for row in PARTS[name](texts, arguments.quick)]
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        goal = "" if row["goal"] is None else f"  goal {row['goal']:g}  {'met' if row['met'] else 'NOT MET'}"
        print(f"{row['name']:<{width}}  {row['value']:>10,.2f} {row['unit']:<5}{goal}")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(record(rows, texts.hash), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
