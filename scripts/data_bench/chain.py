"""The whole chain at equal filters: text files to token shards, datatrove's own steps beside our data stage.

Both read the same JSON lines, apply the rules of Gopher, FineWeb and C4, remove near duplicates and
write token ids. Ours also repairs, removes exact duplicates, splits, and scores; stock splits words with spaCy.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from data_filters.table import FILTERS
from pipeline import config as configs
from pipeline.artifacts import build, read_manifest
from pipeline.config import Config, from_values
from pipeline.corpus.steps import data_step
from scripts.bench_rows import at_least, at_most, row
from scripts.data_bench.corpus import Sample, paired, sample

ROOT = Path(__file__).resolve().parents[2]
RULES = ("gopher_repetition", "gopher_quality", "c4", "fineweb")
C4 = {"filter_no_terminal_punct": False}
VOCAB_SIZE = 16_384
BIG_BYTES, PACKED_CORES = 50e9, 16


def run(megabytes: float, quick: bool) -> list[dict[str, Any]]:
    text = sample(megabytes, prose_only=True)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        lines = text.write(folder / "text")
        tokenizer = _tokenizer(text, folder)
        stock, ours, _, manifest = paired(
            lambda: _stock(lines, folder / "stock", tokenizer),
            lambda: _ours(make_config(lines, tokenizer), folder / "ours"),
            1, 1 if quick else 5,
        )  # fmt: skip
        title = f"whole chain at equal filters ({', '.join(RULES)})"
        return [
            at_least(title, stock / ours, "x", 8),
            row("whole chain, stock", round(text.megabytes / stock, 3), "MB/s"),
            row("whole chain, ours", round(text.megabytes / ours, 2), "MB/s"),
            row("whole chain, documents kept by ours", manifest["documents"]["kept"], f"of {len(text.texts)}"),
            *_fifty_gigabytes(sample(4 * megabytes), folder),
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


def _ours(config: Config, folder: Path) -> dict[str, Any]:
    shutil.rmtree(folder, ignore_errors=True)
    os.environ["HORNBOOK_ROOT"] = str(folder)
    return build(data_step(config), experiment="bench")


def _fifty_gigabytes(text: Sample, folder: Path) -> list[dict[str, Any]]:
    """From the wall times of the steps on one core: minutes from 50 GB of pre-filtered text (no rules, no cut) to
    tokens on 16 cores. Work in the shards is divided by the cores; what one process does alone is not."""
    config = make_config(text.write(folder / "more"), folder / "tokenizer.json", filters={})
    _ours(config, folder / "fifty")
    shards, alone = 0.0, 0.0
    for path in (folder / "fifty" / "artifacts").glob("*/*"):
        manifest = read_manifest(path)
        if manifest["stage"] in ("data-read", "data-repair", "data-near-dedup", "data-encode", "data-score"):
            shards += manifest["seconds"]
        elif manifest["stage"] not in ("data-rules", "data-tokenizer"):
            alone += manifest["seconds"]
    times = BIG_BYTES / 1e6 / text.megabytes
    minutes = times * (shards / PACKED_CORES + alone) / 60
    title = "50 GB of pre-filtered text to packed tokens on 16 cores, from measured rates"
    return [
        row(title, round(minutes, 1), "minutes", "< 30 (reach)", minutes < 30),
        row("of these, what one process does alone", round(times * alone / 60, 1), "minutes"),
    ]


def run_memory(megabytes: float) -> list[dict[str, Any]]:
    """Peak memory of any process of the stage, with one document of 10 MB among the others, and of any without it."""
    text = sample(megabytes)
    giant = "\n".join(text.texts)[:10_000_000]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        plain = _peak(text, folder / "plain")
        with_giant = Sample([*text.texts, giant], [*text.kinds, "prose"], [*text.paths, "giant/giant"])
        return [
            at_most(
                "peak memory of a worker, with one document of 10 MB", _peak(with_giant, folder / "giant"), "MB", 400
            ),
            row("the same without it", round(plain), "MB"),
        ]


def _peak(text: Sample, folder: Path) -> float:
    """Resident MB of the largest process, all rules and the scorer on."""
    filters = {
        **{name: {} for name in FILTERS if name not in ("personal_data", "licence", "parses")},
        "gopher_quality": {"max_doc_words": 10_000_000},
        "length": {"max_characters": 100_000_000},
    }
    config = make_config(text.write(folder / "text"), None, filters=filters)
    (folder / "config.yaml").write_text(configs.to_yaml(config))
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, "-P", "-m", "pipeline", "data", str(folder / "config.yaml")],
        {**os.environ, "HORNBOOK_ROOT": str(folder), "PYTHONPATH": str(ROOT)},
    )
    _, status, usage = os.wait4(pid, 0)
    if status:
        raise RuntimeError(f"the data stage ended with {os.waitstatus_to_exitcode(status)}")
    return usage.ru_maxrss / 1e3
