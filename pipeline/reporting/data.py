"""The data part of the report: where every document went, and why, in tables that close to zero.

In: the account of a data stage (`data.report.json`, pipeline/corpus/account.py). Out: HTML for `report.html`; no
script, no network.
"""

from collections.abc import Mapping
from html import escape
from typing import Any

from pipeline.pages.charts import bar
from pipeline.pages.data_card import NO_ADVICE, causes, cut_words, skipped_words
from pipeline.pages.data_gallery import examples, gallery
from pipeline.pages.data_pictures import legend, length_chart, roc_chart, score_chart
from pipeline.pages.html import fold, table, words
from pipeline.system.progress import format_count

REASONS_SHOWN, PACKAGES_SHOWN = 12, 10
STEP_NAMES = {
    "read": "reading",
    "repair": "repair",
    "rules": "rules",
    "exact_dedup": "exact dedup",
    "near_dedup": "near dedup",
    "contamination": "decontamination",
    "cut": "quality cut",
}
MASKED = {"email": "e-mail addresses", "ip": "IP addresses", "key": "keys"}
Data = Mapping[str, Any]


def data_section(data: Data) -> str:
    """The whole section, from the summary to the gallery."""
    parts = [
        _summary,
        _files,
        _funnel,
        _reasons,
        _unreadable,
        _held_out,
        _quality,
        _trained_on,
        _licences,
        _duplicates,
        gallery,
    ]
    return "<h2>Data</h2>" + "".join(part(data) for part in parts)


def _summary(data: Data) -> str:
    documents, quality, licence = data["documents"], data["quality"], data["licence"]
    dropped, twins, contamination = sum(documents["dropped"].values()), data["duplicates"], data["contamination"]
    lines = [
        (
            "Documents",
            f"{documents['read']:,} read = {documents['kept']:,} kept + {dropped:,} dropped + "
            f"{documents['unreadable']:,} unreadable.",
        ),
        (
            "Tokens",
            f"{data['tokens']['train']:,} to train on, {data['tokens']['val']:,} to validate on; "
            f"{data['bytes_per_token']:.2f} bytes per token, vocabulary {data['vocab_size']:,}.",
        ),
        ("Licence", licence["headline"]),
        ("Quality", _quality_words(quality)),
        (
            "Duplicates",
            f"{twins['exact']:,} exact and {twins['near_train'] + twins['near_validation']:,} near copies dropped.",
        ),
        (
            "Evaluation items",
            "Nothing was compared with any (data.decontamination.files is empty)."
            if contamination is None
            else f"{contamination['n']:,} documents shared {contamination['ngram_words']} words in a row with one of "
            f"{contamination['items']:,} items and were dropped.",
        ),
    ]
    if data["masked"]:
        masked = ", ".join(f"{n:,} {MASKED.get(kind, kind)}" for kind, n in data["masked"].items())
        lines.append(("Personal data", f"Masked {masked}."))
    rows = "".join(f"<dt>{escape(name)}<dd>{escape(words)}" for name, words in lines)
    return f"<dl>{rows}</dl>"


def _files(data: Data) -> str:
    """Every file that was found, by what became of it; and the lost ones by name."""
    files = data.get("files")  # none in a folder of an earlier version
    if files is None or not files["found"]:
        return ""
    everything = {name: source["files"] for name, source in data["sources"].items() if source["files"]["found"]}
    rows = [
        (
            escape(name), f"{f['found']:,}", f"{f['read']:,}", f"{f['lost']:,}", f"{f['beyond_limit']:,}",
            f"{sum(f['skipped'].values()):,}", escape(skipped_words(f["skipped"])), f"{f['bytes']['found']:,}",
            f"{f['bytes']['lost']:,}", f"{f['bytes']['skipped']:,}",
        )
        for name, f in everything.items()
    ]  # fmt: skip
    lost = [
        (escape(name), _code(f["file"]) if f["file"] else "a private file", escape(words(f["cause"])),
         f"{f['bytes']:,}", f"{f['records']:,}")
        for name, source in data["sources"].items()
        for f in source["lost_files"]
    ]  # fmt: skip
    more = lost[REASONS_SHOWN:]
    over = [
        files["found"] - files["read"] - files["lost"] - files["beyond_limit"] - sum(files["skipped"].values()),
        files["bytes"]["found"] - sum(n for kind, n in files["bytes"].items() if kind != "found"),
    ]
    counts = ("#found", "#read", "#lost", "#beyond limit", "#skipped", "by ending")
    heads = ("source", *counts, "#bytes found", "#bytes lost", "#bytes skipped")
    lost_heads = ("source", "lost file", "cause", "#bytes", "#records read before")
    return (
        f"<h3>Where every file went</h3>{table(heads, rows)}<p class=note>Found less read, lost, beyond a limit and "
        f"skipped leaves {over[0]:,} files and {over[1]:,} bytes. Skipped: of an ending that the source does not "
        "read, or hidden. Sizes are those on disk.</p>"
        + (table(lost_heads, lost[:REASONS_SHOWN]) if lost else "")
        + fold(f"{len(more)} more", table(lost_heads, more) if more else "")
    )


