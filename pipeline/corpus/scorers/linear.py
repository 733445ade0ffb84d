"""A quality scorer: one weight for each hash bucket and four for each structure column, learned from ratings of 0 to 5.

In: `Sparse` rows and the ratings of their documents. Out: a `Scorer`, a small file. A structure column counts by a line
that may bend at either end, and by one that counts as far as the text is documentation: too little of a thing and too
much of it differ, in code and in prose. Trained on all thresholds between ratings at once, with shared weights
(cumulative logits, McCullagh 1980), because a 5 says more than that it is above 2; L-BFGS (Liu and Nocedal 1989). From
few ratings a scorer is learned as a change of another one, which costs the more the fewer they are. Calibrated with
Platt's method (1999) on documents of groups that were not seen: a score is the probability of a rating of at least
`GOOD`.

Own code, because it is small and the result must be the same to the byte: fastText trains differently from run to
run. Sums are numpy's pairwise ones; no BLAS, whose order of additions depends on threads.
"""

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.corpus.scorers.features import BUCKETS, STRUCTURE, VERSION, Sparse
from pipeline.system.errors import UserError

MOST, GOOD = 5, 3  # the highest rating, and the lowest that counts as good
# Penalties on the mean loss; chosen once, on package-disjoint folds of the gold labels (docs/data/labels.md).
L2_WORDS, L2_STRUCTURE = 1e-4, 1e-2
ITERATIONS, MEMORY = 80, 8
FOLDS = 10
FORMS = 4  # columns that one of structure becomes
_FARTHEST, _BEND = 3.0, 0.8  # in standard deviations
_OF_DOCUMENTATION = STRUCTURE.index("documentation_share")
WEIGHTS = BUCKETS + FORMS * len(STRUCTURE) + 1


TENSORS = ("weights", "mean", "spread")


@dataclass(frozen=True)
class Scorer:
    """`weights`: one per bucket, then `FORMS` per structure column, then the bias; `mean` and `spread` of each
    structure column where it was trained; `slope`, `offset`: calibration. `facts`: what it was trained on and how good
    it is. `roc`: (false positive rate, true positive rate, score) on rated documents of groups that it did not see,
    from the highest score down; it lies in a file beside, as no score depends on it."""

    weights: np.ndarray
    mean: np.ndarray
    spread: np.ndarray
    slope: float = 1.0
    offset: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)
    roc: list[list[float]] = field(default_factory=list)

    def logits(self, rows: Sparse) -> np.ndarray:
        forms = bend(rows.structure, self.mean, self.spread)
        return _dot(rows, self.weights) + (forms * self.weights[BUCKETS:-1]).sum(axis=1) + self.weights[-1]

    def scores(self, rows: Sparse) -> np.ndarray:
        """0 to 1, rounded to 1e-4 so that the last bits of a processor's `exp` do not decide who is cut."""
        return self.calibrated(self.logits(rows))

    def calibrated(self, logits: np.ndarray) -> np.ndarray:
        """Scores of logits."""
        return np.round(_sigmoid(self.slope * logits + self.offset), 4).astype(np.float32)

    def save(self, path: Path) -> None:
        from safetensors.numpy import save

        head = {"features": VERSION, "structure": list(STRUCTURE), "slope": self.slope, "offset": self.offset}
        metadata = {"scorer": json.dumps({**head, "facts": self.facts})}
        tensors = {name: getattr(self, name).astype(np.float32) for name in TENSORS}
        path.write_bytes(save(tensors, metadata=metadata))
        if self.roc:
            report_beside(path).write_text(json.dumps({"roc": self.roc}) + "\n", encoding="utf-8")


def report_beside(path: Path) -> Path:
    """Where the curve of the scorer at `path` lies."""
    return path.with_name(f"{path.stem}.report.json")


def read_roc(path: Path) -> list[list[float]]:
    """The curve of the scorer at `path`; empty where none was stored, or what was is damaged."""
    beside = report_beside(path)
    with contextlib.suppress(OSError, ValueError, RecursionError, KeyError, TypeError):  # for reading only
        roc = json.loads(beside.read_bytes())["roc"]
        if all(isinstance(value, float | int) for false, true, cut in roc for value in (false, true, cut)):
            return roc
    return []


