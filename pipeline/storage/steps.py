"""Steps that are built once: a folder named by the fingerprint of config, inputs and code version.

A `Step` says what it reads; its folder `artifacts/<step>/<12 hex>` follows from that alone, before anything runs.
`build` returns the folder if its manifest says that it is finished, else builds the inputs, takes the lock, calls
`make` and writes the manifest last. So a stale result can never be used and a half-made one is never taken for
a whole one. Folders are never overwritten by another config: another config is another folder.
"""

import contextlib
import hashlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache, cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.storage.locks import FolderLock
from pipeline.system.disk import sync_folder, writing
from pipeline.system.errors import UserError

MANIFEST, SEAL = "manifest.json", "sha256"
LOG_FOLDER = "logs"  # scratch of the libraries a step uses; never an output


def root() -> Path:
    """Where `artifacts/` and `runs/` live: HORNBOOK_ROOT, else the working folder."""
    return Path(os.environ.get("HORNBOOK_ROOT") or ".").expanduser()


@dataclass(frozen=True)
class Folder:
    """What `make` gets: where to write, and where its inputs are."""

    path: Path
    inputs: Mapping[str, Path] = field(default_factory=dict)

    def input(self, name: str) -> Path:
        return self.inputs[name]

    @property
    def logs(self) -> Path:
        return self.path / LOG_FOLDER


@dataclass(frozen=True)
class Step:
    """One cached step: `make(folder) -> facts` writes its outputs under `folder.path`; facts go to the manifest.

    `name`: the folder under `artifacts/`. `version`: raised whenever the output changes for the same input.
    `config`: the identity keys that the step reads, as plain JSON values. `inputs`: name -> another step, or the
    content hash of something outside `artifacts/`. `libraries`: distributions whose version decides the output.
    `reports`: globs of outputs that are for reading only and stay out of `content_hash`.
    """

    name: str
    version: int
    make: Callable[[Folder], dict[str, Any]]
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
        try:
            return (self.path / MANIFEST).is_file() and not self.missing_outputs()
        except UserError:  # a damaged manifest vouches for nothing: made again
            return False

    def missing_outputs(self) -> list[str]:
        outputs = read_manifest(self.path)["outputs"]
        return [p for p in outputs if not _is_report(p, self.reports) and not _has_size(self.path / p, outputs[p])]

    def chain(self) -> list["Step"]:
        """Every step this one needs, each once, in the order they run; itself last."""
        found: dict[str, Step] = {}
        for value in self.inputs.values():
            if isinstance(value, Step):
                found.update({s.fingerprint: s for s in value.chain()})
        found[self.fingerprint] = self
        return list(found.values())


def build(step: Step, *, experiment: str, announce: Callable[[Step], None] = lambda step: None) -> dict[str, Any]:
    """Makes `step` and whatever it needs, unless it is there already, and returns its manifest.

    Takes a folder from HORNBOOK_REMOTE where that has it, and copies there what was made, in the background.
    Waits while another process makes the same folder. Raises what `make` raises; the folder is then unfinished
    and the next call goes on with it.
    """
    from pipeline.remote import download as pulling
    from pipeline.remote import upload as pushing

    if pulling.fetch(step):
        return read_manifest(step.path)
    for value in step.inputs.values():
        if isinstance(value, Step):
            build(value, experiment=experiment, announce=announce)
    inputs = {k: v.path for k, v in step.inputs.items() if isinstance(v, Step)}
    with writing(step.path, _likely_bytes(inputs)):
        step.path.mkdir(parents=True, exist_ok=True)
        with FolderLock(step.path, wait=True):
            if step.finished:  # the process we waited for made it
                return read_manifest(step.path)
            announce(step)
            started, began = time.time(), time.monotonic()
            facts = step.make(Folder(step.path, inputs))
            seconds = time.monotonic() - began
            hours = round(seconds / 3600, 6)
            manifest = write_manifest(
                step, experiment=experiment, started=started, seconds=seconds, facts=facts, gpu_hours=hours
            )
    pushing.push(step.path)
    return manifest


