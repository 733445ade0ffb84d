"""Licences: the many spellings that packages declare, as SPDX identifiers, and an allow-list over them.

In: free text from package metadata or a dataset card. Out: an SPDX expression (`MIT`, `Apache-2.0 OR BSD-2-Clause`),
or None where we cannot tell. What is unknown is dropped: a licence that nobody stated is not a permission.
"""

import re
from collections.abc import Sequence

from datatrove.data import Document

from data_filters.rule import Decision, Drop, Rule

PERMISSIVE = (
    "0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC-BY-4.0",
    "CC0-1.0", "CNRI-Python", "HPND", "ISC", "MIT", "MIT-0", "ODC-By-1.0", "PSF-2.0", "Python-2.0", "Unlicense",
    "WTFPL", "ZPL-2.1", "Zlib",
)  # fmt: skip
OWN = "own"  # private text of the user: allowed, and kept out of cards

# Lower-cased spelling -> SPDX. "BSD" without a number is the three-clause text in every package looked at.
SPELLINGS: dict[str, str] = {
    "0bsd": "0BSD",
    "agpl-3.0": "AGPL-3.0-only",
    "apache": "Apache-2.0",
    "apache 2": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "apache license": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license version 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "apache software license 2.0": "Apache-2.0",
    "apache-2": "Apache-2.0",
    "apache2": "Apache-2.0",
    "asl 2.0": "Apache-2.0",
    "boost software license 1.0": "BSL-1.0",
    "boost software license 1.0 (bsl-1.0)": "BSL-1.0",
    "bsd": "BSD-3-Clause",
    "bsd license": "BSD-3-Clause",
    "bsd 2-clause": "BSD-2-Clause",
    "bsd 2-clause license": "BSD-2-Clause",
    "simplified bsd": "BSD-2-Clause",
    "2-clause bsd": "BSD-2-Clause",
    "2-clause bsd license": "BSD-2-Clause",
    "bsd 3": "BSD-3-Clause",
    "bsd 3 clause": "BSD-3-Clause",
    "bsd 3-clause": "BSD-3-Clause",
    "bsd 3-clause license": "BSD-3-Clause",
    "bsd-3": "BSD-3-Clause",
    "3-clause bsd": "BSD-3-Clause",
    "3-clause bsd license": "BSD-3-Clause",
    "modified bsd": "BSD-3-Clause",
    "modified bsd license": "BSD-3-Clause",
    "new bsd": "BSD-3-Clause",
    "new bsd license": "BSD-3-Clause",
    "cc-by": "CC-BY-4.0",
    "cc0": "CC0-1.0",
    "cc0 1.0 universal (cc0 1.0) public domain dedication": "CC0-1.0",
    "gpl": "GPL-3.0-or-later",
    "gplv2": "GPL-2.0-only",
    "gplv3": "GPL-3.0-only",
    "gnu general public license (gpl)": "GPL-3.0-or-later",
    "gnu general public license v2 (gplv2)": "GPL-2.0-only",
    "gnu general public license v2 or later (gplv2+)": "GPL-2.0-or-later",
    "gnu general public license v3 (gplv3)": "GPL-3.0-only",
    "gnu general public license v3 or later (gplv3+)": "GPL-3.0-or-later",
    "gnu affero general public license v3": "AGPL-3.0-only",
    "gnu lesser general public license v2 or later (lgplv2+)": "LGPL-2.1-or-later",
    "gnu lesser general public license v3 (lgplv3)": "LGPL-3.0-only",
    "gnu library or lesser general public license (lgpl)": "LGPL-2.1-or-later",
    "lgpl": "LGPL-2.1-or-later",
    "lgplv2+": "LGPL-2.1-or-later",
    "historical permission notice and disclaimer (hpnd)": "HPND",
    "hpnd": "HPND",
    "isc license": "ISC",
    "isc license (iscl)": "ISC",
    "iscl": "ISC",
    "expat": "MIT",
    "mit licence": "MIT",
    "mit license": "MIT",
    "the mit license": "MIT",
    "the mit license (mit)": "MIT",
    "mit license (mit)": "MIT",
    "mit no attribution license (mit-0)": "MIT-0",
    "mozilla public license 1.1 (mpl 1.1)": "MPL-1.1",
    "mozilla public license 2.0": "MPL-2.0",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "mpl 2.0": "MPL-2.0",
    "odc-by": "ODC-By-1.0",
    "odc by 1.0": "ODC-By-1.0",
    "psf": "PSF-2.0",
    "psf license": "PSF-2.0",
    "psf-2.0": "PSF-2.0",
    "psfl": "PSF-2.0",
    "python software foundation license": "PSF-2.0",
    "python software foundation license version 2": "PSF-2.0",
    "the unlicense": "Unlicense",
    "the unlicense (unlicense)": "Unlicense",
    "public domain": "Unlicense",
    "zlib/libpng license": "Zlib",
    "zope public license": "ZPL-2.1",
    "own": OWN,
}
_IDENTIFIERS = {name.lower(): name for name in (*PERMISSIVE, *SPELLINGS.values(), "LGPL-2.1", "MPL-1.1", "OFL-1.1")}
_JOINT = re.compile(r"\s+(AND|OR)\s+|\s*(;)\s*|\s*(/)\s*(?=[A-Z])")


def normalise(declared: str | None) -> str | None:
    """The SPDX expression behind a declared licence, or None where any part of it is not known.

    `;` (several classifiers) becomes AND, the careful reading. Parentheses are not nested in practice and dropped.
    """
    text = " ".join((declared or "").split()).strip(" .,\"'")
    if not text:
        return None
    whole = _one(text)
    if whole:
        return whole
    parts = _JOINT.split(text)
    names = [_one(part) for part in parts[::4]]
    if None in names or len(names) < 2:
        return None
    joints = ["AND" if and_or is None and slash is None else (and_or or "OR") for and_or, _, slash in _triples(parts)]
    result = str(names[0])
    for joint, name in zip(joints, names[1:], strict=True):
        result += f" {joint} {name}"
    return result


def allowed(expression: str | None, allow: Sequence[str] = (*PERMISSIVE, OWN)) -> bool:
    """True where every AND part has an allowed OR alternative (AND is read as binding weaker: the careful way)."""
    if expression is None:
        return False
    names = set(allow)
    return all(any(name in names for name in part.split(" OR ")) for part in expression.split(" AND "))


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


def _one(text: str) -> str | None:
    key = text.strip("() ").lower()
    found = _IDENTIFIERS.get(key) or SPELLINGS.get(key) or SPELLINGS.get(text.lower())
    return found or SPELLINGS.get(re.sub(r"^the\s+|\s+licen[sc]e$", "", key))


def _triples(parts: list[str | None]) -> list[tuple[str | None, str | None, str | None]]:
    return [(parts[i], parts[i + 1], parts[i + 2]) for i in range(1, len(parts) - 1, 4)]
