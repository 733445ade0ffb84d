"""What the proof of the quality cut trains on: a scored corpus, its arms, and the texts that the arms are judged by.

In: configs/tiny.yaml's Python library text through every rule but the cut. A seed is also a fold of packages: what is
judged comes from packages that its arms have not read. Rated documents are never trained on.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.config import ModelConfig
from model.transformer import Transformer
from pipeline import config as configs
from pipeline.corpus.publishing import Encoded, corpus_scores
from pipeline.corpus.scorers.labels import read_labels
from pipeline.corpus.scorers.linear import fold_by_group
from pipeline.corpus.steps import data_chain
from pipeline.corpus.text.documents import Table, read_all_alive
from pipeline.corpus.text.tokenizer import load_tokenizer
from pipeline.corpus.tokenizing import token_dtype
from pipeline.storage.build import build
from pipeline.storage.steps import Folder, Step, read_manifest
from scripts.bench_rows import ROOT
from scripts.growth_bench.lab import Lab, Scale, Text

SEEDS = 3
HEAD_TOKENS = 2_048  # of a document, at most: no arm is a handful of long ones
WINDOW, BATCH_WINDOWS, VOCABULARY = 256, 8, 2_048
STEP_TOKENS = WINDOW * BATCH_WINDOWS
TEXTBOOK, GOOD, POOR = 4, 3, 1  # ratings of at least, at least, at most
GENERAL_TOKENS = 60_000
SHAPE = ModelConfig(VOCABULARY, 96, 384, 3, 4, max_position_embeddings=WINDOW)
SCALE = Scale(SHAPE, SHAPE, SHAPE, WINDOW, BATCH_WINDOWS, BATCH_WINDOWS, 1, peak_rate=4e-3, installed=False)


@dataclass(frozen=True)
class Corpus:
    """Documents that may be trained on or judged by: their first ids, scores, ratings (-1: none) and folds."""

    ids: list[np.ndarray]
    scores: np.ndarray
    ratings: np.ndarray
    folds: np.ndarray
    tokenizer: Any

    def pool(self, seed: int) -> np.ndarray:
        """What the arms of a seed choose from, in an order of the seed's."""
        free = np.flatnonzero((self.folds != seed % SEEDS) & (self.ratings < 0))
        return np.random.default_rng(seed).permutation(free)

    def judged(self, seed: int) -> dict[str, np.ndarray]:
        """The held-out sets of a seed: rated 4 or more, 3 or more, 1 or less, and text as it comes."""
        unseen = self.folds == seed % SEEDS
        free = np.random.default_rng(seed).permutation(np.flatnonzero(unseen & (self.ratings < 0)))
        return {
            "textbook": np.flatnonzero(unseen & (self.ratings >= TEXTBOOK)),
            "good": np.flatnonzero(unseen & (self.ratings >= GOOD)),
            "general": first_tokens(self, free, GENERAL_TOKENS),
            "poor": np.flatnonzero(unseen & (self.ratings >= 0) & (self.ratings <= POOR)),
        }

    def tokens(self, documents: Sequence[int] | np.ndarray) -> Tensor:
        """The ids of documents, one after the other."""
        return torch.from_numpy(np.concatenate([self.ids[i] for i in documents]).astype(np.int64))


def load(folder: Path) -> Corpus:
    """Makes the corpus in `folder` where it is not there yet (two minutes)."""
    os.environ["HORNBOOK_ROOT"] = str(folder)
    words = ("name=quality", "data.sources.exercises=null", "data.filters.quality=null", "data.workers=1",
             f"model.vocab_size={VOCABULARY}")  # fmt: skip
    step, makers = data_chain(configs.load(ROOT / "configs" / "tiny.yaml", words))
    build(step, makers, experiment="quality")
    paths = {name: before.path for name, before in step.inputs.items() if isinstance(before, Step)}
    table, manifest = Table.load(paths["repair"]), read_manifest(step.path)
    encoded = Encoded(paths["encode"], table, token_dtype(manifest["vocab_size"]))
    scores = corpus_scores(Folder(step.path, paths), table)
    left = np.flatnonzero(read_all_alive(paths["cut"], table.tasks) & (encoded.lengths > 0))
    names = table.names(left)
    rated = {label.path: label.score for label in read_labels()}
    return Corpus(
        [np.array(ids[:HEAD_TOKENS]) for ids, *_ in encoded.documents(left, scores)],
        scores[left],
        np.array([rated.get(names[int(i)].path, -1) for i in left]),
        fold_by_group([names[int(i)].group for i in left], SEEDS),
        load_tokenizer(step.path / "tokenizer.json"),
    )


def first_tokens(corpus: Corpus, documents: np.ndarray, tokens: int) -> np.ndarray:
    """As many documents, in their order, as hold that many tokens. Raises `ValueError` where they do not."""
    total = np.cumsum([len(corpus.ids[i]) for i in documents])
    if not len(total) or total[-1] < tokens:
        raise ValueError(f"{tokens:,} tokens wanted, there are {int(total[-1:].sum()):,}")
    return documents[: int(np.searchsorted(total, tokens)) + 1]


class Selected(Text):
    """The text of one arm: `batch(seed, step)` reads it in a seeded order, anew in every epoch."""

    def __init__(self, ids: Tensor) -> None:
        self.scale = SCALE
        windows = ids[: len(ids) // (WINDOW + 1) * (WINDOW + 1)].view(-1, WINDOW + 1)
        self._train, self.held_out = windows, windows[None, :BATCH_WINDOWS]


def train(corpus: Corpus, documents: np.ndarray, tokens: int, seed: int) -> Transformer:
    """A model trained on `tokens` tokens of the documents, repeated where they hold fewer."""
    steps = tokens // STEP_TOKENS
    text = Selected(corpus.tokens(first_tokens(corpus, documents, min(tokens, total_tokens(corpus, documents)))))
    lab = Lab(text, seed, steps, points=1)
    return lab.again(lab.train(lab.fresh(SHAPE), steps, lab.wsd(steps)))


def total_tokens(corpus: Corpus, documents: np.ndarray) -> int:
    return sum(len(corpus.ids[i]) for i in documents)


@torch.no_grad()
def bits_per_byte(network: Transformer, corpus: Corpus, documents: np.ndarray) -> float:
    """Of the documents' heads, each window of its own; what does not fill a window is left out."""
    ids = corpus.tokens(documents)
    windows = ids[: len(ids) // (WINDOW + 1) * (WINDOW + 1)].view(-1, WINDOW + 1)
    nats = sum(float(network.loss(part[:, :-1], part[:, 1:])[0]) for part in windows.split(BATCH_WINDOWS))
    n_bytes = sum(len(corpus.tokenizer.decode(corpus.ids[i].tolist()).encode()) for i in documents)
    return nats / (windows.shape[0] * WINDOW) / np.log(2) * len(ids) / n_bytes
