"""Does the quality cut pay? Models trained on kept, random and lowest-scored text, at equal tokens and at equal hours.

    scripts/with_env.sh scripts/bench_data_quality.py --json docs/results/data/bench_data_quality.json

In: configs/tiny.yaml's Python library text, made once in $HORNBOOK_ROOT/quality. Every arm trains the same 0.7M model
from the same start for the same tokens, so also for the same hours; three seeds, each with another third of the
packages held out (a fold), and nine for the comparison that is judged. Judged by bits per byte on held-out documents
rated 4 or 5 (`textbook`), 3 to 5 (`good`), 0 or 1 (`poor`), and on text as it comes (`general`). Differences are paired
by seed and averaged within each fold: trainings on one fold share what they read and what they are judged by, so the
folds are the units of the 95% intervals (Student's t), and `by_fold` holds each fold's mean difference.
"""

import os
import sys
import time
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.studies.analysis import estimate
from scripts.bench_rows import ROOT, Part, Rows, main, row
from scripts.data_bench.quality import SEEDS, Corpus, bits_per_byte, first_tokens, load, total_tokens, train

TOKENS, QUICK_TOKENS = 409_600, 40_960
BASE, KEPT = "random", "score 0.5 or more"
HARD_EPOCHS = 4
MOST_SEEDS = 3 * SEEDS  # of the comparison that is judged: every fold of packages with three seeds

Losses = dict[str, dict[str, dict[int, float]]]  # arm -> held-out set -> seed -> bits per byte


def run(quick: bool) -> Rows:
    corpus = load(Path(os.environ.get("HORNBOOK_ROOT") or ROOT) / "quality")
    losses: Losses = {}
    for seed in range(2 if quick else MOST_SEEDS):
        measure(corpus, seed, QUICK_TOKENS if quick else TOKENS, losses)
    return rows_of(corpus, losses)


def measure(corpus: Corpus, seed: int, tokens: int, losses: Losses) -> None:
    """Adds what the arms of a seed reach; all of them in the first seeds, the judged two in all."""
    judged = corpus.judged(seed)
    for name, (documents, times) in arms(corpus, seed, tokens).items():
        if seed >= SEEDS and name not in (BASE, KEPT):
            continue
        started = time.process_time()
        network = train(corpus, documents, int(tokens * times), seed)
        for held_out, chosen in judged.items():
            found = losses.setdefault(name, {}).setdefault(held_out, {})
            found[seed] = round(float(bits_per_byte(network, corpus, chosen)), 4)
        said = ", ".join(f"{held_out} {found[seed]}" for held_out, found in losses[name].items())
        print(f"seed {seed}, {name}: {said} ({time.process_time() - started:.0f} s)", flush=True)


def rows_of(corpus: Corpus, losses: Losses) -> Rows:
    rows, pool = Rows(), corpus.pool(0)
    for limit in (0.3, 0.5, 0.7):
        share = total_tokens(corpus, pool[corpus.scores[pool] >= limit]) / total_tokens(corpus, pool)
        rows.append(row(f"share of the pool's tokens that score {limit:g} or more", round(share, 4), "share"))
    for held_out in losses[BASE]:
        for name, found in losses.items():
            first = [value for seed, value in found[held_out].items() if seed < SEEDS]
            rows.append(row(f"{held_out}: {name}", round(mean(first), 4), "bits per byte"))
            if name != BASE:
                rows.append(_difference(f"{held_out}: {name} against {BASE}", found[held_out], losses[BASE][held_out]))
        hard, mild = losses[_hard()][held_out], losses[KEPT][held_out]
        rows.append(_difference(f"{held_out}: {_hard()} against {KEPT}, once", hard, mild))
    judged = next(r for r in rows if r["name"] == f"textbook: {KEPT} against {BASE}")
    judged.update(goal="interval below 0", met=judged["value"][2] < 0)
    return rows


def arms(corpus: Corpus, seed: int, tokens: int) -> dict[str, tuple[np.ndarray, float]]:
    """By name: the documents an arm reads, in order, and how many times `tokens` it trains."""
    pool = corpus.pool(seed)
    best_first = pool[np.argsort(-corpus.scores[pool], kind="stable")]
    found = {
        f"score {limit:g} or more": (pool[corpus.scores[pool] >= np.float32(limit)], 1.0) for limit in (0.3, 0.5, 0.7)
    }
    return {
        BASE: (pool, 1.0),
        **found,
        "lowest scores": (best_first[::-1], 1.0),
        _hard(): (first_tokens(corpus, best_first, tokens // HARD_EPOCHS), 1.0),
        f"{BASE}, twice the tokens": (pool, 2.0),
    }


def _hard() -> str:
    return f"highest scores, a quarter {HARD_EPOCHS} times"


def _difference(name: str, arm: dict[int, float], base: dict[int, float]) -> dict[str, Any]:
    """Mean over the folds of the differences paired by seed, with its interval: [low, mean, high]; below 0 the arm is
    better."""
    by_fold: dict[int, list[float]] = {}
    for seed in sorted(arm.keys() & base.keys()):
        by_fold.setdefault(seed % SEEDS, []).append(arm[seed] - base[seed])
    found = estimate(by_fold)
    assert found is not None
    low, high = found.interval or (None, None)
    value = [round(v, 4) for v in (low, found.mean, high) if v is not None]
    shown = row(name, value, f"bits per byte, {found.seeds} folds, {found.differences} pairs")
    return {**shown, "by_fold": {str(fold): round(mean(pairs), 4) for fold, pairs in by_fold.items()}}


PARTS = {"arms": Part(run)}

if __name__ == "__main__":
    main(__file__, __doc__ or "", "data_quality", PARTS, ("torch", "numpy", "datatrove"))
