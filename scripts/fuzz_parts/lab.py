"""How a case calls hornbook and what it must find: one message, an exit code, nothing lost beside the damage.

A case is a function of a `random.Random` and an empty folder. It writes files, calls what a command calls through
`run` or a whole command through `command`, and raises `Wrong` where a rule is broken. Both go through the command's own
handler of exceptions (`pipeline.__main__.run_guarded`), so that what would be a traceback on a terminal is one here.
"""

import argparse
import contextlib
import os
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import __main__ as hornbook

MOST_MESSAGE_CHARACTERS = 2_000
_MESSAGE = re.compile(r"^hornbook(?: \w+)?: ", re.MULTILINE)
_FRAME = re.compile(r'File "[^"]*?/((?:pipeline|model|data_filters)/[^"]+)", line (\d+), in (\S+)')


class Wrong(Exception):
    """A rule is broken. `what`: short, the same for the same fault; `detail`: what was seen."""

    def __init__(self, what: str, detail: str = ""):
        super().__init__(what)
        self.what, self.detail = what, detail


@dataclass(frozen=True)
class Outcome:
    """How a call ended: its exit code, what it returned (None where it ended in a message), all that it printed."""

    code: int
    value: Any
    said: str

    def must_succeed(self, what: str) -> Any:
        """The value. Raises `Wrong` where input that must be counted stopped the call."""
        if self.code != 0:
            raise Wrong(f"stopped: {what}", self.said[-1500:])
        return self.value


def run(action: Callable[[], Any], codes: Sequence[int] = (0, 1, 2)) -> Outcome:
    """`action()` as if a verb of the command did it."""
    made: list[Any] = []
    arguments = argparse.Namespace(verb="fuzz")
    code, said = _said(lambda: hornbook.run_guarded(arguments, lambda _: made.append(action())))
    return _judged(code, said, codes, made[0] if made else None)


def command(*words: str, codes: Sequence[int] = (0, 1, 2)) -> Outcome:
    """`hornbook` with these words, in this process, or within `as_processes` in one of its own."""
    here = _said(lambda: hornbook.run_guarded(hornbook.parse(words))) if not _apart else _process(words)
    return _judged(*here, codes)


_apart: list[bool] = []


@contextlib.contextmanager
def as_processes() -> Iterator[None]:
    _apart.append(True)
    try:
        yield
    finally:
        _apart.pop()


def _process(words: Sequence[str]) -> tuple[int, str]:
    done = subprocess.run([sys.executable, "-P", "-m", "pipeline", *words], capture_output=True, check=False)
    return done.returncode, (done.stdout + done.stderr).decode("utf-8", "replace")


def _judged(code: int, said: str, codes: Sequence[int], value: Any = None) -> Outcome:
    if "Traceback (most recent call last)" in said:
        raise Wrong(f"traceback: {_place(said)}", said[-3000:])
    if "panicked at" in said:
        raise Wrong("a library panicked", said[-3000:])
    if code not in codes:
        raise Wrong(f"exit code {code}", said[-1500:])
    messages = len(_MESSAGE.findall(said))
    if code != 0 and messages != 1:
        raise Wrong(f"exit code {code} with {messages} messages", said[-1500:])
    if code != 0:
        message = said[_MESSAGE.search(said).start() :]  # type: ignore[union-attr]
        if len(message) > MOST_MESSAGE_CHARACTERS:
            raise Wrong(f"a message of over {MOST_MESSAGE_CHARACTERS:,} characters", message[:1500])
    return Outcome(code, value, said)


def _place(said: str) -> str:
    """Type of the error, and the last line of ours that it came through."""
    frames = _FRAME.findall(said)
    kind = said.strip().rsplit("\n", 1)[-1].partition(":")[0][:60]
    return f"{kind} at {frames[-1][0]}:{frames[-1][1]} {frames[-1][2]}" if frames else kind


def _said(call: Callable[[], int]) -> tuple[int, str]:
    """(exit code, all that was written to both outputs, by child processes and libraries in C too)."""
    with _captured() as read:
        try:
            code = call()
        except SystemExit as stop:  # of argparse
            code = stop.code if isinstance(stop.code, int) else 1
        except BaseException:  # what the command itself does not catch ends it with a traceback
            hornbook.traceback.print_exc()
            code = 1
    return code, read()


@contextlib.contextmanager
def _captured() -> Iterator[Callable[[], str]]:
    sys.stdout.flush()
    sys.stderr.flush()
    file, before = os.memfd_create("said"), (os.dup(1), os.dup(2))
    os.dup2(file, 1)
    os.dup2(file, 2)
    text: list[str] = []
    try:
        with (
            open(1, "w", errors="replace", closefd=False) as out,
            open(2, "w", buffering=1, errors="replace", closefd=False) as err,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            yield lambda: text[0]
    finally:
        for number, kept in enumerate(before, 1):
            os.dup2(kept, number)
            os.close(kept)
        with os.fdopen(file, "rb") as said:
            said.seek(0)
            text.append(said.read().decode("utf-8", "replace"))


# What cases share


def survive(good: Iterable[str], found: Iterable[str], what: str) -> None:
    """Every good text is there as often as it was written. Raises `Wrong`."""
    lost = Counter(good) - Counter(found)
    if lost:
        raise Wrong(f"lost: {what}", f"{lost.total()} lost, such as {next(iter(lost))[:300]!r}")


def equal(found: Any, expected: Any, what: str) -> None:
    if found != expected:
        raise Wrong(what, f"found {found!r:.600}, expected {expected!r:.600}")


_SUBJECTS = ("river", "stone", "garden", "window", "paper", "morning", "market", "forest", "bridge", "engine")
_VERBS = ("shows", "explains", "builds", "moves", "counts", "carries", "finds", "keeps", "turns", "holds")


def texts(draw: random.Random, n: int, sentences: int = 4) -> list[str]:
    """English-like texts, each different from all others."""
    return [
        " ".join(
            f"The {draw.choice(_SUBJECTS)} {draw.choice(_VERBS)} that the {draw.choice(_SUBJECTS)} of number "
            f"{draw.randrange(10**9)} is with the {draw.choice(_SUBJECTS)} and more than it was."
            for _ in range(sentences)
        )
        for _ in range(n)
    ]


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path
