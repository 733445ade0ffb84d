"""How a case calls hornbook, what it must find, and the processes that cases run in.

A case is a function of a `random.Random` and an empty folder. It writes files, calls what a command calls through
`run` or a whole command through `command`, and raises `Wrong` where a rule is broken. Both go through the command's own
handler of exceptions (`pipeline.__main__.run_guarded`), so that what would be a traceback on a terminal is one here.
`Workers` runs cases in processes that outlive them: a case that hangs, eats memory or kills its process is a fault of
its own. The process that starts them has imported everything and computes nothing, so a new one is forked in
milliseconds.
"""

import argparse
import contextlib
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from pipeline import __main__ as hornbook
from pipeline.system.processes import end_with_parent

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


MOST_SECONDS, MOST_BYTES = 20.0, 2 << 30
TOO_LONG, TOO_LARGE = "over its time", "over 2 GB of memory"
WHERE = "where.txt"  # in a case's folder: what it hung in
_ASK = signal.SIGUSR2  # a worker answers with its stack
_CLOCK_FACTOR = 3  # a case that waits uses no processor; one on a busy machine waits for its turns
_LOOK_EVERY_SECONDS = 0.1
_PAGE_BYTES = resource.getpagesize()
Case = Callable[[random.Random, Path], None]


@dataclass(frozen=True)
class Job:
    """One case: its kind and its seed say everything about it."""

    kind: str
    seed: int

    @property
    def command(self) -> str:
        return f"scripts/fuzz.py --kind {self.kind} --seed {self.seed} --cases 1"


@dataclass(frozen=True)
class Result:
    """`what` is None where no rule was broken. `peak_bytes`: resident memory of the largest of its processes."""

    job: Job
    seconds: float
    peak_bytes: int
    what: str | None = None
    detail: str = ""
    kept: str = ""


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    job: Job | None = None
    started: float = 0.0
    peak_bytes: int = 0
    used_before: float | None = None  # seconds of processor time, when the case had just begun


class Workers:
    """`with Workers(cases, n, scratch, kept) as workers: for result in workers.run(jobs)`. `kept`: where the files of a
    case with a fault stay."""

    def __init__(
        self, cases: Mapping[str, Case], n: int, scratch: Path, kept: Path, most_seconds: float = MOST_SECONDS
    ):
        self.cases, self.n, self.scratch, self.kept, self.most_seconds = cases, n, scratch, kept, most_seconds

    def __enter__(self) -> "Workers":
        self._workers = [self._start() for _ in range(self.n)]
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            self._end(worker)

    def run(self, jobs: Iterable[Job]) -> Iterator[Result]:
        """Results as they come. A case over its time is tried once more, as a busy machine may have been the reason."""
        waiting, again, tried = iter(jobs), [], set()
        while True:
            for worker in self._workers:
                if worker.job is None and (job := again.pop() if again else next(waiting, None)) is not None:
                    worker.job, worker.started, worker.peak_bytes, worker.used_before = job, time.monotonic(), 0, None
                    worker.pipe.send(job)
            busy = [worker for worker in self._workers if worker.job is not None]
            if not busy:
                return
            wait([worker.pipe for worker in busy], _LOOK_EVERY_SECONDS)
            for worker in busy:
                result = self._look(worker)
                if result is not None and result.what == TOO_LONG and result.job not in tried:
                    tried.add(result.job)
                    again.append(result.job)
                elif result is not None:
                    yield result

    def _look(self, worker: _Worker) -> Result | None:
        assert worker.job is not None
        seconds = time.monotonic() - worker.started
        if worker.pipe.poll():
            try:
                result: Result = worker.pipe.recv()
            except EOFError:
                worker.process.join()
                code = worker.process.exitcode
                how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
                return self._given_up(worker, seconds, f"the process died: {how}")
            worker.job = None
            return result
        if seconds <= _LOOK_EVERY_SECONDS:  # most cases are over before; a worker knows its own peak
            return None
        largest, used_seconds = _usage(worker.process.pid)
        worker.peak_bytes = max(worker.peak_bytes, largest)
        worker.used_before = used_seconds if worker.used_before is None else worker.used_before
        if worker.peak_bytes > MOST_BYTES:
            return self._given_up(worker, seconds, TOO_LARGE)
        took_long = used_seconds - worker.used_before > self.most_seconds
        if took_long or seconds > _CLOCK_FACTOR * self.most_seconds:
            return self._given_up(worker, seconds, TOO_LONG)
        return None

    def _given_up(self, worker: _Worker, seconds: float, what: str) -> Result:
        job, place = worker.job, self._workers.index(worker)
        assert job is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker.process.pid, _ASK)
            time.sleep(_LOOK_EVERY_SECONDS)
        self._end(worker)
        self._workers[place] = self._start()
        folder = self.scratch / f"{job.kind}-{job.seed}"
        where = (folder / WHERE).read_text() if (folder / WHERE).is_file() else ""
        return Result(job, seconds, worker.peak_bytes, what, where, _keep(folder, self.kept))

    def _start(self) -> _Worker:
        ours, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("fork")
        process = context.Process(target=_work, args=(theirs, self, os.getpid()))
        process.start()
        theirs.close()
        return _Worker(process, ours)

    def _end(self, worker: _Worker) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(worker.process.pid, signal.SIGKILL)
        worker.process.join()
        worker.pipe.close()


