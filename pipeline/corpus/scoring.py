"""The score step: every document that is left gets a score from 0 to 1; the cut comes later.

In: texts and the scorer that the config names. Out: `scores/00003.bin` (float32, in the order of the ids) and
`scorer/`, which `hornbook score` uses. A document of a source that the scorer does not suit has score 1, and the facts
say so: no number is better than one without meaning.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from data_filters.rule import EXERCISE
from pipeline.corpus.execute import Executor
from pipeline.corpus.scorers.base import KEY, SHIPPED, DocumentScorer, Linear
from pipeline.corpus.scorers.table import SCORERS
from pipeline.corpus.text.documents import DocumentReader, RowWriter, Table, read_rows
from pipeline.corpus.text.options import look_up, make
from pipeline.corpus.tokenizing import open_ids, token_dtype
from pipeline.storage.files import write_json
from pipeline.storage.steps import Folder
from pipeline.system.errors import UserError

BATCH_DOCUMENTS = 64
SCORES = np.dtype("<f4")


def make_scorer(options: Mapping[str, Any] | None) -> DocumentScorer | None:
    """The scorer behind the section `data.scorer`; None for null. `UserError` for an unknown type or option."""
    if options is None:
        return None
    if "type" not in options:
        raise UserError(f"{KEY} is {dict(options)!r}; expected a section such as {{type: shipped}}, or null")
    cls = look_up(SCORERS, options["type"], f"{KEY}.type", "scorers")
    return make(cls, {name: value for name, value in options.items() if name != "type"}, KEY)


def score_documents(
    folder: Folder, before: str, vocab_size: int, options: Mapping[str, Any] | None, chosen: Sequence[str],
    executor: Executor,
) -> dict[str, Any]:  # fmt: skip
    """Scores the documents of the sources `chosen`. Facts: `classifier {auc, sources, ...}` and the histogram."""
    repaired, encoded, previous = folder.input("repair"), folder.input("encode"), folder.input(before)
    table, dtype, scorer = Table.load(repaired), token_dtype(vocab_size), make_scorer(options)
    (folder.path / "scores").mkdir(exist_ok=True)
    if scorer is not None and chosen:
        save_scorer(scorer, options or {}, folder.path / "scorer")
        scoring = ScoreDocuments(folder.path, tuple(chosen))
        logs = Folder(folder.path / "logs" / "scores")
        executor.run(logs, [DocumentReader(repaired, previous), scoring], description="score")
    else:
        for shard in range(table.tasks):
            ones = np.ones(len(open_ids(encoded, shard, dtype)[1]), dtype=SCORES)
            (folder.path / "scores" / f"{shard:05d}.bin").write_bytes(ones.tobytes())
    histogram = sum(np.histogram(read_scores(folder.path, s), bins=10, range=(0, 1))[0] for s in range(table.tasks))
    return {
        "classifier": _facts(scorer, options, chosen, table.sources),
        "score_histogram": np.asarray(histogram, dtype=np.int64).tolist(),
    }


def read_scores(scored: Path, shard: int) -> np.ndarray:
    """Scores of one shard, in the order of its ids."""
    return read_rows(scored / "scores" / f"{shard:05d}.bin", SCORES)


class ScoreDocuments(PipelineStep):
    """One score a document, by the scorer that lies in the step's folder; 1 for sources that are not `chosen`."""

    name, type = "score", "📊 - STATS"

    def __init__(self, folder: Path, chosen: tuple[str, ...]):
        super().__init__()
        self.folder, self.chosen = folder, chosen

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:  # type: ignore[override]
        scorer, documents = stored_scorer(self.folder / "scorer"), iter(data or ())
        with RowWriter(self.folder / "scores" / f"{rank:05d}.bin", SCORES) as out:
            while batch := list(islice(documents, BATCH_DOCUMENTS)):
                suited = [i for i, doc in enumerate(batch) if self._suits(doc)]
                scores = np.ones(len(batch), dtype=SCORES)
                scores[suited] = scorer.scores([batch[i] for i in suited])
                for score in scores:
                    out.add(score)
        yield from ()

    def _suits(self, doc: Document) -> bool:
        return doc.metadata["source"] in self.chosen and doc.metadata["kind"] != EXERCISE


def save_scorer(scorer: DocumentScorer, options: Mapping[str, Any], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    scorer.store(folder)
    write_json(folder / "scorer.json", dict(options))


def stored_scorer(folder: Path) -> DocumentScorer:
    """The scorer that `save_scorer` has left in a folder."""
    if (folder / SHIPPED.name).is_file():
        return Linear(folder / SHIPPED.name)
    scorer = make_scorer(json.loads((folder / "scorer.json").read_text(encoding="utf-8")))
    assert scorer is not None
    scorer.content()  # says so where the model has gone
    return scorer


def _facts(
    scorer: DocumentScorer | None, options: Mapping[str, Any] | None, chosen: Sequence[str], sources: Sequence[str]
) -> dict[str, Any]:
    left = [name for name in sources if name not in chosen]
    facts = {"type": (options or {}).get("type"), "sources": sorted(chosen), "not_scored": left}
    if scorer is None:
        return {**facts, "auc": None, "note": f"{KEY} is null: every score is 1"}
    if not chosen:
        return {**facts, "auc": None, "note": f"every score is 1: {scorer.unlike}"}
    return {**facts, **scorer.facts()}
