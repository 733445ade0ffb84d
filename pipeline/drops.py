"""`hornbook drops`: dropped texts with reason, measured value and limit, beside similar texts that were kept.

In: the steps of a finished data stage (decisions and texts). Out: texts drawn by a seeded lot, in turn from every
reason, each with the kept text of its source that measures nearest to it; of a copy, with the text that it is a copy
of. Only the shards that hold a drawn text are read, and at most `MEASURED` kept texts of a source are measured.
"""

import heapq
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from datatrove.data import Document

from data_filters.rule import Rule, measured
from pipeline.config import PREVIEW, Config, nearest
from pipeline.corpus.account import DECIDING
from pipeline.corpus.dropped import SCORED, Candidate, Candidates, inner_part
from pipeline.corpus.publishing import read_scores
from pipeline.corpus.steps import make_rules
from pipeline.corpus.text.documents import Table, in_drawn_order, read_alive, read_lines, shard_name
from pipeline.corpus.tokenizing import read_index
from pipeline.pages import html
from pipeline.storage.experiment import Experiment
from pipeline.storage.files import root
from pipeline.storage.steps import MANIFEST, Folder, read_manifest
from pipeline.system.errors import UserError, printable

MEASURED = 2_000
COPIES = ("exact_dedup", "near_dedup")
SHOWN_CHARACTERS = 600


@dataclass
class Kept:
    """A text that stayed. `score`: by the quality scorer, None where it was not scored."""

    path: str
    text: str
    kind: str
    score: float | None = None
    values: dict[tuple[str, str, Any], float | None] = field(default_factory=dict)


def collect(config: Config, command: str, reason: str | None, source: str | None, n: int) -> dict[str, Any]:
    """`{experiment, folder, read, reasons: [{filter, reason, documents}], drops: [{source, path, filter, reason,
    value, limit, detail, text, kept}]}`; `kept`: `{path, value, text, by}` or null. `reason`: a filter or a reason of
    one; `n`: drops shown. Raises `UserError` for a stage that is not finished and for an unknown name."""
    if n < 1:
        raise UserError(f"-n is {n}; expected at least 1 dropped text")
    name, path = _finished(config, command)
    manifest = read_manifest(path)
    folder = Folder(path, {name: root() / about["path"] for name, about in manifest["inputs"].items()})
    gone = [str(at) for at in folder.inputs.values() if not (at / MANIFEST).is_file()]
    if gone:
        raise UserError(
            f"{gone[0]} is not here, so what was dropped cannot be read in full; samples lie in {path / 'dropped'} "
            f"(zstd JSON lines); or make it again: hornbook data {command}"
        )
    table = Table.load(folder.input("repair"))
    if source is not None and source not in table.sources:
        known = ", ".join(table.sources)
        raise UserError(f"--source is '{source}'{nearest(source, table.sources)}; expected one of {known}")
    candidates = Candidates(folder, table, [s for s in DECIDING if s in folder.inputs], manifest["config"]["seed"])
    counts, drawn = _draw(candidates, table, reason, source, n)
    if reason is not None and not counts:
        seen, _ = _draw(candidates, table, None, None, 1)
        names = sorted({name for key in seen for name in key})
        if reason not in names:
            known = ", ".join(names) or "none: nothing was dropped"
            raise UserError(f"--reason is '{reason}'{nearest(reason, names)}; dropped here by: {known}")
    return {
        "experiment": name,
        "folder": str(path),
        "read": manifest["documents"]["read"],
        "reasons": [{"filter": f, "reason": r, "documents": count} for (f, r), count in counts.most_common()],
        "drops": _shown(folder, table, candidates.seed, drawn),
    }


def show(facts: Mapping[str, Any]) -> str:
    """For a person."""
    text = html.render("drops.txt", **facts, dropped=sum(row["documents"] for row in facts["reasons"]), lines=_lines)
    return text.rstrip("\n")


