"""The first three steps: read (one per source), repair, rules.

In: a source; out: its documents over fixed shards, and what could not be read set aside by name. Repair joins the
sources shard by shard and writes the texts for the last time; rules only write who was dropped and why.
"""

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from datatrove.data import Document

from data_filters.personal_data import mask
from data_filters.repair import mend_surrogates, repair
from data_filters.rule import EXERCISE, KINDS, Drop, Rule
from pipeline.corpus.execute import Executor
from pipeline.corpus.sources.input_files import FileSource, Inputs
from pipeline.corpus.text.documents import (
    ROW,
    WHERE,
    DocumentReader,
    RecordWriter,
    RowWriter,
    SetAside,
    ShardDecisions,
    ShardStep,
    Table,
    document_writer,
    hash_key,
    read_alive,
    read_lines,
    read_records,
    shard_name,
    step_facts,
    sum_mappings,
)
from pipeline.corpus.text.source import Source
from pipeline.corpus.text.user_files import mended, split_ending
from pipeline.storage.files import write_json
from pipeline.storage.steps import Folder
from pipeline.system.errors import UserError

GROUPS_LOOKED_AT = 1_000
LOST_NAMED = 5
EXCLUDED_SHOWN = 3  # of a shard's records outside `where`, which may be nearly all of a crawl, these are written


def read_source(folder: Folder, name: str, source: Source, max_unreadable: float, executor: Executor) -> dict[str, Any]:
    """Reads one source. Facts: documents, bytes, unreadable and refused by cause. `UserError` if nothing is left, or
    if more than the share `max_unreadable` of the source could not be read."""
    documents, aside, tasks = folder.path / "documents", folder.path / "set_aside", executor.tasks
    prepared = source.prepare(folder.path)
    inputs = source.find() if isinstance(source, FileSource) else Inputs([])
    reading = ShardStep(name, partial(_read_shard, name, source, aside, tasks))
    executor.run(folder, [reading, document_writer(documents)], description=f"read {name}")
    # What could not be read is counted from the files of the shards, not from memory: a stopped step that resumes has
    # read some shards in an earlier process.
    complete(documents, tasks)
    unreadable: Counter[str] = Counter()
    lost: list[dict[str, Any]] = []
    unread_bytes = 0
    reasons: dict[str, Counter[str]] = defaultdict(Counter)
    example = ""
    for shard in range(tasks):
        for record in read_records(aside / shard_name(shard)):
            if record["filter"] is None:
                unreadable[record["cause"]] += 1
                if record["file"]:
                    lost.append({key: record[key] for key in ("file", "cause", "bytes", "records")})
                else:
                    unread_bytes += record["bytes"]
                example = example or f"{record['path']}: {record['cause']} {record['sample'][:100]}".strip()
            else:
                reasons[record["filter"]][record["cause"]] += record["documents"]
    dropped = Counter({name: causes.total() for name, causes in reasons.items()})
    n_documents = sum(1 for shard in range(tasks) for _ in read_lines(documents / shard_name(shard)))
    text_bytes = sum((documents / shard_name(shard)).stat().st_size for shard in range(tasks))
    reached = _reached(folder.path, tasks)
    files = _count_files(inputs, lost, reached)
    whole = {"records": sum(reached.values()), "files": len(inputs.files)}
    found = f"the first is {example}; all lie in {aside}"
    if lost:
        found += f"; lost files: {lost_words(lost)}"
    if not n_documents and dropped[WHERE]:
        raise UserError(f"data.sources.{name}.where holds for none of {dropped[WHERE]:,} records; {found}")
    readable = n_documents + dropped.total()
    # The largest of three shares: of records, of bytes, and of what lost files held. A corpus of many small records and
    # one lost file of gigabytes must not pass by its count of records.
    share = max(
        unreadable.total() / max(1, readable + unreadable.total()),
        unread_bytes / max(1, unread_bytes + text_bytes),
        _lost_share(lost, files, readable + unreadable.total() - len(lost)),
    )
    _check(name, readable, unreadable, share, max_unreadable, found)
    _check_groups(name, source, documents, tasks)
    return {
        "documents": n_documents,
        "unreadable": dict(sorted(unreadable.items())),
        "dropped": dict(sorted(dropped.items())),
        "reasons": {name: dict(sorted(causes.items())) for name, causes in sorted(reasons.items())},
        "files": files,
        "lost_files": lost,
        **({"sampled_of": whole} if source.limits.spread else {}),
        **prepared,
    }


