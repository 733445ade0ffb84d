"""The last two steps: the cut by score, and the folder that other stages read.

In: ids, scores, the split and every decision before. Out: token sets per source, the tokenizer, the scorer, samples
of what was kept and dropped, and the counts of the manifest: read = kept + dropped + unreadable, to the document.
"""

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document

from data_filters.licence import normalise
from data_filters.quality import Quality
from data_filters.rule import Drop
from pipeline.artifacts import Folder, read_manifest
from pipeline.corpus.documents import Place, Row, load_table, write_decisions
from pipeline.corpus.duplicates import validation_places
from pipeline.corpus.gallery import write_gallery
from pipeline.corpus.reading import step_facts
from pipeline.corpus.shards import TEXTBOOK, TOKENS_FOLDER, write_token_set
from pipeline.corpus.splitting import hash_key
from pipeline.corpus.tokenizing import empty_corpus, open_ids, token_dtype

DECIDING = ("repair", "rules", "exact_dedup", "near_dedup", "cut")  # the steps that drop documents, in order


@dataclass(frozen=True)
class Entry:
    """One encoded document: where its ids are and what decides about it."""

    place: Place
    number: int  # in its shard's index
    row: Row
    score: float
    length: int
    held_out: bool


@dataclass
class Sets:
    """Documents by the token set they go to. Validation text beyond the limit is in `over_limit`."""

    train: dict[str, list[Entry]] = field(default_factory=dict)
    val: dict[str, list[Entry]] = field(default_factory=dict)
    over_limit: list[Entry] = field(default_factory=list)

    @property
    def kept(self) -> list[Entry]:
        """Every document once: the textbook set is a part of the other validation sets."""
        val = [e for name, entries in self.val.items() if name != TEXTBOOK for e in entries]
        return [e for entries in self.train.values() for e in entries] + val


def cut_by_score(folder: Folder, quality: Quality | None, tasks: int) -> dict[str, Any]:
    """Drops train documents that `quality` refuses; validation and exercises are never cut."""
    repaired = folder.input("repair")
    drops: dict[Place, tuple[str, Drop]] = {}
    for entry in load_entries(folder, tasks):
        if quality is not None and not entry.held_out:
            drop = quality.decide(Document("", "", metadata={"kind": entry.row.kind, "score": round(entry.score, 4)}))
            if drop is not None:
                drops[entry.place] = "quality", drop
    write_decisions(folder.path, tasks, drops)
    decided = [folder.input(name) for name in DECIDING[:-1]]
    return step_facts(folder.path, repaired, [*decided, folder.path], tasks)


def load_entries(folder: Folder, tasks: int) -> list[Entry]:
    """Everything that was encoded, in corpus order."""
    table = load_table(folder.input("repair"), tasks)
    validation = validation_places(folder.input("split"), tasks)
    entries = []
    for shard in range(tasks):
        index = np.load(folder.input("encode") / "ids" / f"{shard:05d}.npy", allow_pickle=False)
        scores = np.load(folder.input("score") / "scores" / f"{shard:05d}.npy", allow_pickle=False)
        for number, (row, score) in enumerate(zip(index, scores, strict=True)):
            place = shard, int(row["at"])
            held_out = place in validation
            entries.append(Entry(place, number, table[shard][place[1]], float(score), int(row["length"]), held_out))
    return entries


def publish(
    folder: Folder, *, sources: Sequence[str], max_bytes: int, textbook_min_score: float, seed: int, tasks: int,
    keep_dropped: str,
) -> dict[str, Any]:  # fmt: skip
    """Writes the stage's folder. Raises `UserError` where no train document is left, naming what dropped most."""
    cut = {(s, r) for s, r in _dropped_by(folder.input("cut"), tasks)}
    entries = [e for e in load_entries(folder, tasks) if e.place not in cut]
    sets = arrange(entries, max_bytes, textbook_min_score, seed)
    manifests = {name: read_manifest(path) for name, path in folder.inputs.items()}
    reads = {name: manifests[f"read-{name}"] for name in sources}
    dropped = count_dropped(manifests, reads, len(sets.over_limit))
    if not sets.train:
        raise empty_corpus(dropped)
    tokenizer = manifests["tokenizer"]
    dtype = token_dtype(tokenizer["vocab_size"])
    _clear(folder.path)
    shutil.copyfile(folder.input("tokenizer") / "tokenizer.json", folder.path / "tokenizer.json")
    if (folder.input("score") / "scorer").is_dir():
        shutil.copytree(folder.input("score") / "scorer", folder.path / "scorer")
    for split, by_name in (("train", sets.train), ("val", sets.val)):
        for name, documents in by_name.items():
            write_token_set(folder.path / TOKENS_FOLDER / f"{split}-{name}", _ids(folder, documents, dtype), dtype)
    over_limit = {e.place: ("validation_limit", Drop("over_max_bytes", max_bytes, max_bytes)) for e in sets.over_limit}
    kept_places = [e.place for e in sets.kept]
    write_gallery(folder, [*DECIDING], sources, over_limit, kept_places, seed=seed, tasks=tasks, keep=keep_dropped)
    return facts(sets, reads, dropped, manifests, tokenizer, str(dtype))