def load_scorer(path: Path) -> Scorer:
    """A scorer from its file. Raises `UserError` for another kind of file, or another version of the features."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            head = json.loads((file.metadata() or {})["scorer"])
            stored = {name: file.get_tensor(name).astype(np.float64) for name in file.keys()}  # noqa: SIM118 - no dict
        version, structure = head["features"], tuple(head["structure"])
        slope, offset, facts = float(head["slope"]), float(head["offset"]), dict(head["facts"])
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is no scorer: {error}; expected a file that `hornbook label` has written") from None
    if version != VERSION or structure != STRUCTURE:
        raise UserError(
            f"{path} was trained on version {version} of the features, this is version {VERSION}; "
            "train it again from its labels: hornbook label <config>"
        )
    shapes = [stored[name].shape if name in stored else None for name in TENSORS]
    whole = shapes == [(WEIGHTS,), (len(STRUCTURE),), (len(STRUCTURE),)]
    if not whole or not np.isfinite(sum(tensor.sum() for tensor in stored.values()) + slope + offset):
        raise UserError(f"{path} is no scorer: its weights are damaged; expected what `hornbook label` has written")
    return Scorer(stored["weights"], stored["mean"], stored["spread"], slope, offset, facts, read_roc(path))


def unseen_logits(rows: Sparse, scores: np.ndarray, groups: Sequence[str], prior: Scorer | None = None) -> np.ndarray:
    """The logits of each row by a scorer that was trained on the groups of other folds."""
    folds = fold_by_group(groups, min(FOLDS, len(set(groups))))
    logits = np.zeros(len(rows))
    for fold in np.unique(folds):
        unseen, seen = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        logits[unseen] = train(rows.take(seen), scores[seen], prior).logits(rows.take(unseen))
    return logits


def fold_by_group(groups: Sequence[str], folds: int, seed: int = 0) -> np.ndarray:
    """A fold for each document: a group lies in one fold only, and the folds are of about the same size."""
    names = sorted(set(groups))
    np.random.default_rng(seed).shuffle(names)
    counts, sizes, chosen = Counter(groups), np.zeros(folds, dtype=np.int64), {}
    for name in names:
        chosen[name] = int(np.argmin(sizes))
        sizes[chosen[name]] += counts[name]
    return np.array([chosen[group] for group in groups])


def bend(structure: np.ndarray, mean: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """The columns that count: each of structure as it is, what it has above and below a bend, and as far as the text is
    documentation; in standard deviations, none of which counts beyond the third."""
    z = np.clip((structure - mean) / spread, -_FARTHEST, _FARTHEST)
    share = structure[:, _OF_DOCUMENTATION, None]
    return np.concatenate([z, np.maximum(z - _BEND, 0), np.maximum(-z - _BEND, 0), z * share], axis=1)


def train(rows: Sparse, scores: np.ndarray, prior: Scorer | None = None) -> Scorer:
    """Fits the weights to ratings; deterministic; seconds for 1,000 documents. The bias is that of `GOOD`. `prior`: the
    weights are learned as a change of that scorer's."""
    mean = rows.structure.mean(axis=0) if prior is None else prior.mean
    spread = rows.structure.std(axis=0) if prior is None else prior.spread
    mean, spread = mean.astype(np.float32).astype(np.float64), spread.astype(np.float32).astype(np.float64)
    spread = np.where(spread > 1e-6, spread, 1.0)  # a column that never changes gets no weight
    thresholds = [k for k in range(1, int(scores.max()) + 1) if 0 < (scores >= k).sum() < len(scores)]
    if not thresholds:
        return prior or Scorer(np.zeros(WEIGHTS), mean, spread)
    targets = np.array([scores >= k for k in thresholds], dtype=np.float64)
    forms = bend(rows.structure, mean, spread)
    row_of = np.repeat(np.arange(len(rows)), np.diff(rows.starts))
    n = WEIGHTS - 1
    first = np.zeros(n) if prior is None else prior.weights[:n]
    penalty = np.concatenate([np.full(BUCKETS, L2_WORDS), np.full(n - BUCKETS, L2_STRUCTURE)])
    if prior is not None:
        penalty = penalty * max(1.0, prior.facts.get("documents", 0) / len(rows))

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        weights, biases = parameters[:n], parameters[n:]
        logits = (_dot(rows, weights) + (forms * weights[BUCKETS:]).sum(axis=1))[None, :] + biases[:, None]
        errors = (_sigmoid(logits) - targets) / len(rows)
        error, change = errors.sum(axis=0), weights - first
        words = np.bincount(rows.ids, weights=rows.values * error[row_of], minlength=BUCKETS)
        gradient = np.concatenate([words, (forms * error[:, None]).sum(axis=0)]) + penalty * change
        value = (np.logaddexp(0.0, logits) - targets * logits).sum() / len(rows) + (penalty * change**2).sum() / 2
        return float(value), np.concatenate([gradient, errors.sum(axis=1)])

    fitted = _lbfgs(loss, np.concatenate([first, np.zeros(len(thresholds))]))
    nearest = min(range(len(thresholds)), key=lambda i: abs(thresholds[i] - GOOD))
    weights = np.append(fitted[:n], fitted[n + nearest]).astype(np.float32).astype(np.float64)  # as it will be stored
    return Scorer(weights, mean, spread)


