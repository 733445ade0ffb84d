"""What a bare machine takes from `HORNBOOK_REMOTE` before it makes anything itself.

In: a step, or a pretraining and its budget. Out: the finished folder, or what an unfinished run needs to go on:
newest whole checkpoint, decisions, metrics, and the ledger, because hours that were spent elsewhere count here.
Everything arrives under a temporary name, must fit its hash, and is then moved into place. Imports no torch.
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.config import BudgetConfig, Config
from pipeline.remote import upload as pushing
from pipeline.remote.place import REMOTE, Place, Unreachable, claim, indexes_of, manifest_of, path_of, place, say
from pipeline.storage.files import hash_file, write_json
from pipeline.storage.ledger import LEDGER, merge
from pipeline.storage.locks import FolderLock
from pipeline.storage.run_files import CHECKPOINTS, DECISIONS, INDEX, checkpoint_name, index_in
from pipeline.storage.steps import MANIFEST, Step
from pipeline.system.disk import check_free, sync_folder
from pipeline.system.errors import Busy, UserError
from pipeline.training.decisions import Decisions, raised_decay

PAUSES_SECONDS = (1.0, 3.0)  # between tries to reach a remote that a bare machine depends on


@dataclass(frozen=True, order=True)
class Progress:
    """How far a copy of a run has come: the larger is ahead."""

    extensions: int = 0
    step: int = 0
    finished: bool = False


def fetch(step: Step) -> bool:
    """Takes a finished folder from the remote, where there is none here; whether there is one now."""
    source = place()
    if source is None:
        return step.finished
    if step.finished:
        pushing.push(step.path)  # what made it may have been stopped before it was there
        return True
    try:
        manifest = manifest_of(source, path_of(step.path))
        if manifest is None:
            return False
        step.path.mkdir(parents=True, exist_ok=True)
        with FolderLock(step.path, wait=True):
            return step.finished or _fetch_outputs(source, step, manifest)
    except Unreachable as error:
        say(f"{source.name} cannot be read ({error}): going on with what is here")
        return False


def fetch_trained(step: Step, before_decay: bool) -> bool:
    """Takes a finished pretraining with its records, and the checkpoint from before its decay where asked for."""
    source = place()
    if not fetch(step) or source is None:
        return step.finished
    with suppress(Unreachable):
        if not (step.path / DECISIONS).is_file():
            _fetch_records(source, step.path)
        decays = Decisions(step.path / DECISIONS, read_only=True).decays()
        if before_decay and decays and not (step.path / CHECKPOINTS / checkpoint_name(decays[0]["step"])).is_dir():
            _fetch_checkpoint(source, step.path, decays[0]["step"])
            _put_in_place(step.path)
    return True


def fetch_trunk(folder: Path) -> None:
    """Takes the records and checkpoints of a pretraining that branches start from, where there is none of it here."""
    source = place()
    if source is None or (folder / CHECKPOINTS).is_dir():
        return
    with suppress(Unreachable):
        steps = indexes_of(source, path_of(folder))
        if steps:
            _fetch_records(source, folder)
            for step in steps:
                _fetch_checkpoint(source, folder, step)
            _put_in_place(folder)


def fetch_run(step: Step, config: Config) -> None:
    """Before a pretraining starts or goes on: claims it at the remote, adds up the hours of all machines, and takes
    the remote's state where that is ahead of what is here.

    Raises `Busy` where another machine trains it, `UserError` where nothing is here and the remote cannot be read.
    """
    source = place()
    if source is None:
        return
    step.path.mkdir(parents=True, exist_ok=True)
    keep = config.train.keep_checkpoints
    with FolderLock(step.path, wait=False):
        here = _progress_here(step)
        try:
            _patiently(lambda: claim(source, path_of(step.path)), patient=here == Progress())
            pushing.start(step, keep)
            _fetch_run(source, step, config.budget, here)
        except Unreachable as error:
            if here == Progress():
                raise UserError(
                    f"{source.name} cannot be read ({error}), and nothing of this run is here: its state and the "
                    f"hours that it has used may be there. Mend {REMOTE}, or unset it to start anew"
                ) from None
            say(f"{source.name} cannot be read ({error}): going on from step {here.step:,} here")
            pushing.start(step, keep, lambda: _must_not_be_ahead(source, step, here))
    pushing.go_on()


def copy_finished(step: Step, config: Config) -> None:
    """Copies what is not at the remote yet of a pretraining that is finished here."""
    source = place()
    if source is not None:
        here = _progress_here(step)
        pushing.start(step, config.train.keep_checkpoints, lambda: _must_not_be_ahead(source, step, here))
        pushing.go_on()
        pushing.push(step.path)


def _must_not_be_ahead(source: Place, step: Step, here: Progress) -> None:
    try:
        claim(source, path_of(step.path))
    except Busy as error:
        raise pushing.TakenOver(str(error)) from None
    there, *_ = _progress_there(source, step)
    if there > here:
        raise pushing.TakenOver(f"it is ahead (step {there.step:,}) of the step {here.step:,} that this began from")


def _patiently(act: Callable[[], None], patient: bool) -> None:
    for pause in PAUSES_SECONDS if patient else ():
        try:
            return act()
        except Unreachable:
            time.sleep(pause)
    return act()


def _fetch_run(source: Place, step: Step, budget: BudgetConfig, here: Progress) -> None:
    merge(step.path / LEDGER, source.read(path_of(step.path / LEDGER)) or b"")
    there, decisions, steps, manifest = _progress_there(source, step)
    if there <= here:
        if here != Progress():
            say(f"what is here (step {here.step:,}) is not behind {source.name} (step {there.step:,}): going on here")
        return
    say(f"{source.name} is ahead (step {there.step:,}, here {here.step:,}): taking it")
    if there.finished and manifest is not None and not _fetch_outputs(source, step, manifest):
        there = Progress(there.extensions, max(steps, default=0))
        if there <= here:
            return
    decay = raised_decay(decisions, budget)
    if not there.finished or decay is not None:
        steps = [s for s in steps if decay is None or s <= decay["step"]]
        newest = next((s for s in steps if _fetch_checkpoint(source, step.path, s)), None)
        if newest is None and steps:
            say(f"no checkpoint at {source.name} is whole: going on with what is here")
            return
        for other in decisions.kept(steps, 0) & {s for s in steps if newest is not None and s < newest}:
            _fetch_checkpoint(source, step.path, other)  # of use beyond this run: for its extension, its branches
    _fetch_records(source, step.path)
    _put_in_place(step.path)


def _progress_there(source: Place, step: Step) -> tuple[Progress, Decisions, list[int], dict[str, Any] | None]:
    """How far the remote is; its decisions, its checkpoints that count, newest first, and its manifest."""
    run = path_of(step.path)
    decisions = Decisions(None, content=source.read(f"{run}/{DECISIONS}") or b"")
    indexes = indexes_of(source, run)
    steps = sorted((s for s, index in indexes.items() if decisions.counts(s, index["branch"])), reverse=True)
    manifest = manifest_of(source, run)
    return _progress(decisions, steps, manifest is not None), decisions, steps, manifest


def _progress_here(step: Step) -> Progress:
    decisions = Decisions(step.path / DECISIONS, read_only=True)
    steps = []
    for path in (step.path / CHECKPOINTS).glob("step-*"):
        with suppress(OSError, ValueError, RecursionError, KeyError, TypeError):
            index = json.loads((path / INDEX).read_bytes())
            if decisions.counts(index["step"], index["branch"]):
                steps.append(index["step"])
    return _progress(decisions, steps, step.finished)


def _progress(decisions: Decisions, steps: list[int], has_manifest: bool) -> Progress:
    """A manifest of before the last extension does not make a run finished."""
    last = next((r for r in reversed(decisions.records) if r["kind"] in ("finish", "extend")), None)
    finished = has_manifest and last is not None and last["kind"] == "finish"
    reached = [*steps, last["step"]] if finished and last is not None else steps
    return Progress(decisions.extension, max(reached, default=0), finished)


def _fetch_checkpoint(source: Place, folder: Path, step: int) -> bool:
    """Brings a checkpoint here under a temporary name and looks at every byte; whether it is whole."""
    name = checkpoint_name(step)
    there, part = f"{path_of(folder)}/{CHECKPOINTS}/{name}", folder / CHECKPOINTS / f".{name}.remote"
    index = index_in(source.read(f"{there}/{INDEX}"))
    whole = index is not None and _fetch_files(source, there, part, index["files"])
    if index is not None and whole:
        write_json(part / INDEX, index)
        return True
    say(f"WARNING: {source.name}/{there} is damaged; the one before it is used")
    shutil.rmtree(part, ignore_errors=True)
    return False


def _put_in_place(folder: Path) -> None:
    """Checkpoints that have arrived get their names."""
    for part in (folder / CHECKPOINTS).glob(".step-*.remote"):
        final = part.with_name(part.name[1:].removesuffix(".remote"))
        shutil.rmtree(final, ignore_errors=True)
        part.rename(final)
    if (folder / CHECKPOINTS).is_dir():
        sync_folder(folder / CHECKPOINTS)


def _fetch_records(source: Place, folder: Path) -> None:
    """Decisions, metrics and the mirror's id; each whole."""
    for name in pushing.RECORDS:
        part = folder / f".{name}.remote.part"
        if source.fetch(f"{path_of(folder)}/{name}", part):
            part.replace(folder / name)


