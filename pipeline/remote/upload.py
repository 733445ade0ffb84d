"""Copies to `HORNBOOK_REMOTE`, made by one background thread that training never waits for.

In: finished folders, one pretraining under way, small files that grow (ledgers, configs). Out: the same at the remote.
The thread looks at the disk; nothing in a training step calls it. It keeps no queue: what is not there yet is found
anew at each pass, the newest checkpoint before anything else, so a slow remote skips checkpoints and never falls
behind. A failure is said once, tried again with longer and longer pauses, and said once more when it is over.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipeline.remote.place import OWNER, Place, Unreachable, indexes_of, manifest_of, owner, path_of, place, say, sign
from pipeline.storage.ledger import LEDGER, merge
from pipeline.storage.run_files import (
    CHECKPOINTS,
    DECISIONS,
    INDEX,
    METRICS,
    checkpoint_name,
    checkpoint_step,
    index_in,
)
from pipeline.storage.steps import MANIFEST, Step, read_manifest
from pipeline.system.disk import DiskFull
from pipeline.training.decisions import Decisions
from pipeline.training.tracking import WANDB_ID_FILE

RECORDS = (DECISIONS, METRICS, WANDB_ID_FILE)  # of a pretraining; pushed with each checkpoint, before its index

LOOK_SECONDS = 2.0  # between two looks at the disk
BEAT_SECONDS = 15.0  # between two signatures, and two copies of the ledgers
BEAT_SHARE = 0.05  # of the time at most, for copying ledgers
PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 2.0, 300.0  # after the first failure, after many
CPU_SHARE = 0.02  # of one core, for this thread while training runs
LONGEST_REST_SECONDS = 10.0  # at a time: a signature must not grow old
NICENESS = 5  # more, and the thread could hold Python's lock while others keep it from running
FINISH_SECONDS = 600.0  # at the end of a stage without a cap
CAP_SECONDS, CAP_SHARE, CAP_LEAST_SECONDS = 30.0, 0.02, 1.5  # under one: a share of it, within bounds
STOP_SECONDS = 3.0  # after a signal, or an error


class TakenOver(Exception):
    """Another machine signed for this run: whatever is here must not overwrite what it makes."""


class Pusher:
    """One thread for one `Place`. `run` is the pretraining under way, if any; `ready` once it is settled that the
    state here is the one to go on from: until then only the signature is kept fresh."""

    def __init__(self, place: Place):
        self.place = place
        self.run: Path | None = None
        self.keep, self.ready = 1, True
        self.first: Callable[[], None] | None = None  # what must hold before anything of `run` is copied
        self.small: dict[Path, tuple[int, int] | None] = {}  # files that are copied when they changed
        self.folders: dict[Path, None] = {}  # finished ones that wait, in order
        self._sent: set[tuple[Path, str]] = set()  # files of folders, with their hash
        self._indexes: dict[int, dict[str, Any]] | None = None  # of checkpoints at the remote; None: not looked yet
        self._beat_at = self._small_at = 0.0
        self._failing = self._off = self._ending = self._complete = False
        self._rested_at, self._rested_cpu = 0.0, 0.0
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._work, name="remote", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        self._wake.set()

    def finish(self, limit_seconds: float) -> bool:
        """Copies what is left, for so long at most; whether all of it is there. The thread ends, or dies with us."""
        self._ending = True
        self.wake()
        self._thread.join(max(0.0, limit_seconds))
        return self._complete and not self._thread.is_alive()

    @property
    def off(self) -> bool:
        return self._off

    @property
    def failing(self) -> bool:
        return self._failing

    @property
    def working(self) -> bool:
        return self._thread.is_alive()

    def _work(self) -> None:
        if sys.platform == "linux":
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        self._rested_at, self._rested_cpu = time.monotonic(), time.thread_time()
        pause = PAUSE_SECONDS
        while True:
            ending = self._ending
            try:
                self._pass(ending)
                if self._failing:
                    say(f"{self.place.name} works again")
                self._failing, pause, wait = False, PAUSE_SECONDS, LOOK_SECONDS
                self._complete = ending
            except TakenOver as error:
                say(f"WARNING: {error}; nothing more is copied from here to {self.place.name}")
                self._off = True
                return
            except Exception as error:  # whatever it is, training must not feel it
                if not self._failing:
                    say(f"{self.place.name} fails ({error}); everything is on this disk, and it is tried again")
                self._failing, wait, pause = True, pause, min(2 * pause, LONGEST_PAUSE_SECONDS)
            if ending:
                return
            self._rest()
            self._wake.wait(wait)
            self._wake.clear()

    def _rest(self) -> None:
        """Until what this thread has computed since it last rested is `CPU_SHARE` of the time; not at the end."""
        now, cpu = time.monotonic(), time.thread_time()
        owed = min((cpu - self._rested_cpu) / CPU_SHARE - (now - self._rested_at), LONGEST_REST_SECONDS)
        until = now + owed
        while not self._ending and (left := until - time.monotonic()) > 0:
            self._wake.wait(left)
            self._wake.clear()
        self._rested_at, self._rested_cpu = time.monotonic(), time.thread_time()

    def _pass(self, ending: bool) -> None:
        self._beat()
        if not self.ready:  # stopped before it was settled whose state goes on: nothing of it is ours to copy
            if ending:
                self._release()
            return
        if self.run is not None and self.run in self.folders:
            self._push_folder(self.run)  # finished: the model before its last checkpoint
        self._push_checkpoints()
        for folder in list(self.folders):
            self._push_folder(folder)
        if ending:
            if self.run is not None:
                self._push_records(self.run)
            self._push_small()
            self._release()

    def _release(self) -> None:
        if self.run is not None and owner(self.place, path_of(self.run)) is None:
            self.place.remove(f"{path_of(self.run)}/{OWNER}")

    def _beat(self) -> None:
        """Between any two pieces of work: a rest, the signature, then the ledgers."""
        self._rest()
        now = time.monotonic()
        if self.run is not None and now - self._beat_at >= BEAT_SECONDS:
            run = path_of(self.run)
            if self.first is not None:
                self.first()
                self.first = None
            if (other := owner(self.place, run)) is not None:
                raise TakenOver(f"process {other.get('pid')} on {other.get('host')} has taken this run over")
            sign(self.place, run)
            self._beat_at = time.monotonic()
        if self.ready and (now >= self._small_at or self._is_new()):
            self._push_small()
            took = time.monotonic() - now
            self._small_at = time.monotonic() + max(BEAT_SECONDS, took / BEAT_SHARE)

    def _is_new(self) -> bool:
        """Whether a small file is here that was never copied."""
        return any(state is None and path.is_file() for path, state in list(self.small.items()))

    def _push_small(self) -> None:
        for path in list(self.small):
            with contextlib.suppress(FileNotFoundError):
                stat = path.stat()
                if (state := (stat.st_size, stat.st_mtime_ns)) != self.small[path]:
                    if self.small[path] is None and path.name == LEDGER:
                        merge(path, self.place.read(path_of(path)) or b"")  # hours of other machines stay
                    self.place.write(path_of(path), _whole_lines(path))
                    self.small[path] = state

    def _push_records(self, run: Path) -> None:
        for name in RECORDS:
            with contextlib.suppress(FileNotFoundError):
                self.place.write(f"{path_of(run)}/{name}", _whole_lines(run / name))

    def _push_folder(self, folder: Path) -> None:
        """File by file, the manifest last; not what is there already."""
        there, manifest = path_of(folder), _manifest(folder)
        if manifest is None:  # removed meanwhile
            self.folders.pop(folder, None)
            return
        found = manifest_of(self.place, there)
        if found is None or found["outputs"] != manifest["outputs"]:
            if found is not None:
                self.place.remove(f"{there}/{MANIFEST}")
            for path, output in manifest["outputs"].items():
                if (folder / path, output["sha256"]) in self._sent or not (folder / path).is_file():
                    continue
                with open(folder / path, "rb") as file:
                    self.place.send(file, f"{there}/{path}", self._beat)
                self._sent.add((folder / path, output["sha256"]))
                if folder != self.run:
                    self._push_checkpoints()
            if folder == self.run:
                self._push_records(folder)
            self.place.write(f"{there}/{MANIFEST}", (folder / MANIFEST).read_bytes())
        self.folders.pop(folder, None)

    def _push_checkpoints(self) -> None:
        """The newest that is not there, then those that the record wants kept; older ones there are removed."""
        if self.run is None or not (self.run / CHECKPOINTS).is_dir():
            return
        there = f"{path_of(self.run)}/{CHECKPOINTS}"
        if self._indexes is None:
            self._indexes = indexes_of(self.place, path_of(self.run))
        decisions = Decisions(self.run / DECISIONS, read_only=True)
        names = [checkpoint_step(path.name) for path in (self.run / CHECKPOINTS).iterdir()]
        steps = sorted((step for step in names if step is not None), reverse=True)
        pushed = False
        for step in [s for s in steps if s in decisions.kept(steps, 1)]:
            pushed |= self._push_checkpoint(self.run, step, self._indexes)
        if not pushed:
            return
        counting = {step for step, index in self._indexes.items() if decisions.counts(step, index["branch"])}
        kept = decisions.kept(sorted(counting, reverse=True), self.keep)
        for name in self.place.names(there):
            step = checkpoint_step(name)
            if step is not None and step not in kept | set(steps[:1]):
                self._indexes.pop(step, None)
                self.place.remove(f"{there}/{name}/{INDEX}")  # first: half of it must vouch for nothing
                self.place.remove(f"{there}/{name}")

    def _push_checkpoint(self, run: Path, step: int, indexes: dict[int, dict[str, Any]]) -> bool:
        """Its files, then the records that it needs, then its index. Open files outlive their removal here."""
        folder = run / CHECKPOINTS / checkpoint_name(step)
        there = path_of(folder)
        with contextlib.ExitStack() as stack:
            try:
                content = (folder / INDEX).read_bytes()
                index = index_in(content)
                if index is None or indexes.get(step, {}).get("sha256") == index["sha256"]:
                    return False
                files = {name: stack.enter_context(open(folder / name, "rb")) for name in index["files"]}
            except FileNotFoundError:  # pruned meanwhile
                return False
            if step in indexes:
                indexes.pop(step)
                self.place.remove(f"{there}/{INDEX}")
            for name, file in files.items():
                self.place.send(file, f"{there}/{name}", self._beat)
            self._push_records(run)
            self._push_small()
            self.place.write(f"{there}/{INDEX}", content)
            indexes[step] = index
        return True


def _manifest(folder: Path) -> dict[str, Any] | None:
    with contextlib.suppress(OSError, ValueError):
        return read_manifest(folder)
    return None


def _whole_lines(path: Path) -> bytes:
    """A file that another thread appends to, up to its last whole line."""
    content = path.read_bytes()
    return content[: content.rfind(b"\n") + 1]


# ---- what the stages call; nothing of it waits but `finish`

_pusher: Pusher | None = None


def _get() -> Pusher | None:
    global _pusher
    where = place()
    if where is not None and _pusher is None:
        with contextlib.suppress(Unreachable):  # before any thread: a fork must not meet an import half done
            where.open()
        _pusher = Pusher(where)
    return _pusher


def push(folder: Path) -> None:
    """Copies a finished folder in the background."""
    if (pusher := _get()) is not None:
        pusher.folders[folder] = None
        pusher.wake()


def follow(*paths: Path) -> None:
    """Copies small files whenever they have changed."""
    if (pusher := _get()) is not None:
        for path in paths:
            pusher.small.setdefault(path, None)


def start(step: Step, keep: int, first: Callable[[], None] | None = None) -> None:
    """From here on a pretraining is ours: its signature is kept fresh. `first`: raises `TakenOver` where nothing of it
    may be copied; called once, as soon as the remote answers."""
    if (pusher := _get()) is not None:
        pusher.ready, pusher.run, pusher.keep, pusher.first = False, step.path, keep, first
        pusher.small.setdefault(step.path / LEDGER, None)
        pusher.wake()


def go_on() -> None:
    """The state here is the one to go on from: its checkpoints are copied."""
    if _pusher is not None:
        _pusher.ready = True
        _pusher.wake()


def limit_seconds(cap_seconds: float | None) -> float:
    """How long the end of a stage may wait for the remote under a cap; 0 where there is none."""
    if place() is None:
        return 0.0
    if cap_seconds is None:
        return FINISH_SECONDS
    return min(CAP_SECONDS, max(CAP_LEAST_SECONDS, CAP_SHARE * cap_seconds))


@contextlib.contextmanager
def pushed(limit: Callable[[], float], before: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Around a stage: `finish` at its end, however it ends."""
    try:
        yield
    except BaseException:
        finish(min(STOP_SECONDS, limit()), before)
        raise
    finish(limit(), before)


def finish(limit: float, before: Callable[[], None] = lambda: None) -> None:
    """The end of a stage: copies what is left for `limit` seconds at most, and says so where that was not enough."""
    global _pusher
    pusher, _pusher = _pusher, None
    if pusher is None:
        return
    with contextlib.suppress(OSError, DiskFull):  # whoever closes the ledger says it
        before()
    if pusher.failing:
        limit = min(limit, STOP_SECONDS)
    done = pusher.finish(min(limit, STOP_SECONDS))
    if not done and pusher.working and limit > STOP_SECONDS:
        say(f"copying the rest to {pusher.place.name}, for {limit:.0f} s at most")
        done = pusher.finish(limit - STOP_SECONDS)
    if not done and not pusher.off:
        say(f"{pusher.place.name} has not everything yet; the same command again copies the rest")
