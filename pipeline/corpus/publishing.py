"""The last three steps: the score of every document, the cut by score, and the folder that other stages read.

Score: a number from 0 to 1 for every document that is left, `scores/00003.bin` (float32, in the order of the ids), and
`scorer/`, which `hornbook score` uses. A document of a source that the scorer does not suit has score 1, and the facts
say so: no number is better than one without meaning. Cut: train documents below the limit of their source are dropped.
Publish: token sets per source, the tokenizer, the scorer, samples of what was kept and dropped, and the account of it
all (account.py): read = kept + dropped + unreadable, to the document.
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document

from data_filters.general import Quality
from data_filters.rule import EXERCISE, Drop
from pipeline.corpus.account import DECIDING, NONE, Outcome, Sets, count_dropped, manifest_facts, write_account
from pipeline.corpus.execute import Executor
from pipeline.corpus.scorers.document_scorers import KEY, DocumentScorer, make_scorer, save_scorer, stored_scorer
from pipeline.corpus.scorers.features import BATCH_DOCUMENTS
from pipeline.corpus.text.documents import (
    DocumentReader,
    RowWriter,
    ShardStep,
    Table,
    filtered,
    in_drawn_order,
    read_all_alive,
    read_rows,
    read_validation,
    step_facts,
    write_decisions,
)
from pipeline.corpus.text.shards import HEAD_TOKENS, TEXTBOOK, TOKENS_FOLDER, head_bytes, write_token_set
from pipeline.corpus.text.tokenizer import load_tokenizer, tokenizer_files
from pipeline.corpus.tokenizing import empty_corpus, open_ids, read_index, token_dtype
from pipeline.storage.files import write_json
from pipeline.storage.steps import Folder, read_manifest

SCORES = np.dtype("<f4")
CUT_CHARACTER = "\ufffd"  # what a decoder makes of the bytes of half a character


def score_documents(
    folder: Folder, options: Mapping[str, Any] | None, chosen: Sequence[str], executor: Executor
) -> dict[str, Any]:
    """Scores the documents of the sources `chosen`. Facts: `classifier {auc, sources, ...}` and the histogram."""
    repaired, encoded = folder.input("repair"), folder.input("encode")
    table, scorer = Table.load(repaired), make_scorer(options)
    (folder.path / "scores").mkdir(exist_ok=True)
    if scorer is not None and chosen:
        save_scorer(scorer, options or {}, folder.path / "scorer")
        (folder.path / "abstained").mkdir(exist_ok=True)
        scoring = ShardStep("score", partial(_score_shard, folder.path, tuple(chosen)))
        logs = Folder(folder.path / "logs" / "scores")
        executor.run(logs, [DocumentReader(repaired, filtered(folder)), scoring], description="score")
    else:
        for shard in range(table.tasks):
            ones = np.ones(len(read_index(encoded, shard)), dtype=SCORES)
            (folder.path / "scores" / f"{shard:05d}.bin").write_bytes(ones.tobytes())
    histogram = sum(np.histogram(read_scores(folder.path, s), bins=10, range=(0, 1))[0] for s in range(table.tasks))
    abstained = sum(json.loads(path.read_bytes()) for path in (folder.path / "abstained").glob("*.json"))
    return {
        "classifier": _scorer_facts(scorer, options, chosen, table.sources, abstained),
        "score_histogram": np.asarray(histogram, dtype=np.int64).tolist(),
    }


def read_scores(scored: Path, shard: int) -> np.ndarray:
    """Scores of one shard, in the order of its ids."""
    return read_rows(scored / "scores" / f"{shard:05d}.bin", SCORES)


def _score_shard(folder: Path, chosen: tuple[str, ...], documents: Iterable[Document], shard: int) -> None:
    """One score a document, by the scorer that lies in the step's folder; 1 for exercises, for sources that are not
    `chosen`, and where the scorer has no opinion: how many these are is stored beside."""
    scorer, left, abstained = stored_scorer(folder / "scorer"), iter(documents), 0
    with RowWriter(folder / "scores" / f"{shard:05d}.bin", SCORES) as out:
        while batch := list(islice(left, BATCH_DOCUMENTS)):
            about = [doc.metadata for doc in batch]
            suited = [i for i, of in enumerate(about) if of["source"] in chosen and of["kind"] != EXERCISE]
            scores = np.ones(len(batch), dtype=SCORES)
            scores[suited] = scorer.scores([batch[i] for i in suited])
            abstained += int(np.isnan(scores).sum())
            for score in np.where(np.isnan(scores), np.float32(1), scores):
                out.add(score)
    write_json(folder / "abstained" / f"{shard:05d}.json", abstained)


def _scorer_facts(
    scorer: DocumentScorer | None,
    options: Mapping[str, Any] | None,
    chosen: Sequence[str],
    sources: Sequence[str],
    abstained: int,
) -> dict[str, Any]:
    left = [name for name in sources if name not in chosen]
    facts = {
        "type": (options or {}).get("type"), "sources": sorted(chosen), "not_scored": left, "abstained": abstained
    }  # fmt: skip
    if scorer is None:
        return {**facts, "auc": None, "note": f"{KEY} is null: every score is 1"}
    if not chosen:
        return {**facts, "auc": None, "note": f"every score is 1: {scorer.unlike}"}
    return {**facts, **scorer.facts()}


def cut_by_score(folder: Folder, qualities: Mapping[str, Quality]) -> dict[str, Any]:
    """Drops train documents whose score the `Quality` of their source refuses (a source without one keeps all), and
    the worst of the rest where it asks for a number of tokens; validation and exercises are never cut."""
    table = Table.load(folder.input("repair"))
    alive = read_all_alive(filtered(folder), table.tasks)
    train = alive & ~read_validation(folder.input("split"), table.tasks)
    scores = corpus_scores(folder, table)

    train &= np.isin(table.kinds, Quality.kinds)
    dtype = token_dtype(read_manifest(folder.input("tokenizer"))["vocab_size"])
    lengths = Encoded(folder.input("encode"), table, dtype).lengths
    drops: dict[int, Drop] = {}
    thresholds: dict[str, float] = {}
    for number, source in enumerate(table.sources):
        if source in qualities:
            own = np.flatnonzero(train & (table.rows["source"] == number))
            if len(own):  # a source of exercises alone has nothing to cut
                found, thresholds[source] = _below(own, scores, lengths, qualities[source])
                drops.update(found)
    write_decisions(folder.path, table, alive, ((i, "quality", drops[i]) for i in sorted(drops)))
    return {**step_facts(folder.path, table), "thresholds": thresholds}


def _below(
    documents: np.ndarray, scores: np.ndarray, lengths: np.ndarray, quality: Quality
) -> tuple[dict[int, Drop], float]:
    """(what is dropped of a source and why, the score of the worst document that stays)."""
    own, minimum = scores[documents], np.float32(quality.min_score)
    limit, reason = minimum, "below_min_score"
    if quality.keep_tokens is not None:
        order = np.argsort(-own, kind="stable")
        full = np.cumsum(lengths[documents][order]) > quality.keep_tokens
        if full.any() and own[order][np.argmax(full)] >= minimum:
            # Documents of one score stay or go together: which of them came first says nothing.
            limit, reason = np.nextafter(own[order][np.argmax(full)], np.float32(2)), "beyond_keep_tokens"
    shown = round(float(limit), 4)
    found = {
        int(i): Drop("below_min_score" if score < minimum else reason, round(float(score), 4), shown)
        for i, score in zip(documents[own < limit], own[own < limit], strict=True)
    }
    return found, shown


def corpus_scores(folder: Folder, table: Table) -> np.ndarray:
    """float32 score of every document; 0 for those that were dropped before they got one."""
    scores = np.zeros(len(table), dtype=np.float32)
    for shard in range(table.tasks):
        ats = read_index(folder.input("encode"), shard)["at"].astype(np.int64)
        scores[table.starts[shard] + ats] = read_scores(folder.input("score"), shard)
    return scores


def publish(folder: Folder, max_bytes: int, textbook_min_score: float, seed: int, keep_dropped: str) -> dict[str, Any]:
    """Writes the stage's folder. Raises `UserError` where no train document is left, naming what dropped most."""
    table = Table.load(folder.input("repair"))
    alive = read_all_alive(folder.input("cut"), table.tasks)
    held_out = read_validation(folder.input("split"), table.tasks)
    scores = corpus_scores(folder, table)
    manifests = {name: read_manifest(path) for name, path in folder.inputs.items()}
    sets = arrange(
        table, alive, held_out, scores, manifests["score"]["classifier"]["sources"], max_bytes, textbook_min_score, seed
    )
    dropped = count_dropped(manifests)
    if not sets.train:
        raise empty_corpus(dropped)
    dtype = token_dtype(manifests["tokenizer"]["vocab_size"])
    for name in (TOKENS_FOLDER, "scorer", "kept", "dropped"):  # what a killed attempt left might not be overwritten
        shutil.rmtree(folder.path / name, ignore_errors=True)
    for file in tokenizer_files(folder.input("tokenizer") / "tokenizer.json"):
        target = folder.path / file.relative_to(folder.input("tokenizer"))
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, target)
    if (folder.input("score") / "scorer").is_dir():
        shutil.copytree(folder.input("score") / "scorer", folder.path / "scorer")
    encoded = Encoded(folder.input("encode"), table, dtype)
    for name, documents in sets.train.items():
        contents = encoded.documents(documents, scores)
        write_token_set(folder.path / TOKENS_FOLDER / f"train-{name}", contents, dtype)
    eos_token_id, scored = manifests["tokenizer"]["eos_token_id"], {}
    # Validation reads the beginnings of documents, or a few long ones would be all of a set.
    head = Head(folder.path / "tokenizer.json", eos_token_id, head_bytes(max_bytes))
    for name, documents in sets.val.items():
        contents = map(head.of, encoded.documents(documents, scores))
        counts = write_token_set(folder.path / TOKENS_FOLDER / f"val-{name}", contents, dtype)
        scored[name] = dict(zip(("documents", "tokens", "bytes"), counts, strict=True))
    result = manifest_facts(table, sets, scored, encoded.lengths, dropped, manifests, str(dtype))
    train, val = sets.all_train(), sets.all_held_out()
    outcome = Outcome(train, val, np.concatenate([train, val]), encoded.lengths, scores)
    deciding = [name for name in DECIDING if name in folder.inputs]
    write_account(folder, table, outcome, result, deciding, seed=seed, keep_dropped=keep_dropped)
    return result


