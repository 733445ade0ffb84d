"""The data stage beside stock datatrove, on one core and on text that every Python environment has.

    scripts/with_env.sh scripts/bench_data.py --json docs/results/data/bench_data.json
    scripts/with_env.sh scripts/bench_data.py --quick --only rules,near

`rules`: our prose rules against datatrove's classes; `tokens`: encoding into shards; `chain`: JSON lines to token
shards at equal filters, each side a process of its own, start-up and imports counted. Decisions, reasons and ids must
be equal before a time is printed. Stock datatrove splits English with spaCy and hashes with xxhash below 4:
`pip install -e '.[bench]'` in an environment of its own. CPU time, medians of paired runs; every part is a fresh
process, so that memory and caches are its own.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.filters.c4_filters import C4QualityFilter
from datatrove.pipeline.filters.fineweb_quality_filter import FineWebQualityFilter
from datatrove.pipeline.filters.gopher_quality_filter import GopherQualityFilter
from datatrove.pipeline.filters.gopher_repetition_filter import GopherRepetitionFilter
from datatrove.utils.text import split_into_parts

from data_filters.c4 import C4Quality
from data_filters.fineweb import FineWebQuality
from data_filters.gopher import GopherQuality
from data_filters.repetition import GopherRepetition
from data_filters.words import whitespace_splitter
from pipeline import config as configs
from pipeline.config import Config, from_values
from pipeline.corpus.text.tokenizer import Encoder, load_tokenizer
from pipeline.corpus.tokenizing import END_OF_TEXT, Encode, _train, open_ids, token_dtype
from pipeline.storage.steps import read_manifest
from scripts.bench_rows import ROOT, Part, Rows, at_least, main, row
from scripts.data_text import RUNS, Sample, near, paired, sample

Answer = tuple[str | None, str]


def rules(megabytes: float, quick: bool) -> Rows:
    """Each rule on every text, and the four as a chain in which the first that drops a text is the last to see it."""
    docs, everything = sample(megabytes / 2, prose_only=True).texts, sample(megabytes).texts
    splitter = whitespace_splitter()
    stock = {
        "gopher_repetition": GopherRepetitionFilter(language=splitter),
        "gopher_quality": GopherQualityFilter(language=splitter),
        "fineweb": FineWebQualityFilter(language=splitter),
        "c4": C4QualityFilter(language=splitter),
    }
    ours = {
        "gopher_repetition": GopherRepetition(),
        "gopher_quality": GopherQuality(),
        "fineweb": FineWebQuality(),
        "c4": C4Quality(remove_lines=True),
    }
    turns = 1 if quick else RUNS
    jobs = [(name, [name], everything) for name in stock]
    jobs += [("all_four", list(stock), everything), ("chain", [], everything), ("chain_docs", [], docs)]
    rows = []
    for name, names, inputs in jobs:
        size = sum(len(text.encode()) for text in inputs) / 1e6
        chain = not names
        chosen = names or list(stock)
        seconds: dict[str, list[float]] = {"stock": [], "ours": []}
        answers: dict[str, list[list[Answer]]] = {}
        for _ in range(turns):
            for side, filters in (("stock", stock), ("ours", ours)):
                split_into_parts.cache_clear()
                start = time.process_time()
                answers[side] = [_ask([filters[n] for n in chosen], text, chain) for text in inputs]
                seconds[side].append(time.process_time() - start)
        different = sum(a != b for a, b in zip(answers["stock"], answers["ours"], strict=True))
        if different:
            raise SystemExit(f"rules/{name}: {different} of {len(inputs)} texts are decided differently")
        ratio = median(seconds["stock"]) / median(seconds["ours"])
        rows += [
            row(f"rules, {name}: equal decisions and reasons", 100.0, "%", "100", True),
            row(f"rules, {name}, stock", round(size / median(seconds["stock"]), 2), "MB/s"),
            row(f"rules, {name}, ours", round(size / median(seconds["ours"]), 2), "MB/s"),
        ]
        title = f"rules, {name}: against datatrove's classes with the same splitter"
        rows.append(at_least(title, ratio, "x", 3) if name == "chain" else row(title, round(ratio, 2), "x"))
    return rows


def _ask(filters: list[Any], text: str, chain: bool) -> list[Answer]:
    """Reason and resulting text of each filter; in a chain up to the first that drops the document."""
    answers: list[Answer] = []
    doc = Document(text, "")
    for one in filters:
        if not chain:
            doc = Document(text, "")
        found = one.filter(doc)
        if found is not True:
            reason = found[1] if isinstance(found[1], str) else found[1].reason
            answers.append((reason, ""))
            if chain:
                break
        else:
            answers.append((None, doc.text))
    return answers


VOCAB_SIZE = 16_384


def tokens(megabytes: float, quick: bool) -> Rows:
    text = sample(megabytes)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        _train(text.texts[: len(text.texts) // 3], VOCAB_SIZE, folder / "tokenizer.json")
        lines = text.write(folder / "text", files=1)
        stock_runs, our_runs = (1, 3) if quick else (3, 5)
        stock, ours, _, written = paired(
            lambda: _encode_stock(lines, folder), lambda: _encode_ours(text, folder), stock_runs, our_runs
        )
        rows = [
            at_least("tokenize into shards against datatrove's", stock / ours, "x", 4),
            row("tokenize, stock", round(text.megabytes / stock, 2), "MB/s"),
            row("tokenize, ours", round(text.megabytes / ours, 1), "MB/s"),
            *_identical("ours, 16k", text, folder / "tokenizer.json", written),
        ]
        gpt2 = _gpt2_like(text, folder / "gpt2.json")
        return rows + _identical("GPT-2's cutting with runs of spaces added, as Phi's", text, gpt2, None)


def _encode_stock(lines: Path, folder: Path) -> None:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    shutil.rmtree(folder / "stock", ignore_errors=True)
    step = DocumentTokenizer(
        str(folder / "stock" / "tokens"), tokenizer_name_or_path=str(folder / "tokenizer.json"), eos_token=END_OF_TEXT,
        shuffle_documents=False,
    )  # fmt: skip
    LocalPipelineExecutor([JsonlReader(str(lines)), step], tasks=1, logging_dir=str(folder / "stock" / "logs")).run()


def _encode_ours(text: Sample, folder: Path) -> list[bytes]:
    """From the same file to ids on disk; a fresh encoder every time, which remembers nothing yet."""
    from datatrove.pipeline.readers import JsonlReader

    from pipeline.corpus.text import tokenizer as encoder

    encoder.encoder.cache_clear()
    step = Encode(folder / "tokenizer.json", folder / "ours", token_dtype(VOCAB_SIZE), 0)

    def documents() -> Any:
        for at, doc in enumerate(JsonlReader(str(folder / "text")).run()):
            doc.metadata["at"] = at
            yield doc

    list(step.run(documents()))
    ids, index = open_ids(folder / "ours", 0, token_dtype(VOCAB_SIZE))
    ends = np.cumsum(index["length"], dtype=np.int64)
    return [ids[end - length : end - 1].tobytes() for end, length in zip(ends, index["length"], strict=True)]


def _identical(name: str, text: Sample, path: Path, written: list[bytes] | None) -> Rows:
    tokenizer = load_tokenizer(path)
    dtype = token_dtype(VOCAB_SIZE)
    if written is None:
        encoder = Encoder(tokenizer, dtype)
        assert encoder.remembers
        written = [encoder.encode(t) for t in text.texts]
    same = 0
    for start in range(0, len(text.texts), 64):
        part = tokenizer.encode_batch(text.texts[start : start + 64], add_special_tokens=False)
        same += sum(np.array(e.ids, dtype=dtype).tobytes() == w for e, w in zip(part, written[start:], strict=False))
    return [at_least(f"documents with the ids of `tokenizers` ({name})", same / len(text.texts), "share", 1.0)]


def _gpt2_like(text: Sample, path: Path) -> Path:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=8_192, special_tokens=[END_OF_TEXT], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(text.texts[: len(text.texts) // 4], trainer)
    tokenizer.add_tokens([AddedToken(" " * n, normalized=True) for n in range(31, 1, -1)])
    tokenizer.add_tokens([AddedToken("\t" * n, normalized=True) for n in range(9, 1, -1)])
    tokenizer.save(str(path))
    return path


RULES = ("gopher_repetition", "gopher_quality", "c4", "fineweb")
C4 = {"filter_no_terminal_punct": False}


def chain(megabytes: float, quick: bool) -> Rows:
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
        ]


def _arms(text: Sample, folder: Path, tokenizer: Path, quick: bool) -> dict[str, Any]:
    """Processor seconds of both, and how many documents ours kept."""
    lines = text.write(folder / "text")
    config = folder / "config.yaml"
    config.write_text(configs.to_yaml(make_config(lines, tokenizer)))
    stock, ours, _, kept = paired(
        lambda: _process(folder / "stock", __file__, "--stock", lines, folder / "stock", tokenizer),
        lambda: _stage(config, folder / "ours")["documents"]["kept"],
        1, 1 if quick else 5,
    )  # fmt: skip
    return {"stock": stock, "ours": ours, "kept": kept}


def _process(root: Path, *words: object) -> None:
    """Runs Python with these words and an empty `HORNBOOK_ROOT`."""
    shutil.rmtree(root, ignore_errors=True)
    environment = {**os.environ, "HORNBOOK_ROOT": str(root), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *map(str, words)]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)


def _stage(config: Path, root: Path) -> dict[str, Any]:
    """`hornbook data` in a process of its own; the manifest."""
    _process(root, "-P", "-m", "pipeline", "data", config)
    return read_manifest((root / "runs" / "bench" / "data").resolve())


def _tokenizer(text: Sample, folder: Path) -> Path:
    from pipeline.corpus.tokenizing import _train

    _train(text.texts[: len(text.texts) // 3], VOCAB_SIZE, folder / "tokenizer.json")
    return folder / "tokenizer.json"


def _chain_stock(lines: Path, folder: Path, tokenizer: Path) -> None:
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


def make_config(lines: Path, tokenizer: Path) -> Config:
    """The data stage on a folder of JSON lines, with one worker."""
    filters = {name: dict(C4) if name == "c4" else {} for name in RULES}
    source = {"type": "jsonl", "path": str(lines / "*.jsonl"), "group_key": "group", "license": "MIT"}
    model = {"vocab_size": VOCAB_SIZE, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1,
             "num_attention_heads": 2}  # fmt: skip
    data = {"sources": {"text": source}, "filters": filters, "tasks": 4, "workers": 1}
    values = {"name": "bench", "model": model, "data": data, "tokenizer": {"path": str(tokenizer)}}
    return from_values(values, "bench")


PARTS = {
    "rules": Part(lambda quick: rules(2 if quick else 20, quick)),
    "near": Part(lambda quick: near(4 if quick else 16, quick)),
    "tokens": Part(lambda quick: tokens(4 if quick else 40, quick)),
    "chain": Part(lambda quick: chain(4 if quick else 24, quick)),
}
LIBRARIES = ("datatrove", "numpy", "rensa", "tokenizers", "spacy", "xxhash", "orjson")

if __name__ == "__main__":
    if sys.argv[1:2] == ["--stock"]:  # datatrove's side of the chain
        _chain_stock(*map(Path, sys.argv[2:]))
    else:
        main(__file__, __doc__ or "", "data", PARTS, LIBRARIES, lambda: {"input_sha256": sample(20).sha256})
