"""A linear quality scorer: logistic regression over sparse token counts and a few structure columns.

Own code, because it is small and the result must be the same to the byte: fastText trains differently from run to
run (DATA.md section 3). Sums are numpy's pairwise ones; no BLAS, whose order of additions depends on threads.
Trained with L-BFGS (Liu and Nocedal 1989), calibrated with Platt's method (1999) on logits of unseen packages.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.corpus.features import STRUCTURE, Features

L2 = 2e-4  # on the mean loss; chosen once on package-disjoint folds of the Python library corpus
ITERATIONS, MEMORY = 60, 8


@dataclass(frozen=True)
class Sparse:
    """Rows of token features in one piece (CSR) beside the dense structure columns."""

    ids: np.ndarray
    values: np.ndarray
    starts: np.ndarray  # n + 1
    structure: np.ndarray

    @classmethod
    def stack(cls, rows: Sequence[Features]) -> "Sparse":
        starts = np.concatenate([[0], np.cumsum([len(r.ids) for r in rows])]).astype(np.int64)
        return cls(
            np.concatenate([r.ids for r in rows]).astype(np.int64) if rows else np.zeros(0, dtype=np.int64),
            np.concatenate([r.values for r in rows]).astype(np.float64) if rows else np.zeros(0),
            starts,
            np.array([r.structure for r in rows], dtype=np.float64).reshape(len(rows), len(STRUCTURE)),
        )

    def __len__(self) -> int:
        return len(self.starts) - 1

    def take(self, rows: np.ndarray) -> "Sparse":
        lengths = np.diff(self.starts)[rows]
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        at = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths) + np.repeat(self.starts[:-1][rows], lengths)
        return Sparse(self.ids[at], self.values[at], starts, self.structure[rows])


@dataclass(frozen=True)
class Scorer:
    """`weights`: one per token id, then one per structure column, then the bias; `slope`, `offset`: calibration."""

    weights: np.ndarray
    vocab_size: int
    slope: float = 1.0
    offset: float = 0.0

    def logits(self, rows: Sparse) -> np.ndarray:
        return _logits(rows, self.weights, self.vocab_size)

    def scores(self, rows: Sparse) -> np.ndarray:
        """0 to 1, rounded to 1e-4 so that the last bits of a processor's `exp` do not decide who is cut."""
        return np.round(_sigmoid(self.slope * self.logits(rows) + self.offset), 4).astype(np.float32)


def train(rows: Sparse, labels: np.ndarray, vocab_size: int) -> Scorer:
    """Fits the weights; labels 0 or 1. Deterministic; seconds for 10,000 documents."""
    targets = labels.astype(np.float64)
    row_of = np.repeat(np.arange(len(rows)), np.diff(rows.starts))

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        logits = _logits(rows, weights, vocab_size)
        error = (_sigmoid(logits) - targets) / len(rows)
        token_part = np.bincount(rows.ids, weights=rows.values * error[row_of], minlength=vocab_size)
        gradient = np.concatenate([token_part, (rows.structure * error[:, None]).sum(axis=0), [error.sum()]])
        penalised = weights.copy()
        penalised[-1] = 0.0
        value = np.logaddexp(0.0, logits).mean() - (targets * logits).mean() + L2 / 2 * (penalised**2).sum()
        return float(value), gradient + L2 * penalised

    return Scorer(_lbfgs(loss, np.zeros(vocab_size + len(STRUCTURE) + 1)), vocab_size)


def calibrate(scorer: Scorer, logits: np.ndarray, labels: np.ndarray) -> Scorer:
    """`scorer` with Platt's slope and offset, from logits of documents it (or its fold's twin) has not seen."""
    targets = labels.astype(np.float64)

    def loss(ab: np.ndarray) -> tuple[float, np.ndarray]:
        z = ab[0] * logits + ab[1]
        error = (_sigmoid(z) - targets) / len(targets)
        value = np.logaddexp(0.0, z).mean() - (targets * z).mean()
        return float(value), np.array([(error * logits).sum(), error.sum()])

    slope, offset = _lbfgs(loss, np.array([1.0, 0.0]))
    return Scorer(scorer.weights, scorer.vocab_size, round(float(slope), 6), round(float(offset), 6))


def auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Area under the ROC curve by ranks; ties count half. NaN-free: 0.5 where a class is missing."""
    positives = int(labels.sum())
    negatives = len(labels) - positives
    if not positives or not negatives:
        return 0.5
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return float((ranks[labels == 1].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def _logits(rows: Sparse, weights: np.ndarray, vocab_size: int) -> np.ndarray:
    products = np.concatenate([rows.values * weights[rows.ids], [0.0]])  # one more: reduceat needs a valid last start
    sums = np.add.reduceat(products, np.minimum(rows.starts[:-1], len(products) - 1)) if len(rows) else np.zeros(0)
    sums = np.where(np.diff(rows.starts) > 0, sums, 0.0)
    return sums + (rows.structure * weights[vocab_size:-1]).sum(axis=1) + weights[-1]


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
