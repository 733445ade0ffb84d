"""Licences: the many ways in which packages declare them, as SPDX expressions, and an allow-list over them.

In: free text from package metadata or a dataset card. Out: an SPDX expression (`MIT`, `Apache-2.0 OR BSD-2-Clause`,
SPDX 2.3 annex D), or None where we cannot tell. What is unknown is dropped: a licence that nobody stated is not a
permission. The identifiers are in licences.yaml, other spellings of a name in licence_spellings.yaml.
"""

import re
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import yaml
from datatrove.data import Document

from data_filters.rule import Decision, Drop, Rule

OWN = "own"  # private text of the user: allowed, and kept out of cards


def packaged(name: str) -> Any:
    """The content of a YAML file in this folder."""
    text = Path(__file__).with_name(name).read_text("utf-8")
    return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))


_LISTS = packaged("licences.yaml")
PERMISSIVE, OTHERS = tuple(_LISTS["permissive"]), tuple(_LISTS["others"])
CREATIVE_COMMONS = tuple(
    f"CC-{terms}-{version}"
    for terms in ("BY", "BY-SA", "BY-NC", "BY-ND", "BY-NC-SA", "BY-NC-ND")
    for version in ("1.0", "2.0", "2.5", "3.0", "4.0")
)

IDENTIFIERS = {name.lower(): name for name in (*PERMISSIVE, *OTHERS, *CREATIVE_COMMONS, OWN)}

# From the weakest to the tightest: several classifiers (`;`) all hold, then OR and its forms, then AND.
_JOINTS = (
    ("AND", re.compile(r";")),
    ("OR", re.compile(r"\sOR\s|\||/(?=\s*[A-Z0-9(])")),
    ("AND", re.compile(r"\sAND\s|&")),
    ("OR", re.compile(r"\sor\s")),
    ("AND", re.compile(r"\sand\s|,")),
)
_EXCEPTION = re.compile(r"[A-Za-z0-9.+-]+-exception(?:-[0-9.]+)?|Linux-syscall-note", re.IGNORECASE)
_SAYS_NOTHING = {"osi approved", "dfsg approved", "dual license", "dual licence", "freely distributable"}
_PAGE = re.compile(
    r"https?://(?:www\.)?(?:opensource\.org/licenses?|spdx\.org/licenses|api\.github\.com/licenses"
    r"|choosealicense\.com/licenses|apache\.org/licenses|gnu\.org/licenses|mozilla\.org/(?:[\w-]+/)?(?=mpl)|(?=unlicense\.org|mit-license\.org))"
    r"/?([^?#]*?)(?:-license)?(?:\.[a-z]{2}(?=\.html))?(?:\.php|\.html?|\.txt)?/?",
    re.IGNORECASE,
)
_CREATIVE_COMMONS_PAGE = re.compile(
    r"https?://(?:www\.)?creativecommons\.org/(licenses|publicdomain)/([a-z-]+)/(\d\.\d)(?:/.*)?", re.IGNORECASE
)
_CREATIVE_COMMONS_NAME = re.compile(
    r"(?:cc|creative commons)[ -]+(by|attribution)((?:[ -]+(?:nc|noncommercial|non-commercial|sa|sharealike|share-alike"
    r"|share alike|nd|noderivatives|noderivs|no-derivs))*)[ -]+v?(\d(?:\.\d)?)(?: international| unported| generic)?"
)

# An expression is an identifier, or ("AND" or "OR", its parts).
Expression = str | tuple[str, tuple["Expression", ...]]


def normalise(declared: str | None) -> str | None:
    """The SPDX expression behind a declared licence, or None where any part of it is not known.

    `;` between classifiers, `,` and `and` become AND, the careful reading; `/`, `|` and `or` become OR.
    """
    found = parse(" ".join((declared or "").split()))
    return None if found is None else _write(found)


def allowed(expression: str | None, allow: Sequence[str] = (*PERMISSIVE, OWN)) -> bool:
    """True where the expression holds with what is in `allow`: every part of an AND, one part of an OR.

    AND binds tighter than OR, as SPDX says. `X WITH exception` and `X+` are allowed where `X` is: both only add rights.
    """
    found = None if expression is None else parse(expression)
    return found is not None and _holds(found, frozenset(allow))


class Licence(Rule):
    """Keeps documents whose declared licence maps to an allowed SPDX identifier; writes it to `metadata["spdx"]`.

    `allow`: SPDX identifiers to accept instead of the permissive default. Copyleft and unknown are dropped.
    """

    def __init__(self, allow: Sequence[str] = (*PERMISSIVE, OWN)):
        unknown = [name for name in allow if normalise(name) is None]
        if unknown:
            raise ValueError(f"allow: {', '.join(unknown)} is not an SPDX identifier that we know")
        self.allow = tuple(allow)
        self._known: dict[str | None, tuple[str | None, bool]] = {}

    def filter(self, doc: Document) -> Decision:
        declared = doc.metadata.get("license")
        if declared not in self._known:
            expression = normalise(declared)
            self._known[declared] = expression, allowed(expression, self.allow)
        expression, good = self._known[declared]
        doc.metadata["spdx"] = expression
        if good:
            return True
        reason = "not_allowed" if expression else "unknown"
        return False, Drop(reason, expression or str(declared)[:120], "allow-list")


