"""`hornbook score`: quality scores of your own texts, by the scorer that a finished data stage used.

In: an experiment whose data stage is finished, and files or folders of text. Out: one JSON line per document, `{path,
score, bytes}` (score null: the scorer has no opinion of it), or `{path, unreadable}` if it could not be read; the
counts go to standard error. Texts are repaired as the data stage repairs them, so the same text gets the same score.
The experiment is not changed.
"""

import glob
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
from datatrove.data import Document

from data_filters.repair import mend_surrogates
from pipeline.config import Config
from pipeline.corpus.execute import map_processes, worker_count
from pipeline.corpus.scorers.document_scorers import DocumentScorer, stored_scorer
from pipeline.corpus.scorers.features import BATCH_DOCUMENTS
from pipeline.corpus.scorers.labels import repaired
from pipeline.corpus.sources.document_files import WARC_ENDINGS, TextFolder, Warc
from pipeline.corpus.sources.records import JSON_ENDINGS, TABLE_ENDINGS, Jsonl, Parquet
from pipeline.corpus.text.documents import SetAside
from pipeline.corpus.text.source import Source, make
from pipeline.corpus.text.user_files import split_ending
from pipeline.storage.experiment import Experiment
from pipeline.storage.steps import MANIFEST, read_manifest
from pipeline.system.errors import UserError

RECORD_SOURCES: dict[str, type[Source]] = {
    **dict.fromkeys(JSON_ENDINGS, Jsonl), **dict.fromkeys(TABLE_ENDINGS, Parquet), **dict.fromkeys(WARC_ENDINGS, Warc),
}  # fmt: skip


def run(
    config: Config, command: str, names: Sequence[str], *, out: str | None, text_key: str | None, kind: str | None
) -> None:
    """Scores the files and folders `names`. Raises `UserError` if there is no scorer or a file is missing."""
    folder = Experiment(config).stage_folder("data")
    if folder is None or not (folder / MANIFEST).is_file():
        raise UserError(
            f"there is no finished data stage of '{config.name}' to score with; run: hornbook data {command}"
        )
    if not (folder / "scorer").is_dir():
        note = read_manifest(folder)["classifier"]["note"]
        raise UserError(f"{folder} has no scorer ({note}); set data.scorer and run: hornbook data {command}")
    sources = [make_source(name, text_key, kind) for name in names]
    for name, source in zip(names, sources, strict=True):
        try:
            source.content_hash()
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
    workers = worker_count(config.data.workers)
    tasks = 4 * workers
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hornbook-score-") as temporary:
        parts = Path(temporary)
        jobs = [(number, task) for number in range(len(sources)) for task in range(tasks)]

        def score(job: tuple[int, int]) -> dict[str, float]:
            part = parts / f"{job[0]:06d}-{job[1]:06d}.jsonl"
            return _score(sources[job[0]].documents(job[1], tasks), folder, part)

        facts = map_processes(score, jobs, workers=workers)
        _join(sorted(parts.iterdir()), out)
    _say(facts, read_manifest(folder)["classifier"]["threshold"], time.monotonic() - started)


def make_source(name: str, text_key: str | None, kind: str | None) -> Source:
    """The source that reads a file or folder: of records or of texts, as its ending tells. Raises `UserError`."""
    path = Path(name).expanduser()
    if not path.exists():
        raise UserError(
            f"{name} does not exist; expected a file or folder of text, .jsonl(.gz|.zst), .parquet or .warc"
        )
    ending = split_ending(path.name)[0]
    if path.is_dir() or ending not in RECORD_SOURCES:
        if text_key is not None:
            raise UserError(f"{name} holds texts, which have no field '{text_key}'; --text-key is for records")
        options: dict[str, Any] = {"path": str(path), "license": "own"}
        return make(TextFolder, options | ({} if kind is None else {"kind": kind}), name)
    chosen = {"text_key": text_key, "kind": kind}
    options = {"path": glob.escape(str(path)), "license": "own", **{k: v for k, v in chosen.items() if v is not None}}
    return make(RECORD_SOURCES[ending], options, name)


def _score(items: Iterator[Document | SetAside], folder: Path, part: Path) -> dict[str, float]:
    """Writes one part and returns its counts."""
    scorer, limit = stored_scorer(folder / "scorer"), _limit(read_manifest(folder)["classifier"]["threshold"])
    facts = {"documents": 0, "unreadable": 0, "bytes": 0, "sum": 0.0, "kept": 0, "abstained": 0}
    batch: list[Document] = []
    with open(part, "wb") as file:
        for item in items:
            if isinstance(item, SetAside):
                facts["unreadable"] += 1
                record = {"path": mend_surrogates(item.path), "unreadable": item.cause}
                file.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
                continue
            batch.append(repaired(item))
            if len(batch) >= BATCH_DOCUMENTS:
                _flush(batch, scorer, limit, facts, file)
        _flush(batch, scorer, limit, facts, file)
    return facts


def _limit(threshold: Any) -> float:
    """The stage's threshold, or 0.5 if its sources have different ones or none."""
    return threshold if isinstance(threshold, float | int) else 0.5


def _flush(batch: list[Document], scorer: DocumentScorer, limit: float, facts: dict[str, float], file: Any) -> None:
    for score, doc in zip(scorer.scores(batch), batch, strict=True):
        opinion = not math.isnan(score)
        value, size = round(float(score), 4) if opinion else None, len(doc.text.encode())
        facts["documents"] += 1
        facts["bytes"] += size
        facts["abstained"] += not opinion
        facts["sum"] += value or 0.0
        facts["kept"] += value is None or value >= limit
        line = {"path": doc.metadata["path"], "score": value, "bytes": size}
        file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
    batch.clear()


def _join(parts: Sequence[Path], out: str | None) -> None:
    def write(whole: Any) -> None:
        for part in parts:
            with open(part, "rb") as file:
                shutil.copyfileobj(file, whole)

    if out is None:
        write(sys.stdout.buffer)
        sys.stdout.buffer.flush()
        return
    target = Path(out).expanduser()
    temporary = target.with_name(f".{target.name}.part")
    try:
        with open(temporary, "wb") as whole:
            write(whole)
        temporary.replace(target)
    except OSError as error:
        raise UserError(
            f"--out {out} cannot be written ({error.strerror}); expected a file in a folder that exists"
        ) from None


def _say(facts: Sequence[dict[str, float]], threshold: Any, seconds: float) -> None:
    total = {
        key: sum(f[key] for f in facts) for key in ("documents", "unreadable", "bytes", "sum", "kept", "abstained")
    }
    n = int(total["documents"])
    if not n:
        print(f"score: no readable document ({int(total['unreadable']):,} could not be read)", file=sys.stderr)
        return
    cut, judged = _limit(threshold), max(1, n - int(total["abstained"]))
    if total["abstained"]:
        print(f"score: no opinion of {int(total['abstained']):,} documents that are not in English", file=sys.stderr)
    print(
        f"score: {n:,} documents, mean {total['sum'] / judged:.3f}, {100 * total['kept'] / n:.1f}% at or above {cut:g};"
        f" {int(total['unreadable']):,} unreadable; {total['bytes'] / 1e6 / seconds:.1f} MB/s",
        file=sys.stderr,
    )
