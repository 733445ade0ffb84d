"""The embedded default corpus: the standard library and a named list of installed distributions.

One document per module, and as prose one per documentation page, distribution description, pydoc topic and long
docstring. Named distributions, so that installing an extra changes nothing. Real, messy, Stack-like text that is on
every machine: Phi-1's own domain, no download.
"""

import ast
import csv
import inspect
import io
import os
import platform
import re
import sysconfig
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from datatrove.data import Document

from data_filters.code import parsed
from data_filters.rule import CODE, PROSE
from pipeline.corpus.sources.document_text import decode_code, decode_text
from pipeline.corpus.text.source import Item, Limits, Source, document, missing, set_aside, spread_over
from pipeline.corpus.text.user_files import Unreadable, read_whole
from pipeline.storage.files import hash_files, hash_json

CODE_ENDINGS, PROSE_ENDINGS = (".py",), (".rst", ".md", ".txt")
LONG_DOCSTRING_CHARACTERS = 1_500  # worth a document of its own
PYTHON_LICENSE = "PSF-2.0"
STANDARD_LIBRARY = "python"  # the name of its package

# Lists and legal texts, not writing. `topics.py` holds the pydoc topics, which are read as prose.
_NOT_A_PAGE = re.compile(
    r"(?i)(^|/)(licen[sc]e|notice|copying|authors|requirements|sources|top_level|entry_points)[^/]*$"
)
_SKIPPED_FOLDERS = {"__pycache__", "site-packages", "dist-packages", "pydoc_data"}


@dataclass(frozen=True)
class LibraryFile:
    """One file of the corpus. `name` is the same on every machine, `path` is where it lies on this one."""

    name: str
    path: str
    package: str
    version: str
    license: str
    group: str


class PythonLibrary(Source):
    """The standard library and `distributions` (names on the package index, installed here): modules, descriptions,
    manual pages and long docstrings. Held out together: a distribution; of the standard library, a top-level module.
    `limit_tokens`: at 4 bytes a token.
    """

    version = 2

    def __init__(self, distributions: Sequence[str], standard_library: bool = True, **common: Any):
        if isinstance(distributions, str):
            raise ValueError(f"distributions is '{distributions}'; expected a list of names")
        self.distributions, self.standard_library = sorted(set(distributions)), standard_library
        self.limits = Limits(**common)

    @cached_property
    def files(self) -> list[LibraryFile]:
        found = _standard_library() if self.standard_library else []
        for name in self.distributions:
            found.extend(_distribution(name))
        return sorted(found, key=lambda f: f.name)

    def content_hash(self) -> str:
        roots: dict[str, list[Path]] = {}
        for file in self.files:
            root = file.path[: -len(file.name.partition("/")[2])]
            roots.setdefault(root, []).append(Path(file.path))
        versions = sorted({(f.package, f.version, f.license) for f in self.files})
        hashes = sorted(hash_files(paths, Path(root)) for root, paths in roots.items())
        return hash_json([platform.python_version() if self.standard_library else None, versions, hashes])

    def items(self, task: int, tasks: int) -> Iterator[Item]:
        most = self.limits.limit_documents if self.limits.spread else None
        for file in (self.files if most is None else spread_over(self.files, most))[task::tasks]:
            yield from _read(file)
        if self.standard_library:
            yield from _topics(task, tasks)

    def named(self, paths: Collection[str]) -> Iterator[Document]:
        """The documents of these paths; only the files that hold them are read."""
        names = {path.partition(":")[0] for path in paths}
        items = [item for file in self.files if file.name in names for item in _read(file)]
        for item in [*items, *(_topics(0, 1) if self.standard_library else ())]:
            if isinstance(item, Document) and item.metadata["path"] in paths:
                yield item


def _standard_library() -> list[LibraryFile]:
    root, version = sysconfig.get_paths()["stdlib"], platform.python_version()
    found = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(s for s in subfolders if s not in _SKIPPED_FOLDERS and not s.startswith("config-"))
        for name in names:
            path = f"{folder}/{name}"
            relative = path[len(root) + 1 :]
            if _wanted(relative) and os.path.isfile(path):
                module = relative.partition("/")[0].removesuffix(".py")
                group = f"python/{module}"
                found.append(LibraryFile(f"python/{relative}", path, "python", version, PYTHON_LICENSE, group))
    return found