def _holds(expression: Expression, names: frozenset[str]) -> bool:
    if isinstance(expression, str):
        return expression in names or expression.partition(" WITH ")[0].removesuffix("+") in names
    joint, parts = expression
    return (all if joint == "AND" else any)(_holds(part, names) for part in parts)


def _write(expression: Expression) -> str:
    if isinstance(expression, str):
        return expression
    joint, parts = expression
    inside = (
        f"({_write(p)})" if joint == "AND" and isinstance(p, tuple) and p[0] == "OR" else _write(p) for p in parts
    )
    return f" {joint} ".join(inside)


@lru_cache(10_000)
def parse(text: str) -> Expression | None:
    """The expression in a text: the whole as one name, else split at its weakest joint outside parentheses."""
    text = text.strip(" .\"'")
    if whole := _one(text):
        return whole
    for joint, pattern in _JOINTS:
        pieces = _split(text, pattern)
        if len(pieces) == 1:
            continue
        pieces = [piece for piece in pieces if piece.strip().lower() not in _SAYS_NOTHING]
        parts = [parse(piece.strip()) for piece in pieces]
        if joint == "OR":  # one may take the other alternative
            parts = [
                part
                for part, piece in zip(parts, pieces, strict=True)
                if part is not None or not piece.strip().startswith("LicenseRef-")
            ]
        known = [part for part in parts if part is not None]
        return _join(joint, known) if known and len(known) == len(parts) else None
    return parse(text[1:-1]) if text.startswith("(") and text.endswith(")") and len(text) > 2 else None


def _join(joint: str, parts: list[Expression]) -> Expression:
    flat: list[Expression] = []
    for part in parts:
        flat += part[1] if isinstance(part, tuple) and part[0] == joint else [part]
    unique = tuple(dict.fromkeys(flat))
    return unique[0] if len(unique) == 1 else (joint, unique)


def _split(text: str, pattern: re.Pattern[str]) -> list[str]:
    """Pieces between the matches that lie outside parentheses."""
    pieces, done = [], 0
    for match in pattern.finditer(text):
        before = text[: match.start()]
        if before.count("(") == before.count(")"):
            pieces.append(text[done : match.start()])
            done = match.end()
    return [*pieces, text[done:]]


def _one(text: str) -> str | None:
    """The identifier behind one name, page or classifier."""
    if "::" in text:
        text = text.rpartition("::")[2].strip()
    name, _, exception = text.partition(" WITH ")
    if exception:
        base = _one(name)
        return f"{base} WITH {exception}" if base and _EXCEPTION.fullmatch(exception) else None
    if text.lower().startswith("http"):
        return _page(text)
    if match := re.fullmatch(r"(.+?)\s*[(<](https?://[^)>]+|see [^)>]*)[)>]", text, re.IGNORECASE):
        return _one(match.group(1))
    key = text.strip(" ,").lower()
    for form in (key, re.sub(r"^the\s+|\s+licen[sc]e$", "", key), key.replace("licence", "license")):
        if found := IDENTIFIERS.get(form) or spellings().get(form):
            return found
    if match := re.fullmatch(r"((?:a|l)?gpl|gfdl)-(\d)(\.\d)?(\+)?", key):
        family, major, minor, later = match.groups()
        return IDENTIFIERS.get(f"{family}-{major}{minor or '.0'}-{'or-later' if later else 'only'}")
    if match := _CREATIVE_COMMONS_NAME.fullmatch(key):
        return _creative_commons(*match.groups()[1:])
    if key.endswith("+") and (base := IDENTIFIERS.get(key[:-1])):
        return f"{base}+"
    return None


def _creative_commons(terms: str, version: str) -> str | None:
    short = {"n": "NC", "s": "SA"}
    found = []
    for term in re.findall(r"no-?n-?commercial|nc|share[ -]?alike|sa|no-?deriv\w*|nd", terms):
        found.append("ND" if term.startswith(("nd", "nod", "no-d")) else short[term[0]])
    return IDENTIFIERS.get("-".join(["cc-by", *found, version if "." in version else f"{version}.0"]).lower())


def _page(url: str) -> str | None:
    if match := _CREATIVE_COMMONS_PAGE.fullmatch(url):
        part, terms, version = match.groups()
        zero = part == "publicdomain" and terms == "zero"
        return IDENTIFIERS.get(f"cc0-{version}" if zero else f"cc-{terms}-{version}".lower())
    match = _PAGE.fullmatch(url)
    slug = match.group(1) if match else ""
    if "unlicense.org" in slug.lower():
        return "Unlicense"
    if "mit-license.org" in slug.lower():
        return "MIT"
    return _one(slug.strip("/").replace("/", "-")) if slug and not slug.lower().startswith("http") else None


@cache
def spellings() -> dict[str, str]:
    """SPDX identifier by spelling in lower case."""
    return {spelling: name for name, found in packaged("licence_spellings.yaml").items() for spelling in found}