def _work(pipe: Connection, workers: Workers, parent: int) -> None:
    import faulthandler

    os.setsid()
    end_with_parent(signal.SIGKILL, parent)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * _PAGE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (mapped + 3 * MOST_BYTES, resource.RLIM_INFINITY))  # the machine is shared
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while True:
        try:
            job: Job = pipe.recv()
        except EOFError:
            return
        folder = workers.scratch / f"{job.kind}-{job.seed}"
        folder.mkdir(parents=True)
        with open(folder / WHERE, "w") as where:
            faulthandler.register(_ASK, file=where)
            result = _case(job, workers.cases[job.kind], folder, workers.kept)
            faulthandler.unregister(_ASK)
        shutil.rmtree(folder, ignore_errors=True)
        pipe.send(result)


def _case(job: Job, case: Case, folder: Path, kept: Path) -> Result:
    """Runs in a worker. A rule of the case itself that fails in another way is a fault too: of the fuzzer."""
    _forget_peak()
    started, what, detail = time.monotonic(), None, ""
    os.chdir(folder)
    os.environ["HORNBOOK_ROOT"] = str(folder / "root")
    try:
        case(random.Random(f"{job.kind}/{job.seed}"), folder)
    except Wrong as wrong:
        what, detail = wrong.what, wrong.detail
    except Exception as error:
        import traceback

        what, detail = f"the fuzzer: {type(error).__name__}", traceback.format_exc()[-3000:]
    finally:
        os.chdir(folder.parent)
    seconds, peak = time.monotonic() - started, _peak()
    if what is None and peak > MOST_BYTES:
        what = TOO_LARGE
    return Result(job, seconds, peak, what, detail, _keep(folder, kept) if what else "")


def _keep(folder: Path, kept: Path) -> str:
    target = kept / folder.name
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder, target, symlinks=True, ignore_dangling_symlinks=True)
    shutil.rmtree(folder, ignore_errors=True)
    return str(target)


def _forget_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again (Linux)


def _peak() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def _usage(leader: int) -> tuple[int, float]:
    """Of the session of `leader`: resident bytes of its largest process, processor seconds of all."""
    largest, ticks = 0, 0
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                fields = (path / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == leader:
                    largest = max(largest, int(fields[21]) * _PAGE_BYTES)
                    ticks += sum(map(int, fields[11:15]))  # own and of children that ended
    return largest, ticks / os.sysconf("SC_CLK_TCK")
