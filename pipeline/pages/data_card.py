"""The data card and ATTRIBUTION.md, rendered from the account of a data stage (`data.report.json`).

In: that value. Out: Markdown, the card with Hugging Face's front matter. The stage writes both into its folder and
export copies them. Names of private sources are in neither.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.pages.markdown import front_matter, table
from pipeline.pages.private import public_names

REPORT, CARD, ATTRIBUTION = "data.report.json", "data_card.md", "ATTRIBUTION.md"
SHOWN_REASONS, ENDINGS_SHOWN = 25, 6
SIZES = ((1e3, "n<1K"), (1e4, "1K<n<10K"), (1e5, "10K<n<100K"), (1e6, "100K<n<1M"), (1e7, "1M<n<10M"),
         (1e8, "10M<n<100M"), (1e9, "100M<n<1B"))  # fmt: skip
NO_ADVICE = (
    "This reads what the sources say of themselves, carefully, and is no legal advice: whether a model is a derivative "
    "of its text is not settled law."
)


def dataset_card(data: Mapping[str, Any]) -> str:
    """Of the text behind a model: every document is kept, or dropped under one named reason, or unreadable."""
    documents, tokens, names = data["documents"], data["tokens"], public_names(data["sources"])
    licences = sorted({name for source in data["sources"].values() for name in source["licenses"]})
    front = {
        "license": _hub_licence(licences),
        "task_categories": ["text-generation"],
        "size_categories": [next((name for most, name in SIZES if documents["kept"] < most), "n>1B")],
        "tags": ["hornbook"],
    }
    parts = [
        front_matter(front),
        f"# Text `{data['fingerprint']}`\n\n{tokens['train']:,} tokens to train on and {tokens['val']:,} to validate "
        f"on, made by hornbook's data stage; {data['bytes_per_token']:.2f} bytes per token, vocabulary "
        f"{data['vocab_size']:,}. The texts themselves are not here.",
        "## Sources\n\n" + table(
            ("source", "documents read", "kept", "train tokens", "held out", "licences"), _source_rows(data, names)
        ),
        "## Files\n\n" + file_words(data["files"]),
        "## Licences\n\n" + licence_words(data["licence"], names) + "\n\nSources, versions, copyright lines and "
        "notices: [ATTRIBUTION.md](ATTRIBUTION.md).",
        "## What was dropped\n\n" + _dropped(data),
        "## Duplicates and evaluation items\n\n" + _duplicates(data),
        "## Quality score\n\n" + _quality(data["quality"], names),
        "## Limits\n\n- Licences are what the sources said of themselves.\n- Personal data is masked by patterns "
        f"(addresses, keys; {sum(data['masked'].values()):,} here): what no pattern finds is still there.\n- Tokens of "
        "what was dropped before it was encoded are estimated from a sample of each reason.",
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def licence_words(licence: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """The verdict on the model's licence, and which sources cause it."""
    lines = [f"**{licence['headline']}** {NO_ADVICE}", ""]
    for terms in licence["terms"]:
        share = f"{100 * terms['share']:.1f}% of the tokens, {terms['documents']:,} documents"
        because = f" From {causes(terms, names)}." if terms["causes"] else ""
        lines.append(f"- {terms['kind'].capitalize()}: {share}. {terms['meaning']}{because}")
    return "\n".join(lines)


def file_words(files: Mapping[str, Any]) -> str:
    """`12 files found = 9 read + 1 lost (1,234 bytes) + 2 skipped (2 .pod)`."""
    if not files["found"]:
        return "No source reads files of its own."
    skipped, beyond = sum(files["skipped"].values()), files["beyond_limit"]
    return (
        f"{files['found']:,} files found = {files['read']:,} read + {files['lost']:,} lost"
        + (f" ({files['bytes']['lost']:,} bytes)" if files["lost"] else "")
        + (f" + {beyond:,} beyond a limit" if beyond else "")
        + f" + {skipped:,} skipped"
        + (f" ({skipped_words(files['skipped'])})" if skipped else "")
    )


def skipped_words(skipped: Mapping[str, int]) -> str:
    """`186 .pod, 4 .gz and 3 more`: the most frequent first."""
    ordered = sorted(skipped.items(), key=lambda item: -item[1])
    named = ", ".join(f"{n:,} {ending}" for ending, n in ordered[:ENDINGS_SHOWN])
    rest = sum(n for _, n in ordered[ENDINGS_SHOWN:])
    return f"{named} and {rest:,} more" if rest else named