def _likely_bytes(inputs: Mapping[str, Path]) -> int:
    """What a step will write, about: no step writes much more than the largest of its inputs holds."""
    sizes = [sum(o["bytes"] for o in read_manifest(path)["outputs"].values()) for path in inputs.values()]
    return max(sizes, default=1 << 20)


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
            "stage again: it makes the folder anew, or finishes a training from its last checkpoint"
        )
    return manifest


def read_output(folder: Path, name: str) -> Any:
    """The JSON value of an output of a finished folder; None where it is not there, or not what the manifest says."""
    expected = read_manifest(folder)["outputs"].get(name)
    path = folder / name
    if expected is None or not path.is_file() or hash_file(path) != expected["sha256"]:
        return None
    return json.loads(path.read_bytes())


def seal_of(content: Mapping[str, Any]) -> str:
    """The hash over the other keys of a JSON object that it carries itself, under `SEAL`."""
    return hash_json(json.loads(json.dumps({key: value for key, value in content.items() if key != SEAL})))


def fits_seal(content: Mapping[str, Any]) -> bool:
    """Whether it does, or is of an earlier version, which set none."""
    return content.get(SEAL) in (None, seal_of(content))


def read_json_lines(path: Path, **needed: type) -> list[dict[str, Any]]:
    """The objects of a file with one a line that have the fields `needed`, each of its type (`float`: any finite
    number); nothing where there is no file. A line that a kill tore or a disk damaged is passed over: what was never
    fully written is written again by whoever goes on."""
    found = []
    for line in path.read_bytes().split(b"\n") if path.is_file() else []:
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(line.decode("utf-8", "replace"))
            if isinstance(value, dict) and all(_is(value.get(name), kind) for name, kind in needed.items()):
                found.append(value)
    return found


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of a `metrics.jsonl`: `step`, and figures by names with a slash. What is no figure is left out."""
    return [
        {name: value for name, value in row.items() if "/" not in name or value is None or _is(value, float)}
        for row in read_json_lines(path, step=int)
    ]


def _is(value: Any, kind: type) -> bool:
    if kind in (int, float):
        number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
        return number and (kind is float or isinstance(value, int))
    return isinstance(value, kind)


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


def _has_size(path: Path, output: Mapping[str, Any]) -> bool:
    return path.is_file() and path.stat().st_size == output["bytes"]


def hash_json(value: Any) -> str:
    """SHA-256 of a JSON value, the same for any key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def hash_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_files(paths: Sequence[Path], base: Path) -> str:
    """Content hash of many input files by path relative to `base`; a file whose size and times (of its content, and of
    its entry: `cp -p` keeps only the first) are known is not read again, so that 50 GB cost seconds the second time."""
    known_path = root() / "artifacts" / ".input-hashes.json"
    read = _read_json_or(known_path, {})
    known: dict[str, list] = read if isinstance(read, dict) else {}
    result, changed = {}, False
    resolved = str(base.resolve())
    for path in paths:
        stat = os.stat(path)
        relative = os.path.relpath(path, base)  # strings: 9,000 files of the library corpus cost 0.1 s, not 0.7
        key, state = f"{resolved}/{relative}", [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
        entry = known.get(key)
        if not isinstance(entry, list) or entry[:3] != state or len(entry) != 4 or not isinstance(entry[3], str):
            known[key] = [*state, hash_file(path)]
            changed = True
        result[relative] = known[key][3]
    if changed:
        with contextlib.suppress(OSError):  # without it the next run reads the files again
            write_json(known_path, known)
    return hash_json(result)


def write_json(path: Path, value: Any) -> None:
    """A JSON value, by `write_text`."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes and syncs `path` through a temporary name in the same folder: whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, content = path.with_name(f".{path.name}.{os.getpid()}.part"), text.encode()
    try:
        with writing(path, len(content)), open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _read_json_or(path: Path, default: Any) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # a lost cache costs time, never a result
        return default


@cache
def code_state() -> dict[str, Any]:
    """`{commit, dirty}` of the checkout that this code runs from; nulls where it is not a git checkout."""
    here = Path(__file__).resolve().parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    status = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}
