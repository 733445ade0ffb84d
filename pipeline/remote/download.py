"""What a machine takes from `HORNBOOK_REMOTE`: a finished folder, or the state of an unfinished run.

In: a place and a step. Out: how far each copy of a run has come; files here. Everything arrives under a temporary name,
must fit its hash, and is then moved into place. Imports no torch.
"""

import json
import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.remote.place import Place, indexes_of, manifest_of, path_of, say
from pipeline.remote.upload import RECORDS
from pipeline.storage.files import hash_file, write_json
from pipeline.storage.run_files import CHECKPOINTS, DECISIONS, INDEX, checkpoint_name, index_in
from pipeline.storage.steps import MANIFEST, Step
from pipeline.system.disk import check_free, sync_entry
from pipeline.training.decisions import Decisions


@dataclass(frozen=True, order=True)
class Reached:
    """How far a copy of a run has come: the larger is ahead."""

    extensions: int = 0
    step: int = 0
    finished: bool = False


NOTHING = Reached()


@dataclass(frozen=True)
class RunThere:
    """A run at the remote. `steps`: of its checkpoints that count, newest first."""

    reached: Reached
    decisions: Decisions
    steps: list[int]
    manifest: dict[str, Any] | None


def reached_here(step: Step) -> Reached:
    """How far the pretraining in the folder here is."""
    decisions = Decisions(step.path / DECISIONS, read_only=True)
    steps = []
    for path in (step.path / CHECKPOINTS).glob("step-*"):
        with suppress(OSError, ValueError, RecursionError, KeyError, TypeError):
            index = json.loads((path / INDEX).read_bytes())
            if decisions.counts(index["step"], index["branch"]):
                steps.append(index["step"])
    return _reached(decisions, steps, step.finished)


def run_there(place: Place, step: Step) -> RunThere:
    """How far the copy of a pretraining at the place is, with its decisions and whole checkpoints, newest first."""
    run = path_of(step.path)
    decisions = Decisions(None, content=place.read(f"{run}/{DECISIONS}") or b"")
    indexes = indexes_of(place, run)
    steps = sorted((s for s, index in indexes.items() if decisions.counts(s, index["branch"])), reverse=True)
    manifest = manifest_of(place, run)
    return RunThere(_reached(decisions, steps, manifest is not None), decisions, steps, manifest)


def _reached(decisions: Decisions, steps: Sequence[int], has_manifest: bool) -> Reached:
    """A manifest from before the last extension does not make a run finished."""
    last = next((r for r in reversed(decisions.records) if r["kind"] in ("finish", "extend")), None)
    if has_manifest and last is not None and last["kind"] == "finish":
        return Reached(decisions.extension, max([*steps, last["step"]]), True)
    return Reached(decisions.extension, max(steps, default=0))


def fetch_checkpoints(place: Place, folder: Path, steps: Sequence[int], also: Collection[int] = ()) -> bool:
    """Brings the first of `steps` that is whole, and of those after it the ones in `also`, under temporary names; False
    where none is whole."""
    newest = next((step for step in steps if _fetch_checkpoint(place, folder, step)), None)
    for step in steps:
        if newest is not None and step < newest and step in also:
            _fetch_checkpoint(place, folder, step)
    return newest is not None or not steps


def _fetch_checkpoint(place: Place, folder: Path, step: int) -> bool:
    """Brings a checkpoint here under a temporary name and checks every byte; whether it is whole."""
    name = checkpoint_name(step)
    there, part = f"{path_of(folder)}/{CHECKPOINTS}/{name}", folder / CHECKPOINTS / f".{name}.remote"
    index = index_in(place.read(f"{there}/{INDEX}"))
    if index is not None and _fetch_files(place, there, part, index["files"]):
        write_json(part / INDEX, index)
        return True
    say(f"WARNING: {place.name}/{there} is damaged; the one before it is used")
    shutil.rmtree(part, ignore_errors=True)
    return False


def put_in_place(folder: Path) -> None:
    """Checkpoints that have arrived get their names."""
    for part in (folder / CHECKPOINTS).glob(".step-*.remote"):
        final = part.with_name(part.name[1:].removesuffix(".remote"))
        shutil.rmtree(final, ignore_errors=True)
        part.rename(final)
    if (folder / CHECKPOINTS).is_dir():
        sync_entry(folder / CHECKPOINTS)


def fetch_records(place: Place, folder: Path) -> None:
    """Decisions, metrics and the mirror's id; each whole."""
    for name in RECORDS:
        part = folder / f".{name}.remote.part"
        if place.fetch(f"{path_of(folder)}/{name}", part):
            part.replace(folder / name)


def fetch_outputs(place: Place, step: Step, manifest: Mapping[str, Any]) -> bool:
    """Brings the files that a manifest names; whether the folder is finished now."""
    there, part, started = path_of(step.path), step.path / ".remote.part", time.monotonic()
    outputs = manifest["outputs"]
    is_this = manifest.get("fingerprint") == step.fingerprint
    if not is_this or not _fetch_files(place, there, part, outputs, reports=step.reports):
        say(f"WARNING: {place.name}/{there} is damaged and is not used")
        return False
    (step.path / MANIFEST).unlink(missing_ok=True)  # while its files are replaced it vouches for nothing
    for path in outputs:
        if (part / path).is_file():
            (step.path / path).parent.mkdir(parents=True, exist_ok=True)
            (part / path).replace(step.path / path)
    shutil.rmtree(part, ignore_errors=True)
    write_json(step.path / MANIFEST, dict(manifest))
    size = sum(output["bytes"] for output in outputs.values()) / 1e6
    say(f"{there} taken from {place.name}: {size:.1f} MB in {time.monotonic() - started:.1f} s")
    return step.finished


def _fetch_files(
    place: Place, there: str, part: Path, files: Mapping[str, Mapping[str, Any]], reports: Sequence[str] = ()
) -> bool:
    """Files with `{bytes, sha256}` into `part`; whether all fit. What an earlier try left there is used again."""
    check_free(part, sum(file["bytes"] for path, file in files.items() if not (part / path).is_file()))
    for path, expected in files.items():
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            return False
        if _fits(part / path, expected) or (
            place.fetch(f"{there}/{path}", part / path) and _fits(part / path, expected)
        ):
            continue
        if not any(PurePosixPath(path).match(glob) for glob in reports):
            shutil.rmtree(part, ignore_errors=True)
            return False
        (part / path).unlink(missing_ok=True)  # a page for people: the folder is whole without it
    return True


def _fits(path: Path, expected: Mapping[str, Any]) -> bool:
    return path.is_file() and path.stat().st_size == expected["bytes"] and hash_file(path) == expected["sha256"]
