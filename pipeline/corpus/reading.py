"""The first three steps: read (one per source), repair, rules.

In: a source; out: its documents over fixed shards, and what could not be read set aside by name. Repair joins the
sources shard by shard and writes the texts for the last time; rules only write who was dropped and why.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from data_filters.repair import mend_surrogates, repair
from data_filters.rule import EXERCISE, Drop, Rule
from pipeline.artifacts import Folder
from pipeline.corpus.documents import (
    DocumentReader,
    SetAside,
    count_decisions,
    count_remaining,
    decision,
    document_writer,
    load_table,
    read_lines,
    read_records,
    shard_name,
    write_records,
)
from pipeline.corpus.execute import run_tasks
from pipeline.corpus.source import Source
from pipeline.errors import UserError


def read_source(folder: Folder, name: str, source: Source, tasks: int, workers: int) -> dict[str, Any]:
    """Reads one source. Facts: documents, bytes, unreadable and refused by cause. `UserError` if nothing is left."""
    documents, aside = folder.path / "documents", folder.path / "set_aside"
    run_tasks(
        folder,
        [SourceReader(name, source, aside), document_writer(documents)],
        tasks=tasks,
        workers=workers,
        description=f"read {name}",
    )
    complete(documents, tasks)
    refused = [r for shard in range(tasks) for r in read_records(aside / shard_name(shard))]
    unreadable = Counter(r["cause"] for r in refused if r["filter"] is None)
    n_documents = sum(1 for shard in range(tasks) for _ in read_lines(documents / shard_name(shard)))
    if not n_documents:
        causes = ", ".join(f"{n} {cause}" for cause, n in unreadable.most_common()) or "it is empty"
        raise UserError(
            f"data.sources.{name} gave no readable document ({causes}); what was found lies in {aside}. "
            f"Mend the source or take it out with data.sources.{name}=null"
        )
    return {
        "documents": n_documents,
        "unreadable": dict(sorted(unreadable.items())),
        "dropped": dict(sorted(Counter(r["filter"] for r in refused if r["filter"]).items())),
    }


class SourceReader(PipelineStep):
    """Documents of one source and shard; what is not one goes to `aside/`, with its cause and a sample."""

    type = "📖 - READER"

    def __init__(self, name: str, source: Source, aside: Path):
        self.name = name
        super().__init__()
        self.source, self.aside = source, aside

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:  # type: ignore[override]
        refused: list[dict[str, Any]] = []
        for item in self.source.documents(rank, world_size):
            if isinstance(item, SetAside):
                refused.append(
                    {
                        "source": self.name,
                        "path": mend_surrogates(item.path),
                        "cause": item.cause,
                        "sample": mend_surrogates(item.sample),
                        "filter": item.filter,
                    }
                )
                continue
            # Files between steps are UTF-8, so halves of surrogate pairs are mended before the first write.
            item.text, item.id = mend_surrogates(item.text), mend_surrogates(f"{self.name}/{item.id}")
            item.metadata = {k: mend_surrogates(v) if isinstance(v, str) else v for k, v in item.metadata.items()}
            item.metadata["source"] = self.name
            yield item
        write_records(self.aside / shard_name(rank), refused)


def repair_documents(folder: Folder, sources: Sequence[str], tasks: int, workers: int) -> dict[str, Any]:
    """Joins the sources' shards in the order of their names, mends each text, sets the empty ones aside as dropped."""
    read = {name: folder.input(f"read-{name}") for name in sources}
    documents = folder.path / "documents"
    pipeline = [Repair(read, folder.path), document_writer(documents)]
    run_tasks(folder, pipeline, tasks=tasks, workers=workers, description="repair")
    complete(documents, tasks)
    return step_facts(folder.path, folder.path, [folder.path], tasks)


class Repair(PipelineStep):
    """Mends the documents of all sources' shard `rank`; writes the table of rows and the empty ones' decisions."""

    name, type = "repair", "✂️ - FORMAT"

    def __init__(self, read: Mapping[str, Path], folder: Path):
        super().__init__()
        self.read, self.folder = dict(read), folder

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:  # type: ignore[override]
        rows: list[dict[str, Any]] = []
        empty: list[dict[str, Any]] = []
        for name in sorted(self.read):
            for line in read_lines(self.read[name] / "documents" / shard_name(rank)):
                record = orjson.loads(line)
                metadata = record["metadata"]
                kind = metadata["kind"]
                text = repair(record["text"], kind, mask=kind != EXERCISE)
                if not text.strip():
                    empty.append(decision(len(rows), "empty", Drop("empty", 0, 1)))
                rows.append(
                    {
                        "source": name,
                        "group": metadata["group"],
                        "kind": kind,
                        "path": metadata["path"],
                        "bytes": len(text.encode()),
                        "license": metadata["license"],
                    }
                )
                yield Document(text=text, id=record["id"], metadata=metadata)
        write_records(self.folder / "table" / shard_name(rank), rows)
        write_records(self.folder / "decisions" / shard_name(rank), empty)


def apply_rules(folder: Folder, rules: Mapping[str, Rule], tasks: int, workers: int) -> dict[str, Any]:
    """Every rule in turn over every document; the first that drops it is the one reason that counts."""
    repaired = folder.input("repair")
    pipeline = [DocumentReader(repaired, [repaired]), ApplyRules(rules, folder.path)]
    run_tasks(folder, pipeline, tasks=tasks, workers=workers, description="rules")
    return step_facts(folder.path, repaired, [repaired, folder.path], tasks)


class ApplyRules(PipelineStep):
    """Writes the decisions of `rules` on one shard; passes on what is kept."""

    name, type = "rules", "🔻 - FILTER"

    def __init__(self, rules: Mapping[str, Rule], folder: Path):
        super().__init__()
        self.rules, self.folder = dict(rules), folder

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:  # type: ignore[override]
        decisions: list[dict[str, Any]] = []
        for doc in data or ():
            drop = None
            for name, rule in self.rules.items():
                drop = rule.decide(doc)
                if drop is not None:
                    decisions.append(decision(doc.metadata["at"], name, drop))
                    break
            if drop is None:
                yield doc
        write_records(self.folder / "decisions" / shard_name(rank), decisions)


def step_facts(folder: Path, repaired: Path, decided: Sequence[Path], tasks: int) -> dict[str, Any]:
    """What every deciding step says in its manifest: what it dropped and what is left."""
    return {"dropped": count_decisions(folder, tasks), **count_remaining(load_table(repaired, tasks), decided)}


def complete(documents: Path, tasks: int) -> None:
    """Writers open a file at the first document: a shard without any gets its empty file here."""
    documents.mkdir(parents=True, exist_ok=True)
    for shard in range(tasks):
        (documents / shard_name(shard)).touch()
