"""What a rule is: one document in, `True` or `(False, Drop)` out, always with the measured value and the threshold.

Rules are plain objects, quick to import (a config is checked in milliseconds) and pure: same document, same answer.
`as_datatrove_filter` wraps one for any datatrove pipeline.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
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
        return None if decision is True else decision[1]


def as_datatrove_filter(rule: Rule, exclusion_writer: "DiskWriter | None" = None) -> "BaseFilter":
    """`rule` as a datatrove filter, to stand beside datatrove's own in a pipeline; see `datatrove_step.RuleFilter`."""
    from data_filters.datatrove_step import RuleFilter

    return RuleFilter(rule, exclusion_writer)