def causes(terms: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """`numpy (GPL-3.0-only), web (unknown) and 3 more`."""
    called = []
    for cause in terms["causes"]:
        name = cause["package"] or names.get(cause["source"], cause["source"])
        called.append(f"{name} ({cause['licence'] or 'unknown'})")
    more = f" and {terms['more_causes']:,} more" if terms["more_causes"] else ""
    return ", ".join(dict.fromkeys(called)) + more


def attribution(data: Mapping[str, Any]) -> str:
    """Who wrote the kept text, under which licence, with the copyright lines and notices found beside it."""
    public, names = [row for row in data["provenance"] if not row["private"]], public_names(data["sources"])
    rows = [
        (row["package"] or names[row["source"]], row["version"] or "", row["licence"] or f"unknown ({row['declared']})",
         f"{row['documents']:,}", f"{row['tokens']:,}")
        for row in public
    ]  # fmt: skip
    parts = [
        f"# Attribution\n\nA model trained on the text `{data['fingerprint']}` learnt from the works below. Texts of "
        "licences: <https://spdx.org/licenses/>. Pass this file on with the model.",
        table(("work", "version", "licence", "documents", "tokens"), rows),
    ]
    if len(public) < len(data["provenance"]):
        parts.append("Besides, private text of the model's maker, which is not listed.")
    parts += [_notice(found) for found in data["notices"]]
    return "\n\n".join(parts) + "\n"


def _notice(found: Mapping[str, Any]) -> str:
    text = f"## {found['package']} {found['version']}"
    if found["copyright"]:
        text += "\n\n" + "\n".join(f"- {line}" for line in found["copyright"])
    if found["notice"]:
        text += "\n\nNotice:\n\n" + "\n".join(f"    {line}".rstrip() for line in found["notice"].splitlines())
    return text


def _hub_licence(licences: Sequence[str]) -> str:
    return licences[0] if len(licences) == 1 and licences[0] not in ("own", "unknown") else "other"


def _source_rows(data: Mapping[str, Any], names: Mapping[str, str]) -> list[tuple[str, ...]]:
    return [
        (names[key], f"{source['read']:,}", f"{source['documents']:,}", f"{source['train']['tokens']:,}",
         f"{source['validation']['tokens']:,}", ", ".join(source["licenses"]) or "none kept")
        for key, source in data["sources"].items()
    ]  # fmt: skip


def _dropped(data: Mapping[str, Any]) -> str:
    read, kept = data["funnel"]["read"], data["funnel"]["kept"]
    dropped = [drop for step in data["funnel"]["steps"] for drop in step["drops"]]
    ordered = sorted(dropped, key=lambda drop: -drop["documents"])
    rows = [
        (f"{d['filter']}: {d['reason']}", f"{d['documents']:,}", f"{d['bytes'] / 1e6:,.2f}",
         f"{'' if d['tokens_measured'] else 'about '}{d['tokens']:,}")
        for d in ordered[:SHOWN_REASONS]
    ]  # fmt: skip
    if rest := ordered[SHOWN_REASONS:]:
        sums = [sum(d[unit] for d in rest) for unit in ("documents", "bytes", "tokens")]
        rows.append((f"{len(rest)} others", f"{sums[0]:,}", f"{sums[1] / 1e6:,.2f}", f"about {sums[2]:,}"))
    documents = data["documents"]
    return (
        f"{documents['read']:,} documents read = {documents['kept']:,} kept + {sum(documents['dropped'].values()):,} "
        f"dropped + {documents['unreadable']:,} unreadable; {read['bytes'] / 1e6:,.1f} MB read, "
        f"{kept['bytes'] / 1e6:,.1f} MB kept.\n\n" + table(("reason", "documents", "MB", "tokens"), rows)
    )


def _duplicates(data: Mapping[str, Any]) -> str:
    twins, contamination = data["duplicates"], data["contamination"]
    words = (
        f"{twins['exact']:,} exact copies, {twins['near_train']:,} near copies of train text and "
        f"{twins['near_validation']:,} of held-out text were dropped ({twins['clusters']:,} clusters). "
    )
    if contamination is None:
        return words + "Nothing was compared with evaluation items."
    return words + (
        f"{contamination['n']:,} documents shared {contamination['ngram_words']} words in a row with one of "
        f"{contamination['items']:,} evaluation items; {contamination['items_too_short']:,} items were too short to "
        "look for."
    )


def _quality(quality: Mapping[str, Any], names: Mapping[str, str]) -> str:
    rated = quality["rated"]
    if not quality["sources"]:
        return f"No source was scored, and nothing was cut: {rated['note']}."
    called = ", ".join(names.get(name, name) for name in quality["sources"])
    return f"{called}: {cut_words(quality, names)}. It is wrong at times: {rated['note']}."


def cut_words(quality: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """`cut at 0.5; AUC 0.911 on rated documents that it was not trained on`."""
    minimum, auc = quality["min_score"], quality["rated"]["auc"]
    if isinstance(minimum, Mapping):
        cut = "cut at " + ", ".join(f"{score} ({names.get(name, name)})" for name, score in minimum.items())
    else:
        cut = "nothing was cut by it" if minimum is None else f"cut at {minimum}"
    return cut if auc is None else f"{cut}; AUC {auc:.3f} on rated documents that it was not trained on"