def _quality_words(quality: Mapping[str, Any]) -> str:
    if quality["sources"]:
        return f"{', '.join(quality['sources'])} scored, {cut_words(quality, {})}."
    note = quality["rated"]["note"]
    if quality["min_score"] is None:
        return f"No source was scored: {note}."
    return f"The cut by quality score cut nothing, for want of a scorer: {note}."


def _funnel(data: Data) -> str:
    flow = data["funnel"]
    top, rows = max(1, flow["read"]["documents"]), [_amounts("(found)", flow["read"], None, 1.0)]
    for step in flow["steps"]:
        lost = sum(drop["documents"] for drop in step["drops"])
        if lost:
            name, left = str(STEP_NAMES.get(step["step"], step["step"])), step["left"]
            rows.append(_amounts(name, left, lost, left["documents"] / top))
    dropped = [drop for step in flow["steps"] for drop in step["drops"]]
    over = [flow["read"][u] - flow["kept"][u] - sum(d[u] for d in dropped) for u in ("documents", "bytes", "tokens")]
    note = (
        f"Read less kept less every drop leaves {over[0]:,} documents, {over[1]:,} bytes and {over[2]:,} tokens. "
        "Tokens of what was dropped before the tokenizer came are estimated from a sample of each reason; of what "
        "could not be read, the bytes are those of the line or, of a lost file, those on disk."
    )
    heads = ("left after", "#documents", "#lost", "#MB", "#M tokens", "")
    return f"<h3>Where every document went</h3>{table(heads, rows)}<p class=note>{note}</p>"


def _amounts(name: str, left: Mapping[str, int], lost: int | None, share: float) -> tuple[str, ...]:
    return (
        escape(name), f"{left['documents']:,}", f"-{lost:,}" if lost else "", _millions(left["bytes"], 1),
        _millions(left["tokens"], 2), bar(share),
    )  # fmt: skip


def _reasons(data: Data) -> str:
    drops = [drop for step in data["funnel"]["steps"] for drop in step["drops"] if drop["filter"] != "unreadable"]
    drops.sort(key=lambda drop: -drop["documents"])
    if not drops:
        return ""
    top = drops[0]["documents"]
    rows = [
        (
            escape(words(drop["filter"])), escape(words(drop["reason"])), f"{drop['documents']:,}",
            _millions(drop["bytes"], 2), ("" if drop["tokens_measured"] else "~") + _millions(drop["tokens"], 2),
            bar(drop["documents"] / top, "--b"),
        )
        for drop in drops
    ]  # fmt: skip
    heads = ("rule", "reason", "#documents", "#MB", "#M tokens", "")
    rest = rows[REASONS_SHOWN:]
    more = fold(f"{len(rest)} rarer reasons", table(heads, rest) if rest else "")
    return f"<h3>Why documents were dropped</h3>{table(heads, rows[:REASONS_SHOWN])}{more}"


def _unreadable(data: Data) -> str:
    rows = [
        (escape(source), escape(words(cause)), f"{n:,}")
        for source, facts in data["sources"].items()
        for cause, n in facts["unreadable_causes"].items()
    ]
    return f"<h3>What could not be read</h3>{table(('source', 'cause', '#documents'), rows)}" if rows else ""


