"""The files that a source reads: found by folder, file or glob, named so that the place they lie in does not matter.

A file that must not or cannot be read is still listed, with its problem, so that it is counted and hashed like the
others: a link that leaves its folder, one that leads nowhere, a pipe, a name that is not UTF-8.
"""

import glob
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_filters.repair import mend_surrogates
from pipeline.artifacts import hash_files, hash_json
from pipeline.corpus.compressed import Unreadable
from pipeline.corpus.source import missing


@dataclass(frozen=True)
class InputFile:
    """`name` is relative, with slashes, the same on every machine; `problem` says why it is not to be opened."""

    path: Path
    name: str
    problem: Unreadable | None = None

    @property
    def ending(self) -> str:
        return Path(self.name).suffix.lower()


def in_folder(path: str, wanted: Callable[[str], bool]) -> list[InputFile]:
    """All files below a folder whose name is `wanted`, in the order of their names. Links are followed to files
    inside the folder only. Raises `UserError` where `path` is not a folder."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise missing(f"{path} is not a folder", "a folder", "path")
    found: list[InputFile] = []

    def unreadable(error: OSError) -> None:
        name = os.path.relpath(error.filename, folder)
        found.append(InputFile(Path(error.filename), _clean(name), Unreadable("cannot_open", str(error.strerror))))

    for parent, folders, names in os.walk(folder, onerror=unreadable):
        links = [n for n in folders if os.path.islink(os.path.join(parent, n))]
        for name in [n for n in names if wanted(n)] + links:
            whole = Path(parent, name)
            problem = _problem(whole, folder)
            if name not in links or (problem is not None and problem.cause == "leaves_its_folder"):
                found.append(InputFile(whole, _clean(whole.relative_to(folder).as_posix()), problem))
    return sorted(found, key=lambda f: f.name.split("/"))


def matching(path: str, what: str, endings: Sequence[str], links_inside: bool = False) -> list[InputFile]:
    """A file, the files that a glob matches, or those of `endings` below a folder; links may lead anywhere, as the
    user named them. `links_inside`: those that a glob found only inside the folder that its matches share. Raises
    `UserError` where nothing is found."""
    given = Path(path).expanduser()
    if given.is_dir():
        paths = [p for p in given.rglob("*") if p.name.lower().endswith(tuple(endings)) and not p.is_dir()]
    else:
        paths = [p for p in map(Path, glob.glob(str(given), recursive=True)) if not p.is_dir()]
    if not paths:
        raise missing(f"nothing matches {path}", f"{what} or a glob", "path")
    base = Path(os.path.commonpath([p.parent for p in paths]))
    inside = base if links_inside and glob.has_magic(path) else None
    files = [InputFile(p, _clean(p.relative_to(base).as_posix()), _problem(p, inside)) for p in paths]
    return sorted(files, key=lambda f: f.name.split("/"))


def hash_inputs(files: Iterable[InputFile]) -> str:
    """By content and name; what cannot be read by its name and problem."""
    files = list(files)
    good = [f for f in files if f.problem is None]
    problems = [[f.name, f.problem.cause] for f in files if f.problem is not None]
    content = hash_files([f.path for f in good], _base(good[0])) if good else ""
    return hash_json([content, problems]) if problems else content


def _base(file: InputFile) -> Path:
    return file.path.parents[file.name.count("/")]


def _problem(path: Path, folder: Path | None = None) -> Unreadable | None:
    """What forbids to open `path`; inside `folder`, where one is given."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return Unreadable("name_not_utf8")
    try:
        real = path.resolve(strict=True)
        mode = real.stat().st_mode
    except (OSError, RuntimeError) as error:  # leads nowhere, or in a circle
        return Unreadable("cannot_open", getattr(error, "strerror", None) or "a link that leads in a circle")
    if folder is not None and not real.is_relative_to(folder.resolve()):
        return Unreadable("leaves_its_folder", f"a link to {os.readlink(path)}" if path.is_symlink() else "")
    if stat.S_ISDIR(mode):
        return None
    if not stat.S_ISREG(mode):
        return Unreadable("not_a_file", "a pipe, socket or device")
    return None if os.access(real, os.R_OK) else Unreadable("cannot_open", "permission denied")


def _clean(name: str) -> str:
    return mend_surrogates(name)
