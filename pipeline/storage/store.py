"""What the command hands to a stage: where finished folders may come from and go to, and how to write its page.

`Store` is the machine alone: nothing is fetched, nothing is copied. `pipeline.remote` has the one for HORNBOOK_REMOTE,
so that no stage and no part of storage or training knows of it.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.storage.steps import Step


class Store:
    """This disk only."""

    name: str | None = None  # of the place where copies lie, as messages may show it

    def fetch(self, step: Step) -> bool:
        """Takes a finished folder from the store where there is none here; whether there is one here now. Pushes
        nothing."""
        return step.finished

    def push(self, folder: Path) -> None:
        """Copies a finished folder in the background."""

    def follow(self, *paths: Path) -> None:
        """Copies small files, in the background, whenever they have changed."""

    def fetch_trained(self, step: Step, before_decay: bool) -> None:
        """Takes a finished pretraining with its records, and the checkpoint from before its decay where asked for."""

    def fetch_trunk(self, folder: Path) -> None:
        """Takes the records and checkpoints of a pretraining that branches start from."""

    def fetch_run(self, step: Step, config: Config) -> None:
        """Before a pretraining starts or resumes: claims it, and takes the store's state where that is ahead. Raises
        `Busy` where another machine trains it, `UserError` where its state cannot be known."""

    def copy_finished(self, step: Step, config: Config) -> None:
        """Copies what the store lacks of a pretraining that is finished here."""

    def limit_seconds(self, cap_seconds: float | None) -> float:
        """How long the end of a training may wait for copies under a cap."""
        return 0.0

    @contextlib.contextmanager
    def copied(self, limit_seconds: Callable[[], float], before: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Around a stage: its end, however it ends, waits for copies as long as `limit_seconds()` says. `before` is
        called first."""
        yield


HERE = Store()


def no_page(config: Config) -> Path | None:
    """For a stage that runs without a report."""
    return None


@dataclass(frozen=True)
class Command:
    """How a stage was called. `words`: what the user typed after the verb, for messages. `write_page`: writes the
    experiment's report and returns its path. `replay`: a decisions.jsonl that a pretraining repeats. `progress_tasks`:
    makes what scores tasks while a model trains. `waited_seconds`: how long the stage waited for others to be made."""

    words: str = "<config>"
    store: Store = HERE
    write_page: Callable[[Config], Path | None] = no_page
    as_json: bool = False
    replay: str | None = None
    progress_tasks: Callable[..., Any] | None = None
    waited_seconds: float = 0.0
