"""The store behind HORNBOOK_REMOTE: what the stages call of `download` and `upload`."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.config import Config
from pipeline.remote import download, upload
from pipeline.remote.place import Place, place
from pipeline.storage.steps import Step
from pipeline.storage.store import HERE, Store


def connect() -> Store:
    """The store of this process: HORNBOOK_REMOTE where that is set."""
    found = place()
    return HERE if found is None else RemoteStore(found)


class RemoteStore(Store):
    """One place. Nothing of it waits but `copied`, at its end."""

    def __init__(self, place: Place):
        self.name = place.name

    def fetch(self, step: Step) -> bool:
        return download.fetch(step)

    def push(self, folder: Path) -> None:
        upload.push(folder)

    def follow(self, *paths: Path) -> None:
        upload.follow(*paths)

    def fetch_trained(self, step: Step, before_decay: bool) -> None:
        download.fetch_trained(step, before_decay)

    def fetch_trunk(self, folder: Path) -> None:
        download.fetch_trunk(folder)

    def fetch_run(self, step: Step, config: Config) -> None:
        download.fetch_run(step, config)

    def copy_finished(self, step: Step, config: Config) -> None:
        download.copy_finished(step, config)

    def limit_seconds(self, cap_seconds: float | None) -> float:
        return upload.limit_seconds(cap_seconds)

    @contextlib.contextmanager
    def copied(self, limit_seconds: Callable[[], float], before: Callable[[], None] = lambda: None) -> Iterator[None]:
        with upload.pushed(limit_seconds, before):
            yield
