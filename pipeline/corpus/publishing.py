"""The last two steps: the cut by score, and the folder that other stages read.

In: ids, scores, the split and every decision before. Out: token sets per source, the tokenizer, the scorer, samples
of what was kept and dropped, the account of it all for the report, and the counts of the manifest: read = kept +
dropped + unreadable, to the document.
"""

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_filters.licence import normalise
from data_filters.quality import Quality
from data_filters.rule import Drop
from pipeline.corpus.account import Outcome, all_files, write_account
from pipeline.corpus.duplicates import read_validation
from pipeline.corpus.scoring import read_scores
from pipeline.corpus.text.documents import WHERE, Table, draw, read_all_alive, step_facts, sum_mappings, write_decisions
from pipeline.corpus.text.shards import HEAD_TOKENS, TEXTBOOK, TOKENS_FOLDER, head_bytes, write_token_set
from pipeline.corpus.text.tokenizer import load_tokenizer, tokenizer_files
from pipeline.corpus.tokenizing import empty_corpus, open_ids, read_index, token_dtype
from pipeline.pages.private import OWN
from pipeline.storage.steps import Folder, read_manifest

# The steps that drop documents, in order; decontamination only where there are items to compare with.
DECIDING = ("repair", "rules", "exact_dedup", "near_dedup", "contamination", "cut")
NONE = np.zeros(0, dtype=np.int64)
CUT_CHARACTER = "\ufffd"  # what a decoder makes of the bytes of half a character


@dataclass
class Sets:
    """Documents (positions in the corpus) by the token set they go to, in order. The textbook set's are in the sets of
    their sources too."""

    train: dict[str, np.ndarray] = field(default_factory=dict)
    val: dict[str, np.ndarray] = field(default_factory=dict)

    def all_train(self) -> np.ndarray:
        return np.concatenate([*self.train.values(), NONE])

    def all_held_out(self) -> np.ndarray:
        return np.concatenate([*(documents for name, documents in self.val.items() if name != TEXTBOOK), NONE])


def cut_by_score(folder: Folder, before: str, qualities: Mapping[str, Quality], tasks: int) -> dict[str, Any]:
    """Drops train documents whose score the `Quality` of their source refuses (a source without one keeps all), and
    the worst of the rest where it asks for a number of tokens; validation and exercises are never cut."""
    table = Table.load(folder.input("repair"))
    alive = read_all_alive(folder.input(before), tasks)
    train = alive & ~read_validation(folder.input("split"), tasks)
    scores = corpus_scores(folder, table)

    train &= np.isin(table.kinds, Quality.kinds)
    lengths = _lengths(folder.input("encode"), table)
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


def _lengths(encoded: Path, table: Table) -> np.ndarray:
    """Tokens of every document; 0 for those that were dropped before they were encoded."""
    lengths = np.zeros(len(table), dtype=np.int64)
    for shard in range(table.tasks):
        index = read_index(encoded, shard)
        lengths[table.starts[shard] + index["at"].astype(np.int64)] = index["length"]
    return lengths


def corpus_scores(folder: Folder, table: Table) -> np.ndarray:
    """float32 score of every document; 0 for those that were dropped before they got one."""
    scores = np.zeros(len(table), dtype=np.float32)
    for shard in range(table.tasks):
        ats = read_index(folder.input("encode"), shard)["at"].astype(np.int64)
        scores[table.starts[shard] + ats] = read_scores(folder.input("score"), shard)
    return scores