def _distribution(name: str) -> list[LibraryFile]:
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        raise missing(
            f"distribution '{name}' is not installed",
            f"installed names: `pip install {name}`, or take it from the source's list",
            "distributions",
        ) from None
    record = distribution.read_text("RECORD")
    if record is None:
        raise missing(f"distribution '{name}' has no list of files", "one installed from a wheel", "distributions")
    root, package = str(distribution.locate_file("")), re.sub(r"[-_.]+", "-", name).lower()
    shared = package, distribution.version, declared_license(distribution.metadata), package
    found = []
    for row in csv.reader(io.StringIO(record)):
        inside = ".dist-info/" in row[0]
        wanted = row[0].endswith(".dist-info/METADATA") if inside else _wanted(row[0])
        if wanted and not row[0].startswith(("..", "/")):
            found.append(LibraryFile(f"site/{row[0]}", os.path.join(root, row[0]), *shared))
    return found


def declared_license(fields: metadata.PackageMetadata) -> str:
    """What the package says, in its own words: SPDX expression, else classifiers, else the first line of `License`."""
    if "License-Expression" in fields:
        return str(fields["License-Expression"])
    classifiers = [c.split("::")[-1].strip() for c in fields.get_all("Classifier") or [] if c.startswith("License ::")]
    named = [c for c in classifiers if c not in ("OSI Approved", "DFSG approved")]
    first = str(fields["License"] or "").strip().partition("\n")[0].strip()
    return "; ".join(named) or first[:2_000] or "unknown"


def _read(file: LibraryFile) -> Iterator[Item]:
    is_code = file.name.endswith(CODE_ENDINGS)
    try:
        data = read_whole(Path(file.path))
        text = decode_code(data) if is_code else decode_text(data)
    except Unreadable as problem:
        yield set_aside(file.name, problem)
        return
    if file.name.endswith("/METADATA"):
        text = text.replace("\r\n", "\n").partition("\n\n")[2]  # the description; the fields above it are no writing
    yield _document(file, text, file.name, CODE if is_code else PROSE)
    if is_code:
        for name, docstring in long_docstrings(text):
            yield _document(file, docstring, f"{file.name}:{name}", PROSE)


def long_docstrings(code: str) -> list[tuple[str, str]]:
    """(qualified name, docstring) of modules and classes that explain themselves at length."""
    blocks = [*code.split('"""')[1::2], *code.split("'''")[1::2]]
    if max(map(len, blocks), default=0) < LONG_DOCSTRING_CHARACTERS:  # most files; parsing costs 5 MB/s
        return []
    tree = parsed(code)
    if isinstance(tree, Exception):
        return []
    found = []

    def visit(node: ast.Module | ast.ClassDef, name: str) -> None:
        docstring = ast.get_docstring(node, clean=False)
        if docstring and len(docstring) >= LONG_DOCSTRING_CHARACTERS:
            found.append((name, inspect.cleandoc(docstring)))
        for child in node.body:
            if isinstance(child, ast.ClassDef):
                visit(child, child.name if name == "__doc__" else f"{name}.{child.name}")

    visit(tree, "__doc__")
    return found


def _topics(task: int, tasks: int) -> Iterator[Item]:
    """The language reference's pages that `help()` shows."""
    from pydoc_data.topics import topics

    version = platform.python_version()
    for name in sorted(topics)[task::tasks]:
        file = LibraryFile(f"python/topics/{name}", "", "python", version, PYTHON_LICENSE, "python/topics")
        yield _document(file, topics[name], file.name, PROSE)


def _document(file: LibraryFile, text: str, path: str, kind: str) -> Item:
    shared = {"group": file.group, "license": file.license, "version": file.version, "package": file.package}
    return document(text, path=path, kind=kind, **shared)


def _wanted(relative: str) -> bool:
    if not relative.endswith((*CODE_ENDINGS, *PROSE_ENDINGS)):
        return False
    return relative.endswith(CODE_ENDINGS) or not _NOT_A_PAGE.search(relative)
