"""The last two steps: the cut by score, and the folder that other stages read.

In: ids, scores, the split and every decision before. Out: token sets per source, the tokenizer, the scorer, samples
of what was kept and dropped, the account of it all for the report, and the counts of the manifest: read = kept +
dropped + unreadable, to the document.
"""

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_filters.licence import normalise
from data_filters.quality import Quality
from data_filters.rule import Drop
from pipeline.artifacts import Folder, read_manifest
from pipeline.corpus.account import Outcome, write_account
from pipeline.corpus.documents import WHERE, Table, draw, read_all_alive, step_facts, sum_mappings, write_decisions
from pipeline.corpus.duplicates import read_validation
from pipeline.corpus.scoring import read_scores
from pipeline.corpus.shards import TEXTBOOK, TOKENS_FOLDER, write_token_set
from pipeline.corpus.tokenizing import empty_corpus, open_ids, read_index, token_dtype
from pipeline.private import OWN
from pipeline.tokenizer import tokenizer_files

# The steps that drop documents, in order; decontamination only where there are items to compare with.
DECIDING = ("repair", "rules", "exact_dedup", "near_dedup", "contamination", "cut")


@dataclass
class Sets:
    """Documents (positions in the corpus) by the token set they go to, in order. Validation text beyond the limit of
    its source is in the textbook set where it is that good, else in `over_limit`."""

    train: dict[str, np.ndarray] = field(default_factory=dict)
    val: dict[str, np.ndarray] = field(default_factory=dict)
    over_limit: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    @property
    def held_out(self) -> list[np.ndarray]:
        """Validation documents of the sources' sets."""
        return [documents for name, documents in self.val.items() if name != TEXTBOOK]

    @property
    def textbook_only(self) -> np.ndarray:
        """What the textbook set has beyond the sources' sets."""
        none = np.zeros(0, dtype=np.int64)
        return np.setdiff1d(self.val.get(TEXTBOOK, none), np.concatenate([*self.held_out, none]))


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
    scored = manifests["score"]["classifier"]["sources"] or table.sources
    sets = arrange(table, alive, held_out, scores, max_bytes, textbook_min_score, scored, seed)
    dropped = count_dropped(manifests, len(sets.over_limit))
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
    for split, by_name in (("train", sets.train), ("val", sets.val)):
        for name, documents in by_name.items():
            contents = encoded.documents(documents, scores)
            write_token_set(folder.path / TOKENS_FOLDER / f"{split}-{name}", contents, dtype)
    over_limit = {int(i): ("validation_limit", Drop("over_max_bytes", max_bytes, max_bytes)) for i in sets.over_limit}
    result = facts(table, sets, encoded.lengths, dropped, manifests, str(dtype))
    none = np.zeros(0, dtype=np.int64)
    train, val = np.concatenate([*sets.train.values(), none]), np.concatenate([*sets.held_out, none])
    kept = np.concatenate([train, val, sets.textbook_only])
    outcome = Outcome(train, val, kept, over_limit, encoded.lengths, scores)
    deciding = [name for name in DECIDING if name in folder.inputs]
    write_account(folder, table, outcome, result, deciding, seed=seed, keep_dropped=keep_dropped)
    return result