def arrange(entries: Sequence[Entry], max_bytes: int, textbook_min_score: float, seed: int) -> Sets:
    """Each document in its set, in a seeded order in which neighbours are unrelated."""

    def order(entry: Entry) -> tuple[int, Place]:
        return hash_key(seed, "order", entry.row.source, *entry.place), entry.place

    sets, textbook, textbook_bytes, used = Sets(), [], 0, Counter()
    for entry in sorted(entries, key=order):
        source = entry.row.source
        if not entry.held_out:
            sets.train.setdefault(source, []).append(entry)
        elif used[source] and used[source] + entry.row.bytes > max_bytes:
            sets.over_limit.append(entry)
        else:
            used[source] += entry.row.bytes
            sets.val.setdefault(source, []).append(entry)
            good = round(entry.score, 4) >= textbook_min_score
            if good and (not textbook or textbook_bytes + entry.row.bytes <= max_bytes):
                textbook.append(entry)
                textbook_bytes += entry.row.bytes
    if textbook:
        sets.val[TEXTBOOK] = textbook
    return sets


def _ids(folder: Folder, entries: Sequence[Entry], dtype: np.dtype) -> Iterator[tuple[np.ndarray, int, float]]:
    shards: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for entry in entries:
        shard = entry.place[0]
        if shard not in shards:
            shards[shard] = open_ids(folder.input("encode"), shard, dtype)
        ids, index = shards[shard]
        start = int(index[entry.number]["offset"])
        yield ids[start : start + entry.length], int(index[entry.number]["bytes"]), round(entry.score, 4)


def count_dropped(manifests: Mapping[str, Any], reads: Mapping[str, Any], over_limit: int) -> dict[str, int]:
    """`{filter: documents}` over the whole stage."""
    dropped: Counter[str] = Counter()
    for manifest in [*reads.values(), *(manifests[name] for name in DECIDING)]:
        dropped.update(manifest["dropped"])
    dropped.update({"validation_limit": over_limit})
    return {name: n for name, n in sorted(dropped.items()) if n}


def facts(
    sets: Sets, reads: Mapping[str, Any], dropped: dict[str, int], manifests: Mapping[str, Any],
    tokenizer: Mapping[str, Any], dtype: str,
) -> dict[str, Any]:  # fmt: skip
    """The manifest's numbers. `contamination` is null: nothing has been compared with benchmark items."""
    train = [e for entries in sets.train.values() for e in entries]
    val = [e for name, entries in sets.val.items() if name != TEXTBOOK for e in entries]
    tokens = {"train": sum(e.length for e in train), "val": sum(e.length for e in val)}
    n_bytes = {"train": sum(e.row.bytes for e in train), "val": sum(e.row.bytes for e in val)}
    unreadable = {name: sum(m["unreadable"].values()) for name, m in reads.items()}
    refused = {name: sum(m["dropped"].values()) for name, m in reads.items()}
    read = {name: m["documents"] + unreadable[name] + refused[name] for name, m in reads.items()}
    return {
        "documents": {
            "read": sum(read.values()),
            "kept": len(train) + len(val),
            "dropped": dropped,
            "unreadable": sum(unreadable.values()),
        },
        "unreadable_causes": dict(sum((Counter(m["unreadable"]) for m in reads.values()), Counter())),
        "tokens": tokens,
        "bytes": n_bytes,
        "sources": {
            name: _source_facts(name, sets, read[name], unreadable[name]) for name in sorted(reads)
        },
        "textbook": _totals(sets.val.get(TEXTBOOK, [])),
        "vocab_size": tokenizer["vocab_size"],
        "eos_token_id": tokenizer["eos_token_id"],
        "token_dtype": dtype,
        "bytes_per_token": round(sum(n_bytes.values()) / max(1, sum(tokens.values())), 4),
        "classifier": {
            **manifests["score"]["classifier"],
            "threshold": manifests["cut"]["config"].get("min_score"),
            "score_histogram": manifests["score"]["score_histogram"],
        },
        "contamination": None,
        "funnel": _funnel(sum(read.values()), manifests, sets),
    }  # fmt: skip


def _source_facts(name: str, sets: Sets, read: int, unreadable: int) -> dict[str, Any]:
    train, val = sets.train.get(name, []), sets.val.get(name, [])
    licences = Counter(normalise(e.row.license) or e.row.license for e in [*train, *val])
    return {
        **_totals([*train, *val]),
        "license": ", ".join(licence for licence, _ in sorted(licences.items(), key=lambda x: (-x[1], x[0]))),
        "licenses": dict(sorted(licences.items())),
        "read": read,
        "unreadable": unreadable,
        "train": _totals(train),
        "val": _totals(val),
    }


def _totals(entries: Sequence[Entry]) -> dict[str, int]:
    return {
        "documents": len(entries),
        "tokens": sum(e.length for e in entries),
        "bytes": sum(e.row.bytes for e in entries),
    }


def _funnel(read: int, manifests: Mapping[str, Any], sets: Sets) -> list[dict[str, Any]]:
    """What is left after each step; tokens from where they exist."""
    rows: list[dict[str, Any]] = [{"step": "read", "documents": read}]
    for name in DECIDING:
        rows.append({"step": name, **{k: manifests[name][k] for k in ("documents", "bytes", "sources", "dropped")}})
        if name == "near_dedup":
            rows[-1]["tokens"] = manifests["encode"]["tokens"]
    return [*rows, {"step": "data", **_totals(sets.kept)}]


def _dropped_by(folder: Path, tasks: int) -> list[Place]:
    from pipeline.corpus.documents import dropped_places

    return [(shard, at) for shard in range(tasks) for at in sorted(dropped_places([folder], shard))]


def _clear(path: Path) -> None:
    """Takes away what a killed run left: the token sets of an unfinished folder are written whole or not at all."""
    for name in (TOKENS_FOLDER, "scorer", "kept", "dropped"):
        shutil.rmtree(path / name, ignore_errors=True)
