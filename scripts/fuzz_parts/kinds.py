"""The kinds of input, each with its case and its share of a run; and what all cases share, made before the first."""

import multiprocessing
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.fuzz_parts import configs, models, runs, texts
from scripts.fuzz_parts.lab import as_processes
from scripts.fuzz_parts.texts import reading
from scripts.fuzz_parts.workers import Case


@dataclass(frozen=True)
class Kind:
    """`share`: of the cases of a run, beside those of the other kinds. `prepared`: needs the experiment of `runs`."""

    case: Case
    share: float = 1.0
    prepared: bool = True


def process(draw: random.Random, folder: Path) -> None:
    """A case of another kind whose commands are processes of their own, as a person's are."""
    with as_processes():
        draw.choice((configs.config, models.config_json, models.tokenizer, runs.manifest, runs.ledger))(draw, folder)


KINDS = {
    "jsonl": Kind(reading(texts.jsonl), 2, False),
    "parquet": Kind(reading(texts.parquet), 1.5, False),
    "warc": Kind(reading(texts.warc), 1.2, False),
    "html": Kind(reading(texts.html), 1.2, False),
    "text": Kind(reading(texts.text), 1, False),
    "pdf": Kind(reading(texts.pdf), 1.2, False),
    "word": Kind(reading(texts.word), 1.2, False),
    "packed": Kind(reading(texts.packed), 1.5, False),
    "finetune": Kind(texts.finetune, 1.5, False),
    "decontamination": Kind(texts.decontamination, 1.2, False),
    "sets": Kind(texts.sets, 1.2, False),
    "tokenizer": Kind(models.tokenizer, 1),
    "config_json": Kind(models.config_json, 1),
    "safetensors": Kind(models.safetensors, 0.7),
    "gguf": Kind(models.gguf, 1),
    "scorer": Kind(models.scorer, 0.4, False),
    "config": Kind(configs.config, 2),
    "overrides": Kind(configs.overrides, 2),
    "where": Kind(configs.where, 1.2, False),
    "study": Kind(configs.study, 0.3),
    "manifest": Kind(runs.manifest, 0.4),
    "ledger": Kind(runs.ledger, 0.4),
    "decisions": Kind(runs.decisions, 0.3),
    "metrics": Kind(runs.metrics, 0.25),
    "checkpoint": Kind(runs.checkpoint, 0.25),
    "data": Kind(runs.data, 0.12),
    "process": Kind(process, 0.06),
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
