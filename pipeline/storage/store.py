"""What the command hands to a stage: where finished folders may come from and go to, and how to write its page. `build`
makes steps: what a step needs first, each once, under its lock, the manifest last.

`Store` is the machine alone: nothing is fetched, nothing is copied. `pipeline.remote` has the one for HORNBOOK_REMOTE,
so that no stage and no part of storage or training knows of it.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.storage.locks import FolderLock
from pipeline.storage.steps import Folder, Step, read_manifest, write_manifest
from pipeline.system import signals
from pipeline.system.disk import writing
from pipeline.system.progress import progress


class Store:
    """This disk only."""

    name: str | None = None  # of the place where copies lie, as messages may show it

    def fetch(self, step: Step) -> bool:
        """Takes a finished folder from the store where there is none here; whether there is one here now. Pushes
        nothing."""
        return step.finished

    def fetch_file(self, path: Path) -> None:
        """Takes a small file from the store, where there is none here."""

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


@dataclass(frozen=True)
class Command:
    """How a stage was called. `words`: what the user typed after the verb, for messages. `write_page`: writes the
    experiment's report and returns its path. `replay`: a decisions.jsonl that a pretraining repeats. `progress_tasks`:
    makes what scores tasks while a model trains. `waited_seconds`: how long the stage waited for others to be made."""

    words: str = "<config>"
    store: Store = HERE
    write_page: Callable[[Config], Path | None] = lambda config: None
    as_json: bool = False
    replay: str | None = None
    progress_tasks: Callable[..., Any] | None = None
    waited_seconds: float = 0.0


# `maker(folder) -> facts` writes a step's outputs under `folder.path`; the facts go to its manifest.
Maker = Callable[[Folder], dict[str, Any]]


def build(
    step: Step,
    makers: Mapping[str, Maker],
    *,
    experiment: str,
    store: Store = HERE,
    announce: Callable[[Step], None] = lambda step: None,
) -> dict[str, Any]:
    """Makes `step` and whatever it needs, unless it is there already, and returns its manifest.

    `makers`: by fingerprint, of every step that may be unfinished. `store`: asked for a folder before it is made, and
    given what was made. Waits while another process makes the same folder. Raises what a maker raises; the folder is
    then unfinished, and the next call resumes it.
    """
    if store.fetch(step):
        store.push(step.path)  # the process that made it may have been stopped before all of it was copied
        return read_manifest(step.path)
    for value in step.inputs.values():
        if isinstance(value, Step):
            build(value, makers, experiment=experiment, store=store, announce=announce)
    inputs = {k: v.path for k, v in step.inputs.items() if isinstance(v, Step)}
    with writing(step.path, _likely_bytes(inputs)):
        step.path.mkdir(parents=True, exist_ok=True)
        with FolderLock(step.path, wait=True):
            if step.finished:  # the process we waited for made it
                return read_manifest(step.path)
            signals.check()
            announce(step)
            started, began = time.time(), time.monotonic()
            with progress(step.name):
                facts = makers[step.fingerprint](Folder(step.path, inputs))
            seconds = time.monotonic() - began
            hours = round(seconds / 3600, 6)
            manifest = write_manifest(
                step, experiment=experiment, started=started, seconds=seconds, facts=facts, gpu_hours=hours
            )
    store.push(step.path)
    return manifest


def _likely_bytes(inputs: Mapping[str, Path]) -> int:
    """What a step will write, about: no step writes much more than the largest of its inputs holds."""
    sizes = [sum(o["bytes"] for o in read_manifest(path)["outputs"].values()) for path in inputs.values()]
    return max(sizes, default=1 << 20)
