"""The whole chain at equal filters: text files to token shards, datatrove's own steps beside our data stage.

Both read the same JSON lines, apply the rules of Gopher, FineWeb and C4, remove near duplicates and
write token ids. Ours also repairs, removes exact duplicates, splits, and scores; stock splits words with spaCy.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from data_filters.table import FILTERS
from pipeline import config as configs
from pipeline.config import Config, from_values
from pipeline.storage.steps import read_manifest
from scripts.bench_rows import at_least, at_most, row
from scripts.data_bench.corpus import Sample, paired, sample

ROOT = Path(__file__).resolve().parents[2]
RULES = ("gopher_repetition", "gopher_quality", "c4", "fineweb")
C4 = {"filter_no_terminal_punct": False}
VOCAB_SIZE = 16_384
BIG_BYTES, PACKED_CORES = 50e9, 16


def run(megabytes: float, quick: bool) -> list[dict[str, Any]]:
    """Each arm is a process of its own, start-up and imports counted, as a user would run it. Prose alone (there is
    little of it) shows how much the start-up and the first sight of every word weigh in a small corpus."""
    prose, mixed = sample(megabytes / 3, prose_only=True), sample(megabytes)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        tokenizer = _tokenizer(mixed, folder)
        small, large = (_arms(s, folder / n, tokenizer, quick) for n, s in (("prose", prose), ("mixed", mixed)))
        title = f"whole chain at equal filters ({', '.join(RULES)})"
        return [
            at_least(f"{title}, {mixed.megabytes:.0f} MB", large["stock"] / large["ours"], "x", 8),
            row("whole chain, stock", round(mixed.megabytes / large["stock"], 3), "MB/s"),
            row("whole chain, ours", round(mixed.megabytes / large["ours"], 2), "MB/s"),
            row("whole chain, documents kept by ours", large["kept"], f"of {len(mixed.texts)}"),
            row(f"the same, {prose.megabytes:.1f} MB of prose alone", round(small["stock"] / small["ours"], 2), "x"),
            row("the same, documents kept by ours", small["kept"], f"of {len(prose.texts)}"),
            *_fifty_gigabytes(sample(2 * megabytes), folder),
        ]


def _arms(text: Sample, folder: Path, tokenizer: Path, quick: bool) -> dict[str, Any]:
    """Processor seconds of both, and how many documents ours kept."""
    lines = text.write(folder / "text")
    config = folder / "config.yaml"
    config.write_text(configs.to_yaml(make_config(lines, tokenizer)))
    stock, ours, _, kept = paired(
        lambda: _process(folder / "stock", "-m", "scripts.data_bench.chain", lines, folder / "stock", tokenizer),
        lambda: _stage(config, folder / "ours")["documents"]["kept"],
        1, 1 if quick else 5,
    )  # fmt: skip
    return {"stock": stock, "ours": ours, "kept": kept}


def _process(root: Path, *words: object, before: tuple[str, ...] = ()) -> str:
    """Runs Python with these words and an empty `HORNBOOK_ROOT`; what it printed."""
    shutil.rmtree(root, ignore_errors=True)
    environment = {**os.environ, "HORNBOOK_ROOT": str(root), "PYTHONPATH": str(ROOT)}
    command = [*before, sys.executable, "-P", *map(str, words)]
    return subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout


def _stage(config: Path, root: Path) -> dict[str, Any]:
    """`hornbook data` in a process of its own; the manifest."""
    _process(root, "-m", "pipeline", "data", config)
    return read_manifest((root / "runs" / "bench" / "data").resolve())


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
    filters = {name: dict(C4) if name == "c4" else {} for name in RULES}
    source = {"type": "jsonl", "path": str(lines / "*.jsonl"), "group_key": "group", "license": "MIT"}
    settings = {"sources": {"text": source}, "filters": filters, "tasks": 4, "workers": 1, **data}
    model = {"vocab_size": VOCAB_SIZE, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1,
             "num_attention_heads": 2}  # fmt: skip
    values: dict[str, Any] = {"name": "bench", "model": model, "data": settings}
    if tokenizer is not None:
        values["tokenizer"] = {"path": str(tokenizer)}
    return from_values(values, "bench")


def _fifty_gigabytes(text: Sample, folder: Path) -> list[dict[str, Any]]:
    """From the wall times of the steps on one core: minutes from 50 GB of pre-filtered text (no rules, no cut) to
    tokens on 16 cores. Work in the shards is divided by the cores; what one process does alone is not."""
    config = folder / "fifty.yaml"
    config.write_text(configs.to_yaml(make_config(text.write(folder / "more"), folder / "tokenizer.json", filters={})))
    _stage(config, folder / "fifty")
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


_MEASURE = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); "
_MEASURE += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"


def run_memory(megabytes: float) -> list[dict[str, Any]]:
    """Peak memory of any process of the stage, with one document of 10 MB among the others and without it; with all
    rules, and with none, so that everything comes to the later steps."""
    text = sample(megabytes)
    giant = "\n".join(text.texts)[:10_000_000]
    with_giant = Sample([*text.texts, giant], [*text.kinds, "prose"], [*text.paths, "giant/giant"])
    rules: dict[str, Any] = {
        **{name: {} for name in FILTERS if name not in ("personal_data", "licence", "parses")},
        "gopher_quality": {"max_doc_words": 10_000_000},
        "length": {"max_characters": 100_000_000},
    }
    none: dict[str, Any] = {"quality": {}}
    with tempfile.TemporaryDirectory() as place:
        peaks = {
            (name, giants): _peak(chosen, filters, Path(place) / f"{name}-{giants}")
            for giants, chosen in ((False, text), (True, with_giant))
            for name, filters in (("rules", rules), ("none", none))
        }
    title = "peak memory of a worker, with one document of 10 MB"
    return [
        at_most(title, max(peaks["rules", True], peaks["none", True]), "MB", 400),
        row("the same, all rules on", round(peaks["rules", True]), "MB"),
        row("without the large document: all rules on", round(peaks["rules", False]), "MB"),
        row("without the large document: no rule but the score", round(peaks["none", False]), "MB"),
    ]


def _peak(text: Sample, filters: dict[str, Any], folder: Path) -> float:
    """Resident MB of the largest process. Measured by a small one in between: a program starts with the peak of
    whoever started it on its account."""
    config = make_config(text.write(folder / "text"), None, filters=filters)
    (folder / "config.yaml").write_text(configs.to_yaml(config))
    before = (sys.executable, "-c", _MEASURE)
    kilobytes = _process(folder / "root", "-m", "pipeline", "data", folder / "config.yaml", before=before)
    return int(kilobytes) / 1e3


if __name__ == "__main__":
    _stock(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