def _reached(folder: Path, tasks: int) -> dict[str, int]:
    """The files that any shard opened, with the records gone over; behind a limit there are some that none opened."""
    found: dict[str, int] = {}
    for shard in range(tasks):
        for name, records in json.loads((folder / "reached" / f"{shard:05d}.json").read_text()).items():
            found[name] = max(records, found.get(name, 0))
    return found


def _count_files(inputs: Inputs, lost: Sequence[Mapping[str, Any]], reached: Collection[str]) -> dict[str, Any]:
    """Every file that was found, in one of the classes read, lost, beyond a limit, and skipped by ending; their bytes
    on disk too."""
    gone, counts, n_bytes = {record["file"] for record in lost}, Counter[str](), Counter[str]()
    for file in inputs.files:
        name = "lost" if file.name in gone else "read" if file.name in reached else "beyond_limit"
        counts[name] += 1
        n_bytes[name] += file.size_bytes
    skipped = {ending: n for ending, (n, _) in inputs.skipped.items()}
    n_bytes["skipped"] = sum(size for _, size in inputs.skipped.values())
    classes = {name: counts[name] for name in ("read", "lost", "beyond_limit")}
    return {
        "found": len(inputs.files) + sum(skipped.values()),
        **classes,
        "skipped": skipped,
        "bytes": {"found": n_bytes.total(), **{name: n_bytes[name] for name in (*classes, "skipped")}},
    }


def lost_words(lost: Sequence[Mapping[str, Any]]) -> str:
    """`b.jsonl.zst (damaged_file, 1,234 bytes, 0 records read before)`, the first ones by name."""
    named = [
        f"{f['file']} ({f['cause']}, {f['bytes']:,} bytes, {f['records']:,} records read before)"
        for f in lost[:LOST_NAMED]
    ]
    return ", ".join(named) + (f" and {len(lost) - LOST_NAMED:,} more" if len(lost) > LOST_NAMED else "")


def _lost_share(lost: Sequence[Mapping[str, Any]], files: Mapping[str, Any], records: int) -> float:
    """The share of a source that was in lost files, by bytes or by records, whichever is larger. A file that was cut
    off is smaller than it was: each is taken to have held as many records as the whole ones do on average."""
    # A plain file without a byte lost nothing; a compressed one has some even where it holds nothing.
    lost = [f for f in lost if f["cause"] != "empty_file" or split_ending(f["file"])[1]]
    if not lost:
        return 0.0
    whole, limited = files["read"], files["beyond_limit"] > 0
    each = (records - sum(f["records"] for f in lost)) / whole if whole and not limited else 0.0
    missing = [max(0.0, each - f["records"]) for f in lost]
    # With no whole file to compare with, the missing part of a file that gave records cannot be estimated.
    parts = [1.0 if not f["records"] else m / (m + f["records"]) for f, m in zip(lost, missing, strict=True)]
    n_bytes = sum(part * f["bytes"] for part, f in zip(parts, lost, strict=True))
    by_bytes = n_bytes / max(1, files["bytes"]["read"] + files["bytes"]["lost"])
    return max(by_bytes, sum(missing) / max(1.0, sum(missing) + records))