def calibrate(scorer: Scorer, logits: np.ndarray, good: np.ndarray) -> Scorer:
    """`scorer` with Platt's slope and offset, from logits of documents it (or its fold's twin) has not seen."""
    targets = good.astype(np.float64)
    if not 0 < targets.sum() < len(targets):
        return scorer

    def loss(ab: np.ndarray) -> tuple[float, np.ndarray]:
        z = ab[0] * logits + ab[1]
        error = (_sigmoid(z) - targets) / len(targets)
        value = np.logaddexp(0.0, z).mean() - (targets * z).mean()
        return float(value), np.array([(error * logits).sum(), error.sum()])

    slope, offset = _lbfgs(loss, np.array([1.0, 0.0]))
    return replace(scorer, slope=round(float(slope), 6), offset=round(float(offset), 6))


def auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Area under the ROC curve by ranks; ties count half. NaN-free: 0.5 where a class is missing."""
    positives = int(labels.sum())
    negatives = len(labels) - positives
    if not positives or not negatives:
        return 0.5
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return float((ranks[labels == 1].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def roc_curve(scores: np.ndarray, good: np.ndarray, points: int = 80) -> list[list[float]]:
    """(false positive rate, true positive rate, score) at about `points` thresholds, from the highest score down."""
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.diff(scores[order], append=-np.inf))  # of equal scores the last: they pass together
    last = last[np.unique(np.linspace(0, len(last) - 1, min(points, len(last))).round().astype(np.int64))]
    rates = [np.cumsum(order_good) / max(1, order_good.sum()) for order_good in (~good[order], good[order])]
    curve = np.stack([rates[0][last], rates[1][last], scores[order][last]], axis=1)
    return [[0.0, 0.0, 1.0], *np.round(curve, 4).tolist()]


def auc_interval(scores: np.ndarray, labels: np.ndarray, groups: Sequence[str]) -> tuple[float, float]:
    """95% interval of the AUC from 2,000 bootstrap samples of whole groups: documents of one package are alike."""
    draw, names = np.random.default_rng(0), sorted(set(groups))
    members = [np.flatnonzero(np.asarray(groups) == name) for name in names]
    found = []
    for _ in range(2_000):
        rows = np.concatenate([members[i] for i in draw.integers(len(names), size=len(names))])
        found.append(auc(scores[rows], labels[rows]))
    low, high = np.percentile(found, [2.5, 97.5])
    return round(float(low), 4), round(float(high), 4)


def _dot(rows: Sparse, weights: np.ndarray) -> np.ndarray:
    """What each row's words weigh."""
    products = np.concatenate([rows.values * weights[rows.ids], [0.0]])  # one more: reduceat needs a valid last start
    sums = np.add.reduceat(products, np.minimum(rows.starts[:-1], len(products) - 1)) if len(rows) else np.zeros(0)
    return np.where(np.diff(rows.starts) > 0, sums, 0.0)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-np.clip(x, -60.0, 60.0)))


def _lbfgs(loss: Callable[[np.ndarray], tuple[float, np.ndarray]], weights: np.ndarray) -> np.ndarray:
    """Minimises a smooth convex `loss(weights) -> (value, gradient)`; stops when the gradient is below 1e-5."""
    value, gradient = loss(weights)
    steps: list[tuple[np.ndarray, np.ndarray, float]] = []
    for _ in range(ITERATIONS):
        if np.abs(gradient).max() < 1e-5:
            break
        direction = -_two_loop(gradient, steps)
        slope = float((direction * gradient).sum())
        size = 1.0 if steps else 1.0 / max(1.0, float(np.abs(gradient).sum()))
        for _ in range(30):  # halve until the value falls enough (Armijo)
            moved = weights + size * direction
            new_value, new_gradient = loss(moved)
            if new_value <= value + 1e-4 * size * slope:
                break
            size /= 2
        else:
            break
        s, y = moved - weights, new_gradient - gradient
        curvature = float((s * y).sum())
        if curvature > 1e-12:
            steps = [*steps[-(MEMORY - 1) :], (s, y, curvature)]
        weights, value, gradient = moved, new_value, new_gradient
    return weights


def _two_loop(gradient: np.ndarray, steps: list[tuple[np.ndarray, np.ndarray, float]]) -> np.ndarray:
    q, alphas = gradient.copy(), []
    for s, y, curvature in reversed(steps):
        alpha = float((s * q).sum()) / curvature
        alphas.append(alpha)
        q -= alpha * y
    if steps:
        _, y, curvature = steps[-1]
        q *= curvature / float((y * y).sum())
    for (s, y, curvature), alpha in zip(steps, reversed(alphas), strict=True):
        q += s * (alpha - float((y * q).sum()) / curvature)
    return q
