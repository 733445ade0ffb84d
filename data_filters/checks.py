"""Checks of a rule's options: what was found, what was expected, by the option's name, before any document is read."""

import math


def check_range(name: str, value: float | None, low: float, high: float = math.inf, *, optional: bool = True) -> None:
    """Raises ValueError where `value` is no number from `low` to `high`; None (`optional`) turns a check off."""
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        limits = f"{low} to {high}" if high < math.inf else f"{low} or more"
        raise ValueError(f"{name} is {value!r}; expected {limits}{' or null' if optional else ''}")


def check_grams(name: str, value: object) -> tuple[tuple[int, float], ...]:
    """`[[n, share], ...]` as a tuple of pairs. Raises ValueError for anything else."""
    try:
        pairs = tuple((n, share) for n, share in value)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        raise ValueError(f"{name} is {value!r}; expected a list of [n, share] such as [[2, 0.2], [3, 0.18]]") from None
    for n, share in pairs:
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ValueError(f"{name}: n is {n!r}; expected a whole number of words, 1 or more")
        check_range(f"{name}: share of {n}", share, 0, 1, optional=False)
    return pairs
