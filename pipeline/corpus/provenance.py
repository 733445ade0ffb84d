"""Where the kept text comes from: by source, package and licence, with the notices that licences ask to be passed on.

In: the kept documents' metadata, one after another. Out: rows for the licence table and ATTRIBUTION.md, and the notices
of the packages that are installed here in the very version that was read.
"""

import csv
import io
import re
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import orjson

from data_filters.licence import normalise
from pipeline.corpus.sources.python_library import STANDARD_LIBRARY
from pipeline.pages.private import OWN

_LICENCE_FILE = re.compile(r"(?i)(?:^|/)[^/]*(?:licen[sc]e|copying|copyright)[^/]*$")
_NOTICE_FILE = re.compile(r"(?i)(?:^|/)[^/]*notice[^/]*$")
_COPYRIGHT = re.compile(
    r"(?m)^[\s*#/.]*((?:(?:Copyright|COPYRIGHT)\s(?!\s*(?i:notice|licen[sc]e|owner|holder|law|and\s|\[|<|statement))|\(c\)\s(?=\d)|©\s)"
    r"[^\n]{3,160})$"
)
NOTICE_CHARACTERS, COPYRIGHT_LINES = 4_000, 20
_METADATA = b',"metadata":{'


def metadata_of(line: bytes) -> dict[str, Any]:
    """The metadata of a stored document, without parsing its text where the line ends in it (as our writer has it)."""
    start = line.rfind(_METADATA)
    if start >= 0:
        try:
            return orjson.loads(line[start + len(_METADATA) - 1 : line.rindex(b"}")])
        except orjson.JSONDecodeError:
            pass
    return orjson.loads(line)["metadata"]


class Provenance:
    """Counts kept text by (source, package, version, licence)."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str, str, str], list[int]] = {}

    def add(self, record: Mapping[str, Any], n_bytes: int, tokens: int) -> None:
        key = record["source"], record.get("package") or "", record.get("version") or "", record["license"]
        count = self._counts.setdefault(key, [0, 0, 0])
        for place, amount in enumerate((1, n_bytes, tokens)):
            count[place] += amount

    def rows(self) -> list[dict[str, Any]]:
        """The most tokens first. `licence`: SPDX, None where what was `declared` is none that we know. Of private text
        nothing is named but its source."""
        found: dict[tuple[str, ...], dict[str, Any]] = {}
        for (source, package, version, declared), count in self._counts.items():
            licence = normalise(declared)
            private = licence == OWN
            names = ("", "") if private else (package, version)
            row = found.setdefault(
                (source, *names, licence or declared),
                {"source": source, "package": names[0], "version": names[1], "licence": licence,
                 "declared": declared, "private": private, "documents": 0, "bytes": 0, "tokens": 0},
            )  # fmt: skip
            for key, amount in zip(("documents", "bytes", "tokens"), count, strict=True):
                row[key] += amount
        return sorted(found.values(), key=lambda r: (-r["tokens"], r["source"], r["package"], r["declared"]))


def notices(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """`{package, version, copyright [lines], notice}` of each named package; nothing where it is not installed in that
    version."""
    packages = sorted({(row["package"], row["version"]) for row in rows if row["package"]})
    return [found for package, version in packages if (found := _notice(package, version))]


def _notice(package: str, version: str) -> dict[str, Any] | None:
    licences, notice = [], []
    for name, path in _legal_files(package, version):
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        (notice if _NOTICE_FILE.search(name) else licences).append(text)
    if package == STANDARD_LIBRARY:
        licences.append(sys.copyright)
    lines = dict.fromkeys(" ".join(m.group(1).split()) for text in licences for m in _COPYRIGHT.finditer(text))
    if not lines and not notice:
        return None
    shown = list(lines)[:COPYRIGHT_LINES]
    joined = "\n\n".join(text.strip() for text in notice)
    return {"package": package, "version": version, "copyright": shown, "notice": joined[:NOTICE_CHARACTERS]}


def _legal_files(package: str, version: str) -> list[tuple[str, Path]]:
    if package == STANDARD_LIBRARY:
        path = Path(sysconfig.get_paths()["stdlib"]) / "LICENSE.txt"
        return [(path.name, path)] if path.is_file() else []
    try:
        distribution = metadata.distribution(package)
    except metadata.PackageNotFoundError:
        return []
    if distribution.version != version:
        return []
    names = [row[0] for row in csv.reader(io.StringIO(distribution.read_text("RECORD") or "")) if row]
    return [
        (name, Path(str(distribution.locate_file(name))))
        for name in names
        if (_LICENCE_FILE.search(name) or _NOTICE_FILE.search(name)) and not name.endswith((".py", ".pyc"))
    ]
