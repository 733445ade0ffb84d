"""How well the shipped scorer does: known and left-out domains, texts to fool, an adversary, agreement, speed.

    python scripts/bench_scorer.py FOLDER        # FOLDER as for train_scorer.py; prints JSON: docs/results/data

Every figure but the adversary's and the speed is of scorers that saw neither the document's package nor, of texts to
fool, their kind. Folds hold whole packages. 24 fits of two seconds each.
"""

import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_filters.rule import CODE
from pipeline.corpus.scorers import fooling
from pipeline.corpus.scorers.document_scorers import Shipped
from pipeline.corpus.scorers.features import BATCH_DOCUMENTS, HEAD_CHARACTERS, Sparse
from pipeline.corpus.scorers.labels import PYTHON_LIBRARY, SECOND_LABELS, Label, fooling_rows, read_labels, rows_of
from pipeline.corpus.scorers.linear import GOOD, auc, auc_interval, calibrate, fold_by_group, train
from scripts.train_scorer import rated_documents

FOLDS, CUT, LEAST_OF_EACH = 5, 0.5, 5
ATTACKED, TRIES = 45, 200
EXAMPLES_AT = (0.05, 0.25, 0.5, 0.75, 0.95)
_EXPLANATIONS = re.compile(
    r'(?s)""".*?"""|\'\'\'.*?\'\'\'|/\*.*?\*/|(?m:^\s*(?:#(?!include|define|if|endif)|//|--\s).*$)'
)


