"""The cut: a scored document in, kept or dropped by `min_score` out.

Not for exercises: they were verified by running them, and a scorer that learned what library code looks like would
only measure how unlike a library they are.
"""

from datatrove.data import Document

from data_filters.rule import CODE, PROSE, Decision, Drop, Rule


class Quality(Rule):
    """Drops documents whose trained quality score (`metadata["score"]`, 0 to 1) is below `min_score`."""

    kinds = (CODE, PROSE)

    def __init__(self, min_score: float = 0.5):
        if not 0 <= min_score <= 1:
            raise ValueError(f"min_score is {min_score}; expected 0 to 1")
        self.min_score = min_score

    def filter(self, doc: Document) -> Decision:
        score = doc.metadata["score"]
        return True if score >= self.min_score else (False, Drop("below_min_score", score, self.min_score))
