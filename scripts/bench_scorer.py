"""How well quality scorers rank the rated documents, packages disjoint, and how fast the shipped one is.

    scripts/with_env.sh scripts/bench_scorer.py --json docs/results/data/bench_scorer.json

In: the labels in pipeline/corpus/scorers/gold and the distributions they name, as installed. Good is a score >= 3.
AUC is over documents of packages that were not trained on (10 folds, packages whole), with a 95% interval from
resampling packages. `--quick` leaves out the scorers of parts of the features.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from datatrove.data import Document

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_filters.rule import CODE
from pipeline.corpus.scorers.document_scorers import SHIPPED
from pipeline.corpus.scorers.features import BATCH_DOCUMENTS, HEAD_CHARACTERS, Sparse, docstring_share, features
from pipeline.corpus.scorers.labels import (
    SECOND_LABELS,
    Label,
    compare_raters,
    find_documents,
    read_labels,
    repaired,
    rows_of,
)
from pipeline.corpus.scorers.linear import GOOD, Scorer, auc, auc_interval, load_scorer, unseen_logits
from scripts.bench_rows import Part, Rows, at_least, main, row

REPEATS = 5


@cache
def rated() -> tuple[list[Label], list[Document]]:
    """The labels whose texts are installed here, and those, repaired."""
    labels = read_labels()
    documents, missing = find_documents(labels)
    if missing:
        print(f"labels without their text here: {missing}", flush=True)
    labels = [label for label in labels if label.path in documents]
    return labels, [repaired(documents[label.path]) for label in labels]


def quality(quick: bool) -> Rows:
    labels, documents = rated()
    scores, groups = np.array([label.score for label in labels]), [label.group for label in labels]
    good, code = scores >= GOOD, np.array([label.kind == CODE for label in labels])
    rows = rows_of(documents)
    docstrings = np.array([docstring_share(document) for document in documents])
    unseen = unseen_logits(rows, scores, groups)
    best = auc(unseen, good)
    found = [
        row("rated documents found / of which good", f"{len(labels)} / {int(good.sum())}", "documents"),
        at_least("AUC of the scorer", best, "AUC", 0.90),
        row("its 95% interval over packages", "{} to {}".format(*auc_interval(unseen, good, groups)), "AUC"),
        row("AUC of docstring share alone, prose as 1", round(auc(docstrings, good), 4), "AUC"),
        at_least("AUC above docstring share", best - auc(docstrings, good), "AUC", 0.03),
        row("AUC of the scorer on code", round(auc(unseen[code], good[code]), 4), "AUC"),
        row("AUC of docstring share on code", round(auc(docstrings[code], good[code]), 4), "AUC"),
        row("AUC of the scorer on prose", round(auc(unseen[~code], good[~code]), 4), "AUC"),
        row("rank correlation of the scorer with the scores", round(spearman(unseen, scores), 4), "rho"),
    ]
    if not quick:
        no_words = Sparse(rows.ids[:0], rows.values[:0], np.zeros_like(rows.starts), rows.structure)
        no_structure = replace(rows, structure=np.zeros_like(rows.structure))
        for name, part in (("structure alone", no_words), ("words alone", no_structure)):
            found.append(row(f"AUC of {name}", round(auc(unseen_logits(part, scores, groups), good), 4), "AUC"))
    second = compare_raters(read_labels(SECOND_LABELS)) if SECOND_LABELS.is_file() else None
    for name, value in (second or {}).items():
        found.append(row(f"second rater: {name}", value, ""))
    return found


def speed(quick: bool) -> Rows:
    """One core, medians. Bytes of whole documents, and of what is looked at of them."""
    _, documents = rated()
    scorer, rows = load_scorer(SHIPPED), rows_of(documents)
    whole = sum(len(document.text.encode()) for document in documents) / 1e6
    looked_at = sum(len(document.text[:HEAD_CHARACTERS].encode()) for document in documents) / 1e6
    from_features = median_seconds(lambda: scorer.scores(rows), 2 if quick else REPEATS)
    from_text = median_seconds(lambda: score_texts(scorer, documents), 2 if quick else REPEATS)
    return [
        at_least("scoring with the features in memory", whole / from_features, "MB/s of documents", 100),
        row("scoring from texts in memory", round(whole / from_text, 1), "MB/s of documents"),
        row("scoring from texts in memory, what is looked at", round(looked_at / from_text, 1), "MB/s"),
    ]


def score_texts(scorer: Scorer, documents: list[Document]) -> None:
    for start in range(0, len(documents), BATCH_DOCUMENTS):
        scorer.scores(features(documents[start : start + BATCH_DOCUMENTS]))


def median_seconds(work: Callable[[], object], repeats: int) -> float:
    """Processor time: other work on the machine does not count."""
    work()
    taken = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        taken.append(time.process_time() - started)
    return float(np.median(taken))


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    def ranks(values: np.ndarray) -> np.ndarray:
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        return (np.cumsum(counts) - (counts - 1) / 2)[inverse]

    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


PARTS = {"quality": Part(quality), "speed": Part(speed)}

if __name__ == "__main__":
    main(__file__, __doc__ or "", "scorer", PARTS, ("numpy", "datatrove"))
