"""`hornbook label`: a quality scorer for your own text, trained on about a hundred documents that a person or a model
rates.

In: an experiment's sources. Out: `runs/<name>/labels.jsonl`, one line per rated document, and
`runs/<name>/scorer.safetensors`, which `data.scorer: {type: trained}` uses. The documents are a seeded sample of what
the data stage would score: repaired, filtered by the rules, deduplicated, without validation, spread over sources and
groups. The same command resumes where it stopped.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document

from data_filters.rule import EXERCISE
from pipeline.config import Config
from pipeline.corpus.scorers.document_scorers import SHIPPED
from pipeline.corpus.scorers.labels import Model, Person, Rating, StopRating, content_hash, learn
from pipeline.corpus.scorers.linear import MOST, load_scorer
from pipeline.corpus.sources.records import shown
from pipeline.corpus.steps import data_step
from pipeline.corpus.synthetic.endpoint import ChatEndpoint, CostCapReached, EndpointError, Price, ask_all
from pipeline.corpus.text.documents import DocumentReader, Table, draw, read_all_alive, read_validation, write_masks
from pipeline.corpus.text.user_files import Unreadable, read_files
from pipeline.data import data_makers
from pipeline.storage.experiment import Experiment
from pipeline.storage.steps import Step
from pipeline.storage.store import build
from pipeline.system.errors import UserError

LABELS, REQUESTS = "labels.jsonl", "label_requests.jsonl"


@dataclass(frozen=True)
class Choice:
    """How many documents are rated, and how many requests run at a time."""

    documents: int = 100
    concurrency: int = 4


def run(config: Config, command: str, choice: Choice, endpoint: ChatEndpoint | None) -> None:
    """Rates what is not rated yet, then trains. Raises `UserError` if there are too few ratings to train on."""
    if choice.documents < 1 or choice.concurrency < 1:
        raise UserError("--documents and --concurrency: expected at least 1")
    folder = Experiment(config).folder
    folder.mkdir(parents=True, exist_ok=True)
    documents = sample(config, choice.documents)
    rated = read_ratings(folder / LABELS)
    left = [document for document in documents if content_hash(document.text) not in rated]
    print(f"label: {len(documents)} documents, {len(documents) - len(left)} of them rated already", flush=True)
    with open(folder / LABELS, "a", encoding="utf-8") as file:
        for record in _rate(left, Person() if endpoint is None else Model(endpoint), choice):
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            file.flush()
    if endpoint is not None:
        print(f"label: {endpoint.asked} requests, ${endpoint.dollars:.4f} spent in all", flush=True)
    _train(documents, read_ratings(folder / LABELS), folder, command)


def make_endpoint(
    config: Config,
    address: str | None,
    model: str | None,
    *,
    max_dollars: float | None = None,
    price_in: float = 0.0,
    price_out: float = 0.0,
) -> ChatEndpoint | None:
    """The server that rates; None where a person does. Prices are dollars for a million tokens. Raises `UserError` for
    options that contradict each other."""
    if (address is None) != (model is None):
        raise UserError("label: --endpoint and --model go together; without both, you rate at the terminal")
    for option, value in (("max-dollars", max_dollars), ("price-in", price_in), ("price-out", price_out)):
        if not 0 <= (value or 0) < float("inf"):
            raise UserError(f"label: --{option} is {value}; expected a number of at least 0")
    if max_dollars is not None and not (price_in > 0 or price_out > 0):
        raise UserError("label: --max-dollars needs the model's prices: --price-in and --price-out")
    if address is None or model is None:
        return None
    price = Price(price_in, price_out, max_dollars)
    return ChatEndpoint(address, model, Experiment(config).folder / REQUESTS, price=price)


def sample(config: Config, count: int) -> list[Document]:
    """The documents to rate: the same ones for the same data, one of each group in turn. Raises `UserError`."""
    config = replace(config, data=replace(config.data, scorer=None))
    final = data_step(config)
    inputs = {name: step for name, step in final.inputs.items() if isinstance(step, Step)}
    before = inputs.get("contamination", inputs["near_dedup"])
    build(
        before, data_makers(config, final), experiment=config.name, announce=lambda s: print(f"  {s.name}", flush=True)
    )
    repaired, split = inputs["repair"].path, inputs["split"].path
    table = Table.load(repaired)
    wanted = read_all_alive(before.path, table.tasks) & ~read_validation(split, table.tasks)
    wanted &= table.kinds != EXERCISE
    if not wanted.any():
        raise UserError("there is no train document to rate: every one was dropped by the rules, see data.filters")
    chosen = np.zeros(len(table), dtype=bool)
    chosen[list(islice(_in_turn(table, np.flatnonzero(wanted), config.seed), count))] = True
    masks = Experiment(config).folder / ".label-sample"
    write_masks(masks, table, chosen)
    readers = (DocumentReader(repaired, only=masks).run(rank=shard) for shard in range(table.tasks))
    return [document for reader in readers for document in reader]


def _in_turn(table: Table, rows: np.ndarray, seed: int) -> Iterator[int]:
    """Documents in turn from each group; groups and documents are in seeded order."""
    by_group: dict[int, list[int]] = defaultdict(list)
    for index in rows[np.argsort(draw(table.rows["digest"][rows, 0], seed, "rate"), kind="stable")].tolist():
        by_group[int(table.rows["group"][index])].append(index)
    queues = list(by_group.values())
    while queues:
        yield from (queue[0] for queue in queues)
        queues = [queue[1:] for queue in queues if len(queue) > 1]


def _rate(documents: Sequence[Document], rater: Person | Model, choice: Choice) -> Iterator[dict[str, Any]]:
    """A record for each rated document, as it is rated. Ends early if the person stops or the cost cap is reached."""
    rate = lambda number: rater.rate(documents[number])  # noqa: E731
    count, failed, unusable = len(documents), 0, 0
    by_hand = isinstance(rater, Person)
    answers = ((i, rate(i)) for i in range(count)) if by_hand else ask_all(rate, count, choice.concurrency)
    try:
        for i, rating in answers:
            if isinstance(rating, Rating):
                yield _record(documents[i], rating, rater.name)
            failed += isinstance(rating, EndpointError)
            unusable += rating is None and not by_hand
    except CostCapReached as cap:
        print(f"label: stopped at the cost cap: {cap}; the same command with a higher --max-dollars resumes")
    except StopRating:
        print("label: stopped; the same command resumes")
    if failed or unusable:
        print(f"label: {failed} requests failed, {unusable} answers were no rating; left out")


def _record(document: Document, rating: Rating, rater: str) -> dict[str, Any]:
    metadata = document.metadata
    return {
        **{name: metadata[name] for name in ("source", "path", "group", "kind")},
        "characters": len(document.text), "sha256": content_hash(document.text), "score": rating.score,
        "rationale": rating.rationale, "rater": rater,
    }  # fmt: skip


def read_ratings(path: Path) -> dict[str, dict[str, Any]]:
    """`{content hash: record}`; the last rating of a text counts. Other lines are skipped with a warning."""
    if not path.is_file() or not path.stat().st_size:
        return {}
    return {record["sha256"]: record for record in read_files([path], _rating, "label").check(1.0).made}


def _rating(record: Any, _: str) -> dict[str, Any]:
    try:
        named = all(isinstance(record[name], str) for name in ("sha256", "source", "group", "path", "rater"))
        if named and not isinstance(record["score"], bool) and record["score"] in range(MOST + 1):
            return {**record, "score": int(record["score"])}
    except (KeyError, TypeError):
        pass
    raise Unreadable("no_rating", f"is no rating: {shown(record, 100)}")


def _train(documents: Sequence[Document], rated: dict[str, dict[str, Any]], folder: Path, command: str) -> None:
    pairs = [(d, rated[content_hash(d.text)]) for d in documents if content_hash(d.text) in rated]
    raters = ", ".join(sorted({record["rater"] for _, record in pairs}))
    groups = [f"{record['source']}/{record['group']}" for _, record in pairs]
    if len(set(groups)) < 2:  # one group alone cannot be held out: documents are
        groups = [record["path"] for _, record in pairs]
    try:
        scorer = learn(
            [d for d, _ in pairs], [record["score"] for _, record in pairs], groups, raters, load_scorer(SHIPPED)
        )
    except ValueError as error:
        raise UserError(
            f"label: {error}. Rate more: hornbook label {command} --documents {2 * max(50, len(documents))}"
        ) from None
    path = folder / SHIPPED.name
    scorer.save(path)
    facts = scorer.facts
    low, high = facts["auc_interval"]
    print(
        f"label: scorer of {facts['documents']} ratings, {facts['good']} good: AUC {facts['auc']:.3f} ({low:.2f} to "
        f"{high:.2f}) on groups it did not see; plain docstring share {facts['auc_docstring_share']:.3f}\n"
        f"  scorer       {path}\n  labels       {folder / LABELS}\n"
        f"  next: hornbook data {command} data.scorer.type=trained   (or `scorer: {{type: trained}}` in the config)"
    )