def arrange(
    table: Table, alive: np.ndarray, held_out: np.ndarray, scores: np.ndarray, scored: Sequence[str], max_bytes: int,
    textbook_min_score: float, seed: int,
) -> Sets:  # fmt: skip
    """Each document in its set, in a seeded order in which neighbours are unrelated. The textbook set is of the
    held-out text of the sources `scored`: where no score was given, a 1 means nothing."""
    sets, textbook = Sets(), [NONE]
    for number, source in enumerate(table.sources):
        own = np.flatnonzero(alive & (table.rows["source"] == number))
        own = in_drawn_order(table, own, seed, "order", source)
        train, val = own[~held_out[own]], own[held_out[own]]
        if len(train):
            sets.train[source] = train
        if len(val):
            sets.val[source] = val
        if source in scored:
            textbook.append(val[scores[val] >= np.float32(textbook_min_score)])
    good = in_drawn_order(table, np.concatenate(textbook), seed, "textbook")
    good = good[np.cumsum(np.minimum(table.rows["bytes"][good], head_bytes(max_bytes)), dtype=np.int64) <= max_bytes]
    if len(good):
        sets.val[TEXTBOOK] = good
    return sets


class Head:
    """`of(document)`: what of a held-out document is validated on, ended by end-of-text. It ends with a whole
    character, and `bytes` are those of its text."""

    def __init__(self, tokenizer: Path, eos_token_id: int, most_bytes: int):
        self._tokenizer, self._eos, self._most_bytes = load_tokenizer(tokenizer), eos_token_id, most_bytes

    def of(self, document: tuple[np.ndarray, int, float]) -> tuple[np.ndarray, int, float]:
        ids, n_bytes, score = document
        if len(ids) <= HEAD_TOKENS and n_bytes <= self._most_bytes:
            return document
        head = np.asarray(ids[: min(len(ids), HEAD_TOKENS) - 1])
        text = self._text(head)
        while len(head) > 1 and len(text.encode()) > self._most_bytes:
            fits = int(len(head) * self._most_bytes / len(text.encode()))
            head = head[: max(1, min(len(head) - 1, fits))]
            text = self._text(head)
        for _ in range(3):  # a character has at most four bytes, and a token may be one of them
            if len(head) > 1 and text.endswith(CUT_CHARACTER):
                head = head[:-1]
                text = self._text(head)
        return np.append(head, head.dtype.type(self._eos)), len(text.encode()), score

    def _text(self, ids: np.ndarray) -> str:
        return self._tokenizer.decode(ids.tolist(), skip_special_tokens=False)


class Encoded:
    """Where the ids of every document lie: offset in its shard and number of tokens, 0 for those not encoded."""

    def __init__(self, folder: Path, table: Table, dtype: np.dtype):
        self.offsets = np.zeros(len(table), dtype=np.int64)
        self.lengths = np.zeros(len(table), dtype=np.int64)
        self._table, self._ids = table, []
        for shard in range(table.tasks):
            ids, index = open_ids(folder, shard, dtype)
            places = table.starts[shard] + index["at"].astype(np.int64)
            self.offsets[places], self.lengths[places] = index["offset"], index["length"]
            self._ids.append(ids)

    def documents(self, chosen: np.ndarray, scores: np.ndarray) -> Iterator[tuple[np.ndarray, int, float]]:
        """Ids, text bytes and score of each document, in the order given."""
        shards = np.searchsorted(self._table.starts, chosen, side="right") - 1
        n_bytes = self._table.rows["bytes"][chosen]
        for index, shard, size in zip(chosen.tolist(), shards.tolist(), n_bytes.tolist(), strict=True):
            start = int(self.offsets[index])
            ids = self._ids[shard][start : start + int(self.lengths[index])]
            yield ids, size, round(float(scores[index]), 4)
