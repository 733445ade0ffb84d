"""The files that a source reads: found by folder, file or glob, named so that the place they lie in does not matter.

Folder and glob find the same: links to folders are followed, each real folder is entered once (so that circles end),
and names that begin with a dot are skipped. A file that must not or cannot be read is still listed, with its
problem, so that it is counted and hashed like the others: a link that leaves its folder, one that leads nowhere, a
pipe, a name that is not UTF-8. What a source does not look at is counted by ending.
"""

import glob
import itertools
import os
import re
import stat
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

from data_filters.repair import mend_surrogates
from pipeline.corpus.text.documents import SetAside
from pipeline.corpus.text.source import Item, Source, limited, missing, set_aside, spread_over
from pipeline.corpus.text.user_files import LostFile, Unreadable, size_bytes, split_ending
from pipeline.pages.data_card import skipped_words
from pipeline.storage.files import hash_files, hash_json

HIDDEN, NO_ENDING = "hidden", "no ending"


@dataclass(frozen=True)
class InputFile:
    """`name` is relative, with slashes, the same on every machine; `problem` says why it is not to be opened."""

    path: Path
    name: str
    problem: Unreadable | None = None

    @property
    def ending(self) -> str:
        """Without a compression: `.txt` of `a.txt.gz`."""
        return split_ending(self.name)[0]

    @property
    def size_bytes(self) -> int:
        """On disk; 0 of what is no file that may be opened."""
        return size_bytes(self.path) if self.problem is None or self.problem.cause == "cannot_open" else 0


@dataclass(frozen=True)
class Inputs:
    """`files`: those that are read. `skipped`: ending -> (files, bytes) of those beside them that are not."""

    files: list[InputFile]
    skipped: dict[str, tuple[int, int]] = field(default_factory=dict)


