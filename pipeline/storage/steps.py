"""Steps that are built once: a folder named by the fingerprint of config, inputs and code version.

A `Step` says what it is and what it reads; its folder `artifacts/<step>/<12 hex>` follows from that alone, before
anything runs. How it is made is no part of it: whoever asks where a folder lies imports none of the code that fills it.
`build` returns the folder if its manifest says that it is finished, else builds the inputs, takes the lock, calls the
step's maker and writes the manifest last. So a stale result can never be used, and a half-made one is never taken for
a whole one. Folders are never overwritten by another config: another config is another folder.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.storage.files import SEAL, code_state, fits_seal, hash_file, hash_json, root, seal_of, write_json
from pipeline.system.errors import UserError

MANIFEST = "manifest.json"
LOG_FOLDER = "logs"  # scratch of the libraries a step uses; never an output


@dataclass(frozen=True)
class Folder:
    """What a maker gets: where to write, and where the step's inputs are."""

    path: Path
    inputs: Mapping[str, Path] = field(default_factory=dict)

    def input(self, name: str) -> Path:
        return self.inputs[name]

    @property
    def logs(self) -> Path:
        return self.path / LOG_FOLDER


@dataclass(frozen=True)
class Step:
    """One cached step.

    `name`: the folder under `artifacts/`. `version`: raised whenever the output changes for the same input.
    `config`: the identity keys that the step reads, as plain JSON values. `inputs`: name -> another step, or the
    content hash of something outside `artifacts/`. `libraries`: distributions whose version decides the output.
    `reports`: globs of outputs that are for reading only and stay out of `content_hash`.
    """

    name: str
    version: int
    config: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, "Step | str"] = field(default_factory=dict)
    libraries: Sequence[str] = ()
    reports: Sequence[str] = ("report.html", "report.json", "*.report.json")

    @cached_property
    def fingerprint(self) -> str:
        """12 hex digits over name, version, config, inputs' fingerprints and library versions."""
        identity = {
            "step": self.name,
            "version": self.version,
            "config": self.config,
            "inputs": {k: v.fingerprint if isinstance(v, Step) else v for k, v in self.inputs.items()},
            "libraries": {name: metadata.version(name) for name in self.libraries},
        }
        return hash_json(identity)[:12]

    @property
    def path(self) -> Path:
        return root() / "artifacts" / self.name / self.fingerprint

    @property
    def finished(self) -> bool:
        """Whether the manifest is there and every output it names still lies beside it (reports may be deleted)."""
        if not (self.path / MANIFEST).is_file():
            return False
        try:
            outputs = read_manifest(self.path)["outputs"]
        except UserError:  # a damaged manifest vouches for nothing: made again
            return False
        needed = {self.path / p: o["bytes"] for p, o in outputs.items() if not _is_report(p, self.reports)}
        return all(path.is_file() and path.stat().st_size == size for path, size in needed.items())

    def input(self, name: str) -> "Step":
        """The step behind an input. Raises `TypeError` for one that is a content hash."""
        value = self.inputs[name]
        if not isinstance(value, Step):
            raise TypeError(f"the input '{name}' of {self.name} is the hash {value!r}; expected a step")
        return value

    def chain(self) -> list["Step"]:
        """Every step this one needs, each once, in the order they run; itself last."""
        found: dict[str, Step] = {}
        for value in self.inputs.values():
            if isinstance(value, Step):
                found.update({s.fingerprint: s for s in value.chain()})
        found[self.fingerprint] = self
        return list(found.values())


def write_manifest(
    step: Step,
    *,
    experiment: str,
    started: float,
    facts: dict[str, Any],
    device: str = "cpu",
    gpu_hours: float = 0.0,
    seconds: float | None = None,
    only: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Hashes the outputs under `step.path` and writes its manifest: from here on the step is finished.

    `seconds`: by a clock that nobody sets; else the time of day since `started` says it.
    `only`: names at the top of the folder that are outputs; None: everything is. (Checkpoints are no output: nothing
    else reads them, and hashing them again would cost minutes of a GPU.)
    """
    outputs = hash_outputs(step.path, only)
    finished = time.time()
    manifest = {
        "stage": step.name,
        "name": experiment,
        "fingerprint": step.fingerprint,
        "content_hash": content_hash(outputs, step.reports),
        "config": step.config,
        "version": step.version,
        "inputs": {k: _describe_input(v) for k, v in step.inputs.items()},
        "outputs": outputs,
        "started": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        "finished": datetime.fromtimestamp(finished, UTC).isoformat(timespec="seconds"),
        "seconds": round(max(0.0, finished - started) if seconds is None else seconds, 2),
        "gpu_hours": gpu_hours,
        "device": device,
        **code_state(),
        "versions": {name: metadata.version(name) for name in step.libraries},
        **facts,
    }
    write_json(step.path / MANIFEST, {**manifest, SEAL: seal_of(manifest)})
    return manifest


def _describe_input(value: "Step | str") -> dict[str, str]:
    if isinstance(value, Step):
        return {"path": f"artifacts/{value.name}/{value.fingerprint}", "fingerprint": value.fingerprint}
    return {"fingerprint": value}


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished folder. Raises `UserError` where it is damaged: it no longer fits its seal, or (of an
    earlier version, which set none) is none at all."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
        problem = None if fits_seal(manifest) else "it does not fit its own hash"
        manifest.pop(SEAL, None)
        if not all(isinstance(manifest[key], dict) for key in ("inputs", "outputs", "config")):
            problem = "it holds no inputs, outputs and config"
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError) as error:
        problem = f"{type(error).__name__}: {error}"
    if problem is not None:
        raise UserError(
            f"{path} is damaged ({problem[:200]}); expected what hornbook wrote there. Delete the file and run that "
            "stage again: it makes the folder again, or finishes a training from its last checkpoint"
        )
    return manifest


def read_output(folder: Path, name: str) -> Any:
    """The JSON value of an output of a finished folder; None where it is not there, or not what the manifest says."""
    expected = read_manifest(folder)["outputs"].get(name)
    path = folder / name
    if expected is None or not path.is_file() or hash_file(path) != expected["sha256"]:
        return None
    return json.loads(path.read_bytes())


def hash_outputs(folder: Path, only: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
    """`{relative path: {bytes, sha256}}` of every file under `folder` but its manifest, lock, logs and links.

    `only`: under these names at the top of the folder alone.
    """
    outputs = {}
    tops = [folder] if only is None else [folder / name for name in only]
    for path in sorted(p for top in tops for p in top.rglob("*")):
        relative = path.relative_to(folder)
        hidden = any(part.startswith(".") or part == LOG_FOLDER for part in relative.parts)
        if path.is_file() and not path.is_symlink() and not hidden and relative.name != MANIFEST:
            outputs[relative.as_posix()] = {"bytes": path.stat().st_size, "sha256": hash_file(path)}
    return outputs


def content_hash(outputs: Mapping[str, Mapping[str, Any]], reports: Sequence[str] = ()) -> str:
    """One hash over what later stages read: names and hashes of the outputs, reports left out."""
    return hash_json({p: o["sha256"] for p, o in outputs.items() if not _is_report(p, reports)})


def _is_report(path: str, reports: Sequence[str]) -> bool:
    return any(Path(path).match(glob) for glob in reports)
