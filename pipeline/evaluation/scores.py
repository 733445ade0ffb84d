"""Scores with their standard errors.

A share of right answers: sqrt(p (1 - p) / (n - 1)), the error of a mean over items. Bits per byte: a ratio of two sums
over documents (pipeline/corpus/text/intervals.py).
"""

import math
from collections.abc import Sequence
from typing import Any

from pipeline.corpus.text.intervals import interval, ratio_of_sums


def share(right: Sequence[bool], chance: float = 0.0) -> dict[str, Any]:
    """`{score, standard_error, items, chance}`; `chance`: the score of guessing; no error for one item."""
    n = len(right)
    mean = sum(right) / n
    error = round(math.sqrt(mean * (1 - mean) / (n - 1)), 6) if n > 1 else None
    return {"score": round(mean, 6), "standard_error": error, "items": n, "chance": round(chance, 6)}


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> dict[str, Any]:
    """`{score, standard_error, interval, items}` of sum(numerators) / sum(denominators); the interval is of 95%."""
    n, (value, error) = len(numerators), ratio_of_sums(numerators, denominators)
    found = {"score": round(value, 6), "standard_error": None if error is None else round(error, 6)}
    return {**found, "interval": interval(value, error, n), "items": n}
