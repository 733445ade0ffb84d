"""Copies to `HORNBOOK_REMOTE`, made by one background thread that training never waits for.

In: finished folders, one pretraining under way, small files that grow (ledgers, configs). Out: the same at the remote.
The thread looks at the disk; no training step calls it. It keeps no queue: each pass lists again what is missing, the
newest checkpoint before anything else, so a slow remote skips checkpoints and never falls behind. A failure is printed
once and retried after longer and longer pauses; a line says when the remote works again.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.remote.place import OWNER, Place, Unreachable, indexes_of, manifest_of, owner, path_of, say, sign
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
from pipeline.storage.steps import MANIFEST, read_manifest
from pipeline.system.errors import Failure
from pipeline.training.decisions import Decisions
from pipeline.training.tracking import WANDB_ID_FILE

RECORDS = (DECISIONS, METRICS, WANDB_ID_FILE)  # of a pretraining

LOOK_SECONDS = 2.0  # between two looks at the disk
BEAT_SECONDS = 15.0  # between two signatures, and two copies of the ledgers
PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 2.0, 300.0  # after the first failure, after many
NICENESS = 5  # higher, and the thread could hold Python's lock while others keep it from running


class TakenOver(Failure):
    """Another machine signed for this run: nothing from here may overwrite what it makes."""


class Uploader:
    """One thread for one place. `failing`: whether its last pass failed. `taken_over`: whether it stopped because
    another machine owns the run."""

    def __init__(self, place: Place):
        self.place = place
        self.failing = self.taken_over = False
        self._owned: Path | None = None  # the pretraining whose signature is kept fresh
        self._next: tuple[Path, int, Callable[[], None]] | None = None  # what `copy_run` asked for
        self._run: Path | None = None  # the pretraining whose checkpoints are copied
        self._keep = 1
        self._folders: dict[Path, None] = {}  # finished ones that wait, in order
        self._small: dict[Path, tuple[int, int] | None] = {}  # files that are copied when they change: size and time
        self._sent: set[tuple[Path, str]] = set()  # files of folders, with their hash
        self._indexes: dict[int, dict[str, Any]] | None = None  # of checkpoints at the remote; None: not read yet
        self._beat_at = float("-inf")
        self._ending = False
        self._wake = threading.Event()
        with contextlib.suppress(Unreachable):  # before any thread: a fork must not meet a half-done import
            place.open()
        self._thread = threading.Thread(target=self._work, name="remote", daemon=True)
        self._thread.start()

    def push(self, folder: Path) -> None:
        """Copies a finished folder."""
        self._folders[folder] = None
        self._wake.set()

    def follow(self, *paths: Path) -> None:
        """Copies small files whenever they have changed."""
        for path in paths:
            self._small.setdefault(path, None)

    def own(self, run: Path) -> None:
        """Keeps the signature of a pretraining fresh, which `claim` wrote."""
        self._owned = run
        self._wake.set()

    def copy_run(self, run: Path, keep: int, check: Callable[[], None] = lambda: None) -> None:
        """Copies the checkpoints and records of a pretraining, whose state here is the one to continue from. `keep`:
        how many checkpoints. `check`: raises `TakenOver` where it is not; called as soon as the remote answers, before
        anything is copied."""
        self._next = (run, keep, check)
        self._wake.set()

    def finish(self, limit_seconds: float) -> bool:
        """Copies what is left, for `limit_seconds` at most; whether all of it is there."""
        self._ending = True
        self._wake.set()
        self._thread.join(max(0.0, limit_seconds))
        return not (self.working or self.failing or self.taken_over)

    @property
    def working(self) -> bool:
        return self._thread.is_alive()

    def _work(self) -> None:
        if sys.platform == "linux":
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        pause = PAUSE_SECONDS
        while True:
            ending, wait = self._ending, LOOK_SECONDS
            try:
                self._pass(ending)
                if self.failing:
                    say(f"{self.place.name} works again")
                self.failing, pause = False, PAUSE_SECONDS
            except TakenOver as error:
                say(f"WARNING: {error}; nothing more is copied from here to {self.place.name}")
                self.taken_over = True
                return
            except Exception as error:  # whatever it is, training must not feel it
                if not self.failing:
                    say(f"{self.place.name} fails ({error}); everything is on this disk, and it is tried again")
                self.failing, wait, pause = True, pause, min(2 * pause, LONGEST_PAUSE_SECONDS)
            if ending:
                return
            self._wake.wait(wait)
            self._wake.clear()

    def _pass(self, ending: bool) -> None:
        """Everything that is missing, the most useful first."""
        self._beat()
        if self._run in self._folders:
            self._copy_folder(self._run)  # finished: the model before its last checkpoint
        self._copy_checkpoints()
        for folder in list(self._folders):
            self._copy_folder(folder)
        if ending:
            self._copy_small()
            if self._owned is not None and owner(self.place, path_of(self._owned)) is None:
                self.place.remove(f"{path_of(self._owned)}/{OWNER}")

    def _beat(self) -> None:
        """Between any two pieces of work, when they are due: the signature, then the ledgers and records."""
        is_due = time.monotonic() - self._beat_at >= BEAT_SECONDS
        if self._next is not None:
            run, self._keep, check = self._next
            check()
            self._run = self._owned = run
            self.follow(run / LEDGER, *(run / name for name in RECORDS))
            self._next, is_due = None, True
        if is_due and self._owned is not None:
            run = path_of(self._owned)
            if (other := owner(self.place, run)) is not None:
                raise TakenOver(f"process {other.get('pid')} on {other.get('host')} has taken this run over")
            sign(self.place, run)
        if is_due or any(state is None and path.is_file() for path, state in list(self._small.items())):
            self._copy_small()
        if is_due:
            self._beat_at = time.monotonic()

    def _copy_small(self) -> None:
        for path in list(self._small):
            with contextlib.suppress(FileNotFoundError):
                stat = path.stat()
                if (state := (stat.st_size, stat.st_mtime_ns)) != self._small[path]:
                    if self._small[path] is None and path.name == LEDGER:
                        merge(path, self.place.read(path_of(path)) or b"")  # hours of other machines stay
                    content = path.read_bytes()  # another thread appends to it: up to its last whole line
                    self.place.write(path_of(path), content[: content.rfind(b"\n") + 1])
                    self._small[path] = state

    def _copy_folder(self, folder: Path) -> None:
        """File by file, the manifest last; not what is there already."""
        there, manifest = path_of(folder), None
        with contextlib.suppress(OSError, ValueError):  # removed meanwhile
            manifest = read_manifest(folder)
        found = manifest_of(self.place, there)
        if manifest is not None and (found is None or found["outputs"] != manifest["outputs"]):
            if found is not None:
                self.place.remove(f"{there}/{MANIFEST}")
            for path, output in manifest["outputs"].items():
                if (folder / path, output["sha256"]) in self._sent or not (folder / path).is_file():
                    continue
                with open(folder / path, "rb") as file:
                    self.place.send(file, f"{there}/{path}", self._beat)
                self._sent.add((folder / path, output["sha256"]))
                if folder != self._run:
                    self._copy_checkpoints()  # a new one does not wait for a large folder
            self._copy_small()
            self.place.write(f"{there}/{MANIFEST}", (folder / MANIFEST).read_bytes())
        self._folders.pop(folder, None)

    def _copy_checkpoints(self) -> None:
        """The newest that is not there, then those that the record wants kept; older ones there are removed."""
        run = self._run
        if run is None or not (run / CHECKPOINTS).is_dir():
            return
        if self._indexes is None:
            self._indexes = indexes_of(self.place, path_of(run))
        decisions = Decisions(run / DECISIONS, read_only=True)
        names = [checkpoint_step(path.name) for path in (run / CHECKPOINTS).iterdir()]
        steps = sorted((step for step in names if step is not None), reverse=True)
        wanted = [step for step in steps if step in decisions.kept(steps, 1)]
        if not any([self._copy_checkpoint(run, step, self._indexes) for step in wanted]):
            return
        counting = {step for step, index in self._indexes.items() if decisions.counts(step, index["branch"])}
        kept = decisions.kept(sorted(counting, reverse=True), self._keep) | set(steps[:1])
        for name in self.place.names(f"{path_of(run)}/{CHECKPOINTS}"):
            step = checkpoint_step(name)
            if step is not None and step not in kept:
                self._indexes.pop(step, None)
                there = f"{path_of(run)}/{CHECKPOINTS}/{name}"
                self.place.remove(f"{there}/{INDEX}")  # first: half of it must vouch for nothing
                self.place.remove(there)

    def _copy_checkpoint(self, run: Path, step: int, indexes: dict[int, dict[str, Any]]) -> bool:
        """Its files, then the records that it needs, then its index; whether it was not there. Its files are opened
        first: open files outlive their removal here."""
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
            if indexes.pop(step, None) is not None:
                self.place.remove(f"{there}/{INDEX}")
            for name, file in files.items():
                self.place.send(file, f"{there}/{name}", self._beat)
            self._copy_small()
            self.place.write(f"{there}/{INDEX}", content)
            indexes[step] = index
        return True