def _advice(found: str) -> str:
    """What to type where whole files are of another form than they should be, by what was found first."""
    first = found.removeprefix("the first is ").partition(";")[0]
    file = first.partition(": ")[0].partition(":")[0]
    if re.search(r": (not_a_record|broken_json) \[", first):
        return f" {file} is one JSON list, not a record a line: mv {file} {Path(file).with_suffix('.json')}."
    if "UTF-16" in first:
        return f" {file} is UTF-16: iconv -f UTF-16 -t UTF-8 {file} > new{Path(file).suffix}."
    return ""


def _check_groups(name: str, source: Source, documents: Path, tasks: int) -> None:
    """A `group_key` that no record has would silently hold out single documents instead of groups."""
    key = getattr(source.limits, "group_key", None)
    if key is None:
        return
    records = (r for shard in range(tasks) for r in read_records(documents / shard_name(shard)))
    first = [record["metadata"] for record in islice(records, GROUPS_LOOKED_AT)]
    if first and all(metadata["group"] == metadata["path"] for metadata in first):
        raise UserError(
            f"data.sources.{name}.group_key is '{key}', a field that none of the first {len(first):,} records has; "
            "expected the field whose documents are held out together, or group_key=null: each is its own"
        )


def in_words(causes: Mapping[str, int]) -> str:
    """`3 damaged_file, 1 empty_file`: the most frequent first."""
    return ", ".join(f"{n:,} {cause}" for cause, n in sorted(causes.items(), key=lambda item: -item[1]))


def _check(name: str, readable: int, unreadable: Counter[str], share: float, max_unreadable: float, found: str) -> None:
    causes = in_words(unreadable) or "it is empty"
    if not readable:
        raise UserError(
            f"data.sources.{name} gave no readable document ({causes}); {found}.{_advice(found)} "
            f"Fix the source or take it out with data.sources.{name}=null"
        )
    if share > max_unreadable:
        raise UserError(
            f"data.sources.{name}: {100 * share:.1f}% of it could not be read ({causes}), more than "
            f"data.max_unreadable={max_unreadable:g} allows; {found}.{_advice(found)} Fix the source, or continue "
            f"with what was read: data.max_unreadable={min(1.0, round(share + 0.01, 2)):g}"
        )


def _read_shard(
    name: str, source: Source, aside: Path, tasks: int, _: Iterable[Document], shard: int
) -> Iterator[Document]:
    """Documents of one source and shard; what did not become one goes to `aside/`, with its cause and a sample."""
    excluded: list[dict[str, Any]] = []
    with RecordWriter(aside / shard_name(shard)) as refused:
        for item in source.documents(shard, tasks):
            if not isinstance(item, SetAside):
                # Files between steps are UTF-8, so halves of surrogate pairs are repaired before the first write.
                item.text, item.id = mend_surrogates(item.text), mend_surrogates(f"{name}/{item.id}")
                item.metadata = {**mended(item.metadata), "source": name}
                yield item
            elif item.filter == WHERE and len(excluded) == EXCLUDED_SHOWN:
                excluded[0]["documents"] += 1
                excluded[0]["bytes"] += item.bytes
            elif item.filter == WHERE:
                excluded.append(_aside_record(name, item))
            else:
                refused.add(_aside_record(name, item))
        for record in excluded:
            refused.add(record)
    reached = source.reached if isinstance(source, FileSource) else {}
    write_json(aside.parent / "reached" / f"{shard:05d}.json", dict(sorted(reached.items())))


def _aside_record(name: str, item: SetAside) -> dict[str, Any]:
    """`documents`: for how many the record stands. Of what `where` excludes, the cause is the source's name."""
    cause = name if item.filter == WHERE else item.cause
    record = {"path": item.path, "cause": cause, "sample": item.sample, "filter": item.filter}
    lost = {"file": mend_surrogates(item.file), "records": item.records}
    return {"source": name, **mended(record), "documents": 1, "bytes": item.bytes, **lost}


