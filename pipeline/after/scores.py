"""Scores with their standard errors.

A share of right answers: sqrt(p (1 - p) / (n - 1)), the error of a mean over items. Bits per byte: a ratio of two sums
over documents, so its error is that of a ratio estimator (Cochran, Sampling Techniques, 1977, section 2.11).
"""

import math
from collections.abc import Sequence
from typing import Any


def share(right: Sequence[bool], chance: float = 0.0) -> dict[str, Any]:
    """`{score, standard_error, items, chance}`; `chance`: the score of guessing; no error for one item."""
    n = len(right)
    mean = sum(right) / n
    error = round(math.sqrt(mean * (1 - mean) / (n - 1)), 6) if n > 1 else None
    return {"score": round(mean, 6), "standard_error": error, "items": n, "chance": round(chance, 6)}


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> dict[str, Any]:
    """`{score, standard_error, items}` of sum(numerators) / sum(denominators)."""
    n, total = len(numerators), sum(denominators)
    value = sum(numerators) / total
    squares = sum((a - value * b) ** 2 for a, b in zip(numerators, denominators, strict=True))
    error = round(math.sqrt(n / (n - 1) * squares) / total, 6) if n > 1 else None
    return {"score": round(value, 6), "standard_error": error, "items": n}
