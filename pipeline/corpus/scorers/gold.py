"""Documents rated for educational value: the labels, their texts, and how far two raters agree.

A label names a document of the Python library corpus by distribution, version, path and content hash. The texts are
found again in the installed distributions (pinned in constraints.txt), so none is stored here. Rubric, labels and a
second rating lie in `gold/`.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document

from data_filters.rule import KINDS
from pipeline.corpus.sources.python_library import STANDARD_LIBRARY, PythonLibrary
from pipeline.system.errors import UserError

FOLDER = Path(__file__).with_name("gold")
RUBRIC, LABELS, SECOND_LABELS = FOLDER / "rubric.md", FOLDER / "labels.jsonl", FOLDER / "second_labels.jsonl"
MOST, GOOD = 5, 3  # the highest score, and the lowest that counts as good

# Distributions that copy each other's text are one group, so that no document is on both sides of a fold.
SAME_TEXT = {"pytorch-lightning": "lightning", "lightning-utilities": "lightning", "multiprocess": STANDARD_LIBRARY}


@dataclass(frozen=True)
class Label:
    """A rating. `sha256`: of the text as the source gives it, UTF-8; `score`: 0 to 5 by the rubric; `rater`: what
    rated it."""

    distribution: str
    version: str
    path: str
    kind: str
    characters: int
    sha256: str
    score: int
    rationale: str
    rater: str

    @property
    def group(self) -> str:
        """What must not be split between training and test."""
        return SAME_TEXT.get(self.distribution, self.distribution)


def read_labels(path: Path = LABELS) -> list[Label]:
    """The labels of a file, in its order. Raises `UserError` naming the line that is none."""
    labels = []
    for number, line in enumerate(path.read_text(encoding="utf-8").rstrip("\n").split("\n"), 1):
        try:
            label = Label(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}:{number} is no label: {error}") from None
        if label.score not in range(MOST + 1) or label.kind not in KINDS or not label.rationale:
            raise UserError(f"{path}:{number}: expected a score of 0 to {MOST}, a kind and a rationale, got {line}")
        labels.append(label)
    return labels


def find_documents(labels: Sequence[Label]) -> tuple[dict[str, Document], dict[str, int]]:
    """`({path: document}, {why: labels without their text})`: the rated documents that are installed here, unchanged.

    Another version may hold the very same text; only the content decides.
    """
    installed, missing = set(), Counter()
    for name in {label.distribution for label in labels} - {STANDARD_LIBRARY}:
        try:
            metadata.version(name)
            installed.add(name)
        except metadata.PackageNotFoundError:
            missing["distribution_not_installed"] += sum(label.distribution == name for label in labels)
    source = PythonLibrary(sorted(installed))
    wanted = {label.path: label for label in labels if label.distribution in {*installed, STANDARD_LIBRARY}}
    found = {d.metadata["path"]: d for d in source.named(wanted)}
    same: dict[str, Document] = {}
    for path, label in wanted.items():
        if path not in found:
            missing["no_such_document"] += 1
        elif content_hash(found[path].text) != label.sha256:
            missing["other_content"] += 1
        else:
            same[path] = found[path]
    return same, dict(sorted(missing.items()))


def content_hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def agreement(first: Sequence[int], second: Sequence[int]) -> dict[str, Any]:
    """How far two ratings of the same documents agree: share equal, share at most 1 apart, quadratic-weighted kappa
    (Cohen 1968; 1: the same, 0: chance) and Spearman's rank correlation."""
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    expected = np.mean((a[:, None] - b[None, :]) ** 2)
    return {
        "documents": len(a),
        "exact": round(float(np.mean(a == b)), 4),
        "within_1": round(float(np.mean(np.abs(a - b) <= 1)), 4),
        "kappa_quadratic": round(float(1 - np.mean((a - b) ** 2) / expected), 4) if expected else 1.0,
        "spearman": round(float(np.corrcoef(_ranks(a), _ranks(b))[0, 1]), 4),
    }


def compare_raters(second: Sequence[Label]) -> dict[str, Any] | None:
    """Agreement of the shipped labels with a second rating; None where they share no document."""
    scores = {label.sha256: label.score for label in read_labels()}
    pairs = [(scores[label.sha256], label.score) for label in second if label.sha256 in scores]
    return agreement(*zip(*pairs, strict=True)) if pairs else None


def fold_by_group(groups: Sequence[str], folds: int, seed: int = 0) -> np.ndarray:
    """A fold for each document: a group lies in one fold only, and the folds are of about the same size."""
    names = sorted(set(groups))
    np.random.default_rng(seed).shuffle(names)
    counts, sizes, chosen = Counter(groups), np.zeros(folds, dtype=np.int64), {}
    for name in names:
        chosen[name] = int(np.argmin(sizes))
        sizes[chosen[name]] += counts[name]
    return np.array([chosen[group] for group in groups])


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1; ties share their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def write_labels(labels: Collection[Label], path: Path) -> None:
    lines = [json.dumps(label.__dict__, ensure_ascii=False) for label in labels]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
