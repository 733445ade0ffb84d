"""Parts of the data stage on one core, on text that every Python environment has: rules, token shards, near dedup.

    scripts/with_env.sh scripts/bench_data.py --json docs/results/data/bench_data.json
    scripts/with_env.sh scripts/bench_data.py --quick --only rules,near

`small`, `steps`: processor time and memory of each step, on two million short documents and on library text;
`rules`: our prose rules against datatrove's classes with the same splitter; `tokens`: encoding into shards beside
datatrove's DocumentTokenizer; `near`: how fast near dedup is. Decisions, reasons and ids must be equal before a time is
printed. CPU time, medians of paired runs; every part is a fresh process, so that memory and caches are its own. Other
figures of docs/results/data.md are of this script at commit b39d95c.
"""

import contextlib
import hashlib
import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import yaml
from datatrove.data import Document
from datatrove.pipeline.filters.c4_filters import C4QualityFilter
from datatrove.pipeline.filters.fineweb_quality_filter import FineWebQualityFilter
from datatrove.pipeline.filters.gopher_quality_filter import GopherQualityFilter
from datatrove.pipeline.filters.gopher_repetition_filter import GopherRepetitionFilter
from datatrove.utils.text import split_into_parts
from loguru import logger

from data_filters.c4 import C4Quality
from data_filters.fineweb import FineWebQuality
from data_filters.gopher import GopherQuality
from data_filters.repetition import GopherRepetition
from data_filters.words import whitespace_splitter
from pipeline.corpus.duplicates import (
    Sketcher,
    band_keys,
    band_rows,
    clusters,
)
from pipeline.corpus.sources.python_library import PythonLibrary
from pipeline.corpus.text.tokenizer import load_tokenizer
from pipeline.corpus.tokenizing import END_OF_TEXT, _train, encode_shard, open_ids, token_dtype
from scripts.bench_rows import ROOT, Part, Rows, at_least, main, row

Answer = tuple[str | None, str]
DISTRIBUTIONS = (
    "aiohttp", "datasets", "datatrove", "fsspec", "lightning", "mpmath", "networkx", "numpy", "pyarrow", "pydantic",
    "pygments", "regex", "rich", "sympy", "torchmetrics", "typer", "urllib3",
)  # fmt: skip
PROSE_DISTRIBUTIONS = (*DISTRIBUTIONS, "pytorch-lightning", "torch", "transformers")
logger.remove()  # datatrove writes a page a step, which is not what is measured

RUNS = 5
SIMILARITY = 0.8  # the default of data.near_dedup_similarity
SEED = 0


@dataclass(frozen=True)
class Sample:
    """Documents in a fixed order; `sha256` of all of them."""

    texts: list[str]

    @property
    def megabytes(self) -> float:
        return sum(len(t.encode()) for t in self.texts) / 1e6

    @property
    def sha256(self) -> str:
        return hashlib.sha256("\0".join(self.texts).encode()).hexdigest()

    def write(self, folder: Path) -> Path:
        """One file of JSON lines in `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"text": text, "id": str(i)}, ensure_ascii=False) for i, text in enumerate(self.texts)]
        (folder / "00.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return folder


def sample(megabytes: float, prose_only: bool = False) -> Sample:
    """About so much text of the library corpus, drawn by a seed; the same for the same versions of the packages."""
    distributions = PROSE_DISTRIBUTIONS if prose_only else DISTRIBUTIONS
    documents = [d for d in PythonLibrary(distributions).documents(0, 1) if isinstance(d, Document) and d.text.strip()]
    documents = [d for d in documents if not prose_only or d.metadata["kind"] == "prose"]
    random.Random(SEED).shuffle(documents)
    chosen: list[str] = []
    n_bytes = 0
    for doc in documents:
        if n_bytes >= megabytes * 1e6:
            break
        chosen.append(doc.text.encode("utf-8", "replace").decode())
        n_bytes += len(doc.text.encode())
    return Sample(chosen)


def cpu_seconds() -> float:
    """Processor seconds of this process and of its children that have ended."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def paired(
    stock: Callable[[], Any], ours: Callable[[], Any], stock_runs: int, our_runs: int
) -> tuple[float, float, Any, Any]:
    """Median processor seconds of both, in turn so that a slow minute hits both, and what each returned last."""
    times: tuple[list[float], list[float]] = ([], [])
    results: list[Any] = [None, None]
    for turn in range(max(stock_runs, our_runs)):
        for side, (function, runs) in enumerate(((stock, stock_runs), (ours, our_runs))):
            if turn < runs:
                before = cpu_seconds()
                results[side] = function()
                times[side].append(cpu_seconds() - before)
    return median(times[0]), median(times[1]), results[0], results[1]


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
        theirs_asked = partial(_ask_all, [stock[n] for n in names or stock], inputs, not names)
        ours_asked = partial(_ask_all, [ours[n] for n in names or ours], inputs, not names)
        stock_seconds, our_seconds, theirs, mine = paired(theirs_asked, ours_asked, turns, turns)
        different = sum(a != b for a, b in zip(theirs, mine, strict=True))
        if different:
            raise SystemExit(f"rules/{name}: {different} of {len(inputs)} texts are decided differently")
        ratio = stock_seconds / our_seconds
        rows += [
            row(f"rules, {name}: equal decisions and reasons", 100.0, "%", "100", True),
            row(f"rules, {name}, stock", round(size / stock_seconds, 2), "MB/s"),
            row(f"rules, {name}, ours", round(size / our_seconds, 2), "MB/s"),
        ]
        title = f"rules, {name}: against datatrove's classes with the same splitter"
        rows.append(at_least(title, ratio, "x", 3) if name == "chain" else row(title, round(ratio, 2), "x"))
    return rows


