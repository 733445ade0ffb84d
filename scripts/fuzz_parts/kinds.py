"""The kinds of input, each with its case and its share of a run; and what all cases share, made before the first."""

import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.fuzz_parts import configs, models, runs, texts
from scripts.fuzz_parts.texts import reading
from scripts.fuzz_parts.workers import Case


@dataclass(frozen=True)
class Kind:
    """`share`: of the cases of a run, beside those of the other kinds. `prepared`: needs the experiment of `runs`."""

    case: Case
    share: float = 1.0
    prepared: bool = True


KINDS = {
    "jsonl": Kind(reading(texts.jsonl), 1.5, False),
    "parquet": Kind(reading(texts.parquet), 1, False),
    "warc": Kind(reading(texts.warc), 1, False),
    "html": Kind(reading(texts.html), 1, False),
    "text": Kind(reading(texts.text), 0.7, False),
    "pdf": Kind(reading(texts.pdf), 1, False),
    "word": Kind(reading(texts.word), 1, False),
    "packed": Kind(reading(texts.packed), 1.2, False),
    "finetune": Kind(texts.finetune, 1, False),
    "decontamination": Kind(texts.decontamination, 0.7, False),
    "sets": Kind(texts.sets, 0.7, False),
    "tokenizer": Kind(models.tokenizer, 1.3),
    "config_json": Kind(models.config_json, 1.3),
    "safetensors": Kind(models.safetensors, 0.8),
    "gguf": Kind(models.gguf, 0.7),
    "config": Kind(configs.config, 1.5),
    "overrides": Kind(configs.overrides, 1.5),
    "study": Kind(configs.study, 0.4),
    "manifest": Kind(runs.manifest, 0.8),
    "ledger": Kind(runs.ledger, 0.7),
    "decisions": Kind(runs.decisions, 0.7),
    "metrics": Kind(runs.metrics, 0.5),
    "checkpoint": Kind(runs.checkpoint, 0.6),
    "data": Kind(runs.data, 0.25),
}


def prepare(chosen: Sequence[str], folder: Path) -> None:
    """Makes what the chosen kinds need, in processes of their own, and imports what they use: workers are forked."""
    import torch

    torch.set_num_threads(1)  # of what is forked from here; threads do not survive a fork
    if not any(KINDS[name].prepared for name in chosen):
        return
    folder.mkdir()
    runs.PREPARED = folder
    _apart(runs.prepare, folder)
    _apart(models.prepare, folder / "tokenizers")


def _apart(make: Callable[[Path], None], folder: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=make, args=(folder,))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit("the examples could not be made, see above")