def _lines(text: str) -> list[str]:
    """The beginning of an untrusted text, safe for a terminal."""
    return printable(text.strip()[:SHOWN_CHARACTERS].expandtabs(4)).splitlines()


def _finished(config: Config, command: str) -> tuple[str, Path]:
    """Name and folder of the data stage, or of its preview (`--limit`) where only that is there."""
    for name in (config.name, config.name + PREVIEW):
        config.name = name
        folder = Experiment(config).stage_folder("data")
        if folder is not None and (folder / MANIFEST).is_file():
            return name, folder
    raise UserError(f"there is no finished data stage of {command} to look at; run: hornbook data {command}")


def _draw(
    candidates: Candidates, table: Table, reason: str | None, source: str | None, n: int
) -> tuple[Counter[tuple[str, str]], list[tuple[int, Candidate]]]:
    """Documents by filter and reason, and `n` of them with their shard, in turn from each reason, commonest first."""
    counts, lowest = Counter[tuple[str, str]](), dict[tuple[str, str], list]()
    for shard in range(table.tasks):
        for order, c in enumerate(candidates.of_shard(shard)):
            if (reason is None or reason in c.reason) and source in (None, _source(c, table, shard)):
                counts[c.reason] += 1 if c.at is not None else c.record["documents"]
                heap, entry = lowest.setdefault(c.reason, []), (-c.lot, shard, order, c)
                if len(heap) < n:
                    heapq.heappush(heap, entry)
                elif entry[0] > heap[0][0]:
                    heapq.heapreplace(heap, entry)
    reasons = [key for key, _ in counts.most_common()]
    turns = zip_longest(*(sorted(lowest[key], key=lambda e: e[:3], reverse=True) for key in reasons))
    drawn = [(entry[1], entry[3]) for turn in turns for entry in turn if entry is not None][:n]
    return counts, sorted(drawn, key=lambda found: reasons.index(found[1].reason))


def _source(c: Candidate, table: Table, shard: int) -> str:
    if c.at is None:
        return c.record["source"]
    return table.sources[int(table.rows["source"][int(table.starts[shard]) + c.at])]


def _shown(folder: Folder, table: Table, seed: int, drawn: Sequence[tuple[int, Candidate]]) -> list[dict[str, Any]]:
    """The drawn texts with what they are, and a kept text beside each."""
    originals = _originals(table, {c.record["detail"] for _, c in drawn if c.reason[0] in COPIES})
    wanted: dict[int, set[int]] = {shard: set() for shard, _ in drawn}
    for shard, c in drawn:
        if c.at is not None:
            wanted[shard].add(c.at)
    sources = {_source(c, table, shard) for shard, c in drawn}
    places = _sample(folder, table, seed, sources, sorted(wanted))
    for index in [*places, *originals.values()]:
        shard = int(np.searchsorted(table.starts, index, side="right")) - 1
        wanted.setdefault(shard, set()).add(index - int(table.starts[shard]))
    texts = {index: record for shard in sorted(wanted) for index, record in _read(folder, table, shard, wanted[shard])}
    filters = read_manifest(folder.input("rules"))["config"]["filters"]
    rules = {name: make_rules(filters[name]) for name in sources}
    scores = _scores(folder, table, places)
    kept: dict[str, list[Kept]] = {}
    for index in places:
        metadata = texts[index]["metadata"]
        one = Kept(metadata["path"], texts[index]["text"], metadata["kind"], scores.get(index))
        kept.setdefault(metadata["source"], []).append(one)
    rows = []
    for shard, c in drawn:
        source = _source(c, table, shard)
        record = texts[int(table.starts[shard]) + c.at] if c.at is not None else None
        text = c.record["text"] if record is None else record["text"]
        original = texts.get(originals.get(c.record.get("detail") or "", -1)) if c.reason[0] in COPIES else None
        if original is not None:
            beside = {"path": original["metadata"]["path"], "value": None, "text": original["text"], "by": "original"}
        else:
            beside = _nearest(c, text, kept.get(source, []), rules[source]) if record is not None else None
        rows.append(
            {
                "source": source,
                "path": c.record["path"] if record is None else record["metadata"]["path"],
                "filter": c.reason[0],
                "reason": c.reason[1],
                "value": c.record.get("value"),
                "limit": c.record.get("threshold"),
                "detail": c.record.get("detail"),
                "text": inner_part(text) if c.reason[0] == SCORED else text,
                "kept": beside,
            }
        )
    return rows


