"""Disks that fill up: at every size of file that a stage writes, and as a whole; then there is room again."""

import contextlib
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from scripts.bench_rows import Rows, at_most, row
from scripts.soak_parts.lab import ROOT, Lab, Life, lab, outputs

LIMITS = 8  # sizes of files at which a stage is stopped
PATH_AND_BYTES = re.compile(r"hornbook: .*: (/\S+|\S+/\S*): this write needs ([\d,]+) bytes, ([\d,]+) are free")


def full(quick: bool) -> Rows:
    """A limit on the size of a file (no root needed), and a small disk in memory (root)."""
    rows: Rows = []
    with lab(prepared=False) as place:
        for stage in ("data", "init", "pretrain"):
            rows += _one_stage(place, stage)
    with contextlib.ExitStack() as stack:
        disk = stack.enter_context(_small_disk())
        if disk is None:
            return [*rows, row("a disk that is full as a whole: needs root", 0, "stops")]
        rows += _whole_disk(disk)
        rows += _read_only(disk)
    return rows


def _one_stage(place: Lab, stage: str) -> Rows:
    """Undisturbed, then once for each limit; and again without one."""
    place.finish(stage)
    expected = _content(place, stage)
    sizes = sorted({path.stat().st_size for path in place.folder.glob("artifacts/**/*") if path.is_file()})
    limits = sorted({max(64, size - 1) for size in sizes[:: max(1, len(sizes) // LIMITS)]})
    bad: list[str] = []
    stopped = 0
    for limit in limits:
        place.forget(stage)
        life = place.run(stage, before=_limit(limit))
        stopped += life.code != 0
        bad += [f"{stage} at {limit} bytes: {problem}" for problem in _problems(life)]
        place.finish(stage)
        bad += [] if _content(place, stage) == expected else [f"{stage} at {limit} bytes: another result"]
    return _report(f"{stage}: file sizes at which it was stopped", stopped, bad)


def _limit(size: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def _problems(life: Life) -> list[str]:
    """A stage that a full disk stopped says one thing, with path and bytes, and no traceback."""
    if life.code == 0:
        return []  # nothing it writes is that large
    found = [] if PATH_AND_BYTES.search(life.said) else [f"no path and bytes: {life.said[-300:]!r}"]
    found += ["a traceback"] if "Traceback" in life.said or "Logging error" in life.said else []
    return found + ([] if life.code == 1 else [f"exit code {life.code}"])


def _report(name: str, stopped: int, bad: list[str]) -> Rows:
    first = bad[0] if bad else "of them not as they should be"
    return [row(name, stopped, "stops"), at_most(f"  {first}", len(bad), "", 0)]


def _content(place: Lab, stage: str) -> dict[str, str]:
    manifest = json.loads((place.folder / "runs" / "soak" / stage / "manifest.json").read_text())
    return {path: sha for path, sha in outputs(manifest).items() if "report" not in path and "README" not in path}


@contextlib.contextmanager
def _small_disk() -> Iterator[Path | None]:
    """A disk of 4 MB in memory, or None where this user may not mount one."""
    with tempfile.TemporaryDirectory(prefix="hornbook-disk-") as folder:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True
        ).returncode
        try:
            yield None if mounted else Path(folder)
        finally:
            if not mounted:
                subprocess.run(["umount", folder], check=True)


def _resize(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(disk)], check=True)


def _whole_disk(disk: Path) -> Rows:
    """Grows the disk by a step after each stop, until all three stages are done."""
    bad: list[str] = []
    stopped, megabytes = 0, 4
    with lab(place=str(disk), prepared=False) as place, lab() as other:
        other.finish("pretrain")
        for stage in ("data", "init", "pretrain"):
            while (life := place.run(stage)).code != 0 and megabytes < 200:
                stopped += 1
                bad += _problems(life)
                megabytes += 2
                _resize(disk, f"size={megabytes}m")
        same = not other.outcome().differences(place.outcome())
    bad += [] if same else ["the result differs"]
    return _report("a disk that is full as a whole, 2 MB larger after each stop, all stages", stopped, bad)


def _read_only(disk: Path) -> Rows:
    bad: list[str] = []
    with lab(place=str(disk), prepared=False) as place:
        said = Path(tempfile.gettempdir()) / f"hornbook-said-{os.getpid()}"
        _resize(disk, "ro")
        try:
            for stage in ("data", "init", "pretrain"):
                life = _elsewhere(place, stage, said)
                bad += [f"{stage}: traceback"] if "Traceback" in life.said else []
                bad += [f"{stage}: exit {life.code}, {life.said[-200:]!r}"] if life.code != 2 else []
        finally:
            _resize(disk, "rw")
            said.unlink(missing_ok=True)
    return _report("a folder that may only be read: stages that say so and exit with 2", 3, bad)


def _elsewhere(place: Lab, stage: str, said: Path) -> Life:
    """A run whose messages go to another disk."""
    environment = {**os.environ, "HORNBOOK_ROOT": str(place.folder), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-P", "-m", "pipeline", stage, str(place.config)]
    with open(said, "w") as file:
        code = subprocess.run(command, env=environment, stdout=file, stderr=file).returncode
    return Life(code, said.read_text(), 0.0)
