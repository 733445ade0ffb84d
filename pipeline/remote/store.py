"""The store behind `HORNBOOK_REMOTE`: what a command hands to its stages.

In: the environment. Out: a `Store` that takes what is there (`download`), copies in the background (`upload`), and
waits for the copies only at the end of a stage, within a limit.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from pipeline.config import BudgetConfig, Config
from pipeline.remote import download
from pipeline.remote.download import NOTHING, Reached, reached_here, run_there
from pipeline.remote.place import REMOTE, Place, Unreachable, claim, indexes_of, manifest_of, path_of, place, say
from pipeline.remote.upload import TakenOver, Uploader
from pipeline.storage.ledger import LEDGER, merge
from pipeline.storage.locks import FolderLock
from pipeline.storage.run_files import CHECKPOINTS, DECISIONS, checkpoint_name
from pipeline.storage.steps import Step
from pipeline.storage.store import HERE, Store
from pipeline.system.disk import DiskFull
from pipeline.system.errors import Busy, UserError
from pipeline.training.decisions import Decisions, raised_decay

PAUSES_SECONDS = (1.0, 3.0)  # between tries to reach a remote that a bare machine depends on
FINISH_SECONDS = 600.0  # at the end of a stage without a cap
CAP_SECONDS, CAP_SHARE, CAP_LEAST_SECONDS = 30.0, 0.02, 1.5  # under one: a share of it, within bounds
STOP_SECONDS = 3.0  # after a signal, or an error


def connect() -> Store:
    """The store of this process: HORNBOOK_REMOTE where that is set."""
    found = place()
    return HERE if found is None else RemoteStore(found)


class RemoteStore(Store):
    """One place, and the thread that copies to it, from the first copy to the end of the stage."""

    def __init__(self, place: Place):
        self.place, self.name = place, place.name
        self._uploader: Uploader | None = None
        self._unread = False  # whether the last try to fetch a folder failed

    @property
    def uploader(self) -> Uploader:
        if self._uploader is None:
            self._uploader = Uploader(self.place)
        return self._uploader

    def fetch(self, step: Step) -> bool:
        if step.finished:
            return True
        try:
            manifest = manifest_of(self.place, path_of(step.path))
            self._unread = False
            if manifest is None:
                return False
            step.path.mkdir(parents=True, exist_ok=True)
            with FolderLock(step.path, wait=True):
                return step.finished or download.fetch_outputs(self.place, step, manifest)
        except Unreachable as error:
            if not self._unread:  # once, not at each step
                say(f"{self.name} cannot be read ({error}): continuing with what is here")
            self._unread = True
            return False

    def fetch_file(self, path: Path) -> None:
        part = path.with_name(f".{path.name}.remote.part")
        with suppress(Unreachable):
            if not path.is_file() and self.place.fetch(path_of(path), part):
                part.replace(path)

    def push(self, folder: Path) -> None:
        self.uploader.push(folder)

    def follow(self, *paths: Path) -> None:
        self.uploader.follow(*paths)

    def fetch_trained(self, step: Step, before_decay: bool) -> None:
        if not self.fetch(step):
            return
        with suppress(Unreachable):
            if not (step.path / DECISIONS).is_file():
                download.fetch_records(self.place, step.path)
            decays = Decisions(step.path / DECISIONS, read_only=True).decays()
            if before_decay and decays and not (step.path / CHECKPOINTS / checkpoint_name(decays[0]["step"])).is_dir():
                download.fetch_checkpoints(self.place, step.path, [decays[0]["step"]])
                download.put_in_place(step.path)

    def fetch_trunk(self, folder: Path) -> None:
        if not (folder / CHECKPOINTS).is_dir():
            with suppress(Unreachable):
                steps = sorted(indexes_of(self.place, path_of(folder)), reverse=True)
                if steps:
                    download.fetch_checkpoints(self.place, folder, steps, also=steps)
                    download.fetch_records(self.place, folder)
                    download.put_in_place(folder)

    def fetch_run(self, step: Step, config: Config) -> None:
        step.path.mkdir(parents=True, exist_ok=True)
        with FolderLock(step.path, wait=False):
            here, check = reached_here(step), lambda: None
            try:
                self._claim(step, PAUSES_SECONDS if here == NOTHING else ())
                self.uploader.own(step.path)
                self._take_if_ahead(step, config.budget, here)
            except Unreachable as error:
                if here == NOTHING:
                    raise UserError(
                        f"{self.name} cannot be read ({error}), and nothing of this run is here: its state and the "
                        f"hours that it has used may be there. Make it readable, or unset {REMOTE} to start again"
                    ) from None
                say(f"{self.name} cannot be read ({error}): continuing from step {here.step:,} here")
                check = lambda: self._check_not_ahead(step, here)  # noqa: E731
        self.uploader.copy_run(step.path, config.train.keep_checkpoints, check)

    def copy_finished(self, step: Step, config: Config) -> None:
        here, uploader = reached_here(step), self.uploader

        def check() -> None:
            self._check_not_ahead(step, here)
            uploader.push(step.path)

        uploader.copy_run(step.path, config.train.keep_checkpoints, check)

    def _claim(self, step: Step, pauses: tuple[float, ...]) -> None:
        for pause in pauses:
            try:
                return claim(self.place, path_of(step.path))
            except Unreachable:
                time.sleep(pause)
        return claim(self.place, path_of(step.path))

    def _check_not_ahead(self, step: Step, here: Reached) -> None:
        """Claims a run that reached `here` on this machine."""
        try:
            claim(self.place, path_of(step.path))
        except Busy as error:
            raise TakenOver(str(error)) from None
        if (there := run_there(self.place, step).reached) > here:
            raise TakenOver(f"it is ahead (step {there.step:,}) of step {here.step:,}, from which this process started")

    def _take_if_ahead(self, step: Step, budget: BudgetConfig, here: Reached) -> None:
        merge(step.path / LEDGER, self.place.read(path_of(step.path / LEDGER)) or b"")
        there = run_there(self.place, step)
        if there.reached <= here:
            if here != NOTHING:
                say(f"what is here (step {here.step:,}) is not behind {self.name} (step {there.reached.step:,})")
            return
        say(f"{self.name} is ahead (step {there.reached.step:,}, here {here.step:,}): taking it")
        finished = there.manifest is not None and there.reached.finished
        if there.manifest is not None and finished and not download.fetch_outputs(self.place, step, there.manifest):
            finished = False  # its model is damaged; its checkpoints may still be ahead
            if Reached(there.reached.extensions, max(there.steps, default=0)) <= here:
                return
        decay, steps = raised_decay(there.decisions, budget), []
        if not finished or decay is not None:  # a raised cap continues from before the decay of the old one
            steps = [s for s in there.steps if decay is None or s <= decay["step"]]
        # Older ones that the record wants kept are of use beyond this run: for its extension, its branches.
        if not download.fetch_checkpoints(self.place, step.path, steps, also=there.decisions.kept(steps, 0)):
            say(f"no checkpoint at {self.name} is whole: continuing with what is here")
            return
        download.fetch_records(self.place, step.path)
        download.put_in_place(step.path)

    def limit_seconds(self, cap_seconds: float | None) -> float:
        if cap_seconds is None:
            return FINISH_SECONDS
        return min(CAP_SECONDS, max(CAP_LEAST_SECONDS, CAP_SHARE * cap_seconds))

    @contextlib.contextmanager
    def copied(self, limit_seconds: Callable[[], float], before: Callable[[], None] = lambda: None) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._finish(min(STOP_SECONDS, limit_seconds()), before)
            raise
        self._finish(limit_seconds(), before)

    def _finish(self, limit: float, before: Callable[[], None]) -> None:
        """Copies what is left for `limit` seconds at most, and says so where that was not enough."""
        uploader, self._uploader = self._uploader, None
        if uploader is None:
            return
        with suppress(OSError, DiskFull):  # whoever closes the ledger reports it
            before()
        if uploader.failing:
            limit = min(limit, STOP_SECONDS)
        done = uploader.finish(min(limit, STOP_SECONDS))
        if not done and uploader.working and limit > STOP_SECONDS:
            say(f"copying the rest to {self.name}, for {limit:.0f} s at most")
            done = uploader.finish(limit - STOP_SECONDS)
        if not done and not uploader.taken_over:
            say(f"{self.name} has not everything yet; the same command again copies the rest")
