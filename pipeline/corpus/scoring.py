"""The score step: trains the quality scorer on the corpus itself and scores every document; the cut comes later.

In: ids and texts. Out: `scores/00003.bin` (float32, in the order of the ids), `scorer/weights.npy` and
`scorer/scorer.json`. Texts are read twice, a sample for training and all for scoring, so that memory does not grow with
the corpus. The AUC in the manifest is over weak labels on folds that share no package. It says how well the label rule
was learned, and overstates quality: on rated documents such scorers reached 0.78 to 0.82 (DATA.md section 3).
"""

import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from pipeline.artifacts import Folder, write_json
from pipeline.corpus.documents import (
    DocumentReader,
    RowWriter,
    Table,
    draw,
    hash_key,
    read_all_alive,
    read_rows,
    write_masks,
)
from pipeline.corpus.duplicates import read_validation
from pipeline.corpus.execute import Executor, map_processes
from pipeline.corpus.features import STRUCTURE, Features, features, weak_label
from pipeline.corpus.scorer import Scorer, Sparse, auc, calibrate, train
from pipeline.corpus.tokenizing import open_ids, token_dtype
from pipeline.errors import UserError

FOLDS = 3
LEAST_LABELS = 50  # of each class; with fewer there is nothing to learn from
MOST_LABELLED = 12_000  # documents the scorer is trained on, chosen by hash
BATCH_DOCUMENTS = 256
SCORES = np.dtype("<f4")


def score_documents(folder: Folder, before: str, vocab_size: int, seed: int, executor: Executor) -> dict[str, Any]:
    """A labelled sample, training, then scores. Facts: `classifier {auc, ...}` and the score histogram."""
    repaired, encoded, previous = folder.input("repair"), folder.input("encode"), folder.input(before)
    table, dtype = Table.load(repaired), token_dtype(vocab_size)
    labelled = _labelled(folder, table, previous, dtype, seed, executor)
    scorer, facts = _train(labelled, vocab_size, executor.workers)
    if scorer:
        _save(scorer, folder.path / "scorer", facts)
        scoring = ScoreDocuments(encoded, folder.path, dtype)
        executor.run(
            Folder(folder.path / "logs" / "scores"), [DocumentReader(repaired, previous), scoring], description="score"
        )
    histogram = np.zeros(10, dtype=np.int64)
    (folder.path / "scores").mkdir(exist_ok=True)
    for shard in range(table.tasks):
        if not scorer:
            path = folder.path / "scores" / f"{shard:05d}.bin"
            path.write_bytes(np.ones(len(open_ids(encoded, shard, dtype)[1]), dtype=SCORES).tobytes())
        histogram += np.histogram(read_scores(folder.path, shard), bins=10, range=(0, 1))[0]
    return {"classifier": facts, "score_histogram": histogram.tolist()}


def read_scores(scored: Path, shard: int) -> np.ndarray:
    """Scores of one shard, in the order of its ids."""
    return read_rows(scored / "scores" / f"{shard:05d}.bin", SCORES)


class ExtractFeatures(PipelineStep):
    """Features and labels of the documents that come, as arrays of one shard."""

    name, type = "features", "📊 - STATS"

    def __init__(self, encoded: Path, folder: Path, dtype: np.dtype):
        super().__init__()
        self.encoded, self.folder, self.dtype = encoded, folder, dtype

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:  # type: ignore[override]
        rows, labels, folds = [], [], []
        for doc, row in _with_features(data or (), self.encoded, rank, self.dtype):
            label = weak_label(row.structure, doc.metadata["path"], doc.metadata["kind"])
            if label >= 0:
                rows.append(row)
                labels.append(label)
                folds.append(hash_key("fold", doc.metadata["source"], doc.metadata["group"]) % FOLDS)
        self.folder.mkdir(parents=True, exist_ok=True)
        data_ = Sparse.stack(rows)
        np.savez(
            self.folder / f"{rank:05d}.npz",
            ids=data_.ids.astype(np.uint32), values=data_.values.astype(np.float32), starts=data_.starts,
            structure=data_.structure.astype(np.float32), labels=np.array(labels, dtype=np.int64),
            folds=np.array(folds, dtype=np.int64),
        )  # fmt: skip
        yield from ()


def _with_features(
    documents: Iterable[Document], encoded: Path, shard: int, dtype: np.dtype
) -> Iterator[tuple[Document, Features]]:
    ids, index = open_ids(encoded, shard, dtype)
    ats = np.ascontiguousarray(index["at"])
    for doc in documents:
        entry = index[np.searchsorted(ats, doc.metadata["at"])]
        token_ids = ids[int(entry["offset"]) : int(entry["offset"]) + int(entry["length"]) - 1]
        yield doc, features(token_ids, doc.text, doc.metadata["path"], doc.metadata["kind"])


