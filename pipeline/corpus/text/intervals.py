"""95% intervals by Student's t: of a mean over a few values, and of a ratio of two sums over documents. Plain Python.

Bits per byte is such a ratio, so its error is that of a ratio estimator (Cochran, Sampling Techniques, 1977, section
2.11): it speaks of other documents like these, not of another training. Documents of one group may be alike, so where
there are few groups the true interval is wider; their number is shown beside it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

CONFIDENCE = 0.95


def ratio_of_sums(numerators: Sequence[float], denominators: Sequence[float]) -> tuple[float, float | None]:
    """sum(numerators) / sum(denominators) and its standard error, which a single document does not have."""
    n, total = len(numerators), math.fsum(denominators)
    value = math.fsum(numerators) / total
    squares = math.fsum((a - value * b) ** 2 for a, b in zip(numerators, denominators, strict=True))
    return value, math.sqrt(n / (n - 1) * squares) / total if n > 1 else None


def interval(value: float, error: float | None, n: int) -> list[float] | None:
    """[low, high] of a mean or ratio over `n` values with this standard error; None for a single one."""
    half = None if error is None else t_quantile(n - 1) * error
    return None if half is None else [round(value - half, 6), round(value + half, 6)]


def shown(found: Sequence[float] | None, documents: int | None = None, groups: int | None = None) -> str:
    """`2.1034 to 2.1520; 288 documents, 31 groups`: what stands beside a figure, without what is not known."""
    counted = [(documents, "document"), (groups, "group")]
    counts = ", ".join(f"{n:,} {word}{'' if n == 1 else 's'}" for n, word in counted if n is not None)
    return "; ".join(part for part in (f"{found[0]:.4f} to {found[1]:.4f}" if found else "", counts) if part)


def beside(facts: Mapping[str, Any], name: str) -> str:
    """What stands beside the bits per byte of a validation set, from the manifest of the run; "" where it is from an
    older version that did not measure it."""
    found = [facts.get(key) or {} for key in ("bits_per_byte_interval", "validation_documents", "validation_groups")]
    return shown(*(each.get(name) for each in found))


def over_documents(score: Mapping[str, Any]) -> str:
    """The same for a score of `hornbook evaluate`; "" for one that is over questions and not over documents."""
    return shown(score.get("interval"), score["items"], score["groups"]) if "groups" in score else ""


def replay_lines(manifest: Mapping[str, Any]) -> list[str]:
    """One line for each source marked `replay: true`: what was lost of it, by a manifest's facts."""
    return [f"replay {name}: {replay_in_words(values)}" for name, values in manifest.get("replay", {}).items()]


def replay_in_words(values: Mapping[str, float | None]) -> str:
    """What a model lost of a replay source, in a sentence."""
    before, after, lost = values["before"], values["after"], values["lost"]
    if before is None or after is None or lost is None:
        return "not measured (no held-out text of it, or no time for a validation)"
    what = "lost" if lost > 0 else "gained"
    return f"{before:.4f} bits per byte before, {after:.4f} after: {what} {abs(lost):.4f}"


def t_quantile(freedom: int, confidence: float = CONFIDENCE) -> float:
    """The two-sided quantile of Student's t (12.706, 4.303, 3.182 for 1, 2, 3 degrees), by bisection."""
    low, high = 0.0, 1e4
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle, freedom) < confidence else (low, middle)
    return (low + high) / 2


def within(t: float, freedom: int) -> float:
    """P(|T| < t), so that 1 minus it is the p-value of a two-sided test. With x = sqrt(n) tan(a) the density is a power
    of the cosine; Simpson's rule over the angle."""
    end, pieces = math.atan(t / math.sqrt(freedom)), 400
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    values = [math.cos(end * i / pieces) ** (freedom - 1) for i in range(pieces + 1)]
    total = values[0] + values[-1] + 4 * sum(values[1:-1:2]) + 2 * sum(values[2:-1:2])
    return 2 * scale * total * end / pieces / 3
