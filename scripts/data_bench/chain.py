"""The whole chain at equal filters: text files to token shards, datatrove's own steps beside our data stage.

Both read the same JSON lines, apply the rules of Gopher, FineWeb and C4, remove near duplicates and
write token ids. Ours also repairs, removes exact duplicates, splits, and scores; stock splits words with spaCy.
"""

import os
import platform
import resource
import shutil
import tempfile
from pathlib import Path
from typing import Any

from pipeline.artifacts import build, read_manifest
from pipeline.config import Config, from_values
from pipeline.corpus.steps import data_step
from scripts.data_bench.corpus import Sample, at_least, at_most, paired, row, sample

RULES = ("gopher_repetition", "gopher_quality", "c4", "fineweb")
C4 = {"filter_no_terminal_punct": False}
VOCAB_SIZE = 16_384
BIG_BYTES, PACKED_CORES = 50e9, 16


def run(megabytes: float, quick: bool) -> list[dict[str, Any]]:
    text = sample(megabytes)
    big = sample(3 * megabytes)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        lines, more = text.write(folder / "text"), big.write(folder / "more")
        tokenizer = _tokenizer(text, folder)
        stock_runs, our_runs = (1, 1) if quick else (1, 5)
        # The larger sample for ours: a stage of a second would be all start-up.
        stock, ours, _, manifest = paired(
            lambda: _stock(lines, folder / "stock", tokenizer),
            lambda: _ours(more, folder / "ours", tokenizer),
            stock_runs, our_runs,
        )  # fmt: skip
        rates = text.megabytes / stock, big.megabytes / ours
        rules = ", ".join(RULES)
        return [
            at_least(f"whole chain at equal filters ({rules})", rates[1] / rates[0], "x", 8),
            row("whole chain, stock", round(rates[0], 3), "MB/s"),
            row("whole chain, ours", round(rates[1], 2), "MB/s"),
            row("whole chain, documents kept by ours", manifest["documents"]["kept"], "documents"),
            *_fifty_gigabytes(big, folder),
        ]


def _tokenizer(text: Sample, folder: Path) -> Path:
    from pipeline.corpus.tokenizing import _train

    _train(text.texts[: len(text.texts) // 3], VOCAB_SIZE, folder / "tokenizer.json")
    return folder / "tokenizer.json"


def _stock(lines: Path, folder: Path, tokenizer: Path) -> None:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer
    from datatrove.pipeline.writers import JsonlWriter

    shutil.rmtree(folder, ignore_errors=True)
    settings, kept = MinhashConfig(), JsonlReader(str(folder / "kept"))
    stages: list[tuple[list[Any], int]] = [
        (
            [
                JsonlReader(str(lines)), GopherRepetitionFilter(), GopherQualityFilter(),
                C4QualityFilter(filter_no_terminal_punct=False),
                FineWebQualityFilter(), JsonlWriter(str(folder / "kept"), compression=None),
            ],
            1,
        ),
        ([kept, MinhashDedupSignature(str(folder / "signatures"), config=settings)], 1),
        ([MinhashDedupBuckets(str(folder / "signatures"), str(folder / "buckets"), config=settings)],
         settings.num_buckets),
        ([MinhashDedupCluster(str(folder / "buckets"), str(folder / "remove"), config=settings)], 1),
        (
            [
                kept, MinhashDedupFilter(str(folder / "remove")),
                DocumentTokenizer(
                    str(folder / "tokens"), tokenizer_name_or_path=str(tokenizer), eos_token="<|endoftext|>",
                    shuffle_documents=False,
                ),
            ],
            1,
        ),
    ]  # fmt: skip
    for number, (stage, tasks) in enumerate(stages):
        LocalPipelineExecutor(stage, tasks=tasks, workers=1, logging_dir=str(folder / "logs" / str(number))).run()


def make_config(lines: Path, tokenizer: Path | None, **data: Any) -> Config:
    """The data stage on a folder of JSON lines, with one worker."""
    filters: dict[str, Any] = {name: {} for name in RULES}
    if "c4" in filters:
        filters["c4"] = dict(C4)
    source = {"type": "jsonl", "path": str(lines / "*.jsonl"), "group_key": "group", "license": "MIT"}
    settings = {"sources": {"text": source}, "filters": filters, "tasks": 4, "workers": 1, **data}
    model = {"vocab_size": VOCAB_SIZE, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1,
             "num_attention_heads": 2}  # fmt: skip
    values: dict[str, Any] = {"name": "bench", "model": model, "data": settings}
    if tokenizer is not None:
        values["tokenizer"] = {"path": str(tokenizer)}
    return from_values(values, "bench")


def _ours(lines: Path, folder: Path, tokenizer: Path) -> dict[str, Any]:
    shutil.rmtree(folder, ignore_errors=True)
    os.environ["HORNBOOK_ROOT"] = str(folder)
    return build(data_step(make_config(lines, tokenizer)), experiment="bench")


def _fifty_gigabytes(text: Sample, folder: Path) -> list[dict[str, Any]]:
    """From the stage's own times of the last run: minutes from 50 GB of pre-filtered text to tokens on 16 cores.

    Pre-filtered: the rules are not applied again. Steps whose work is in the shards are divided by the cores, the
    others (joining, publishing) are not."""
    os.environ["HORNBOOK_ROOT"] = str(folder / "ours")
    shards, alone = 0.0, 0.0
    for manifest in map(read_manifest, (folder / "ours" / "artifacts").glob("*/*")):
        if manifest["stage"] in ("data-read", "data-repair", "data-near-dedup", "data-encode", "data-score"):
            shards += manifest["seconds"]
        elif manifest["stage"] not in ("data-rules", "data-tokenizer"):
            alone += manifest["seconds"]
    times = BIG_BYTES / 1e6 / text.megabytes
    minutes = times * (shards / PACKED_CORES + alone) / 60
    return [
        at_most("50 GB of pre-filtered text to packed tokens, 16 cores (from measured rates)", minutes, "minutes", 30),
        row("of these the steps that one process does alone", round(times * alone / 60, 1), "minutes"),
    ]


def run_memory(megabytes: float) -> list[dict[str, Any]]:
    """Peak memory of any worker, with one document of 10 MB among the others, and of the stage's own process."""
    text = sample(megabytes)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        giant = "\n".join(text.texts)[:10_000_000]
        lines = Sample([*text.texts, giant], [*text.kinds, "prose"], [*text.paths, "giant/giant"]).write(folder / "t")
        os.environ["HORNBOOK_ROOT"] = str(folder / "ours")
        filters = {"gopher_quality": {"max_doc_words": 10_000_000}, "gopher_repetition": {}, "quality": {}}
        build(data_step(make_config(lines, None, filters=filters)), experiment="bench")
    worker = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3
    return [
        at_most("peak memory of a worker, with one document of 10 MB", worker, "MB", 400),
        row(
            "peak memory of the stage's process", round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3), "MB"
        ),
        row("python", platform.python_version(), ""),
    ]