def _ask_all(filters: list[Any], texts: list[str], chain: bool) -> list[list[Answer]]:
    split_into_parts.cache_clear()  # a side must not find what the other has split
    return [_ask(filters, text, chain) for text in texts]


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
        lines = text.write(folder / "text")
        stock_runs, our_runs = (1, 3) if quick else (3, 5)
        stock, ours, _, written = paired(
            lambda: _encode_stock(lines, folder), lambda: _encode_ours(text, folder), stock_runs, our_runs
        )
        return [
            at_least("tokenize into shards against datatrove's", stock / ours, "x", 4),
            row("tokenize, stock", round(text.megabytes / stock, 2), "MB/s"),
            row("tokenize, ours", round(text.megabytes / ours, 1), "MB/s"),
            at_least("documents with the ids of `tokenizers`", _same_ids(text, folder, written), "share", 1.0),
        ]


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

    from pipeline.corpus.text.tokenizer import encoder

    encoder.cache_clear()

    def documents() -> Any:
        for at, doc in enumerate(JsonlReader(str(folder / "text")).run()):
            doc.metadata["at"] = at
            yield doc

    encode_shard(folder / "tokenizer.json", folder / "ours", token_dtype(VOCAB_SIZE), 0, documents(), 0)
    ids, index = open_ids(folder / "ours", 0, token_dtype(VOCAB_SIZE))
    ends = np.cumsum(index["length"], dtype=np.int64)
    return [ids[end - length : end - 1].tobytes() for end, length in zip(ends, index["length"], strict=True)]


def _same_ids(text: Sample, folder: Path, written: list[bytes]) -> float:
    """The share of texts that have the ids of `tokenizers`."""
    tokenizer, dtype, same = load_tokenizer(folder / "tokenizer.json"), token_dtype(VOCAB_SIZE), 0
    for start in range(0, len(text.texts), 64):
        part = tokenizer.encode_batch(text.texts[start : start + 64], add_special_tokens=False)
        same += sum(np.array(e.ids, dtype=dtype).tobytes() == w for e, w in zip(part, written[start:], strict=False))
    return same / len(text.texts)


def near(quick: bool) -> Rows:
    text = sample(4 if quick else 16)
    started = time.process_time()
    clustered(text.texts, "prose")
    return [row("near dedup", round(text.megabytes / (time.process_time() - started), 1), "MB/s")]


def clustered(texts: list[str], kind: str) -> np.ndarray:
    """The first text of each one's cluster, normalised as near dedup does for this kind."""
    values, _ = Sketcher().sketch(texts, [kind] * len(texts))
    low = values.astype("<u2")
    return clusters(
        band_keys(values, band_rows(SIMILARITY)),
        lambda left, right: (low[left] == low[right]).mean(axis=1),
        len(texts),
        SIMILARITY,
    )


WORDS, SAMPLE_SECONDS = 4_000, 0.2


