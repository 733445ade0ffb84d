"""How good and how varied the exercises are that templates write: verified again, stubbed, written twice, compared.

    scripts/with_env.sh scripts/bench_synthetic.py --json docs/results/data/bench_synthetic.json

Distinct n-grams are the different runs of n words and signs over all of them, in 2,000 exercises taken together; the
same figure for as much Python library text stands beside it. `--quick`: 200 exercises.
"""

import os
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
from datatrove.data import Document

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.corpus.duplicates import symbols
from pipeline.corpus.exercises.confined import PASSED, ConfinedRunner
from pipeline.corpus.exercises.exercise import DIFFICULTIES
from pipeline.corpus.exercises.source import TEMPLATES, Exercises
from pipeline.corpus.exercises.styles import STYLES, program_of
from pipeline.corpus.sources.python_library import PythonLibrary
from pipeline.corpus.text.documents import SetAside
from scripts.bench_data import SIMILARITY, clustered
from scripts.bench_rows import Part, Rows, at_least, at_most, main, row

COUNT, QUICK = 2_000, 200


def exercises(quick: bool) -> Rows:
    count = QUICK if quick else COUNT
    started = time.process_time() + children_seconds()
    items = list(Exercises(count=count).items(0, 1))
    seconds = time.process_time() + children_seconds() - started
    documents = [item for item in items if isinstance(item, Document)]
    refused = Counter(item.cause for item in items if isinstance(item, SetAside))
    texts = [d.text for d in documents]
    stubs_passed = sum(n for cause, n in refused.items() if cause.startswith("stub"))
    with ConfinedRunner() as runner:
        again = sum(runner.run(program_of(text)) == [PASSED] for text in texts)
    return [
        row("templates x difficulties x styles", len(TEMPLATES) * len(DIFFICULTIES) * len(STYLES), "cells"),
        row("ideas (template and variant) seen", len({d.metadata["group"] for d in documents}), "ideas"),
        at_least("written exercises that are kept", len(texts) / count, "share", 0.99),
        at_least("stubbed solutions that fail their tests, of all written", 1 - stubs_passed / count, "share", 0.99),
        at_least("kept exercises that pass again in a clean process", again / len(texts), "share", 1.0),
        row("processor time of an exercise", 1000 * seconds / count, "ms"),
        row("length", float(np.median([len(t) for t in texts])), "characters (median)"),
        row("  by style", dict(sorted(Counter(d.metadata["style"] for d in documents).items())), ""),
        row("  by difficulty", dict(sorted(Counter(d.metadata["difficulty"] for d in documents).items())), ""),
        *_variety(texts),
    ]


def _variety(texts: list[str]) -> Rows:
    size = sum(map(len, texts))
    library = _as_much(size)
    found = [
        at_most("exact duplicates", 1 - len(set(texts)) / len(texts), "share", 0.01),
        at_most(f"near duplicates at {SIMILARITY}", near_duplicates(texts, "exercise"), "share", 0.01),
        row("  if numbers and signs were all the same", near_duplicates(texts, "prose"), "share"),
    ]
    for n in (1, 2, 3, 5, 8):
        ours, of = distinct(texts, n)
        theirs, all_theirs = distinct(library, n)
        said = f"{ours / of:.3f} of all; library code of that size: {theirs:,}, {theirs / all_theirs:.3f}"
        found.append(row(f"distinct {n}-grams", ours, said))
    return found


def near_duplicates(texts: list[str], kind: str) -> float:
    """The share that near dedup would drop of texts of this kind."""
    return 1 - len(set(clustered(texts, kind).tolist())) / len(texts)


def _as_much(characters: int) -> list[str]:
    """Library code, as many characters."""
    texts, size = [], 0
    for doc in PythonLibrary(["networkx"], standard_library=False).items(0, 1):
        if isinstance(doc, Document) and size < characters:
            texts.append(doc.text[: characters - size])
            size += len(texts[-1])
    return texts


def distinct(texts: list[str], n: int) -> tuple[int, int]:
    """(different runs of `n` words and signs, all runs)."""
    seen: set[tuple[bytes, ...]] = set()
    total = 0
    for text in texts:
        found = list(symbols(text))
        total += max(0, len(found) - n + 1)
        seen.update(tuple(found[i : i + n]) for i in range(len(found) - n + 1))
    return len(seen), max(1, total)


def children_seconds() -> float:
    times = os.times()
    return times.children_user + times.children_system


if __name__ == "__main__":
    main(__file__, __doc__ or "", "bench_synthetic", {"exercises": Part(exercises)}, ("numpy", "rensa"))
