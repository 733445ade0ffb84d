"""What a rule is: one document in, `True` or `(False, Drop)` out, always with the measured value and the threshold.

Rules are plain objects, quick to import (a config is checked in milliseconds) and pure: same document, same answer.
`as_datatrove_filter` wraps one for any datatrove pipeline; `check_range` checks its options.
"""

import copy
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

from datatrove.data import Document

if TYPE_CHECKING:
    from datatrove.pipeline.filters.base_filter import BaseFilter
    from datatrove.pipeline.writers.disk_base import DiskWriter

CODE, PROSE, EXERCISE = "code", "prose", "exercise"
KINDS = (CODE, PROSE, EXERCISE)


@dataclass(frozen=True)
class Drop:
    """Why a document was dropped: a short reason, what was measured, and the limit it crossed. `detail`: what it is
    a copy of, the shared words, ..."""

    reason: str
    value: float | str | None = None
    threshold: float | str | None = None
    detail: str | None = None


Decision = Literal[True] | tuple[Literal[False], Drop]


class Rule(ABC):
    """One rule. Options are the keywords of `__init__`; `kinds` are the kinds of document it looks at."""

    kinds: ClassVar[tuple[str, ...]] = KINDS
    of_sentences: ClassVar[bool] = False
    """Judges sentences and their words: of a text that mixes prose and code only the prose counts, and what is nearly
    all code is left to the rules for code."""
    libraries: ClassVar[tuple[str, ...]] = ()
    """Distributions whose version decides the answers."""

    @abstractmethod
    def filter(self, doc: Document) -> Decision:
        """`True` keeps the document; `(False, Drop(...))` drops it."""

    def decide(self, doc: Document) -> Drop | None:
        """Like `filter`, for documents of any kind: None where the rule keeps it or does not look at it."""
        if doc.metadata.get("kind", PROSE) not in self.kinds:
            return None
        decision = self.filter(doc)
        if decision is not True and self.of_sentences and (prose := prose_beside_code(doc.text)) is not None:
            decision = self.filter(Document(text=prose, id=doc.id, metadata=doc.metadata)) if prose else True
        return None if decision is True else decision[1]


NO_SPACE, BEYOND = 1e-9, 1e12  # limits that any measured value above 0 crosses, one way or the other


def measured(rule: Rule, doc: Document, reason: str, limit: float | str | None) -> float | None:
    """What `rule` compares with `limit` under `reason`, of a document that it keeps; None where that is not known: the
    limit is no number among the rule's options, or the value is 0.

    The rule tells a value only of what it drops, so the limit is moved until it drops the document for this reason."""
    for tightened in _tightened(rule, limit):
        drop = tightened.decide(doc)
        if drop is not None and drop.reason == reason and isinstance(drop.value, int | float):
            return drop.value
    return None


def _tightened(rule: Rule, limit: float | str | None) -> Iterator[Rule]:
    """Copies of the rule with one option that has the value `limit`, alone or in a pair, moved beyond any value."""
    for name, value in vars(rule).items():
        for moved in (NO_SPACE, BEYOND):
            if isinstance(value, tuple):
                changed: list[object] = [
                    (*value[:i], (pair[0], moved), *value[i + 1 :])
                    for i, pair in enumerate(value)
                    if isinstance(pair, tuple) and pair[-1] == limit
                ]
            else:
                changed = [moved] if isinstance(value, int | float) and value == limit else []
            for option in changed:
                tightened = copy.copy(rule)
                setattr(tightened, name, option)
                yield tightened


# A line of code in most languages: it ends in ; or braces, assigns, calls, or is a prompt with a command. A row of a
# table or a list of numbers is none.
_CODE_LINE = re.compile(
    r"\s*(?:>>>|\.\.\.|\$|%|#) ?\S.*|.*[;{}]\s*$|\s*[\w.\[\]]+(?:, ?[\w.\[\]]+)* [-+*/:]?= ?\S.*"
    r"|\s*[\w.>:-]*\w\(.*\)?[\s:,]*$|\s+(?:return|import|from|if|for|while|elif|else|try|except|class|def|fn|func)\b.*"
    r"|(?:import|from|def|class|func|fn|pub|use|package|#include|#define|SELECT|CREATE|INSERT)\b.*"
)
_LEAST_CODE, _MOST_CODE = 0.1, 0.5  # of the lines: less is prose, more with hardly a sentence is code
_FEWEST_WORDS = 50


def prose_beside_code(text: str) -> str | None:
    """The lines of `text` that are no code; empty where it is nearly all code, None where there is hardly any code."""
    lines = [line for line in text.split("\n") if line.strip()]
    prose = [line for line in lines if not _CODE_LINE.fullmatch(line)]
    share = (len(lines) - len(prose)) / max(1, len(lines))
    if share < _LEAST_CODE:
        return None
    if len(" ".join(prose).split()) >= _FEWEST_WORDS:
        return "\n".join(prose)
    return "" if share >= _MOST_CODE else None


def as_datatrove_filter(rule: Rule, exclusion_writer: "DiskWriter | None" = None) -> "BaseFilter":
    """`rule` as a step of datatrove's own, so that both kinds of filter stand in one pipeline. What it drops carries
    `filter_rule`, `filter_reason`, `filter_value` and `filter_threshold` in its metadata, and its text, into the
    exclusion writer. The import takes 0.7 s."""
    from datatrove.pipeline.filters import LambdaFilter
    from datatrove.utils.stats import Stats

    step = LambdaFilter(partial(_decide, rule), exclusion_writer)  # type: ignore[arg-type]
    step.name = type(rule).__name__
    step.stats = Stats(str(step))  # its label was made of the old name
    return step


def _decide(rule: Rule, doc: Document) -> bool | tuple[bool, str]:
    """A function of this module and not inside another: workers receive a pickled step."""
    drop = rule.decide(doc)
    if drop is None:
        return True
    doc.metadata["filter_rule"] = type(rule).__name__
    doc.metadata["filter_value"], doc.metadata["filter_threshold"] = drop.value, drop.threshold
    return False, drop.reason


# Checks of a rule's options: what was found and what was expected, by the option's name, before a document is read.


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
