"""From rated documents to a scorer, with what it is worth on documents of groups that it did not see.

In: documents, ratings of 0 to 5, the group of each. Out: a `Scorer` whose `facts` hold the AUC, its interval, and the
AUC of plain docstring share, which a scorer has to beat. Seconds for 1,000 documents.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from datatrove.data import Document

from data_filters.repair import mend_surrogates, repair
from pipeline.corpus.scorers.features import Sparse, docstring_share, features
from pipeline.corpus.scorers.gold import GOOD, MOST, find_documents, read_labels
from pipeline.corpus.scorers.linear import FOLDS, Scorer, auc, auc_interval, fit, roc_curve

BATCH_DOCUMENTS = 64
LEAST_OF_EACH = 10  # documents rated good, and documents rated below: with fewer nothing can be said of the scorer


def learn(
    documents: Sequence[Document], ratings: Sequence[int] | np.ndarray, groups: Sequence[str], raters: str
) -> Scorer:
    """Trained and calibrated on all of them. `documents`: repaired, as the data stage has them; `raters`: who rated.

    Raises `ValueError` where too few are good or too few are not.
    """
    scores = np.asarray(ratings)
    good = scores >= GOOD
    if min(good.sum(), (~good).sum()) < LEAST_OF_EACH:
        raise ValueError(
            f"{good.sum()} documents are rated {GOOD} or more and {(~good).sum()} below; expected at least "
            f"{LEAST_OF_EACH} of each"
        )
    rows = rows_of(documents)
    scorer, unseen = fit(rows, scores, groups)
    docstrings = np.array([docstring_share(document) for document in documents])
    names = len(set(groups))
    facts = {
        "auc": round(auc(unseen, good), 4),
        "auc_interval": auc_interval(unseen, good, groups),
        "auc_docstring_share": round(auc(docstrings, good), 4),
        "documents": len(documents),
        "good": int(good.sum()),
        "groups": names,
        "labels": raters,
        "note": f"a score is the probability of a rating of {GOOD} to {MOST}; AUC over documents of groups that were "
        f"not trained on ({min(FOLDS, names)} folds of {names} groups, 95% interval over groups); rated by {raters}",
    }
    return replace(scorer, facts=facts, roc=roc_curve(scorer.calibrated(unseen), good))


def learn_shipped() -> tuple[Scorer, dict[str, int]]:
    """The scorer of the shipped labels, from their texts as installed here, and the labels whose text was not found."""
    documents, missing = find_documents(read_labels())
    labels = [label for label in read_labels() if label.path in documents]
    found = [repaired(documents[label.path]) for label in labels]
    raters = ", ".join(sorted({label.rater for label in labels}))
    return learn(found, [label.score for label in labels], [label.group for label in labels], raters), missing


def rows_of(documents: Sequence[Document]) -> Sparse:
    starts = range(0, len(documents), BATCH_DOCUMENTS)
    return Sparse.stack([features(documents[start : start + BATCH_DOCUMENTS]) for start in starts])


def repaired(document: Document) -> Document:
    """As the data stage would have it."""
    text = repair(mend_surrogates(document.text), document.metadata["kind"])
    return Document(text=text, id=document.id, metadata=document.metadata)