def _originals(table: Table, called: set[str]) -> dict[str, int]:
    """Positions of the documents that copies are named after (`source/path`)."""
    found: dict[str, int] = {}
    if called:
        for index, names in table.each_names(np.ones(len(table), dtype=bool)):
            name = f"{table.sources[table.rows['source'][index]]}/{names.path}"
            if name in called:
                found.setdefault(name, index)
    return found


def _sample(folder: Folder, table: Table, seed: int, sources: set[str], shards: Sequence[int]) -> list[int]:
    """At most `MEASURED` kept documents of each source in these shards, in drawn order."""
    left = []
    for shard in shards:
        left.append(np.flatnonzero(read_alive(folder.input("cut"), shard)) + int(table.starts[shard]))
    kept = in_drawn_order(table, np.concatenate([np.zeros(0, dtype=np.int64), *left]), seed, "drops")
    numbers = table.rows["source"][kept]
    return [int(i) for name in sorted(sources) for i in kept[numbers == table.sources.index(name)][:MEASURED]]


def _read(folder: Folder, table: Table, shard: int, wanted: set[int]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Positions in the corpus and records of some documents of a shard."""
    last, start = max(wanted, default=-1), int(table.starts[shard])
    for at, line in enumerate(read_lines(folder.input("repair") / "documents" / shard_name(shard))):
        if at > last:
            return
        if at in wanted:
            yield start + at, orjson.loads(line)


def _scores(folder: Folder, table: Table, places: Sequence[int]) -> dict[int, float]:
    """Quality scores of documents, by position; none of those that no scorer looked at."""
    if not read_manifest(folder.input("score"))["classifier"]["sources"]:
        return {}
    found: dict[int, float] = {}
    for shard in {int(np.searchsorted(table.starts, index, side="right")) - 1 for index in places}:
        at, scores = read_index(folder.input("encode"), shard)["at"], read_scores(folder.input("score"), shard)
        start = int(table.starts[shard])
        found |= {start + int(a): round(float(s), 4) for a, s in zip(at, scores, strict=True)}
    return found


def _nearest(c: Candidate, text: str, kept: Sequence[Kept], rules: Mapping[str, Rule]) -> dict[str, Any] | None:
    """The kept text that measures nearest under the same reason; where nothing is measured, the nearest in length."""
    value, limit = c.record.get("value"), c.record.get("threshold")
    key = (*c.reason, limit)
    for one in kept if isinstance(value, int | float) and isinstance(limit, int | float) else ():
        if key not in one.values:
            one.values[key] = one.score if c.reason[0] == SCORED else _measure(rules.get(c.reason[0]), one, key)
    found = [one for one in kept if one.values.get(key) is not None]
    if found:
        best = min(found, key=lambda one: (abs(one.values[key] - value), one.path))  # type: ignore[operator]
        return {"path": best.path, "value": best.values[key], "text": best.text, "by": "measured"}
    if not kept:
        return None
    best = min(kept, key=lambda one: (abs(len(one.text) - len(text)), one.path))
    return {"path": best.path, "value": None, "text": best.text, "by": "length"}


def _measure(rule: Rule | None, one: Kept, key: tuple[str, str, Any]) -> float | None:
    """None of what a later step of the stage decided."""
    if rule is None:
        return None
    return measured(rule, Document(text=one.text, id=one.path, metadata={"kind": one.kind}), key[1], key[2])
