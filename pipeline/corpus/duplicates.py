"""Exact and near duplicates.

Exact: the same words in the same order, whatever the case and white space; the first in corpus order stays. Near:
MinHash (Broder 1997) over five-word shingles, bands sorted in numpy, candidates confirmed on the whole signature,
clusters by union-find. datatrove's own MinHash splits words with spaCy and takes 14 times as long (DATA.md 2.2).

Exercises keep numbers and punctuation, all other text loses them: with the usual normalisation 398 of 400 different
exercises would be "duplicates". So an exercise is never compared with a library text.
"""

import hashlib
import re
import string
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from data_filters.rule import EXERCISE, Drop
from pipeline.artifacts import Folder
from pipeline.corpus.documents import (
    DocumentReader,
    Place,
    load_table,
    read_records,
    shard_name,
    survivors,
    write_decisions,
    write_records,
)
from pipeline.corpus.execute import run_tasks
from pipeline.corpus.reading import step_facts

PERMUTATIONS = 128
SHINGLE_WORDS = 5
MINHASH_SEED = 1
_NUMBER = re.compile(r"\d+(?:[.,]\d+)?")
_NO_PUNCTUATION = str.maketrans({c: " " for c in string.punctuation})
_SYMBOLS = re.compile(r"\w+|[^\w\s]")


def drop_exact_duplicates(folder: Folder, tasks: int, workers: int) -> dict[str, Any]:
    """Drops every document but the first of those with the same normalised text, across sources."""
    repaired, rules = folder.input("repair"), folder.input("rules")
    pipeline = [DocumentReader(repaired, [repaired, rules]), Digests(folder.path)]
    run_tasks(folder, pipeline, tasks=tasks, workers=workers, description="exact duplicates")
    table = load_table(repaired, tasks)
    first: dict[str, Place] = {}
    drops: dict[Place, tuple[str, Drop]] = {}
    for shard in range(tasks):
        for record in read_records(folder.path / "digests" / shard_name(shard)):
            place = shard, record["at"]
            kept = first.setdefault(record["digest"], place)
            if kept != place:
                drops[place] = "exact_dedup", Drop("same_text", _path(table, kept), "same words")
    write_decisions(folder.path, tasks, drops)
    return step_facts(folder.path, repaired, [repaired, rules, folder.path], tasks)


class Digests(PipelineStep):
    """One digest per document of its lower-case words."""

    name, type = "digests", "🫂 - DEDUP"

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:  # type: ignore[override]
        digests = [{"at": doc.metadata["at"], "digest": _digest(doc.text)} for doc in data or ()]
        write_records(self.folder / "digests" / shard_name(rank), digests)
        yield from ()


def _digest(text: str) -> str:
    return hashlib.blake2b(" ".join(text.lower().split()).encode(), digest_size=16).hexdigest()


def drop_near_duplicates(folder: Folder, similarity: float, tasks: int, workers: int) -> dict[str, Any]:
    """Drops train documents near another: near a validation document always, else all but the first of a cluster.
    Validation documents stay, whatever they are near."""
    repaired, rules = folder.input("repair"), folder.input("rules")
    decided = [repaired, rules, folder.input("exact_dedup")]
    pipeline = [DocumentReader(repaired, decided), Signatures(folder.path)]
    run_tasks(folder, pipeline, tasks=tasks, workers=workers, description="near duplicates")
    table = load_table(repaired, tasks)
    places = [place for place, _ in survivors(table, decided)]
    parts = [np.load(folder.path / "signatures" / f"{shard:05d}.npy") for shard in range(tasks)]
    roots = clusters(np.concatenate(parts), similarity)
    validation = validation_places(folder.input("split"), tasks)
    held_out = np.array([place in validation for place in places], dtype=bool)
    has_validation = np.zeros(len(places), dtype=bool)
    has_validation[roots[held_out]] = True
    drops: dict[Place, tuple[str, Drop]] = {}
    for i, place in enumerate(places):
        root = int(roots[i])
        if held_out[i] or (root == i and not has_validation[root]):
            continue
        reason = "near_validation" if has_validation[root] else "near_train"
        drops[place] = "near_dedup", Drop(reason, _path(table, places[root]), similarity)
    write_decisions(folder.path, tasks, drops)
    sizes = np.bincount(roots, minlength=len(places))
    largest = [
        {"documents": int(sizes[i]), "path": _path(table, places[i])}
        for i in np.argsort(-sizes, kind="stable")[:10]
        if sizes[i] > 1
    ]
    facts = step_facts(folder.path, repaired, [*decided, folder.path], tasks)
    return {**facts, "clusters": int((sizes > 1).sum()), "largest_clusters": largest}


