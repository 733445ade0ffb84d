"""What licences ask of a model that is trained on text under them: the kind of terms, and a verdict in plain words.

In: SPDX expressions and how much text stands under each. Out: a verdict on the licence that the model may carry. It is
the careful reading: whether a model is a derivative of its text is not settled law, so a condition of the text counts
as one of the model. No legal advice; what a source says of itself is taken as true.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_filters.licence import OWN, Expression, parse

PERMISSIVE, UNKNOWN = "permissive", "unknown"
SHOWN_CAUSES = 12


@dataclass(frozen=True)
class Terms:
    """A kind of terms: what it is called, what it means for the model, and the licence to give the model."""

    name: str
    headline: str
    meaning: str
    prefixes: tuple[str, ...] = ()


# From the freest to the tightest. A name counts under the first kind whose prefix it begins with; else it is
# permissive.
KINDS = (
    Terms(
        PERMISSIVE,
        "The model may carry any licence.",
        "All text is under permissive licences: they ask for the authors to be named, which ATTRIBUTION.md does; hand "
        "it on with the model. Apache-2.0 and MIT are both open to it.",
    ),
    Terms(
        "weak copyleft",
        "The model may carry its own licence, with care.",
        "Weak copyleft keeps copies of these very files under their own terms: what the model repeats of them at "
        "length stays under those.",
        ("LGPL", "MPL", "EPL", "CDDL", "CPL", "OFL"),
    ),
    Terms(
        "share-alike",
        "The model should carry the share-alike licence of its text.",
        "Share-alike text asks whatever is made from it to be under the same terms, so no permissive licence is safe "
        "to claim; leave this text out for one.",
        ("CC-BY-SA", "ODbL", "CDLA-Sharing", "GFDL"),
    ),
    Terms(
        "copyleft",
        "The model should carry a copyleft licence, such as the one of its text.",
        "Copyleft asks whatever is made from the text to be under the same terms, so no permissive licence is safe to "
        "claim; leave this text out for one.",
        ("GPL", "AGPL", "EUPL", "OSL", "QPL", "CECILL", "Sleepycat"),
    ),
    Terms(
        "non-commercial",
        "The model is not for commercial use.",
        "Non-commercial text forbids commercial use of what is made from it: give the model a non-commercial licence, "
        "such as CC-BY-NC-4.0.",
        ("CC-BY-NC",),
    ),
    Terms(
        "restricted use",
        "The model may be used only as the licences of its text allow.",
        "These licences restrict what the text may be used for; read them before the model is passed on.",
        ("SSPL", "BUSL", "Elastic", "C-UDA"),
    ),
    Terms(
        "no derivatives",
        "The model should not be published.",
        "No-derivatives text may be passed on unchanged only; a model is a change of it.",
        ("CC-BY-ND", "CC-BY-NC-ND"),
    ),
    Terms(
        UNKNOWN,
        "No licence can be named for the model.",
        "Of some text nobody said what it is under, and that is no permission: find out, or leave it out "
        "(data.filters.licence does).",
    ),
    Terms(
        "private",
        "The model should stay private.",
        "It was trained on text of your own (licence own), and a model can repeat what it read: publish it only if "
        "that text may be published.",
        (OWN,),
    ),
)
_ORDER = {terms.name: place for place, terms in enumerate(KINDS)}


def terms_of(expression: str | None) -> str:
    """The kind of terms of an SPDX expression: of an OR the freest, of an AND the tightest."""
    found = None if expression is None else parse(expression)
    return UNKNOWN if found is None else _terms(found)


def _terms(expression: Expression) -> str:
    if isinstance(expression, str):
        # The longest prefix wins: CC-BY-NC-ND is no mere CC-BY-NC.
        fits = [(len(p), t.name) for t in KINDS for p in t.prefixes if expression.startswith(p)]
        return max(fits)[1] if fits else PERMISSIVE
    joint, parts = expression
    return (max if joint == "AND" else min)((_terms(part) for part in parts), key=_ORDER.__getitem__)


def verdict(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`rows`: {source, package, licence (SPDX, None: unknown), documents, tokens}. Out: `headline`; `terms`, one entry
    for each kind found, the tightest first, with its share of the tokens and the rows that cause it."""
    total = max(1, sum(row["tokens"] for row in rows))
    by_kind: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_kind.setdefault(terms_of(row["licence"]), []).append(row)
    found = []
    for terms in reversed(KINDS):
        of_kind = sorted(by_kind.get(terms.name, ()), key=lambda row: -row["tokens"])
        if of_kind:
            tokens, causes = sum(row["tokens"] for row in of_kind), [] if terms.name == PERMISSIVE else of_kind
            found.append(
                {
                    "kind": terms.name,
                    "meaning": terms.meaning if terms.name != PERMISSIVE or len(by_kind) == 1 else "",
                    "documents": sum(row["documents"] for row in of_kind),
                    "tokens": tokens,
                    "share": round(tokens / total, 4),
                    "causes": [
                        {key: row[key] for key in ("source", "package", "licence")} for row in causes[:SHOWN_CAUSES]
                    ],
                    "more_causes": max(0, len(causes) - SHOWN_CAUSES),
                }
            )
    tightest = next((t for t in reversed(KINDS) if t.name in by_kind), KINDS[0])
    return {"kind": tightest.name, "headline": tightest.headline, "terms": found}
