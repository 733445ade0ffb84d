"""Figures on the kept text: lengths, tokens, scores, how varied it is, and where it comes from.

In: the table of documents, their tokens and scores, and the metadata of the kept ones. Out: plain values for the
report, the licence table and ATTRIBUTION.md, with the notices of packages that are installed here in the version that
was read. Whole-corpus figures are arithmetic on arrays. Figures that need the tokens look at a seeded sample of a fixed
size, because shares of distinct n-grams compare only at equal length.
"""

import re
import sys
import sysconfig
import zlib
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from data_filters.licence import normalise
from data_filters.rule import EXERCISE
from pipeline.corpus.sources.python_library import STANDARD_LIBRARY
from pipeline.corpus.text.documents import Table, draw, in_drawn_order
from pipeline.pages.private import OWN

SAMPLE_TOKENS = 200_000
SAMPLE_DOCUMENTS = 2_000
SCORE_BINS, DECILES, PER_DECILE = 20, 10, 2
PERCENTILES = (10, 50, 90)
LARGEST_GROUPS = 8

_LICENCE_FILE = re.compile(r"(?i)(?:^|/)[^/]*(?:licen[sc]e|copying|copyright)[^/]*$")
_NOTICE_FILE = re.compile(r"(?i)(?:^|/)[^/]*notice[^/]*$")
_COPYRIGHT = re.compile(
    r"(?m)^[\s*#/.]*((?:(?:Copyright|COPYRIGHT)\s(?!\s*(?i:notice|licen[sc]e|owner|holder|law|and\s|\[|<|statement))|\(c\)\s(?=\d)|©\s)"
    r"[^\n]{3,160})$"
)
NOTICE_CHARACTERS, COPYRIGHT_LINES = 4_000, 20
_METADATA = b',"metadata":{'


def length_facts(lengths: np.ndarray, n_bytes: np.ndarray) -> dict[str, Any]:
    """Of some documents: how many, their tokens and bytes, and how long they are."""
    tokens, total = int(lengths.sum()), int(n_bytes.sum(dtype=np.int64))
    marks = np.percentile(lengths, PERCENTILES, method="nearest") if len(lengths) else [0] * len(PERCENTILES)
    return {
        "documents": len(lengths),
        "tokens": tokens,
        "bytes": total,
        "bytes_per_token": round(total / max(1, tokens), 4),
        "length_tokens": {
            **{f"p{p}": int(mark) for p, mark in zip(PERCENTILES, marks, strict=True)},
            "mean": round(float(lengths.mean()), 1) if len(lengths) else 0.0,
            "max": int(lengths.max(initial=0)),
        },
    }


def length_histogram(lengths: np.ndarray) -> list[dict[str, int]]:
    """Documents, and their tokens, by length in powers of two."""
    powers = np.floor(np.log2(np.maximum(lengths, 1))).astype(np.int64)
    documents = np.bincount(powers)
    tokens = np.bincount(powers, weights=lengths).astype(np.int64)
    first = int(np.argmax(documents > 0)) if len(documents) else 0
    return [
        {"from_tokens": 1 << p, "documents": int(documents[p]), "tokens": int(tokens[p])}
        for p in range(first, len(documents))
    ]


def kinds(table: Table, lengths: np.ndarray, kept: np.ndarray) -> dict[str, dict[str, int]]:
    """Documents and tokens of code, prose and exercises."""
    of = table.kinds[kept]
    return {
        str(kind): {"documents": int((of == kind).sum()), "tokens": int(lengths[kept][of == kind].sum())}
        for kind in np.unique(of)
    }


def sample(table: Table, documents: np.ndarray, lengths: np.ndarray, seed: int) -> np.ndarray:
    """Documents drawn until they have `SAMPLE_TOKENS`."""
    drawn = in_drawn_order(table, documents, seed, "diversity")[:SAMPLE_DOCUMENTS]
    before = np.cumsum(lengths[drawn]) - lengths[drawn]
    return drawn[before < SAMPLE_TOKENS]


