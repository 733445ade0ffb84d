"""The text that bench_data.py runs on, how it measures, and its part on near dedup.

Text: real files of this Python environment, one core. Near dedup: datatrove's four MinHash stages beside ours; planted
copies, and exercises that must stay apart.
"""

import hashlib
import json
import random
import resource
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document
from loguru import logger

from pipeline.corpus.duplicates import (
    Sketcher,
    WordHashes,
    band_keys,
    band_rows,
    clusters,
    ngrams,
    plain_words,
    without_numbers,
)
from pipeline.corpus.exercises.source import Exercises
from pipeline.corpus.sources.python_library import PythonLibrary
from scripts.bench_rows import Rows, at_least, at_most, row

DISTRIBUTIONS = (
    "aiohttp", "datasets", "datatrove", "fsspec", "lightning", "mpmath", "networkx", "numpy", "pyarrow", "pydantic",
    "pygments", "regex", "rich", "sympy", "torchmetrics", "typer", "urllib3",
)  # fmt: skip
PROSE_DISTRIBUTIONS = (*DISTRIBUTIONS, "pytorch-lightning", "torch", "transformers")
logger.remove()  # datatrove writes a page a step, which is not what is measured

RUNS = 5
SEED = 0


@dataclass(frozen=True)
class Sample:
    """Documents in a fixed order: `texts`, their `kinds` and paths; `sha256` of all of them."""

    texts: list[str]
    kinds: list[str]
    paths: list[str]

    @property
    def megabytes(self) -> float:
        return sum(len(t.encode()) for t in self.texts) / 1e6

    @property
    def sha256(self) -> str:
        return hashlib.sha256("\0".join(self.texts).encode()).hexdigest()

    def write(self, folder: Path, files: int = 4) -> Path:
        """JSON lines, spread over some files; every document is called prose, so that the web rules look at all."""
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(files):
            lines = [
                json.dumps(
                    {"text": text, "id": path, "license": "MIT", "group": path.split("/")[1]}, ensure_ascii=False
                )
                for text, path in list(zip(self.texts, self.paths, strict=True))[number::files]
            ]
            (folder / f"{number:02d}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return folder


def sample(megabytes: float, prose_only: bool = False) -> Sample:
    """About so much text of the library corpus, drawn by a seed; the same for the same versions of the packages."""
    distributions = PROSE_DISTRIBUTIONS if prose_only else DISTRIBUTIONS
    documents = [d for d in PythonLibrary(distributions).documents(0, 1) if isinstance(d, Document) and d.text.strip()]
    documents = [d for d in documents if not prose_only or d.metadata["kind"] == "prose"]
    random.Random(SEED).shuffle(documents)
    chosen, n_bytes = [], 0
    for doc in documents:
        if n_bytes >= megabytes * 1e6:
            break
        chosen.append(doc)
        n_bytes += len(doc.text.encode())
    return Sample(
        [d.text.encode("utf-8", "replace").decode() for d in chosen],
        [d.metadata["kind"] for d in chosen],
        [f"{d.metadata['package']}/{d.id}" for d in chosen],
    )


def cpu_seconds() -> float:
    """Processor seconds of this process and of its children that have ended."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def paired(
    stock: Callable[[], Any], ours: Callable[[], Any], stock_runs: int, our_runs: int
) -> tuple[float, float, Any, Any]:
    """Median processor seconds of both, in turn, and what each returned last."""
    times: tuple[list[float], list[float]] = ([], [])
    results: list[Any] = [None, None]
    for turn in range(max(stock_runs, our_runs)):
        for side, (function, runs) in enumerate(((stock, stock_runs), (ours, our_runs))):
            if turn < runs:
                before = cpu_seconds()
                results[side] = function()
                times[side].append(cpu_seconds() - before)
    medians = [sorted(t)[len(t) // 2] for t in times]
    return medians[0], medians[1], results[0], results[1]


BUCKETS, ROWS = 14, 8  # datatrove's defaults


def near(megabytes: float, quick: bool) -> Rows:
    text = sample(megabytes)
    with tempfile.TemporaryDirectory() as folder:
        place = text.write(Path(folder) / "text", files=1)
        stock_runs, our_runs = (1, 3) if quick else (3, 5)
        stock, ours, removed, found = paired(
            lambda: _stock(place, Path(folder) / "stock"), lambda: _ours(text), stock_runs, our_runs
        )
        other_seed = _stock(place, Path(folder) / "stock", seed=2)
    alike, twins = _decided_alike(text, removed, found)
    return [
        at_least("near dedup against datatrove's MinHash", stock / ours, "x", 10),
        at_most("near dedup: documents decided otherwise", len(removed ^ found) / len(text.texts), "share", 0.02),
        at_least(f"near dedup: decided alike where a twin has Jaccard >= 0.85 (of {twins})", alike, "share", 0.98),
        row("near dedup: removed sets differ, share of both together", _differ(removed, found), "share"),
        row("the same, datatrove against itself with another seed", _differ(removed, other_seed), "share"),
        row("near dedup, stock", round(text.megabytes / stock, 2), "MB/s"),
        row("near dedup, ours", round(text.megabytes / ours, 1), "MB/s"),
        row("near dedup: removed by stock / by ours", f"{len(removed)} / {len(found)}", "documents"),
        *_planted(),
    ]


def _differ(a: set[int], b: set[int]) -> float:
    return round(len(a ^ b) / max(1, len(a | b)), 3)


def _decided_alike(text: Sample, removed: set[int], found: set[int]) -> tuple[float, int]:
    """Over the documents that either removes and that have a twin well above the threshold: the share both remove."""
    hashes = WordHashes(without_numbers)
    shingles = [set(ngrams(hashes.hashes(plain_words(t)), 5).tolist()) for t in text.texts]
    clear = [
        i
        for i in sorted(removed | found)
        if any(_jaccard(shingles[i], other) >= 0.85 for j, other in enumerate(shingles) if j != i)
    ]
    return sum(i in removed and i in found for i in clear) / max(1, len(clear)), len(clear)


def _jaccard(a: set[int], b: set[int]) -> float:
    if not 0.8 * len(a) <= len(b) <= len(a) / 0.8:
        return 0.0
    return len(a & b) / max(1, len(a | b))


def _stock(place: Path, folder: Path, seed: int = 1) -> set[int]:
    """Positions that datatrove's default MinHash removes; one file, one task."""
    import shutil

    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    shutil.rmtree(folder, ignore_errors=True)
    settings = MinhashConfig(seed=seed)
    reader = JsonlReader(str(place))
    stages = [
        [reader, MinhashDedupSignature(str(folder / "signatures"), config=settings)],
        [MinhashDedupBuckets(str(folder / "signatures"), str(folder / "buckets"), config=settings)],
        [MinhashDedupCluster(str(folder / "buckets"), str(folder / "remove"), config=settings)],
        [
            reader,
            MinhashDedupFilter(
                str(folder / "remove"), exclusion_writer=JsonlWriter(str(folder / "removed"), compression=None)
            ),
        ],
    ]
    for number, stage in enumerate(stages):
        tasks = settings.num_buckets if number == 1 else 1
        LocalPipelineExecutor(stage, tasks=tasks, workers=1, logging_dir=str(folder / "logs" / str(number))).run()
    import orjson

    lines = (orjson.loads(line) for path in (folder / "removed").glob("*") for line in path.read_bytes().splitlines())
    order = {orjson.loads(line)["id"]: i for i, line in enumerate((place / "00.jsonl").read_bytes().splitlines())}
    return {order[record["id"]] for record in lines}


def _ours(text: Sample) -> set[int]:
    """The same decision rule on our signatures: one equal bucket makes two documents duplicates."""
    sketcher, keys = Sketcher(BUCKETS * ROWS), []
    for i in range(0, len(text.texts), 256):
        values, empty = sketcher.sketch(text.texts[i : i + 256], ["prose"] * len(text.texts[i : i + 256]))
        part = band_keys(values, ROWS)
        part[:, empty] = np.random.default_rng(i).integers(0, 2**63, int(empty.sum()), dtype=np.uint64)
        keys.append(part)
    bands = np.concatenate(keys, axis=1)
    roots = clusters(bands, lambda left, right: np.ones(len(left)), len(text.texts), 0.0)
    return set(np.flatnonzero(roots != np.arange(len(roots))).tolist())


def _planted() -> Rows:
    """Near copies with a known similarity put into real text, and exercises that differ."""
    draw = random.Random(1)
    bases = [t.split() for t in sample(6).texts]
    bases = [words for words in bases if 200 <= len(words) <= 3_000][:400]
    texts = [" ".join(words) for words in bases]
    pairs = []
    for i, words in enumerate(bases):
        copy, similarity = _vary(words, draw)
        if similarity >= 0.85:
            pairs.append((i, len(texts)))
            texts.append(" ".join(copy))
    roots = _clustered(texts, "prose")
    found = sum(bool(roots[a] == roots[b]) for a, b in pairs) / len(pairs)
    exercises = [d.text for d in Exercises(count=2_000).documents(0, 1) if isinstance(d, Document)]
    merged = 1 - len(set(_clustered(exercises, "exercise").tolist())) / len(exercises)
    return [
        at_least(f"planted near duplicates found ({len(pairs)}, Jaccard >= 0.85)", found, "share", 0.95),
        at_most(f"different exercises wrongly merged (of {len(exercises)})", merged, "share", 0.01),
    ]


def _vary(words: list[str], draw: random.Random) -> tuple[list[str], float]:
    """The words with some replaced, and the Jaccard similarity of both sets of five-word shingles, as normalised."""
    copy = list(words)
    for _ in range(max(1, int(len(words) * draw.uniform(0.001, 0.014)))):
        copy[draw.randrange(len(copy))] = draw.choice(("other", "changed", "new", "edited"))
    hashes = WordHashes(without_numbers)
    a, b = (set(ngrams(hashes.hashes(plain_words(" ".join(w))), 5).tolist()) for w in (words, copy))
    return copy, _jaccard(a, b)


def _clustered(texts: list[str], kind: str, similarity: float = 0.8) -> np.ndarray:
    values, _ = Sketcher().sketch(texts, [kind] * len(texts))
    low = values.astype("<u2")
    return clusters(
        band_keys(values, band_rows(similarity)),
        lambda left, right: (low[left] == low[right]).mean(axis=1),
        len(texts),
        similarity,
    )
