"""What licences ask of a model that is trained on text under them: the kind of terms, and a verdict in plain words.

In: SPDX expressions and how much text stands under each. Out: a verdict on the licence that the model may carry. It is
the careful reading: whether a model is a derivative of its text is not settled law, so a condition of the text counts
as one of the model. No legal advice; what a source says of itself is taken as true.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_filters.licence import Expression, packaged, parse

PERMISSIVE, UNKNOWN = "permissive", "unknown"
SHOWN_CAUSES = 12


@dataclass(frozen=True)
class Terms:
    """A kind of terms: what it is called, what it means for the model, and the licence to give the model."""

    name: str
    headline: str
    meaning: str
    prefixes: Sequence[str] = ()


KINDS = [Terms(**kind) for kind in packaged("licence_terms.yaml")]  # from the freest to the tightest
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
