"""The text that the data benchmarks run on, and how they measure: real files of this Python environment, one core."""

import hashlib
import json
import random
import resource
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datatrove.data import Document
from loguru import logger

from pipeline.corpus.sources.python_library import PythonLibrary

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