def measure(labels: Sequence[Label], documents: Sequence[Document]) -> dict[str, Any]:
    scores, groups = np.array([label.score for label in labels]), [label.group for label in labels]
    domains, good = np.array([label.domain for label in labels]), scores >= GOOD
    kinds = np.array([document.metadata["kind"] for document in documents])
    stripped = [Document(text=_EXPLANATIONS.sub("", d.text), id=d.id, metadata=d.metadata) for d in documents]
    fooled, fooled_kinds = fooling_rows([document.text for document in documents], len(documents) // 2)
    rows = Sparse.stack([rows_of(documents), fooled, rows_of(stripped)])
    n, n_fooled = len(documents), len(fooled_kinds)
    ratings = np.concatenate([scores, np.zeros(n_fooled, dtype=scores.dtype)])
    folds = fold_by_group([*groups, *fooled_kinds], FOLDS)
    unseen, bare = np.zeros(n + n_fooled), np.zeros(n)
    for fold in range(FOLDS):
        held, seen = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        scorer = train(rows.take(seen), ratings[seen])
        unseen[held] = scorer.logits(rows.take(held))
        own = held[held < n]
        bare[own] = scorer.logits(rows.take(own + n + n_fooled))
    scorer = calibrate(scorer, unseen[:n], good)
    probability, of_fooling = scorer.calibrated(unseen[:n]), scorer.calibrated(unseen[n:])
    left_out = {}
    for domain in sorted(set(domains)):
        inside = domains == domain
        if min(good[inside].sum(), (~good[inside]).sum()) >= LEAST_OF_EACH:
            seen = np.flatnonzero(np.concatenate([~inside, np.ones(n_fooled, dtype=bool)]))
            logits = train(rows.take(seen), ratings[seen]).logits(rows.take(np.flatnonzero(inside)))
            left_out[domain] = round(auc(logits, good[inside]), 3)
            print(f"{domain}: {left_out[domain]}", file=sys.stderr, flush=True)
    is_code = kinds == CODE
    return {
        "documents": n,
        "auc_unseen_packages": round(auc(probability, good), 4),
        "auc_interval": auc_interval(probability, good, groups),
        "auc_left_out": {"mean": round(float(np.mean(list(left_out.values()))), 3), "least": min(left_out.values())},
        "auc_code_without_explanations": round(auc(bare[is_code], good[is_code]), 3),
        "auc_code": round(auc(probability[is_code], good[is_code]), 3),
        "textbook_grade_passes": round(float((probability[scores >= 4] >= CUT).mean()), 3),
        "fooling_passes": round(float((of_fooling >= CUT).mean()), 3),
        "fooling_passes_by_kind": {
            kind: round(float((of_fooling[np.array(fooled_kinds) == kind] >= CUT).mean()), 3) for kind in fooling.KINDS
        },
        "calibration": _calibration(probability, good),
        "domains": {
            str(domain): _of_domain(labels, probability, good, domains == domain)
            | {"auc_left_out": left_out.get(domain)}
            for domain in sorted(set(domains))
        },
    }


def _calibration(probability: np.ndarray, good: np.ndarray) -> list[dict[str, float]]:
    tenths = np.minimum(9, (probability * 10).astype(int))
    return [
        {"documents": int((tenths == t).sum()), "score": round(float(probability[tenths == t].mean()), 3),
         "good": round(float(good[tenths == t].mean()), 3)}
        for t in range(10) if (tenths == t).any()
    ]  # fmt: skip


def _of_domain(
    labels: Sequence[Label], probability: np.ndarray, good: np.ndarray, inside: np.ndarray
) -> dict[str, Any]:
    own = np.flatnonzero(inside)
    both = LEAST_OF_EACH <= good[own].sum() <= len(own) - LEAST_OF_EACH
    draws, examples = random.Random(0), []
    for wanted in EXAMPLES_AT:
        near = [i for i in own if abs(probability[i] - wanted) <= 0.1] or list(own)
        label = labels[i := int(draws.choice(near))]
        examples.append({"score": round(float(probability[i]), 2), "rating": label.score,
                         "document": f"{label.distribution} {label.path}"})  # fmt: skip
    return {
        "documents": len(own), "good": int(good[own].sum()),
        "auc": round(auc(probability[own], good[own]), 3) if both else None,
        "mean_score": round(float(probability[own].mean()), 3),
        "passes": round(float((probability[own] >= CUT).mean()), 3),
        "good_passes": round(float((probability[own][good[own]] >= CUT).mean()), 3) if good[own].any() else None,
        "examples": examples,
    }  # fmt: skip


def agreement(labels: Sequence[Label]) -> dict[str, Any]:
    """Between the first and the second rating of a document: graded, and at the threshold."""
    first = {(label.sha256, label.start): label for label in labels}
    pairs = [(first[key], second) for second in read_labels(SECOND_LABELS)
             if (key := (second.sha256, second.start)) in first]  # fmt: skip
    found: dict[str, Any] = {}
    for name in (*sorted({label.domain for label, _ in pairs}), "all", "other than the python library"):
        others = name.startswith("other")
        chosen = [(a.score, b.score) for a, b in pairs
                  if name in ("all", a.domain) or (others and a.domain != PYTHON_LIBRARY)]  # fmt: skip
        a, b = np.array(chosen).reshape(-1, 2).T
        if len(a):
            table = np.histogram2d(a, b, bins=np.arange(7) - 0.5)[0]
            weights = (np.arange(6)[:, None] - np.arange(6)) ** 2
            chance = np.outer(table.sum(1), table.sum(0)) / len(a)
            x, y = a >= GOOD, b >= GOOD
            by_chance = x.mean() * y.mean() + (1 - x.mean()) * (1 - y.mean())
            same = float((x == y).mean())
            found[name] = {
                "documents": len(a), "exact": round(float((a == b).mean()), 3),
                "within_one": round(float((abs(a - b) <= 1).mean()), 3),
                "kappa_quadratic": round(float(1 - (weights * table).sum() / max(1e-9, (weights * chance).sum())), 3),
                "at_threshold": round(same, 3),
                "kappa_at_threshold": round(float((same - by_chance) / max(1e-9, 1 - by_chance)), 3),
            }  # fmt: skip
    return found


def adversary(documents: Sequence[Document]) -> dict[str, Any]:
    """How many of some nonsense texts pass the cut after so many tries each."""
    shipped, texts = Shipped(), [document.text for document in documents]

    def score(given: Sequence[str]) -> Sequence[float]:
        return shipped.scores([Document(text=text, id="") for text in given]).tolist()

    kinds = list(fooling.KINDS)
    starts = [fooling.make(kinds[i % len(kinds)], texts, 10_000 + i) for i in range(ATTACKED)]
    reached = {0: [score([text])[0] for text in starts]}
    draws = [random.Random(i) for i in range(ATTACKED)]
    for tries in (10, 50, 100, TRIES):
        more = tries - max(reached)
        found = [fooling.attack(score, text, more, own) for text, own in zip(starts, draws, strict=True)]
        starts, reached[tries] = [text for text, _ in found], [value for _, value in found]
    return {
        "texts": ATTACKED,
        "pass_after_tries": {tries: round(float((np.array(v) >= CUT).mean()), 3) for tries, v in reached.items()},
    }


def speed(documents: Sequence[Document]) -> dict[str, float]:
    """MB/s of one core by processor time, of whole texts and of what is looked at; the best of three."""
    shipped, taken = Shipped(), []
    for _ in range(3):
        started = time.process_time()
        for first in range(0, len(documents), BATCH_DOCUMENTS):
            shipped.scores(documents[first : first + BATCH_DOCUMENTS])
        taken.append(time.process_time() - started)
    looked_at = sum(len(document.text[:HEAD_CHARACTERS].encode()) for document in documents)
    whole = sum(len(document.text.encode()) for document in documents)
    return {"looked_at_mb_per_second": round(looked_at / min(taken) / 1e6, 1),
            "texts_mb_per_second": round(whole / min(taken) / 1e6, 1)}  # fmt: skip


if __name__ == "__main__":
    labels, documents = rated_documents(Path(sys.argv[1]))
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    found = {"commit": commit, **measure(labels, documents), "agreement": agreement(labels)}
    found |= {"adversary": adversary(documents), "speed": speed(documents)}
    print(json.dumps(found, indent=1))