def diversity(ids: Sequence[np.ndarray], vocab_size: int, text: str) -> dict[str, Any]:
    """Of a sample's tokens: `distinct` shares of 1- to 4-grams (Li et al. 2016, arXiv 1510.03055), entropy in bits a
    token, the share of the vocabulary in use, and how far zlib shrinks its text (arXiv 2403.00553)."""
    flat = np.concatenate([*ids, np.zeros(0, dtype=np.int64)])[:SAMPLE_TOKENS].astype(np.uint64)
    if not len(flat):
        return {}
    counts = np.bincount(flat.astype(np.int64), minlength=vocab_size)
    shares = counts[counts > 0] / len(flat)
    distinct, grams = {}, flat.copy()
    for n in range(1, 5):
        if n > 1:
            with np.errstate(over="ignore"):
                grams = grams[:-1] * np.uint64(0x9E3779B97F4A7C15) + flat[n - 1 :]
        ordered = np.sort(grams)
        distinct[str(n)] = round((1 + int((ordered[1:] != ordered[:-1]).sum())) / len(grams), 4) if len(grams) else 0.0
    data = text.encode()
    return {
        "sample_tokens": len(flat),
        "distinct_ngrams": distinct,
        "entropy_bits_per_token": round(float(-(shares * np.log2(shares)).sum()), 3),
        "vocabulary_used": round(float((counts > 0).mean()), 4),
        "compression_ratio": round(len(data) / max(1, len(zlib.compress(data, 6))), 3),
    }


def groups(table: Table, lengths: np.ndarray, kept: np.ndarray) -> dict[str, Any]:
    """Packages, domains or what else is held out together: how many, how many of equal size would be as varied (the
    exponential of the entropy over tokens), and the largest."""
    hashes, first, inverse = np.unique(table.rows["group"][kept], return_index=True, return_inverse=True)
    tokens = np.bincount(inverse, weights=lengths[kept])
    documents = np.bincount(inverse)
    shares = tokens[tokens > 0] / max(1.0, tokens.sum())
    largest = np.argsort(-tokens, kind="stable")[:LARGEST_GROUPS]
    named = table.names([int(kept[first[i]]) for i in largest])
    rows = []
    for i in largest:
        index = int(kept[first[i]])
        source = table.sources[table.rows["source"][index]]
        share = round(float(tokens[i] / max(1.0, tokens.sum())), 4)
        counts = {"documents": int(documents[i]), "tokens": int(tokens[i]), "share": share}
        rows.append({"source": source, "group": named[index].group, **counts})
    effective = round(float(np.exp(-(shares * np.log(shares)).sum())), 1)
    return {"groups": len(hashes), "effective_groups": effective, "largest": rows}


def scored_documents(table: Table, lengths: np.ndarray, scored: Iterable[str]) -> np.ndarray:
    """Those that a scorer has looked at: of its sources, no exercises, alive when it came by."""
    numbers = [i for i, name in enumerate(table.sources) if name in set(scored)]
    return np.flatnonzero((lengths > 0) & np.isin(table.rows["source"], numbers) & (table.kinds != EXERCISE))


def score_histogram(scores: np.ndarray, outcome: Mapping[str, np.ndarray]) -> dict[str, list[int]]:
    """Documents in `SCORE_BINS` bins of 0 to 1, by what became of them (`outcome`: name -> documents)."""
    return {
        name: np.histogram(scores[documents], bins=SCORE_BINS, range=(0, 1))[0].tolist()
        for name, documents in outcome.items()
    }


def deciles(
    table: Table, scores: np.ndarray, documents: np.ndarray, kept: np.ndarray, lengths: np.ndarray, seed: int
) -> tuple[list[dict[str, Any]], dict[int, str]]:
    """(the tenths of the scored documents, best first; which documents to show of each: document -> mark)."""
    lots = draw(table.rows["digest"][documents, 0], seed, "decile")
    ordered = documents[np.lexsort((lots, -scores[documents]))]
    is_kept = np.zeros(len(table), dtype=bool)
    is_kept[kept] = True
    rows, marks = [], dict[int, str]()
    for number, part in enumerate(np.array_split(ordered, DECILES) if len(ordered) >= DECILES else []):
        shown = in_drawn_order(table, part, seed, "shown")[:PER_DECILE]
        marks |= {int(i): f"decile {number + 1}" for i in shown}
        rows.append({
            "decile": number + 1, "highest": round(float(scores[part].max()), 4),
            "lowest": round(float(scores[part].min()), 4), "documents": len(part),
            "kept": int(is_kept[part].sum()), "tokens": int(lengths[part].sum()),
        })  # fmt: skip
    return rows, marks


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
        """The most tokens first. `licence`: SPDX, None where the `declared` one is unknown. Of private text
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
    return [
        (name, Path(str(distribution.locate_file(name))))
        for name in map(str, distribution.files or ())
        if (_LICENCE_FILE.search(name) or _NOTICE_FILE.search(name)) and not name.endswith((".py", ".pyc"))
    ]