def repair_documents(folder: Folder, sources: Sequence[str], mask_personal: bool, executor: Executor) -> dict[str, Any]:
    """Joins the sources' shards in the order of their names, repairs each text, and drops the empty ones.
    `mask_personal`: e-mail addresses, IP addresses and keys are replaced."""
    read = {name: folder.input(f"read-{name}") for name in sources}
    documents = folder.path / "documents"
    repairing = ShardStep("repair", partial(_repair_shard, read, folder.path, mask_personal))
    executor.run(folder, [repairing, document_writer(documents)], description="repair")
    complete(documents, executor.tasks)
    write_json(folder.path / "table" / "sources.json", [sorted(sources), executor.tasks])
    masked = [json.loads(path.read_text()) for path in sorted((folder.path / "masked").glob("*.json"))]
    return {**step_facts(folder.path, Table.load(folder.path)), "masked": sum_mappings(masked)}


def _repair_shard(
    read: Mapping[str, Path], folder: Path, mask_personal: bool, _: Iterable[Document], shard: int
) -> Iterator[Document]:
    """Repairs the documents of all sources' shard; writes the table of rows and the empty ones' decisions."""
    masked: Counter[str] = Counter()
    with (
        RowWriter(folder / "table" / f"{shard:05d}.bin", ROW) as rows,
        RecordWriter(folder / "table" / shard_name(shard)) as names,
        ShardDecisions(folder, shard) as decisions,
    ):
        for number, name in enumerate(sorted(read)):
            for record in read_records(read[name] / "documents" / shard_name(shard)):
                metadata, kind = record["metadata"], record["metadata"]["kind"]
                text = repair(record["text"], kind, mask=False)
                if mask_personal and kind != EXERCISE:
                    text, counts = mask(text)
                    masked.update({name: n for name, n in counts.items() if n})
                at = decisions.add()
                if not text.strip():
                    decisions.drop(at, "empty", Drop("empty", 0, 1))
                group = metadata["group"]
                of = (metadata.get("group_source") or name, group)
                origin = hash_key(*of, metadata.get("synthetic", {}).get("document") or metadata["path"])
                rows.add((number, KINDS.index(kind), len(text.encode()), hash_key(*of), origin, digest(text)))
                names.add((metadata["path"], group, metadata["license"]))
                yield Document(text=text, id=record["id"], metadata=metadata)
    write_json(folder / "masked" / f"{shard:05d}.json", masked)


def digest(text: str) -> tuple[int, int]:
    """Two 64-bit numbers, the same for texts with the same words in any case and with any white space."""
    both = hashlib.blake2b(" ".join(text.lower().split()).encode(), digest_size=16).digest()
    return int.from_bytes(both[:8], "little"), int.from_bytes(both[8:], "little")


def apply_rules(folder: Folder, rules: Mapping[str, Mapping[str, Rule]], executor: Executor) -> dict[str, Any]:
    """Every rule of its source in turn over every document; the first that drops it is the one reason that counts."""
    repaired = folder.input("repair")
    applying = ShardStep("rules", partial(_apply_to_shard, rules, folder.path, repaired))
    executor.run(folder, [DocumentReader(repaired, repaired), applying], description="rules")
    return step_facts(folder.path, Table.load(repaired))


def _apply_to_shard(
    rules: Mapping[str, Mapping[str, Rule]], folder: Path, before: Path, documents: Iterable[Document], shard: int
) -> None:
    """Writes the decisions of `rules` (source -> name -> rule) on one shard."""
    with ShardDecisions(folder, shard, read_alive(before, shard)) as decisions:
        for doc in documents:
            for name, rule in rules[doc.metadata["source"]].items():
                drop = rule.decide(doc)
                if drop is not None:
                    decisions.drop(doc.metadata["at"], name, drop)
                    break


def complete(documents: Path, tasks: int) -> None:
    """Writers open a file at the first document: a shard without any gets its empty file here."""
    documents.mkdir(parents=True, exist_ok=True)
    for shard in range(tasks):
        (documents / shard_name(shard)).touch()
