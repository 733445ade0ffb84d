"""The account of a finished data stage: its manifest, `data.report.json`, `data_card.md` and `ATTRIBUTION.md`.

In: the table of documents, what became of each, tokens and scores. Out: every figure of the report's data part, so that
page and card are renderings of this one value (schema: pipeline/reporting/report_schema.json). Documents and bytes are
counted; tokens too where a text was encoded, that is from the cut on. For what was dropped before, tokens are estimated
from a sample of each reason and marked so. Read = kept + all drops, in all three units.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from data_filters.licence import normalise
from data_filters.licence_terms import verdict
from pipeline.corpus import statistics
from pipeline.corpus.dropped import Candidates, Examples, Gallery, Survey, survey
from pipeline.corpus.scorers.document_scorers import SHIPPED
from pipeline.corpus.scorers.linear import read_roc
from pipeline.corpus.statistics import Provenance, metadata_of, notices
from pipeline.corpus.text.documents import WHERE, Table, read_lines, shard_name, sum_mappings
from pipeline.corpus.text.shards import HEAD_TOKENS, TEXTBOOK, head_bytes
from pipeline.corpus.text.tokenizer import encoder, load_tokenizer
from pipeline.corpus.tokenizing import open_ids, token_dtype
from pipeline.pages.data_card import ATTRIBUTION, CARD, REPORT, attribution, dataset_card
from pipeline.pages.private import OWN, is_private_source, shared_account
from pipeline.storage.files import write_json
from pipeline.storage.steps import Folder

FROM_LABELS = ("auc", "auc_interval", "auc_docstring_share", "documents", "good", "groups", "labels", "note")
ITEMS_SHOWN = 10
ID = np.dtype("<u4")  # for counting alone


# The steps that drop documents, in order; decontamination only where there are items to compare with.
DECIDING = ("repair", "rules", "exact_dedup", "near_dedup", "contamination", "cut")
NONE = np.zeros(0, dtype=np.int64)


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


@dataclass(frozen=True)
class Outcome:
    """What became of the documents: positions of those to train on, held out, and kept in all; tokens and scores of
    every document (0 where it was never encoded)."""

    train: np.ndarray
    val: np.ndarray
    kept: np.ndarray
    lengths: np.ndarray
    scores: np.ndarray


def write_account(
    folder: Folder, table: Table, outcome: Outcome, facts: Mapping[str, Any], deciding: list[str], *, seed: int,
    keep_dropped: str,
) -> None:  # fmt: skip
    """`facts`: the stage's manifest-to-be; `deciding`: the steps that drop documents, in order."""
    private = [name for name, source in facts["sources"].items() if is_private_source(source)]
    # Two passes over what was dropped: the survey counts, and decides which few texts the gallery then shows.
    candidates = Candidates(folder, table, deciding, seed)
    found = survey(candidates, outcome.lengths)
    scored = statistics.scored_documents(table, outcome.lengths, facts["classifier"]["sources"])
    tenths, marks = statistics.deciles(table, outcome.scores, scored, outcome.kept, outcome.lengths, seed)
    marks |= _just_kept(table, outcome, facts["classifier"]["thresholds"])
    gallery = Gallery(folder.path, candidates, found, outcome.kept, marks, private, keep=keep_dropped)
    # One pass over the texts on disk serves both the licence table and the samples.
    provenance = _walk(folder.input("repair"), table, outcome, gallery)
    examples, rows = gallery.close(), provenance.rows()
    roc = read_roc(folder.path / "scorer" / SHIPPED.name)
    account = {
        "fingerprint": folder.path.name,
        **{key: facts[key] for key in ("documents", "tokens", "bytes", "vocab_size", "bytes_per_token", "masked")},
        "held_out": facts["held_out"],
        "files": facts["files"],
        "private": bool(private),
        "funnel": _funnel(folder, table, outcome, found, examples, deciding),
        "gallery": _shown(found, examples),
        "quality": _quality(table, outcome, facts["classifier"], scored, tenths, examples, roc),
        "sources": _sources(folder, table, outcome, facts, private, seed),
        "lengths": statistics.length_histogram(outcome.lengths[outcome.kept]),
        "kinds": statistics.kinds(table, outcome.lengths, outcome.kept),
        "groups": statistics.groups(table, outcome.lengths, outcome.kept),
        "duplicates": _duplicates(facts, found),
        "contamination": _contamination(facts["contamination"], found),
        "provenance": rows,
        "notices": notices(rows),
        "licence": verdict(rows),
    }
    # Before anything is written: an account that does not close must not be published.
    check_sums(account)
    write_json(folder.path / REPORT, account)
    shared = shared_account(account)
    (folder.path / CARD).write_text(dataset_card(shared), encoding="utf-8")
    (folder.path / ATTRIBUTION).write_text(attribution(shared), encoding="utf-8")