class ScoreDocuments(PipelineStep):
    """One score a document, by the scorer that lies in the step's folder."""

    name, type = "score", "📊 - STATS"

    def __init__(self, encoded: Path, folder: Path, dtype: np.dtype):
        super().__init__()
        self.encoded, self.folder, self.dtype = encoded, folder, dtype

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:  # type: ignore[override]
        scorer = load_scorer(self.folder / "scorer")
        pairs = _with_features(data or (), self.encoded, rank, self.dtype)
        with RowWriter(self.folder / "scores" / f"{rank:05d}.bin", SCORES) as out:
            while batch := [row for _, row in islice(pairs, BATCH_DOCUMENTS)]:
                for score in scorer.scores(Sparse.stack(batch)):
                    out.add(score)
        yield from ()


def _labelled(
    folder: Folder, table: Table, previous: Path, dtype: np.dtype, seed: int, executor: Executor
) -> tuple[Sparse, np.ndarray, np.ndarray]:
    """(rows, labels, fold of each) of train documents with a weak label; a group lies in one fold only."""
    train = read_all_alive(previous, table.tasks) & ~read_validation(folder.input("split"), table.tasks)
    share = min(1.0, MOST_LABELLED / max(1, int(train.sum())))
    if share < 1.0:
        train &= draw(table.rows["digest"][:, 0], seed, "label") < np.uint64(int(share * 2**64))
    inside = Folder(folder.path / "logs" / "features")
    write_masks(inside.path / "sample", table, train)
    reader = DocumentReader(folder.input("repair"), only=inside.path / "sample")
    extract = ExtractFeatures(folder.input("encode"), inside.path, dtype)
    executor.run(inside, [reader, extract], description="labels")
    parts = [_load(inside.path / f"{shard:05d}.npz") for shard in range(table.tasks)]
    shutil.rmtree(inside.path)
    lengths = np.concatenate([np.diff(p["starts"]) for p in parts])
    joined = Sparse(
        np.concatenate([p["ids"] for p in parts]).astype(np.int64),
        np.concatenate([p["values"] for p in parts]).astype(np.float64),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        np.concatenate([p["structure"] for p in parts]).astype(np.float64),
    )
    return joined, np.concatenate([p["labels"] for p in parts]), np.concatenate([p["folds"] for p in parts])


def _load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def _train(
    labelled: tuple[Sparse, np.ndarray, np.ndarray], vocab_size: int, workers: int
) -> tuple[Scorer | None, dict[str, Any]]:
    """The scorer trained on all labels, calibrated on what its folds' twins had not seen, and how good they are."""
    rows, labels, folds = labelled
    counts = {"positives": int(labels.sum()), "negatives": int(len(labels) - labels.sum())}
    usable = [f for f in range(FOLDS) if 0 < labels[folds == f].sum() < (folds == f).sum()]
    if min(counts.values()) < LEAST_LABELS or len(usable) < FOLDS:
        why = f"too few weak labels ({counts['positives']} for, {counts['negatives']} against): every score is 1"
        return None, {"auc": None, **counts, "note": why}

    tokens_only = replace(rows, structure=np.zeros_like(rows.structure))

    def fit(job: tuple[Sparse, int]) -> Scorer:
        data, fold = job
        keep = np.flatnonzero(folds != fold)
        return train(data.take(keep), labels[keep], vocab_size)

    jobs = [(data, fold) for data in (rows, tokens_only) for fold in range(FOLDS)]
    *twins, scorer = map_processes(lambda i: fit([*jobs, (rows, -1)][i]), range(len(jobs) + 1), workers=workers)
    logits, token_logits = np.zeros(len(rows)), np.zeros(len(rows))
    for (data, fold), twin in zip(jobs, twins, strict=True):
        unseen = np.flatnonzero(folds == fold)
        (logits if data is rows else token_logits)[unseen] = twin.logits(data.take(unseen))
    scorer = calibrate(scorer, logits, labels)
    docstrings = rows.structure[:, STRUCTURE.index("docstring_share")]
    facts = {
        "auc": round(auc(logits, labels), 4),
        "auc_tokens_only": round(auc(token_logits, labels), 4),
        "auc_docstring_share": round(auc(docstrings, labels), 4),
        **counts,
        "labels": "weak",
        "note": "AUC over weak labels on package-disjoint folds. The structure columns are what the labels are made "
        "of, so it is near 1; auc_tokens_only is without them. Both overstate quality as a person would rate it",
    }
    return scorer, facts


def _save(scorer: Scorer, folder: Path, facts: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    np.save(folder / "weights.npy", scorer.weights.astype(np.float32), allow_pickle=False)
    settings = {
        "vocab_size": scorer.vocab_size, "structure": list(STRUCTURE), "slope": scorer.slope, "offset": scorer.offset,
    }  # fmt: skip
    write_json(folder / "scorer.json", {**settings, **facts})


def load_scorer(folder: Path) -> Scorer:
    """A trained scorer from its folder. Raises `UserError` where it was made by another version of the features."""
    facts = json.loads((folder / "scorer.json").read_text(encoding="utf-8"))
    if tuple(facts["structure"]) != STRUCTURE:
        raise UserError(f"{folder} was trained on other features than this version has; run `hornbook data` again")
    weights = np.load(folder / "weights.npy", allow_pickle=False).astype(np.float64)
    return Scorer(weights, facts["vocab_size"], facts["slope"], facts["offset"])