def _quality(data: Data) -> str:
    quality = data["quality"]
    if not quality["sources"]:
        return ""
    figures = [
        f"<figure><figcaption>Scores of {escape(source)}</figcaption>{picture}{legend(list(parts))}</figure>"
        for source, parts in quality["histograms"].items()
        if (picture := score_chart(parts, quality["thresholds"].get(source)))
    ]
    rated = quality["rated"]
    if rated["roc"]:
        cut = next(iter(quality["thresholds"].values()), None)
        low, high = rated["auc_interval"]
        figures.append(
            f"<figure><figcaption>The scorer on {rated['documents']:,} rated documents</figcaption>"
            f"{roc_chart(rated['roc'], cut)}<span class=key>AUC {rated['auc']:.3f} ({low:.2f} to {high:.2f}); "
            f"docstring share alone {rated['auc_docstring_share']:.3f}</span></figure>"
        )
    rows = [
        (f"{d['decile']}", f"{d['highest']:.3f} to {d['lowest']:.3f}", f"{d['documents']:,}",
         f"{100 * d['kept'] / max(1, d['documents']):.0f}%", _millions(d["tokens"], 2))
        for d in quality["deciles"]
    ]  # fmt: skip
    tenths = "".join(
        fold(f"Tenth {d['decile']}: scores {d['highest']:.3f} to {d['lowest']:.3f}", examples(d["examples"]))
        for d in quality["deciles"]
    )
    heads = ("tenth", "score", "#documents", "#kept", "#M tokens")
    return (
        f'<h3>Quality score</h3><div class="pair">{"".join(figures)}</div>'
        f"<p class=note>{escape(rated['note'][:1].upper() + rated['note'][1:])}.</p>"
        + (table(heads, rows) if rows else "")
        + fold("Examples of each tenth", tenths)
        + fold("Kept by the smallest margin", examples(quality["just_kept"]))
    )


def _held_out(data: Data) -> str:
    """What became of held-out text, by source; "" where an earlier version did not count it."""
    facts = data.get("held_out")
    if facts is None:
        return ""
    rows = [
        (escape(name), f"{s['documents']:,}", f"{s['groups']:,}", _millions(s["bytes"], 2),
         _millions(s["scored"]["bytes"], 2), f"{s['scored']['tokens']:,}", _millions(s["unscored"]["bytes"], 2),
         f"{s['returned']['documents']:,}", _millions(s["returned"]["bytes"], 2))
        for name, s in facts["sources"].items()
    ]  # fmt: skip
    heads = ("source", "#documents", "#groups", "#MB", "#MB validated on", "#tokens", "#MB beyond the beginnings",
             "#documents returned", "#MB returned")  # fmt: skip
    warnings = "".join(f"<p class=note>WARNING: {escape(words)}.</p>" for words in facts["warnings"])
    return (
        f"<h3>Held-out text</h3>{table(heads, rows)}<p class=note>Whole documents are held out, their beginnings are "
        "validated on; the rest of long ones is neither trained on nor scored. Returned: held out by "
        "data.validation.share and more than data.validation.max_bytes, so train text.</p>" + warnings
    )


