"""The data part of the report: where every document went, and why, in tables that close to zero.

In: the manifest of a finished data stage. Out: HTML for `report.html`; no script, no network.
"""

import io
from collections.abc import Mapping, Sequence
from html import escape
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline.charts import bar
from pipeline.private import any_private, is_private

REASONS_SHOWN = 40
EXAMPLES, EXAMPLE_CHARACTERS = 3, 400
STEP_NAMES = {
    "repair": "repair, empty texts out",
    "rules": "rules",
    "exact_dedup": "exact dedup",
    "near_dedup": "near dedup",
    "contamination": "decontamination",
    "cut": "cut by quality score",
    "data": "validation limit",
}


def data_section(data: Mapping[str, Any], folder: Path) -> str:
    """The whole section, from the funnel to the licences. `folder`: of the stage, for the samples."""
    parts = [
        _sentence(data),
        _funnel(data),
        _dropped(data),
        _unreadable(data),
        _examples(folder),
        _near_duplicates(data),
        _sources(data),
    ]
    return "<h2>Data</h2>" + "".join(parts)


def _sentence(data: Mapping[str, Any]) -> str:
    documents, classifier = data["documents"], data["classifier"]
    sentences = [
        f"{documents['read']:,} read = {documents['kept']:,} kept + {sum(documents['dropped'].values()):,} dropped + "
        f"{documents['unreadable']:,} unreadable.",
        f"{data['bytes_per_token']:.2f} bytes per token, vocabulary {data['vocab_size']:,}.",
    ]
    if classifier["sources"]:
        quality = "" if classifier["auc"] is None else f"AUC {classifier['auc']:.3f} on rated documents. "
        sentences.append(f"Quality scorer of {', '.join(classifier['sources'])}: {quality}{classifier['note']}.")
    elif classifier["threshold"] is not None:
        sentences.append(f"The cut by quality score cut nothing, for want of a scorer: {classifier['note']}.")
    contamination = data["contamination"]
    if contamination is None:
        sentences.append("Nothing was compared with evaluation items (data.decontamination.files is empty).")
    else:
        sentences.append(
            f"{contamination['n']:,} documents shared {contamination['ngram_words']} words in a row with one of "
            f"{contamination['items']:,} evaluation items ({contamination['items_too_short']:,} items were too "
            "short to look for)."
        )
    if data["masked"]:
        masked = ", ".join(f"{n:,} {_plural(name)}" for name, n in data["masked"].items())
        sentences.append(f"Masked: {masked}.")
    return f"<p>{escape(' '.join(sentences))}</p>"


def _plural(kind: str) -> str:
    return {"email": "e-mail addresses", "ip": "IP addresses", "key": "keys"}.get(kind, kind)


def _funnel(data: Mapping[str, Any]) -> str:
    top, before, rows = max(1, data["documents"]["read"]), data["documents"]["read"], []
    for row in data["funnel"]:
        lost = before - row["documents"]
        before = row["documents"]
        rows.append(
            f"<tr><td>{escape(str(STEP_NAMES.get(row['step'], row['step'])))}<td class=n>{row['documents']:,}"
            f"<td class=n>{f'-{lost:,}' if lost else ''}<td class=n>{_megabytes(row.get('bytes'))}"
            f"<td class=n>{_millions(row.get('tokens'))}<td>{bar(row['documents'] / top)}"
        )
    head = "<tr><th>after step<th class=n>documents<th class=n>lost<th class=n>MB<th class=n>M tokens<th>"
    return f"<table>{head}{''.join(rows)}</table>"


def _dropped(data: Mapping[str, Any]) -> str:
    counts = [(n, name, reason) for name, reasons in data["reasons"].items() for reason, n in reasons.items()]
    counted = {name: sum(reasons.values()) for name, reasons in data["reasons"].items()}
    # What the sources and the last step drop has no finer reason than its filter.
    counts += [(n - counted.get(f, 0), f, "") for f, n in data["documents"]["dropped"].items() if n > counted.get(f, 0)]
    return _counts("Why documents were dropped", ("rule", "reason"), [(n, (f, _words(r))) for n, f, r in counts], "--b")


def _unreadable(data: Mapping[str, Any]) -> str:
    counts = [
        (n, (source, _words(cause)))
        for source, facts in data["sources"].items()
        for cause, n in facts["unreadable_causes"].items()
    ]
    return _counts("What could not be read", ("source", "cause"), counts, "--c")


