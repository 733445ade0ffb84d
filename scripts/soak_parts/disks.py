"""Disks that fill up: at every size of file that a stage writes, and as a whole; then there is room again."""

import contextlib
import re
import resource
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from scripts.bench_rows import Rows, at_most, row
from scripts.soak_parts.lab import Lab, Life, lab

STAGES = ("data", "init", "pretrain")
FIRST_BYTES, STEP_BYTES = 64 << 10, 16 << 10  # of the small disk: what it has, and gets at least after each stop
PATH_AND_BYTES = re.compile(r"hornbook: .*: (/\S+|\S+/\S*): this write needs ([\d,]+) bytes, ([\d,]+) are free")


def limits(quick: bool) -> Rows:
    """A limit on the size of a file: no root needed."""
    rows: Rows = []
    with lab(prepared=False) as place:
        for stage in STAGES:
            rows += _one_stage(place, stage, 3 if quick else 16)
    return rows


def small(quick: bool) -> Rows:
    """A small disk in memory that fills up as a whole, and one that may only be read: root."""
    with _small_disk() as disk:
        if disk is None:
            return [row("a disk that is full as a whole: needs root", 0, "stops")]
        return [*_whole_disk(disk, 3 if quick else 12), *_read_only(disk)]


def _one_stage(place: Lab, stage: str, most: int) -> Rows:
    """Undisturbed, then once for each of about `most` limits; and again without one."""
    place.finish(stage)
    expected = place.content(stage)
    first = (place.folder / "runs" / "soak" / "config.yaml").stat().st_size  # is written first: no limit gets below it
    sizes = {path.stat().st_size for path in place.folder.glob("artifacts/**/*") if path.is_file()}
    larger = sorted(size for size in sizes if size > first)
    limits = [first - 1, *(size - 1 for size in larger[:: max(1, len(larger) // most)])]
    bad: list[str] = []
    stopped = 0
    for limit in limits:
        place.forget(stage)
        life = place.run(stage, before=_limit(limit))
        stopped += life.code != 0
        bad += [f"{stage} at {limit} bytes: {problem}" for problem in _problems(life)]
        place.finish(stage)
        bad += [] if place.content(stage) == expected else [f"{stage} at {limit} bytes: another result"]
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


@contextlib.contextmanager
def _small_disk() -> Iterator[Path | None]:
    """A small disk in memory, or None where this user may not mount one."""
    with tempfile.TemporaryDirectory(prefix="hornbook-disk-") as folder:
        words = ["mount", "-t", "tmpfs", "-o", f"size={FIRST_BYTES}", "tmpfs", folder]
        mounted = subprocess.run(words, capture_output=True).returncode == 0
        try:
            yield Path(folder) if mounted else None
        finally:
            if mounted:
                subprocess.run(["umount", folder], check=True)


def _remount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(disk)], check=True)


def _whole_disk(disk: Path, stops: int) -> Rows:
    """A disk that has a little more room after each stop, until all three stages are done: `stops` each, about."""
    rows: Rows = []
    size = FIRST_BYTES
    with lab(prepared=False) as other, lab(place=str(disk), prepared=False) as place:
        for stage in STAGES:
            before = _bytes(other.folder)
            other.finish(stage)
            step = max(STEP_BYTES, (_bytes(other.folder) - before) // stops)
            stopped, bad = 0, []
            while (life := place.run(stage)).code != 0:
                stopped += 1
                bad += [f"{stage} on {size:,} bytes: {problem}" for problem in _problems(life)]
                if stopped > 10 * stops:
                    raise RuntimeError(f"{stage} never ends on a disk of {size:,} bytes:\n{life.said[-3000:]}")
                size += step
                _remount(disk, f"size={size}")
            bad += [] if place.content(stage) == other.content(stage) else [f"{stage}: another result"]
            rows += _report(f"{stage}: stops on a disk that gets {step:,} bytes larger each time", stopped, bad)
        differing = place.outcome().differences(other.outcome())
    name = f"  weights, losses, rows, tokens that differ {', '.join(differing)}".rstrip()
    return [*rows, at_most(name, len(differing), "", 0)]


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("**/*") if path.is_file())


def _read_only(disk: Path) -> Rows:
    bad: list[str] = []
    with lab(place=str(disk), prepared=False) as place:
        _remount(disk, "ro")
        try:
            for stage in STAGES:
                life = place.run(stage)
                bad += [f"{stage}: traceback"] if "Traceback" in life.said else []
                bad += [f"{stage}: exit {life.code}, {life.said[-200:]!r}"] if life.code != 2 else []
        finally:
            _remount(disk, "rw")
    return _report("a folder that may only be read: stages that say so and exit with 2", len(STAGES), bad)
