"""Files under HORNBOOK_ROOT: JSON that is whole or absent, hashes of content, and which code wrote them."""

import contextlib
import hashlib
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.system.disk import sync_entry, writing

SEAL = "sha256"  # the key of a JSON object that holds the hash over its other keys


def root() -> Path:
    """Where `artifacts/` and `runs/` live: HORNBOOK_ROOT, else the working folder."""
    return Path(os.environ.get("HORNBOOK_ROOT") or ".").expanduser()


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
    sync_entry(path.parent)


def _read_json_or(path: Path, default: Any) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # a lost cache costs time, never a result
        return default


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


def seal_of(content: Mapping[str, Any]) -> str:
    """The hash over the other keys of a JSON object that it carries itself, under `SEAL`."""
    return hash_json(json.loads(json.dumps({key: value for key, value in content.items() if key != SEAL})))


def fits_seal(content: Mapping[str, Any]) -> bool:
    """Whether it does, or is of an earlier version, which set none."""
    return content.get(SEAL) in (None, seal_of(content))


def read_json_lines(path: Path, **needed: type) -> list[dict[str, Any]]:
    """The objects of a file with one a line that have the fields `needed`, each of its type (`float`: any finite
    number); nothing where there is no file. A line that a kill tore or a disk damaged is passed over: what was never
    fully written is written again when the work resumes."""
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