def _counts(title: str, heads: Sequence[str], counts: Sequence[tuple[int, tuple[str, ...]]], colour: str) -> str:
    if not counts:
        return ""
    ordered = sorted(counts, key=lambda item: (-item[0], item[1]))
    top, rest = ordered[0][0], sum(n for n, _ in ordered[REASONS_SHOWN:])
    shown = [*ordered[:REASONS_SHOWN], *([(rest, ("others", ""))] if rest else [])]
    rows = "".join(
        f"<tr>{''.join(f'<td>{escape(word)}' for word in words)}<td class=n>{n:,}<td>{bar(n / top, colour)}"
        for n, words in shown
    )
    head = "".join(f"<th>{escape(h)}" for h in heads)
    return f"<h3>{escape(title)}</h3><table><tr>{head}<th class=n>documents<th>{rows}</table>"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _examples(folder: Path) -> str:
    """Some of the samples that lie in `dropped/`, folded: the measured value, the limit, the beginning of the text."""
    blocks = []
    for path in sorted((folder / "dropped").glob("*/*.jsonl.zst")):
        records = [_shown(record) for record in _first_records(path, EXAMPLES)]
        items = "".join(
            f"<p class=note><code>{escape(str(r.get('path', '')))}</code> {escape(_measured(r))}</p>"
            + (f"<pre>{escape(text[:EXAMPLE_CHARACTERS])}</pre>" if (text := r.get("text", "")).strip() else "")
            for r in records
        )
        reason = f"{path.parent.name}: {_words(path.name.removesuffix('.jsonl.zst'))}"
        blocks.append(f"<details><summary>{escape(reason)}</summary>{items}</details>")
    if not blocks:
        return ""
    note = "More of them, and samples of what was kept, lie in the data folder: dropped/ and kept/ (zstd JSON lines)."
    return f"<h3>Examples of what was dropped</h3><p class=note>{note}</p>{''.join(blocks)}"


def _shown(record: dict[str, Any]) -> dict[str, Any]:
    """A record as the page may show it: of private text the measured value alone."""
    if not is_private(record):
        return record
    return {"path": "private text", **{k: record[k] for k in ("value", "threshold") if k in record}}


def _first_records(path: Path, count: int) -> list[dict[str, Any]]:
    import orjson
    import zstandard

    with open(path, "rb") as file, zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True) as stream:
        lines = io.BufferedReader(stream)  # type: ignore[type-var]
        return [orjson.loads(line) for line in islice(lines, count)]


def _measured(record: Mapping[str, Any]) -> str:
    parts = []
    if record.get("value") is not None:
        parts.append(f"measured {record['value']}")
    if record.get("threshold") is not None:
        parts.append(f"limit {record['threshold']}")
    if record.get("detail"):
        parts.append(str(record["detail"]))
    return "; ".join(parts)


def _near_duplicates(data: Mapping[str, Any]) -> str:
    near = data["near_duplicates"]
    if not near["clusters"]:
        return ""
    sizes = ", ".join(f"{n:,} of {size} documents" for size, n in near["cluster_sizes"].items() if n)
    hidden = any_private(data["sources"])
    largest = "".join(
        f"<tr><td>{'a document' if hidden else _code(c['path'])}<td class=n>{c['documents']:,}"
        for c in near["largest_clusters"]
    )
    return (
        f"<h3>Near duplicates</h3><p>{near['clusters']:,} clusters: {escape(sizes)}. The first document of a cluster "
        "stays, and all that is near a validation document goes.</p>"
        f"<table><tr><th>first document of the largest clusters<th class=n>documents{largest}</table>"
    )


def _code(text: str) -> str:
    return f"<code>{escape(text)}</code>"


def _sources(data: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{escape(name)}<td class=n>{s['documents']:,}<td class=n>{_share(s['documents'], s['read'])}"
        f"<td class=n>{s['train']['tokens']:,}<td class=n>{s['val']['tokens']:,}<td>{escape(_licences(s['licenses']))}"
        for name, s in data["sources"].items()
    )
    return (
        "<h3>What is trained on</h3><table><tr><th>source<th class=n>documents<th class=n>kept"
        f"<th class=n>train tokens<th class=n>validation<th>licences{rows}</table>"
    )


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f}%" if whole else ""


def _megabytes(count: int | None) -> str:
    return "" if count is None else f"{count / 1e6:,.1f}"


def _millions(count: int | None) -> str:
    return "" if count is None else f"{count / 1e6:,.2f}"


def _licences(documents: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {n:,}" for name, n in sorted(documents.items(), key=lambda item: -item[1]))