class Signatures(PipelineStep):
    """One MinHash signature per document, `signatures/00003.npy`: uint32, documents x permutations."""

    name, type = "minhash", "🫂 - DEDUP"

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:  # type: ignore[override]
        rows = [signature(doc.text, doc.metadata["kind"]) for doc in data or ()]
        (self.folder / "signatures").mkdir(parents=True, exist_ok=True)
        array = np.array(rows, dtype=np.uint32).reshape(len(rows), PERMUTATIONS)
        np.save(self.folder / "signatures" / f"{rank:05d}.npy", array, allow_pickle=False)
        yield from ()


def signature(text: str, kind: str) -> list[int]:
    """The MinHash of a text's five-word shingles; a shorter text is one shingle."""
    from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue] - a compiled module without stubs

    words = _SYMBOLS.findall(text) if kind == EXERCISE else _plain_words(text)
    shingles = [" ".join(words[i : i + SHINGLE_WORDS]) for i in range(max(1, len(words) - SHINGLE_WORDS + 1))]
    minhash = RMinHash(num_perm=PERMUTATIONS, seed=MINHASH_SEED)
    minhash.update(shingles)
    return minhash.digest()


def _plain_words(text: str) -> list[str]:
    text = text.lower()
    if not text.isascii():
        text = "".join(c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) != "Mn")
    return _NUMBER.sub("0", text).translate(_NO_PUNCTUATION).split()


def band_rows(similarity: float) -> int:
    """Rows per band: as many (fewest false candidates) as still bring 99% of the pairs at `similarity` + 0.05."""
    wanted = min(1.0, similarity + 0.05)
    good = [r for r in range(1, PERMUTATIONS + 1) if 1 - (1 - wanted**r) ** (PERMUTATIONS // r) >= 0.99]
    return max(good, default=1)


def clusters(signatures: np.ndarray, similarity: float) -> np.ndarray:
    """The first member of each row's cluster. Candidates share a band; a pair joins if the share of equal
    permutations, which estimates the Jaccard similarity (standard error 0.035), is at least `similarity`."""
    n, rows = len(signatures), band_rows(similarity)
    parent = np.arange(n)

    def find(x: int) -> int:
        while parent[x] != x:
            parent[x] = parent[parent[x]]
            x = int(parent[x])
        return x

    for band in range(PERMUTATIONS // rows):
        part = np.ascontiguousarray(signatures[:, band * rows : (band + 1) * rows])
        keys = part.view(np.dtype((np.void, part.dtype.itemsize * rows))).ravel()
        order = np.argsort(keys, kind="stable")
        same = np.flatnonzero(keys[order][1:] == keys[order][:-1])
        for run in np.split(same, np.flatnonzero(np.diff(same) != 1) + 1):  # one run per bucket of equal keys
            for i in run:
                right = int(order[i + 1])
                for left in {int(order[run[0]]), int(order[i])}:  # the bucket's first and the neighbour
                    a, b = find(left), find(right)
                    if a != b and _alike(signatures, left, right) >= similarity:
                        parent[max(a, b)] = min(a, b)
    return np.array([find(i) for i in range(n)], dtype=np.int64)


def _alike(signatures: np.ndarray, i: int, j: int) -> float:
    return float((signatures[i] == signatures[j]).mean())


def validation_places(split: Path, tasks: int) -> set[Place]:
    """Where the split step put the validation documents."""
    return {(s, r["at"]) for s in range(tasks) for r in read_records(split / "validation" / shard_name(s))}


def _path(table: list, place: Place) -> str:
    row = table[place[0]][place[1]]
    return f"{row.source}/{row.path}"
