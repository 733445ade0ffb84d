"""The score step: trains the quality scorer on the corpus itself and scores every document; the cut comes later.

In: ids and texts. Out: `scores/00003.npy` (in the order of the ids), `scorer/weights.npy` and `scorer/scorer.json`.
The AUC in the manifest is over weak labels on folds that share no package. It says how well the label rule was
learned, and overstates quality: on rated documents such scorers reached 0.78 to 0.82 (DATA.md section 3).
"""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from pipeline.artifacts import Folder, write_json
from pipeline.corpus.documents import DocumentReader, Row, load_table
from pipeline.corpus.duplicates import validation_places
from pipeline.corpus.execute import map_processes, run_tasks
from pipeline.corpus.features import STRUCTURE, Features, features, weak_label
from pipeline.corpus.scorer import Scorer, Sparse, auc, calibrate, train
from pipeline.corpus.splitting import hash_key
from pipeline.corpus.tokenizing import open_ids, token_dtype

FOLDS = 3
LEAST_LABELS = 50  # of each class; with fewer there is nothing to learn from
MOST_LABELLED = 12_000  # documents the scorer is trained on, chosen by hash


def score_documents(folder: Folder, vocab_size: int, seed: int, tasks: int, workers: int) -> dict[str, Any]:
    """Features in the workers, then training, then scores. Facts: `classifier {auc, ...}` and the score histogram."""
    repaired, encoded = folder.input("repair"), folder.input("encode")
    decided = [repaired, *(folder.input(n) for n in ("rules", "exact_dedup", "near_dedup"))]
    extract = ExtractFeatures(encoded, folder.path, token_dtype(vocab_size))
    run_tasks(folder, [DocumentReader(repaired, decided), extract], tasks=tasks, workers=workers, description="score")
    table = load_table(repaired, tasks)
    labelled = _labelled(folder, table, seed, tasks)
    scorer, facts = _train(labelled, vocab_size, workers)
    histogram = np.zeros(10, dtype=np.int64)
    (folder.path / "scores").mkdir(exist_ok=True)
    for shard in range(tasks):
        rows = _load_features(folder.path, shard)
        scores = scorer.scores(rows) if scorer else np.ones(len(rows), dtype=np.float32)
        histogram += np.histogram(scores, bins=10, range=(0, 1))[0]
        np.save(folder.path / "scores" / f"{shard:05d}.npy", scores, allow_pickle=False)
    if scorer:
        _save(scorer, folder.path / "scorer", facts)
    shutil.rmtree(folder.path / "features")
    return {"classifier": facts, "score_histogram": histogram.tolist()}


class ExtractFeatures(PipelineStep):
    """Features of one shard's documents, as four arrays."""

    name, type = "features", "📊 - STATS"

    def __init__(self, encoded: Path, folder: Path, dtype: np.dtype):
        super().__init__()
        self.encoded, self.folder, self.dtype = encoded, folder, dtype

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:  # type: ignore[override]
        ids, index = open_ids(self.encoded, rank, self.dtype)
        rows: list[Features] = []
        for doc, entry in zip(data or (), index, strict=True):
            token_ids = ids[int(entry["offset"]) : int(entry["offset"]) + int(entry["length"]) - 1]
            rows.append(features(token_ids, doc.text, doc.metadata["path"], doc.metadata["kind"]))
        (self.folder / "features").mkdir(parents=True, exist_ok=True)
        lengths = np.array([len(r.ids) for r in rows], dtype=np.int64)
        np.savez(
            self.folder / "features" / f"{rank:05d}.npz",
            ids=np.concatenate([r.ids for r in rows]) if rows else np.zeros(0, np.uint32),
            values=np.concatenate([r.values for r in rows]) if rows else np.zeros(0, np.float32),
            lengths=lengths,
            structure=np.array([r.structure for r in rows], np.float32).reshape(len(rows), len(STRUCTURE)),
            at=index["at"],
        )
        yield from ()


def _load_features(folder: Path, shard: int) -> Sparse:
    with np.load(folder / "features" / f"{shard:05d}.npz") as file:
        starts = np.concatenate([[0], np.cumsum(file["lengths"])]).astype(np.int64)
        return Sparse(file["ids"].astype(np.int64), file["values"].astype(np.float64), starts, file["structure"])


def _labelled(folder: Folder, table: list[list[Row]], seed: int, tasks: int) -> tuple[Sparse, np.ndarray, np.ndarray]:
    """(rows, labels, fold of each) of train documents with a weak label; a group lies in one fold only."""
    validation = validation_places(folder.input("split"), tasks)
    share = min(1.0, MOST_LABELLED / max(1, sum(map(len, table))))
    parts, labels, folds = [], [], []
    for shard in range(tasks):
        rows = _load_features(folder.path, shard)
        with np.load(folder.path / "features" / f"{shard:05d}.npz") as file:
            ats = file["at"]
        chosen = []
        for i, at in enumerate(ats):
            row = table[shard][at]
            label = weak_label(rows.structure[i], row.path, row.kind)
            drawn = hash_key(seed, "label", row.source, row.path) < share * 2**64
            if label >= 0 and drawn and (shard, int(at)) not in validation:
                chosen.append(i)
                labels.append(label)
                folds.append(hash_key(seed, "fold", row.source, row.group) % FOLDS)
        parts.append(rows.take(np.array(chosen, dtype=np.int64)))
    lengths = np.concatenate([np.diff(p.starts) for p in parts])
    joined = Sparse(
        np.concatenate([p.ids for p in parts]),
        np.concatenate([p.values for p in parts]),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        np.concatenate([p.structure for p in parts]).astype(np.float64),
    )
    return joined, np.array(labels, dtype=np.int64), np.array(folds, dtype=np.int64)


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
    write_json(
        folder / "scorer.json",
        {
            "vocab_size": scorer.vocab_size,
            "structure": list(STRUCTURE),
            "slope": scorer.slope,
            "offset": scorer.offset,
            **facts,
        },
    )