def publish(
    folder: Folder, *, max_bytes: int, textbook_min_score: float, seed: int, tasks: int, keep_dropped: str
) -> dict[str, Any]:
    """Writes the stage's folder. Raises `UserError` where no train document is left, naming what dropped most."""
    table = Table.load(folder.input("repair"))
    alive = read_all_alive(folder.input("cut"), tasks)
    held_out = read_validation(folder.input("split"), tasks)
    scores = corpus_scores(folder, table)
    manifests = {name: read_manifest(path) for name, path in folder.inputs.items()}
    sets = arrange(
        table, alive, held_out, scores, manifests["score"]["classifier"]["sources"], max_bytes, textbook_min_score, seed
    )
    dropped = count_dropped(manifests)
    if not sets.train:
        raise empty_corpus(dropped)
    dtype = token_dtype(manifests["tokenizer"]["vocab_size"])
    _clear(folder.path)
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
    head = Head(folder.path / "tokenizer.json", eos_token_id, head_bytes(max_bytes))
    for name, documents in sets.val.items():
        contents = map(head.of, encoded.documents(documents, scores))
        counts = write_token_set(folder.path / TOKENS_FOLDER / f"val-{name}", contents, dtype)
        scored[name] = dict(zip(("documents", "tokens", "bytes"), counts, strict=True))
    result = facts(table, sets, scored, encoded.lengths, dropped, manifests, str(dtype))
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
    held-out text of the sources `scored`: where no score was given, a 1 says nothing."""
    sets, textbook = Sets(), [NONE]
    for number, source in enumerate(table.sources):
        own = np.flatnonzero(alive & (table.rows["source"] == number))
        own = own[np.argsort(draw(table.rows["digest"][own, 0], seed, "order", source), kind="stable")]
        train, val = own[~held_out[own]], own[held_out[own]]
        if len(train):
            sets.train[source] = train
        if len(val):
            sets.val[source] = val
        if source in scored:
            textbook.append(val[scores[val] >= np.float32(textbook_min_score)])
    good = np.concatenate(textbook)
    good = good[np.argsort(draw(table.rows["digest"][good, 0], seed, "textbook"), kind="stable")]
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


def count_dropped(manifests: Mapping[str, Any]) -> dict[str, int]:
    """`{filter: documents}` over the whole stage."""
    counts = sum_mappings([m["dropped"] for m in manifests.values() if "dropped" in m])
    return {name: n for name, n in counts.items() if n}


def _reasons(manifests: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """`{filter: {reason: documents}}` over the whole stage; several sources may refuse under one name."""
    counts: dict[str, list[dict[str, int]]] = {}
    for manifest in manifests.values():
        for name, reasons in manifest.get("reasons", {}).items():
            counts.setdefault(name, []).append(reasons)
    return {name: sum_mappings(found) for name, found in counts.items()}


def facts(
    table: Table, sets: Sets, scored: Mapping[str, dict[str, int]], lengths: np.ndarray, dropped: dict[str, int],
    manifests: Mapping[str, Any], dtype: str,
) -> dict[str, Any]:  # fmt: skip
    """The manifest's numbers. `scored`: documents, tokens and bytes of each validation set, beginnings of documents.
    `contamination` is null where nothing was compared with evaluation items."""
    kept = np.concatenate([sets.all_train(), sets.all_held_out()])
    both = {"train": _totals(table, lengths, sets.all_train()), "val": _scored(scored, set(scored) - {TEXTBOOK})}
    tokens, n_bytes = ({split: t[key] for split, t in both.items()} for key in ("tokens", "bytes"))
    reads = {name.removeprefix("read-"): m for name, m in manifests.items() if name.startswith("read-")}
    read = {n: m["documents"] + sum(m["unreadable"].values()) + sum(m["dropped"].values()) for n, m in reads.items()}
    tokenizer, score = manifests["tokenizer"], manifests["score"]
    contamination = manifests.get("contamination")
    licences = _licences(table, kept)
    return {
        "documents": {
            "read": sum(read.values()),
            "kept": len(kept),
            "dropped": dropped,
            "unreadable": sum(sum(m["unreadable"].values()) for m in reads.values()),
        },
        "unreadable_causes": sum_mappings([m["unreadable"] for m in reads.values()]),
        "reasons": _reasons(manifests),
        "files": all_files([m["files"] for m in reads.values()]),
        "masked": manifests["repair"].get("masked", {}),
        "tokens": tokens,
        "bytes": n_bytes,
        "sources": {
            name: {
                **_source_facts(table, lengths, name, sets, scored),
                **_licence_facts(licences.get(name, Counter())),
                "private": m["config"]["options"].get("license") == OWN or OWN in licences.get(name, ()),
                "read": read[name],
                "excluded": m["dropped"].get(WHERE, 0),
                "unreadable": sum(m["unreadable"].values()),
                "unreadable_causes": m["unreadable"],
                "files": m["files"],
                "lost_files": m["lost_files"],
            }
            for name, m in sorted(reads.items())
        },
        "textbook": {**_scored(scored, {TEXTBOOK}), "groups": _groups(table, sets.val.get(TEXTBOOK, NONE))},
        "held_out": _held_out(table, lengths, sets, scored, manifests["split"]),
        "vocab_size": tokenizer["vocab_size"],
        "eos_token_id": tokenizer["eos_token_id"],
        "token_dtype": dtype,
        "bytes_per_token": round(sum(n_bytes.values()) / max(1, sum(tokens.values())), 4),
        "classifier": {
            **score["classifier"],
            "threshold": manifests["cut"]["config"].get("min_score"),
            "thresholds": manifests["cut"]["thresholds"],
            "score_histogram": score["score_histogram"],
        },
        "contamination": contamination and {
            "n": sum(contamination["dropped"].values()),
            "items": contamination["items"],
            "items_too_short": contamination["items_too_short"],
            "ngram_words": contamination["ngram_words"],
            **({"items_unreadable": n} if (n := contamination["items_unreadable"]) else {}),
        },
        "near_duplicates": {k: manifests["near_dedup"][k] for k in ("clusters", "cluster_sizes", "largest_clusters")},
        "funnel": _funnel(sum(read.values()), manifests, _totals(table, lengths, kept)),
    }  # fmt: skip


def _licences(table: Table, kept: np.ndarray) -> dict[str, Counter[str]]:
    """Documents by declared licence, for each source."""
    chosen = np.zeros(len(table), dtype=bool)
    chosen[kept] = True
    counts: dict[str, Counter[str]] = {}
    for index, names in table.each_names(chosen):
        counts.setdefault(table.sources[table.rows["source"][index]], Counter())[names.license] += 1
    return counts


def _licence_facts(declared: Counter[str]) -> dict[str, Any]:
    licences: Counter[str] = Counter()
    for name, n in declared.items():
        licences[normalise(name) or name] += n
    return {
        "license": ", ".join(licence for licence, _ in sorted(licences.items(), key=lambda x: (-x[1], x[0]))),
        "licenses": dict(sorted(licences.items())),
    }


def _source_facts(
    table: Table, lengths: np.ndarray, name: str, sets: Sets, scored: Mapping[str, dict[str, int]]
) -> dict[str, Any]:
    train, val = sets.train.get(name, NONE), sets.val.get(name, NONE)
    return {
        **_totals(table, lengths, np.concatenate([train, val])),
        "train": _totals(table, lengths, train),
        "val": {**_scored(scored, {name}), "groups": _groups(table, val)},
    }


def _scored(scored: Mapping[str, dict[str, int]], names: Set[str]) -> dict[str, int]:
    empty = {"documents": 0, "tokens": 0, "bytes": 0}
    return {**empty, **sum_mappings([scored[name] for name in names if name in scored])}


def _groups(table: Table, documents: np.ndarray) -> int:
    return len(np.unique(table.rows["group"][documents]))


def _held_out(
    table: Table, lengths: np.ndarray, sets: Sets, scored: Mapping[str, dict[str, int]], split: Mapping[str, Any]
) -> dict[str, Any]:
    """Whole documents, in all and by source; `scored`: their beginnings, which validation reads; `unscored`: the rest
    of the long ones, which nothing reads; `returned`: what `share` would have held out and validation does not need,
    as it was at the split: it is train text, and what later steps dropped of it is among their drops."""

    def of(documents: np.ndarray, names: Set[str], returned: Mapping[str, int]) -> dict[str, Any]:
        totals, read = _totals(table, lengths, documents), _scored(scored, names)
        long = (lengths[documents] > HEAD_TOKENS) | (table.rows["bytes"][documents] > most_bytes)
        rest = {unit: totals[unit] - read[unit] for unit in ("tokens", "bytes")}
        back = {unit: returned.get(unit, 0) for unit in ("documents", "bytes")}
        return {**totals, "groups": _groups(table, documents), "scored": read,
                "unscored": {"documents": int(long.sum()), **rest}, "returned": back}  # fmt: skip

    most_bytes, names = head_bytes(split["config"]["max_bytes"]), sets.val.keys() - {TEXTBOOK}
    return {
        **of(sets.all_held_out(), names, split["returned"]),
        "by_document": split["by_document"],
        "warnings": split["warnings"],
        "sources": {
            name: of(sets.val.get(name, NONE), {name}, split["returned"]["sources"].get(name, {}))
            for name in table.sources
        },
    }


def _totals(table: Table, lengths: np.ndarray, documents: np.ndarray) -> dict[str, int]:
    return {
        "documents": len(documents),
        "tokens": int(lengths[documents].sum()),
        "bytes": int(table.rows["bytes"][documents].sum(dtype=np.int64)),
    }


def _funnel(read: int, manifests: Mapping[str, Any], left: dict[str, int]) -> list[dict[str, Any]]:
    """What is left after each step; tokens from where they exist."""
    rows: list[dict[str, Any]] = [{"step": "read", "documents": read}]
    for name in DECIDING:
        if name in manifests:
            rows.append({"step": name, **{k: manifests[name][k] for k in ("documents", "bytes", "sources", "dropped")}})
    rows[-2]["tokens"] = manifests["encode"]["tokens"]  # encoded is what is left before the cut
    return [*rows, {"step": "data", **left}]


def _clear(path: Path) -> None:
    """Takes away what a killed run left: the token sets of an unfinished folder are written whole or not at all."""
    for name in (TOKENS_FOLDER, "scorer", "kept", "dropped"):
        shutil.rmtree(path / name, ignore_errors=True)