def small(documents: int) -> Rows:
    """The whole stage with one worker on documents of some 50 bytes, and on a quarter of them: what each step costs a
    document, and whether memory grows with them."""
    with tempfile.TemporaryDirectory(prefix="bench-small-") as name:
        folders = [Path(name) / "few", Path(name) / "many"]
        counts = (documents // 4, documents)
        few, many = (_watched(folder, _short_lines(n), {}) for folder, n in zip(folders, counts, strict=True))
    rows: Rows = []
    for step, used in many.items():
        rows += _seconds(step, used, documents / 1e6, "s per million documents")
        for who in (LEADS, WORKS):
            for count, peaks in zip(counts, (few, many), strict=True):
                if peak := getattr(peaks.get(step, Used()), f"{who}_bytes"):
                    rows.append(row(f"{step}, {who}: peak memory, {count:,} documents", round(peak / 1e6), "MB"))
    return rows


def steps(megabytes: float) -> Rows:
    """The whole stage with one worker on library text, with the rules of configs/tiny.yaml: what each step costs."""
    text = sample(megabytes)
    lines = (json.dumps({"text": t, "domain": str(i % 1000)}) for i, t in enumerate(text.texts))
    filters = yaml.safe_load((ROOT / "configs" / "tiny.yaml").read_text(encoding="utf-8"))["data"]["filters"]
    with tempfile.TemporaryDirectory(prefix="bench-steps-") as name:
        found = _watched(Path(name), lines, filters)
    rows: Rows = [row("text", round(text.megabytes, 1), "MB"), row("documents", len(text.texts), "documents")]
    for step, used in found.items():
        rows += _seconds(step, used, text.megabytes / 1e3, "s per GB")
    return rows


LEADS, WORKS = "leading", "working"


@dataclass
class Used:
    """Of one step: processor seconds and peak memory of the process that leads the stage, and of its workers."""

    leading_seconds: float = 0.0
    working_seconds: float = 0.0
    leading_bytes: int = 0
    working_bytes: int = 0


def _seconds(step: str, used: Used, amount: float, unit: str) -> Rows:
    named = [(who, getattr(used, f"{who}_seconds") / amount) for who in (LEADS, WORKS)]
    return [row(f"{step}, {who}: processor time", round(value, 2), unit) for who, value in named]


def _short_lines(documents: int) -> Iterator[str]:
    draw = random.Random(SEED)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(3, 9))) for _ in range(WORDS)]
    for i in range(documents):
        yield json.dumps({"text": " ".join(draw.choices(words, k=8)), "domain": str(i % 1000)})


def _watched(folder: Path, lines: Iterable[str], filters: dict[str, Any]) -> dict[str, Used]:
    """`hornbook data` with one worker on JSON lines, looked at every `SAMPLE_SECONDS`: what each step used."""
    folder.mkdir(exist_ok=True)
    with open(folder / "texts.jsonl", "w", encoding="utf-8") as file:
        file.writelines(line + "\n" for line in lines)
    source = {"type": "jsonl", "path": str(folder / "texts.jsonl"), "group_key": "domain", "license": "MIT"}
    data = {"sources": {"web": source}, "filters": filters or {"length": {"min_characters": 10}}, "workers": 1}
    model = {"vocab_size": 4096, "hidden_size": 64, "intermediate_size": 256}
    model |= {"num_hidden_layers": 1, "num_attention_heads": 1}
    config = {"name": "watched", "model": model, "data": data | {"tokenizer_train_bytes": 1_000_000}}
    (folder / "watched.json").write_text(json.dumps(config), encoding="utf-8")
    environment = {**os.environ, "HORNBOOK_ROOT": str(folder), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-P", "-m", "pipeline", "data", str(folder / "watched.json")]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    said: list[str] = []
    reader = threading.Thread(target=lambda: said.extend(process.stdout or ()), daemon=True)
    reader.start()
    found: dict[str, Used] = {}
    before = Used()
    while process.poll() is None:
        time.sleep(SAMPLE_SECONDS)
        named = [match[1] for line in list(said) if (match := re.match(r"\[\d+/\d+\] (\S+)", line))]
        used = found.setdefault(named[-1] if named else "start", Used())
        with contextlib.suppress(OSError, IndexError):
            own, ended, memory = _used(process.pid)
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            workers = [_used(int(pid)) for pid in children]
            now = Used(own, ended + sum(worker[0] for worker in workers))
            used.leading_seconds += now.leading_seconds - before.leading_seconds
            used.working_seconds += max(0.0, now.working_seconds - before.working_seconds)
            used.leading_bytes = max(used.leading_bytes, memory)
            used.working_bytes = max([used.working_bytes, *(worker[2] for worker in workers)])
            before = now
    reader.join()
    if process.returncode:
        raise SystemExit("".join(said))
    shutil.rmtree(folder)
    return found


def _used(pid: int) -> tuple[float, float, int]:
    """Processor seconds of a process, of its children that have ended, and its resident bytes."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    user, system, users, systems = (int(field) / os.sysconf("SC_CLK_TCK") for field in fields[11:15])
    return user + system, users + systems, int(fields[21]) * os.sysconf("SC_PAGE_SIZE")


PARTS = {
    "small": Part(lambda quick: small(20_000 if quick else 2_000_000)),
    "steps": Part(lambda quick: steps(2 if quick else 60)),
    "rules": Part(lambda quick: rules(2 if quick else 20, quick)),
    "near": Part(near),
    "tokens": Part(lambda quick: tokens(4 if quick else 40, quick)),
}
LIBRARIES = ("datatrove", "numpy", "rensa", "tokenizers", "orjson")

if __name__ == "__main__":
    main(__file__, __doc__ or "", "data", PARTS, LIBRARIES, lambda: {"input_sha256": sample(20).sha256})
