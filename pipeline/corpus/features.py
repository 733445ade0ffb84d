"""What the quality scorer sees of a document, and the weak labels it learns from.

Features: counts of the model's own token ids in the first 2,048 (log, length-normalised) and cheap structure: share of
docstrings and comments, letters, line lengths, whether the path is a test's. Weak labels (DATA.md section 3):
textbook-like are reference topics, manuals, package descriptions and code with at least 30% docstring; unlike a
textbook are tests, vendored code, tables and undocumented code. Everything else has no label.
"""

import re
from dataclasses import dataclass

import numpy as np

from data_filters.rule import CODE, EXERCISE, PROSE
from data_filters.shape import letter_share

HEAD_TOKENS, HEAD_CHARACTERS = 2_048, 8_000
STRUCTURE = ("docstring_share", "comment_share", "letter_share", "line_length", "long_lines", "is_test", "is_prose")
WELL_DOCUMENTED, UNDOCUMENTED, TABLE_LETTERS = 0.30, 0.02, 0.5

_DOCSTRING = re.compile(r'^[ \t]*[rRuUbB]{0,2}("""|\'\'\')(.*?)\1', re.DOTALL | re.MULTILINE)
_COMMENT = re.compile(r"^[ \t]*#[^\n]*", re.MULTILINE)
_TEST = re.compile(r"(^|/)(tests?|testing|_testing|benchmarks?)(/|$)|(^|/)(test_[^/]*|[^/]*_test|conftest)\.py")
_VENDORED = re.compile(r"(^|/)(_?vendor(ed)?|extern(als?)?|_vendored_[^/]*|third_party)/")
_PAGE = re.compile(r"(^|/)topics/|\.(rst|md)$|/METADATA$")


@dataclass(frozen=True)
class Features:
    """One document: distinct token ids, their normalised log counts, and the structure columns, each about 0 to 1."""

    ids: np.ndarray
    values: np.ndarray
    structure: np.ndarray


def features(token_ids: np.ndarray, text: str, path: str, kind: str) -> Features:
    """Features of a document from its ids and the head of its text."""
    ids, counts = np.unique(token_ids[:HEAD_TOKENS], return_counts=True)
    values = np.log1p(counts)
    values = (values / np.sqrt((values * values).sum())).astype(np.float32) if len(ids) else values.astype(np.float32)
    return Features(ids.astype(np.uint32), values, structure(text, path, kind))


def structure(text: str, path: str, kind: str) -> np.ndarray:
    """The columns of `STRUCTURE`, float32."""
    head = text[:HEAD_CHARACTERS]
    lines = head.split("\n")
    is_code = kind != PROSE
    return np.array(
        [
            docstring_share(head) if is_code else 0.0,
            sum(map(len, _COMMENT.findall(head))) / max(1, len(head)) if is_code else 0.0,
            letter_share(head),
            min(2.0, len(head) / max(1, len(lines)) / 50),
            sum(len(line) > 100 for line in lines) / len(lines),
            float(bool(_TEST.search(path))),
            float(not is_code),
        ],
        dtype=np.float32,
    )


def docstring_share(code: str) -> float:
    """Share of characters in triple-quoted strings that start a line: docstrings, found without parsing (100 MB/s)."""
    return sum(len(match.group(2)) for match in _DOCSTRING.finditer(code)) / max(1, len(code))


def weak_label(columns: np.ndarray, path: str, kind: str) -> int:
    """1 textbook-like, 0 unlike, -1 no label. A rule of thumb by path and docstrings, not a judgement."""
    if kind == EXERCISE:
        return -1
    if _TEST.search(path) or _VENDORED.search(path) or columns[STRUCTURE.index("letter_share")] < TABLE_LETTERS:
        return 0
    if kind == PROSE:
        return 1 if _PAGE.search(path) else -1
    share = columns[STRUCTURE.index("docstring_share")]
    if kind == CODE and share >= WELL_DOCUMENTED:
        return 1
    return 0 if share < UNDOCUMENTED else -1
