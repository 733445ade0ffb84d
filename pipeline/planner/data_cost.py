"""Hours, disk and memory of the data stage at sizes that were not run, from what each step costs on one core.

In: bytes of text, documents, cores. Out: hours by step. Work in shards is divided by the cores; what the process that
leads the stage does alone is not. Rates: docs/results/data/bench_scale.json, of one core of a busy machine; disks are
taken to keep up.
"""

from collections.abc import Mapping
from typing import Any

from pipeline.corpus.execute import worker_count
from pipeline.corpus.text.source import BYTES_PER_TOKEN

# Of one core, for each step: seconds for a GB and for a million documents in the shards, then the same in the process
# that leads. Score: bench_scorer.json. The tokenizer is trained on a fixed amount of text.
RATES: Mapping[str, tuple[float, float, float, float]] = {
    "start": (0, 0, 0.5, 0),  # hashes of the inputs
    "read": (16.8, 20, 1.2, 1.9),
    "repair": (24.0, 20, 0.2, 0.8),
    "rules": (77.0, 2, 0.5, 0.2),
    "exact dedup": (0, 0, 0, 0.6),
    "split": (0, 0, 0, 0.8),
    "near dedup": (13.7, 35, 0.2, 2.9),
    "encode": (28.7, 7, 0.3, 0.4),
    "score": (24.4, 0, 0, 0.1),
    "cut": (0, 0, 0, 0.3),
    "data": (0, 0, 3.8, 9.0),
}
BASIS = (
    "rates of one core with the rules of tiny.yaml; the process that leads the stage works alone on what follows the "
    "shards; disks and network are taken to keep up"
)
DOCUMENT_BYTES = 4_000  # of a document, where nobody counted them: web pages and code files have 2 to 8 kB
BYTES_KEPT = 3.1  # of each byte of text: JSON lines as read and as repaired, ids of 2 bytes encoded and as token sets
DOCUMENT_BYTES_KEPT = 1_200  # signatures (712), names, rows, masks; measured, as is the line above
LEADING_BYTES, LEADING_BYTES_A_DOCUMENT = 80e6, 260  # memory; measured with 2 million documents
CORES = (16, 64, 512)


def hours_by_step(n_bytes: float, documents: float, cores: int) -> dict[str, float]:
    """Hours of each step of the stage, with so many cores for its shards."""
    found = {}
    for step, (shard_gb, shard_document, lead_gb, lead_document) in RATES.items():
        sharded = shard_gb * n_bytes / 1e9 + shard_document * documents / 1e6
        alone = lead_gb * n_bytes / 1e9 + lead_document * documents / 1e6
        found[step] = (sharded / cores + alone) / 3600
    return found


def data_cost(unique_tokens: int | None) -> dict[str, Any] | None:
    """Of a stage over all text of a plan: `{bytes, documents, hours {cores: h}, disk_gb, memory_gb, basis}`; None where
    the size is unknown."""
    if not unique_tokens:
        return None
    n_bytes = unique_tokens * BYTES_PER_TOKEN
    counted = n_bytes / DOCUMENT_BYTES
    cores = sorted({worker_count(0), *CORES})
    hours = {str(n): round(sum(hours_by_step(n_bytes, counted, n).values()), 3) for n in cores}
    return {
        "bytes": round(n_bytes),
        "documents": round(counted),
        "hours": hours,
        **needs(n_bytes, counted),
        "basis": BASIS,
    }


def needs(n_bytes: float, documents: float) -> dict[str, float]:
    """GB of disk for what the stage keeps, and of memory for the process that leads it."""
    return {
        "disk_gb": round((n_bytes * BYTES_KEPT + documents * DOCUMENT_BYTES_KEPT) / 1e9, 2),
        "memory_gb": round((LEADING_BYTES + documents * LEADING_BYTES_A_DOCUMENT) / 1e9, 2),
    }
