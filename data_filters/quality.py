"""The cut: a scored document in, kept or dropped by `min_score` out.

Not for exercises: they were verified by running them, and a scorer that learned what library code looks like would
only measure how unlike a library they are.
"""

from datatrove.data import Document

from data_filters.rule import CODE, PROSE, Decision, Drop, Rule


class Quality(Rule):
    """Drops documents whose quality score (`metadata["score"]`, 0 to 1, given by `data.scorer`) is below `min_score`.
    `keep_tokens`: at most this many train tokens of a source stay, the best scored (in the data stage only).
    """

    kinds = (CODE, PROSE)

    def __init__(self, min_score: float = 0.5, keep_tokens: int | None = None):
        if not 0 <= min_score <= 1:
            raise ValueError(f"min_score is {min_score}; expected 0 to 1")
        if keep_tokens is not None and (isinstance(keep_tokens, bool) or keep_tokens < 1):
            raise ValueError(f"keep_tokens is {keep_tokens}; expected at least 1, or null for no limit")
        self.min_score, self.keep_tokens = min_score, keep_tokens

    def filter(self, doc: Document) -> Decision:
        score = doc.metadata["score"]
        return True if score >= self.min_score else (False, Drop("below_min_score", score, self.min_score))