def _trained_on(data: Data) -> str:
    sources = data["sources"]
    rows = [
        (
            escape(name), f"{s['documents']:,}", _share(s["documents"], s["read"]), f"{s['train']['tokens']:,}",
            f"{s['validation']['tokens']:,}", f"{s['train']['bytes_per_token']:.2f}",
            f"{s['train']['length_tokens']['p50']:,}", f"{s['train']['length_tokens']['p90']:,}",
        )
        for name, s in sources.items()
    ]  # fmt: skip
    heads = ("source", "#documents", "#kept", "#train tokens", "#held out", "#bytes/token", "#median length", "#90%")
    varied = [
        (
            escape(name), f"{d['entropy_bits_per_token']:.2f}",
            *(f"{100 * d['distinct_ngrams'][n]:.0f}%" for n in "234"),
            f"{100 * d['vocabulary_used']:.0f}%", f"{d['compression_ratio']:.2f}x", f"{d['sample_tokens']:,}",
        )
        for name, s in sources.items()
        if (d := s["diversity"])
    ]  # fmt: skip
    varied_heads = ("source", "#bits/token", "#2-grams", "#3-grams", "#4-grams", "#vocabulary", "#zlib", "#sample")
    groups = data["groups"]
    largest = [
        (escape(g["group"] or "private"), escape(g["source"]), f"{g['documents']:,}", f"{g['tokens']:,}",
         f"{100 * g['share']:.1f}%", bar(g["share"] / max(1e-9, groups["largest"][0]["share"]), "--b"))
        for g in groups["largest"]
    ]  # fmt: skip
    kinds = ", ".join(f"{kind} {format_count(of['tokens'])} tokens" for kind, of in data["kinds"].items())
    chart, top = length_chart(data["lengths"]), [(row[0], row[4]) for row in largest[:5]]
    return (
        f"<h3>What is trained on</h3>{table(heads, rows)}<p class=note>By kind: {escape(kinds)}. Lengths in tokens.</p>"
        f'<div class="pair"><figure><figcaption>Kept documents by length</figcaption>{chart}</figure>'
        f"<div><figure><figcaption>Diversity</figcaption></figure>{table(('group', '#tokens'), top)}"
        f"<p class=note>{groups['groups']:,} groups (packages, templates, domains), as varied as "
        f"{groups['effective_groups']:,.1f} of equal size; the largest by share of tokens.</p></div></div>"
        + (f"{table(varied_heads, varied)}<p class=note>Of equally long samples: entropy of single tokens, distinct "
           "among all n-grams, vocabulary in use, how far zlib shrinks the text (repetition).</p>" if varied else "")
        + fold("The largest groups", table(("group", "source", "#documents", "#tokens", "#share", ""), largest))
    )  # fmt: skip


def _licences(data: Data) -> str:
    licence = data["licence"]
    items = "".join(
        f"<li><b>{escape(t['kind'])}</b>, {100 * t['share']:.1f}% of the tokens. {escape(t['meaning'])}"
        + (f" From {escape(causes(t, {}))}." if t["causes"] else "")
        for t in licence["terms"]
    )
    rows = [
        (
            escape(row["package"] or ("private" if row["private"] else "")), escape(row["version"]),
            escape(row["source"]),
            escape(row["licence"] or f"unknown: {row['declared']}"), f"{row['documents']:,}", f"{row['tokens']:,}",
        )
        for row in data["provenance"]
    ]  # fmt: skip
    heads = ("package", "version", "source", "licence", "#documents", "#tokens")
    return (
        f"<h3>Licences and provenance</h3><div class=verdict><b>{escape(licence['headline'])}</b><ul>{items}</ul>"
        f"<p class=note>{NO_ADVICE}</p></div>{table(heads, rows[:PACKAGES_SHOWN])}"
        + fold(
            f"{len(rows) - PACKAGES_SHOWN} more", table(heads, rows[PACKAGES_SHOWN:]) if rows[PACKAGES_SHOWN:] else ""
        )
        + "<p class=note>Copyright lines and notices: data/ATTRIBUTION.md. The data card: data/data_card.md.</p>"
    )


def _duplicates(data: Data) -> str:
    twins, contamination = data["duplicates"], data["contamination"]
    page = ""
    if twins["clusters"]:
        sizes = ", ".join(f"{n:,} of {size} documents" for size, n in twins["cluster_sizes"].items() if n)
        rows = [
            (_code(c["path"]) if c["path"] else "a document", f"{c['documents']:,}") for c in twins["largest_clusters"]
        ]
        page += (
            f"<h3>Near duplicates</h3><p>{twins['clusters']:,} clusters: {escape(sizes)}. The first document of a "
            f"cluster stays, and all that is near held-out text goes ({twins['near_validation']:,}).</p>"
            + fold("The largest clusters", table(("its first document", "#documents"), rows))
        )
    if contamination is not None:
        rows = [(_code(m["item"]), f"{m['documents']:,}") for m in contamination["most_matched"]]
        page += (
            f"<h3>Evaluation items</h3><p>{contamination['items_matched']:,} of {contamination['items']:,} items were "
            f"found in {contamination['n']:,} documents, which were dropped; {contamination['items_too_short']:,} "
            "items were too short to look for.</p>" + (table(("item", "#documents"), rows) if rows else "")
        )
    return page


def _code(text: str) -> str:
    return f"<code>{escape(text)}</code>"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f}%" if whole else ""


def _millions(count: int, digits: int) -> str:
    return f"{count / 1e6:,.{digits}f}"