def all_files(sources: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The files of all sources together, by class, and their bytes on disk."""
    classes = ("found", "read", "lost", "beyond_limit")
    return {
        **{name: sum(files[name] for files in sources) for name in classes},
        "skipped": sum_mappings([files["skipped"] for files in sources]),
        "bytes": {name: sum(files["bytes"][name] for files in sources) for name in (*classes, "skipped")},
    }


def check_sums(account: Mapping[str, Any]) -> None:
    """Raises `AssertionError` where an account does not close: files found = read + lost + beyond a limit + skipped,
    the same in bytes, and documents, bytes and tokens read = kept + every drop. It would be a mistake of this code."""
    for name, files in {"all": account["files"], **{n: s["files"] for n, s in account["sources"].items()}}.items():
        counts = files["read"] + files["lost"] + files["beyond_limit"] + sum(files["skipped"].values())
        n_bytes = sum(size for kind, size in files["bytes"].items() if kind != "found")
        if (counts, n_bytes) != (files["found"], files["bytes"]["found"]):
            raise AssertionError(f"the files of {name} do not add up: {files}")
    flow, documents = account["funnel"], account["documents"]
    drops = [drop for step in flow["steps"] for drop in step["drops"]]
    for unit in ("documents", "bytes", "tokens"):
        rest = flow["read"][unit] - flow["kept"][unit] - sum(drop[unit] for drop in drops)
        if rest:
            raise AssertionError(f"{rest:,} {unit} are read and neither kept nor dropped")
    dropped = sum(documents["dropped"].values())
    if documents["read"] != documents["kept"] + dropped + documents["unreadable"]:
        raise AssertionError(f"the documents do not add up: {documents}")
    if documents["read"] != flow["read"]["documents"]:
        raise AssertionError(f"{documents['read']:,} documents are read, the funnel begins with others: {flow['read']}")


def _walk(repaired: Path, table: Table, outcome: Outcome, gallery: Gallery) -> Provenance:
    """One pass over the texts on disk: where the kept ones come from, and the samples that the gallery wants."""
    provenance, is_kept = Provenance(), np.zeros(len(table), dtype=bool)
    is_kept[outcome.kept] = True
    for shard in range(table.tasks):
        wanted, start = gallery.wanted(shard), int(table.starts[shard])
        for at, line in enumerate(read_lines(repaired / "documents" / shard_name(shard))):
            if is_kept[start + at]:
                n_bytes, tokens = int(table.rows["bytes"][start + at]), int(outcome.lengths[start + at])
                provenance.add(metadata_of(line), n_bytes, tokens)
            if at in wanted:
                gallery.add(at, orjson.loads(line))
    return provenance


def _just_kept(table: Table, outcome: Outcome, thresholds: Mapping[str, float]) -> dict[int, str]:
    """Of each source with a cut, the train documents that passed it by least."""
    found: dict[int, str] = {}
    for number, source in enumerate(table.sources):
        own = outcome.train[table.rows["source"][outcome.train] == number]
        own = own[(outcome.scores[own] < 1) & (outcome.scores[own] >= np.float32(thresholds.get(source, 2)))]
        nearest = own[np.argsort(outcome.scores[own], kind="stable")[:2]]
        found |= {int(i): "just kept" for i in nearest}
    return found


def _funnel(
    folder: Folder, table: Table, outcome: Outcome, found: Survey, examples: Examples, deciding: list[str]
) -> dict[str, Any]:
    encode = encoder(folder.input("tokenizer") / "tokenizer.json", ID.str).encode
    drops: dict[str, list[dict[str, Any]]] = {step: [] for step in ("read", *deciding)}
    for (step, rule, reason), (documents, n_bytes, tokens) in sorted(found.counts.items(), key=lambda x: -x[1][0]):
        measured = tokens > 0 or not n_bytes
        if not measured:
            tokens = _estimate(encode, examples.sampled.get((rule, reason), []), documents, n_bytes)
        drops[step].append({"filter": rule, "reason": reason, "documents": documents, "bytes": n_bytes,
                            "tokens": tokens, "tokens_measured": measured})  # fmt: skip
    kept = {
        "documents": len(outcome.kept),
        "bytes": int(table.rows["bytes"][outcome.kept].sum(dtype=np.int64)),
        "tokens": int(outcome.lengths[outcome.kept].sum()),
    }
    dropped = [drop for of_step in drops.values() for drop in of_step]
    aside = sum(drop["documents"] for drop in drops["read"])
    read = {
        "documents": len(table) + aside,
        "bytes": int(table.rows["bytes"].sum(dtype=np.int64)) + sum(drop["bytes"] for drop in drops["read"]),
        "tokens": kept["tokens"] + sum(drop["tokens"] for drop in dropped),
    }
    left, steps = dict(read), []
    for step, of_step in drops.items():
        left = {unit: left[unit] - sum(drop[unit] for drop in of_step) for unit in left}
        steps.append({"step": step, "drops": of_step, "left": left})
    return {"read": read, "steps": steps, "kept": kept}


def _estimate(encode: Callable[[str], bytes], texts: list[str], documents: int, n_bytes: int) -> int:
    """Tokens of a reason's texts by the bytes per token of its sample; each text has its end-of-text too."""
    sampled = sum(len(text.encode()) for text in texts)
    ids = sum(len(encode(text)) for text in texts) // ID.itemsize
    return documents + (round(n_bytes * ids / sampled) if sampled else 0)


def _shown(found: Survey, examples: Examples) -> list[dict[str, Any]]:
    """The gallery, by how many documents each reason took."""
    return [
        {
            "filter": rule, "reason": reason, "documents": count[0],
            "examples": examples.drawn.get((rule, reason), []), "near_misses": examples.near.get((rule, reason), []),
        }
        for (_, rule, reason), count in sorted(found.counts.items(), key=lambda item: -item[1][0])
    ]  # fmt: skip


def _quality(
    table: Table, outcome: Outcome, classifier: Mapping[str, Any], scored: np.ndarray, tenths: list[dict[str, Any]],
    examples: Examples, roc: list[list[float]],
) -> dict[str, Any]:  # fmt: skip
    histograms = {}
    for number, source in enumerate(table.sources):
        own = scored[table.rows["source"][scored] == number]
        if len(own):
            train, val = (
                np.intersect1d(own, outcome.train),
                np.setdiff1d(np.intersect1d(own, outcome.kept), outcome.train),
            )
            rest = np.setdiff1d(own, outcome.kept)
            parts = {"train": train, "validation": val, "not kept": rest}
            histograms[source] = statistics.score_histogram(outcome.scores, parts)
    return {
        "type": classifier["type"],
        "sources": classifier["sources"],
        "not_scored": classifier["not_scored"],
        "min_score": classifier["threshold"],
        "thresholds": classifier["thresholds"],
        "rated": {**{key: classifier.get(key) for key in FROM_LABELS}, "roc": roc},
        "histograms": histograms,
        "deciles": [{**row, "examples": examples.marked.get(f"decile {row['decile']}", [])} for row in tenths],
        "just_kept": examples.marked.get("just kept", []),
    }


def _sources(
    folder: Folder, table: Table, outcome: Outcome, facts: Mapping[str, Any], private: list[str], seed: int
) -> dict[str, dict[str, Any]]:
    found = {}
    for number, name in enumerate(table.sources):
        source = facts["sources"][name]
        parts = [part[table.rows["source"][part] == number] for part in (outcome.train, outcome.val)]
        train, val = (statistics.length_facts(outcome.lengths[part], table.rows["bytes"][part]) for part in parts)
        found[name] = {
            **{key: source[key] for key in ("read", "documents", "tokens", "bytes", "unreadable", "licenses")},
            "unreadable_causes": source["unreadable_causes"],
            "files": source["files"],
            "lost_files": source["lost_files"],
            **{key: source[key] for key in ("dataset", "revision") if key in source and name not in private},
            "private": name in private,
            "train": train,
            "validation": val,
            "diversity": _diversity(folder, table, parts[0], outcome.lengths, facts["vocab_size"], seed),
        }
    return found


def _diversity(
    folder: Folder, table: Table, documents: np.ndarray, lengths: np.ndarray, vocab_size: int, seed: int
) -> dict[str, Any]:
    """Of a sample of one source's train text."""
    dtype, tokenizer = token_dtype(vocab_size), load_tokenizer(folder.input("tokenizer") / "tokenizer.json")
    drawn = np.sort(statistics.sample(table, documents, lengths, seed))
    ids: list[np.ndarray] = []
    for shard in range(table.tasks):
        part = table.shard(shard)
        here = drawn[(drawn >= part.start) & (drawn < part.stop)] - part.start
        if not len(here):
            continue
        stored, index = open_ids(folder.input("encode"), shard, dtype)
        for row in index[np.isin(index["at"], here)]:
            ids.append(np.asarray(stored[int(row["offset"]) : int(row["offset"]) + int(row["length"])], dtype=np.int64))
    text = "\n".join(tokenizer.decode_batch([part.tolist() for part in ids]))
    return statistics.diversity(ids, vocab_size, text)


def _duplicates(facts: Mapping[str, Any], found: Survey) -> dict[str, Any]:
    near = facts["near_duplicates"]
    counts = {reason: count[0] for (_, _, reason), count in found.counts.items()}
    return {
        "exact": counts.get("same_text", 0),
        "near_train": counts.get("near_train", 0),
        "near_validation": counts.get("near_validation", 0),
        "clusters": near["clusters"],
        "cluster_sizes": near["cluster_sizes"],
        "largest_clusters": near["largest_clusters"],
    }


def _contamination(facts: Mapping[str, Any] | None, found: Survey) -> dict[str, Any] | None:
    if facts is None:
        return None
    most = [{"item": item, "documents": n} for item, n in found.items.most_common(ITEMS_SHOWN)]
    return {**facts, "items_matched": len(found.items), "most_matched": most}


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


def manifest_facts(
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
            name: {**_source_facts(table, lengths, name, sets, scored), **_read_facts(m, read[name], licences[name])}
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
        "funnel": _manifest_funnel(sum(read.values()), manifests, _totals(table, lengths, kept)),
    }  # fmt: skip


def _licences(table: Table, kept: np.ndarray) -> dict[str, Counter[str]]:
    """Documents by declared licence, for each source."""
    chosen = np.zeros(len(table), dtype=bool)
    chosen[kept] = True
    counts: dict[str, Counter[str]] = {name: Counter() for name in table.sources}
    for index, names in table.each_names(chosen):
        counts[table.sources[table.rows["source"][index]]][names.license] += 1
    return counts


def _read_facts(manifest: Mapping[str, Any], read: int, declared: Counter[str]) -> dict[str, Any]:
    """Of one source: its licences, and what its reading found. `declared`: kept documents by licence."""
    return {
        **_licence_facts(declared),
        "private": manifest["config"]["options"].get("license") == OWN or OWN in declared,
        "read": read,
        "excluded": manifest["dropped"].get(WHERE, 0),
        "unreadable": sum(manifest["unreadable"].values()),
        "unreadable_causes": manifest["unreadable"],
        "files": manifest["files"],
        "lost_files": manifest["lost_files"],
        **({"sampled_of": manifest["sampled_of"]} if "sampled_of" in manifest else {}),
        **{key: manifest[key] for key in ("dataset", "revision") if key in manifest},
    }


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


def _manifest_funnel(read: int, manifests: Mapping[str, Any], left: dict[str, int]) -> list[dict[str, Any]]:
    """What is left after each step; tokens from where they exist."""
    rows: list[dict[str, Any]] = [{"step": "read", "documents": read}]
    for name in DECIDING:
        if name in manifests:
            rows.append({"step": name, **{k: manifests[name][k] for k in ("documents", "bytes", "sources", "dropped")}})
    rows[-2]["tokens"] = manifests["encode"]["tokens"]  # encoded is what is left before the cut
    return [*rows, {"step": "data", **left}]
