"""Making steps: what a step needs first, each once, under its lock, the manifest last."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.storage.locks import FolderLock
from pipeline.storage.steps import Folder, Step, read_manifest, write_manifest
from pipeline.storage.store import HERE, Store
from pipeline.system import signals
from pipeline.system.disk import writing

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