class FileSource(Source):
    """A source whose input is files. Each is shared out over the shards by file where there are enough of them; else
    every shard goes over the records of all and takes its share. `reached`: names of the files that were opened, each
    with how many of its records were gone over."""

    @abstractmethod
    def find(self) -> Inputs:
        """Raises `UserError` where there is nothing to read."""

    @abstractmethod
    def raw_records(self, file: InputFile) -> Iterator[Any]:
        """What a file holds, in its order, as cheap as it can be had; an `Unreadable` in place of a record that is
        lost alone. Raises `Unreadable` (or gives a `LostFile`) for what ends the file."""

    @abstractmethod
    def item(self, raw: Any, file: InputFile, place: str) -> Item | None:
        """A document of a raw record. Raises `Unreadable` where the whole file is lost with it."""

    @cached_property
    def reached(self) -> dict[str, int]:
        return {}

    def files(self) -> list[InputFile]:
        return self.find().files

    def content_hash(self) -> str:
        """By content and name; of what cannot be read by its name and problem."""
        files = self.files()
        good = [f for f in files if f.problem is None]
        problems = [[f.name, f.problem.cause] for f in files if f.problem is not None]
        base = good[0].path.parents[good[0].name.count("/")] if good else Path()
        content = hash_files([f.path for f in good], base) if good else ""
        return hash_json([content, problems]) if problems else content

    def items(self, task: int, tasks: int) -> Iterator[Item]:
        files = self.files()
        by_file = len(files) >= tasks
        for i, file in enumerate(files):
            if not by_file or i % tasks == task:
                wanted = (lambda number: True) if by_file else (lambda number, i=i: (number + i) % tasks == task)
                # one shard reports a lost file
                yield from (item for _, item in self._of_file(file, wanted, by_file or i % tasks == task))

    def documents(self, task: int, tasks: int) -> Iterator[Item]:
        most, files = self.limits.limit_documents, self.files() if self.limits.spread else []
        if most is None or not files:
            yield from super().documents(task, tasks)
            return
        chosen = spread_over(files, most)
        mine = (
            item for i, file in enumerate(chosen) if i % tasks == task
            for item in self._sample(file, most * (i + 1) // len(chosen) - most * i // len(chosen))
        )  # fmt: skip
        yield from limited(mine, most, self.limits.share(task, tasks)[1])

    def _sample(self, file: InputFile, most: int) -> Iterator[Item]:
        """At most so many documents at even distances over the whole file, in one pass whatever its length: every
        `step`-th record, and whenever twice too many are held, every other one of them and twice the step."""
        held: list[tuple[int, Item]] = []
        step = 1
        for number, item in self._of_file(file, lambda number: number % step == 0, True):  # noqa: B023 - the step of then
            if isinstance(item, SetAside) and (item.file or item.filter is not None):
                yield item  # of what `where` excludes there may be a thousand for one that it wants
                continue
            held.append((number, item))
            if len(held) >= 2 * most:
                step *= 2
                held = [(at, item) for at, item in held if at % step == 0]
        yield from (item for _, item in spread_over(held, most))

    def _of_file(self, file: InputFile, wanted: Callable[[int], bool], tells: bool) -> Iterator[tuple[int, Item]]:
        """(number, item) of the records of a file that are wanted by their numbers. `tells`: whether a lost file is
        told."""
        number = 0
        self.reached[file.name] = number
        try:
            if file.problem is not None:
                raise file.problem
            for raw in self.raw_records(file):
                if isinstance(raw, LostFile):
                    raise raw
                if wanted(number):
                    place = f"{file.name}:{number + 1}"
                    item = set_aside(place, raw) if isinstance(raw, Unreadable) else self.item(raw, file, place)
                    if item is not None:
                        yield number, item
                number += 1
                self.reached[file.name] = number
        except Unreadable as problem:
            if tells:
                place = f"{file.name}:{number + 1}" if number else file.name
                yield number, SetAside(place, problem.cause, problem.sample, None, file.size_bytes, file.name, number)


def find_inputs(
    path: str, what: str, wanted: Callable[[str], bool], *, links_inside: bool = False, noun: str = "such file"
) -> Inputs:
    """A file, the files that a glob matches, or those with a `wanted` name below a folder; links may lead anywhere, as
    the user named them. A glob that ends in `*` and matches wanted names passes over the others, as the folder would.
    `links_inside`: links are followed only inside the folder, or the folder that the matches of a glob share. Raises
    `UserError` where nothing is found; `noun` says then what a folder lacks."""
    given = Path(path).expanduser()
    skipped: dict[str, tuple[int, int]] = {}
    if given.is_dir():
        base, inside = given, given if links_inside else None
        files = []
        for found, problem in _walk(given, inside):
            name = found.relative_to(given).as_posix()
            hidden = any(part.startswith(".") for part in name.split("/"))
            if problem is not None and not hidden:
                files.append(InputFile(found, mend_surrogates(name), problem))
            elif hidden or not wanted(found.name):
                _count(skipped, found, HIDDEN if hidden else "")
            else:
                files.append(InputFile(found, mend_surrogates(name), _problem(found, inside)))
    else:
        found = dict(_glob(given, links_inside))
        paths = [p for p, problem in found.items() if problem or not p.is_dir()]
        # A glob that names an ending means just that; one that ends in `*` means the files that the folder would give.
        if not re.search(r"\.[^*?\]]+$", given.name) and any(wanted(p.name) for p in paths):
            for p in paths:
                if not found[p] and not wanted(p.name):
                    _count(skipped, p)
            paths = [p for p in paths if found[p] or wanted(p.name)]
        base = Path(os.path.commonpath([p.parent for p in paths])) if paths else given
        inside = _fixed(given) if "**" in given.parts else base
        inside = inside if links_inside and glob.has_magic(path) else None
        files = [
            InputFile(p, mend_surrogates(p.relative_to(base).as_posix()), found[p] or _problem(p, inside))
            for p in paths
        ]
    if not files:
        beside = f" (it holds {skipped_words({e: n for e, (n, _) in skipped.items()})} files)" if skipped else ""
        if path.startswith(("http://", "https://")):
            raise missing(f"{path} is an address on the web", "a file or folder here: download it first", "path")
        looked = "" if given.is_absolute() else f" in {Path.cwd()}"
        found_none = f"{path} holds no {noun}" if given.is_dir() else f"nothing matches {path}{looked}"
        raise missing(f"{found_none}{beside}", f"{what} or a glob", "path")
    return Inputs(sorted(files, key=lambda f: f.name.split("/")), dict(sorted(skipped.items())))


def _walk(folder: Path, inside: Path | None) -> Iterator[tuple[Path, Unreadable | None]]:
    """All files below a folder, with what is wrong with a folder or a link to one in its place. Real folders come
    before links to them, and each is entered once."""
    folders, links, seen = [folder], [], set()
    while folders or links:
        here = folders.pop() if folders else links.pop(0)
        try:
            about = here.stat()
            entries = sorted(os.scandir(here), key=lambda e: e.name)
        except OSError as error:
            yield here, Unreadable("cannot_open", str(error.strerror))
            continue
        if (about.st_dev, about.st_ino) in seen:
            continue
        seen.add((about.st_dev, about.st_ino))
        for entry in entries:
            path = here / entry.name
            if not os.path.isdir(path):
                yield path, None
            elif not entry.is_symlink():
                folders.append(path)
            elif (problem := _problem(path, inside)) is not None:
                yield path, problem
            else:
                links.append(path)


def _fixed(pattern: Path) -> Path:
    """The folder before the first part with a `*`."""
    return Path(*itertools.takewhile(lambda part: not glob.has_magic(part), pattern.parts))


def _glob(pattern: Path, links_inside: bool) -> Iterator[tuple[Path, Unreadable | None]]:
    """What a pattern matches. Python's own `**` follows links in circles, so those are walked here, with what is wrong
    with a folder in its place, as where the folder itself is given."""
    if "**" not in pattern.parts:
        yield from ((Path(path), None) for path in glob.glob(str(pattern)))
        return
    base = _fixed(pattern)
    wanted = pattern.parts[len(base.parts) :]
    for path, problem in _walk(base, base if links_inside else None):
        parts = path.relative_to(base).parts
        entered = wanted[0] == "**" and not any(part.startswith(".") for part in parts)
        if _matches(parts, wanted) if problem is None else entered:
            yield path, problem


def _matches(parts: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether a path matches a glob, part by part; nothing but a dot matches a dot at the beginning."""
    if not parts or not wanted:
        return not parts and not wanted
    hidden = parts[0].startswith(".") and not wanted[0].startswith(".")
    if wanted[0] != "**":
        return not hidden and fnmatchcase(parts[0], wanted[0]) and _matches(parts[1:], wanted[1:])
    rest = wanted[1:] or (["*"] if len(parts) == 1 else [])  # a `**` at the end stands for one part at least
    return _matches(parts, rest) or (not hidden and _matches(parts[1:], wanted))


def _count(skipped: dict[str, tuple[int, int]], path: Path, key: str = "") -> None:
    ending = key or mend_surrogates("".join(split_ending(path.name))) or NO_ENDING
    files, n_bytes = skipped.get(ending, (0, 0))
    skipped[ending] = files + 1, n_bytes + size_bytes(path)


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
