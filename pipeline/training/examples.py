"""Examples as windows: a prompt that is read and a completion that is learnt, one example a row.

In: token ids of each example with a mark on those to learn. Out: what a `Stream` gives, so that batches, order,
validation and resume are those of pretraining.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

IGNORED_LABEL = -100


@dataclass(frozen=True)
class Examples:
    """`inputs_NT`, `labels_NT`: int32; a label of -100 predicts nothing (prompt, padding). `n_bytes`: of the text that
    is learnt, for bits per byte."""

    name: str
    inputs_NT: np.ndarray
    labels_NT: np.ndarray
    n_bytes: int

    @classmethod
    def of(cls, name: str, rows: Sequence[tuple[list[int], list[bool]]], length: int, n_bytes: int) -> "Examples":
        """From (ids, learnt) rows; a longer one keeps its end, a shorter one is padded with label -100."""
        inputs = np.zeros((len(rows), length), np.int32)
        labels = np.full((len(rows), length), IGNORED_LABEL, np.int32)
        for row, (ids, learnt) in enumerate(rows):
            kept, marks = np.array(ids[-(length + 1) :]), np.array(learnt[-(length + 1) :])
            inputs[row, : len(kept) - 1] = kept[:-1]
            labels[row, : len(kept) - 1] = np.where(marks[1:], kept[1:], IGNORED_LABEL)
        return cls(name, inputs, labels, n_bytes)

    @property
    def count(self) -> int:
        return len(self.inputs_NT)

    @property
    def predicted(self) -> int:
        return int(np.count_nonzero(self.labels_NT != IGNORED_LABEL))

    @property
    def n_tokens(self) -> int:
        return self.predicted + 1

    def documents(self) -> np.ndarray:
        """[N, 2]: labels and bytes of each example; the bytes are shared out by labels."""
        labels = np.count_nonzero(self.labels_NT != IGNORED_LABEL, axis=1)
        return np.stack([labels, self.n_bytes * labels / max(1, labels.sum())], axis=1)

    def windows(self, numbers_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.inputs_NT[numbers_B].astype(np.int64), self.labels_NT[numbers_B].astype(np.int64)