def arrange(
    table: Table, alive: np.ndarray, held_out: np.ndarray, scores: np.ndarray, max_bytes: int,
    textbook_min_score: float, scored: Sequence[str], seed: int,
) -> Sets:  # fmt: skip
    """Each document in its set, in a seeded order in which neighbours are unrelated. Textbook-grade validation text is
    of the sources `scored` (where no score was given, a 1 says nothing), out of all that was held out: what fits the
    limit of a source may be a handful of documents, none of them that good."""
    sets, over_limit, textbook = Sets(), [], []
    for number, source in enumerate(table.sources):
        own = np.flatnonzero(alive & (table.rows["source"] == number))
        own = own[np.argsort(draw(table.rows["digest"][own, 0], seed, "order", source), kind="stable")]
        train, val = own[~held_out[own]], own[held_out[own]]
        if len(train):
            sets.train[source] = train
        if len(val):
            fits = _first_bytes(table.rows["bytes"][val], max_bytes)
            sets.val[source] = val[fits]
            over_limit.append(val[~fits])
            if source in scored:
                textbook.append(val[scores[val] >= np.float32(textbook_min_score)])
    good = np.concatenate(textbook or [np.zeros(0, dtype=np.int64)])
    if len(good):
        good = good[np.argsort(table.rows["bytes"][good] > max_bytes // 4, kind="stable")]  # not all of it one book
        sets.val[TEXTBOOK] = good[_first_bytes(table.rows["bytes"][good], max_bytes)]
    if over_limit:
        sets.over_limit = np.setdiff1d(np.concatenate(over_limit), sets.textbook_only)
    return sets


def _first_bytes(n_bytes: np.ndarray, limit: int) -> np.ndarray:
    """Which documents, taken in order, fit under the limit together; where none does alone, the smallest."""
    fits, used = np.zeros(len(n_bytes), dtype=bool), 0
    for i, size in enumerate(n_bytes.tolist()):
        if used + size <= limit:
            fits[i], used = True, used + size
    if not fits.any():
        fits[np.argmin(n_bytes)] = True
    return fits


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


def count_dropped(manifests: Mapping[str, Any], over_limit: int) -> dict[str, int]:
    """`{filter: documents}` over the whole stage."""
    counts = sum_mappings(
        [m["dropped"] for m in manifests.values() if "dropped" in m] + [{"validation_limit": over_limit}]
    )
    return {name: n for name, n in counts.items() if n}


def _reasons(manifests: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """`{filter: {reason: documents}}` over the whole stage; several sources may refuse under one name."""
    counts: dict[str, list[dict[str, int]]] = {}
    for manifest in manifests.values():
        for name, reasons in manifest.get("reasons", {}).items():
            counts.setdefault(name, []).append(reasons)
    return {name: sum_mappings(found) for name, found in counts.items()}


def facts(
    table: Table, sets: Sets, lengths: np.ndarray, dropped: dict[str, int], manifests: Mapping[str, Any], dtype: str
) -> dict[str, Any]:
    """The manifest's numbers. `contamination` is null where nothing was compared with evaluation items."""
    none = np.zeros(0, dtype=np.int64)
    train, val = np.concatenate([*sets.train.values(), none]), np.concatenate([*sets.held_out, none])
    kept = np.concatenate([train, val, sets.textbook_only])
    both = {"train": _totals(table, lengths, train), "val": _totals(table, lengths, val)}
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
        "masked": manifests["repair"].get("masked", {}),
        "tokens": tokens,
        "bytes": n_bytes,
        "sources": {
            name: {
                **_source_facts(table, lengths, name, sets),
                **_licence_facts(licences.get(name, Counter())),
                "private": m["config"]["options"].get("license") == OWN or OWN in licences.get(name, ()),
                "read": read[name],
                "excluded": m["dropped"].get(WHERE, 0),
                "unreadable": sum(m["unreadable"].values()),
                "unreadable_causes": m["unreadable"],
            }
            for name, m in sorted(reads.items())
        },
        "textbook": _totals(table, lengths, sets.val.get(TEXTBOOK, none)),
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


def _source_facts(table: Table, lengths: np.ndarray, name: str, sets: Sets) -> dict[str, Any]:
    none = np.zeros(0, dtype=np.int64)
    train, val, more = sets.train.get(name, none), sets.val.get(name, none), sets.textbook_only
    more = more[table.rows["source"][more] == table.sources.index(name)]
    return {
        **_totals(table, lengths, np.concatenate([train, val, more])),
        "train": _totals(table, lengths, train),
        "val": _totals(table, lengths, val),
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