def _fetch_outputs(source: Place, step: Step, manifest: Mapping[str, Any]) -> bool:
    """Brings the files that a manifest names; whether the folder is finished now."""
    part, outputs = step.path / ".remote.part", manifest["outputs"]
    started = time.monotonic()
    if manifest.get("fingerprint") != step.fingerprint or not _fetch_files(
        source, path_of(step.path), part, outputs, reports=step.reports
    ):
        say(f"WARNING: {source.name}/{path_of(step.path)} is damaged and is not used")
        return False
    (step.path / MANIFEST).unlink(missing_ok=True)  # while its files are replaced it vouches for nothing
    for path in outputs:
        if (part / path).is_file():
            (step.path / path).parent.mkdir(parents=True, exist_ok=True)
            (part / path).replace(step.path / path)
    shutil.rmtree(part, ignore_errors=True)
    write_json(step.path / MANIFEST, dict(manifest))
    size = sum(output["bytes"] for output in outputs.values()) / 1e6
    say(f"{path_of(step.path)} taken from {source.name}: {size:.1f} MB in {time.monotonic() - started:.1f} s")
    return step.finished


def _fetch_files(
    source: Place, there: str, part: Path, files: Mapping[str, Mapping[str, Any]], reports: Sequence[str] = ()
) -> bool:
    """Files with `{bytes, sha256}` into `part`; whether all fit. What an earlier try left there is used again."""
    check_free(part, sum(file["bytes"] for path, file in files.items() if not (part / path).is_file()))
    for path, expected in files.items():
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            return False
        if _fits(part / path, expected):
            continue
        fits = source.fetch(f"{there}/{path}", part / path) and _fits(part / path, expected)
        if not fits and any(PurePosixPath(path).match(glob) for glob in reports):
            (part / path).unlink(missing_ok=True)  # for reading only
        elif not fits:
            shutil.rmtree(part, ignore_errors=True)
            return False
    return True


def _fits(path: Path, expected: Mapping[str, Any]) -> bool:
    return path.is_file() and path.stat().st_size == expected["bytes"] and hash_file(path) == expected["sha256"]
