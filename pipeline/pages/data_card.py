"""The data card and ATTRIBUTION.md, rendered from the account of a data stage (`data.report.json`).

In: that value. Out: Markdown, the card with Hugging Face's front matter. The stage writes both into its folder and
export copies them. Names of private sources are in neither. The text is in templates/data_card.md and attribution.md.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from pipeline.pages import html
from pipeline.pages.private import OWN, public_names

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
    names = public_names(data["sources"])
    licences = sorted({name for source in data["sources"].values() for name in source["licenses"]})
    one_known = len(licences) == 1 and licences[0] not in (OWN, "unknown")
    front = {
        "license": licences[0] if one_known else "other",
        "task_categories": ["text-generation"],
        "size_categories": [next((name for most, name in SIZES if data["documents"]["kept"] < most), "n>1B")],
        "tags": ["hornbook"],
    }
    drops = [drop for step in data["funnel"]["steps"] for drop in step["drops"]]
    return html.render(
        "data_card.md",
        data=data,
        names=names,
        front=front_matter(front),
        files=file_words(data["files"]),
        licence=licence_words(data["licence"], names),
        drops=sorted(drops, key=lambda drop: -drop["documents"]),
        shown=SHOWN_REASONS,
        cut=cut_words(data["quality"], names),
    )


def attribution(data: Mapping[str, Any]) -> str:
    """Who wrote the kept text, under which licence, with the copyright lines and notices found beside it."""
    public = [row for row in data["provenance"] if not row["private"]]
    return html.render("attribution.md", data=data, public=public, names=public_names(data["sources"]))


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


def cut_words(quality: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """`cut at 0.5; AUC 0.911 on rated documents that it was not trained on`."""
    minimum, auc = quality["min_score"], quality["rated"]["auc"]
    if isinstance(minimum, Mapping):
        cut = "cut at " + ", ".join(f"{score} ({names.get(name, name)})" for name, score in minimum.items())
    else:
        cut = "nothing was cut by it" if minimum is None else f"cut at {minimum}"
    return cut if auc is None else f"{cut}; AUC {auc:.3f} on rated documents that it was not trained on"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(html.markdown_cell, cells)) + " |" for cells in lines)


def front_matter(values: Mapping[str, Any]) -> str:
    """What Hugging Face reads of a card. What is not known is left out."""
    known = {key: value for key, value in values.items() if value}
    return "---\n" + yaml.safe_dump(known, sort_keys=False, allow_unicode=True) + "---"
