"""Faults around a run: full and read-only disks, clocks that jump, signals, a second process, a suspended one."""

import contextlib
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.config import PRETRAINING
from scripts.bench_rows import Rows, at_least, at_most, row
from tests.soak.lab import CONFIG, Lab, Life, Outcome, after, core_seconds, core_seconds_of, lab

FIRST_BYTES, STEP_BYTES = 64 << 10, 16 << 10  # of the small disk: what it has, and gets at least after each stop
PATH_AND_BYTES = re.compile(r"hornbook: .*: (/\S+|\S+/\S*): this write needs ([\d,]+) bytes, ([\d,]+) are free")


def limits(quick: bool) -> Rows:
    """A limit on the size of a file: no root needed."""
    rows: Rows = []
    with lab(prepared=False) as place:
        for stage in PRETRAINING:
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
        for stage in PRETRAINING:
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
            for stage in PRETRAINING:
                life = place.run(stage)
                bad += [f"{stage}: traceback"] if "Traceback" in life.said else []
                bad += [f"{stage}: exit {life.code}, {life.said[-200:]!r}"] if life.code != 2 else []
        finally:
            _remount(disk, "rw")
    return _report("a folder that may only be read: stages that say so and exit with 2", len(PRETRAINING), bad)


STOPPED_SECONDS = 8.0
SLACK_SECONDS = 2.0  # of the ledger against the wall clock, for a life that ended by itself
KILLS = 3
# The wall clock of a process is another one every 0.3 s: right, a day back, a week ahead, an hour back.
JUMPS = """
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static long jump(void) {
  static const long by[4] = {0, -86400, 604800, -3600};
  struct timespec now;
  syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &now);
  return by[(now.tv_sec * 10 + now.tv_nsec / 100000000) / 3 % 4];
}
int clock_gettime(clockid_t clock, struct timespec *to) {
  int code = syscall(SYS_clock_gettime, clock, to);
  if (code == 0 && clock == CLOCK_REALTIME) to->tv_sec += jump();
  return code;
}
int gettimeofday(struct timeval *to, void *zone) {
  struct timespec now;
  if (clock_gettime(CLOCK_REALTIME, &now)) return -1;
  to->tv_sec = now.tv_sec, to->tv_usec = now.tv_nsec / 1000;
  return 0;
}
time_t time(time_t *to) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (to) *to = now.tv_sec;
  return now.tv_sec;
}
"""
SEEN = """
import time
seen, until = {round(time.time() / 600)}, time.monotonic() + 2
while time.monotonic() < until:
    seen.add(round(time.time() / 600)); time.sleep(0.01)
print(len(seen))
"""


def jumping(quick: bool) -> Rows:
    """All three stages, killed a few times, while the wall clock jumps by hours and days."""
    if shutil.which("cc") is None:
        return [row("a wall clock that jumps: needs a C compiler", 0, "", ">= 1", False)]
    draw, wrong, hours = random.Random(15), 0, 0.0
    with lab(prepared=False) as place:
        expected = {stage: place.finish(stage) and place.content(stage) for stage in PRETRAINING}
        undisturbed = place.outcome()
        place.environment["LD_PRELOAD"] = str(_library(place.folder))
        environment = {**os.environ, **place.environment}
        clocks = int(
            subprocess.run([sys.executable, "-c", SEEN], env=environment, capture_output=True, text=True).stdout
        )
        place.forget(*PRETRAINING)
        for stage in PRETRAINING:
            for _ in range(1 if quick else KILLS):
                place.killed(stage, after(draw.uniform(0.5, 8.0)))
            life = place.finish(stage)
            wrong += place.content(stage) != expected[stage]
            hours = max(hours, abs(life.seconds - place.spent(stage).get(life.pid, life.seconds)))
        differing = place.outcome().differences(undisturbed)
    return [
        at_least("wall clocks that one process saw within 2 s, days apart", clocks, "clocks", 3),
        at_most("stages with another result under them, killed and resumed", wrong, "stages", 0),
        at_most(f"  differences to the undisturbed run {', '.join(differing)}".rstrip(), len(differing), "", 0),
        at_most("  hours of a life: the ledger against a clock that does not jump, worst", hours, "s", SLACK_SECONDS),
    ]


def _library(folder: Path) -> Path:
    source, library = folder / "jumps.c", folder / "jumps.so"
    source.write_text(JUMPS)
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source)], check=True)
    return library


def _undisturbed(place: Lab) -> Outcome:
    """What a pretraining that nothing disturbs comes to; its folder is empty again."""
    place.finish("pretrain")
    outcome = place.outcome()
    place.forget("pretrain")
    return outcome


def suspended(quick: bool) -> Rows:
    """SIGSTOP for longer than a heartbeat, then SIGCONT."""
    with lab() as place:
        undisturbed = _undisturbed(place)
        started, process = time.monotonic(), place.start("pretrain")
        place.wait_until(process, place.checkpoints)
        process.send_signal(signal.SIGSTOP)
        time.sleep(STOPPED_SECONDS)
        process.send_signal(signal.SIGCONT)
        life = place.wait(process, started)
        found = place.outcome()
        missing = life.seconds - place.spent("pretrain")[life.pid]
    name = f"stopped for {STOPPED_SECONDS:.0f} s"
    return [
        at_most(f"{name}: differences to the undisturbed run", len(found.differences(undisturbed)), "", 0),
        at_most(f"{name}: seconds that the ledger lacks", missing, "s", SLACK_SECONDS),
    ]


MOST_SECONDS = 15.0
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# 150M parameters in fp32 with Adam's moments: 1.8 GB.
LARGE = (
    CONFIG.replace("vocab_size: 512, hidden_size: 32, intermediate_size: 128, num_hidden_layers: 2",
                   "vocab_size: 30000, hidden_size: 768, intermediate_size: 3072, num_hidden_layers: 15")
    .replace("num_attention_heads: 4", "num_attention_heads: 12")
    .replace("global_batch_tokens: 256, micro_batch: 2", "global_batch_tokens: 64, micro_batch: 1")
    .replace("checkpoint_every_seconds: 0.4", "checkpoint_every_seconds: 1000")
    .replace("20_480", "1_000_000_000")
    .replace("name: soak", "name: large\ntokenizer: {vocab_size: 512}")
)  # fmt: skip


def signals(quick: bool) -> Rows:
    """Each of the three signals at random instants of each stage: gone soon, with 75, and the result is the same."""
    draw, slowest, wrong, count = random.Random(12), {"data": 0.0, "init": 0.0, "pretrain": 0.0}, 0, 0
    with lab(prepared=False) as place:
        seconds = {stage: place.finish(stage).seconds for stage in slowest}
        expected = {stage: place.content(stage) for stage in slowest}
        undisturbed = place.outcome()
        for stage in slowest:
            for number in SIGNALS:
                place.forget(stage)
                process = place.start(stage)
                after(draw.uniform(0.3, 0.9) * seconds[stage])(process)
                process.send_signal(number)
                asked = time.monotonic()
                life = place.wait(process, asked)
                slowest[stage] = max(slowest[stage], life.seconds)
                wrong += life.code not in (75, 0)
                count += 1
                place.finish(stage)
                wrong += place.content(stage) != expected[stage]
        wrong += bool(place.outcome().differences(undisturbed))
    return [
        row("SIGTERM, SIGINT, SIGUSR1 at random instants of data, init, pretrain", count, "times"),
        at_most("exit codes other than 75, or another result afterwards", wrong, "times", 0),
        *(
            at_most(f"from a signal to gone, {name}, slowest", took, "s", MOST_SECONDS)
            for name, took in slowest.items()
        ),
    ]


def large_state(quick: bool) -> Rows:
    """SIGTERM to a run of 150M parameters after three steps."""
    with lab(LARGE) as place:
        place.finish("data")  # the others': it knows nothing of the model
        place.finish("init")
        started, process = time.monotonic(), place.start("pretrain")
        place.wait_until(process, lambda: place.last_row() >= 3)
        asked, before, ended = time.monotonic(), core_seconds_of(process), core_seconds()
        process.send_signal(signal.SIGTERM)
        life = place.wait(process, started)
        took, of_a_core = time.monotonic() - asked, core_seconds() - ended - before
        saved = list(place.pretrain.glob("checkpoints/step-*/*"))
        size = sum(path.stat().st_size for path in saved) / 1e9
    return [
        row("a state of 150M parameters: bytes saved", round(size, 2), "GB"),
        at_most("from SIGTERM to saved and gone", took, "s", MOST_SECONDS),
        at_most("  seconds of a core from SIGTERM on, the rest of a step included", of_a_core, "s", MOST_SECONDS),
        at_most("exit code other than 75", int(life.code != 75), "", 0),
    ]


def two_at_once(quick: bool) -> Rows:
    """A second trainer goes and writes nothing, also while the first stands still; a second data stage waits."""
    with lab() as place:
        undisturbed = _undisturbed(place)
        started, first = time.monotonic(), place.start("pretrain")
        place.wait_until(first, lambda: place.records("life"))
        ended = core_seconds()
        seconds = [place.run("pretrain")]
        of_a_core = core_seconds() - ended
        first.send_signal(signal.SIGSTOP)
        seconds.append(place.run("pretrain"))
        first.send_signal(signal.SIGCONT)
        life = place.wait(first, started)
        wrong = sum(second.code != 1 or f"process {first.pid}" not in second.said for second in seconds)
        wrong += sum("Traceback" in second.said for second in seconds)
        strangers = set(place.spent("pretrain")) - {first.pid}
        differing = place.outcome().differences(undisturbed)
        place.forget(*PRETRAINING)
        one, two = place.start("data"), place.start("data")
        codes = one.wait(timeout=300), two.wait(timeout=300)
    return [
        at_most("second trainer: not turned away with the owner's name, the owner at work and stopped", wrong, "", 0),
        at_most("second trainer: seconds until it was gone", max(second.seconds for second in seconds), "s", 5.0),
        at_most("  seconds of a core until then", of_a_core, "s", 5.0),
        at_most("second trainer: lines that it wrote into the ledger", len(strangers), "", 0),
        at_most("first trainer: exit code, differences", abs(life.code) + len(differing), "", 0),
        at_most("two data stages at once: bad exit codes", sum(code != 0 for code in codes), "", 0),
    ]


def replay(quick: bool) -> Rows:
    """A run under a cap of hours, killed three times; its decisions replayed undisturbed."""
    cap = 60.0 if not quick else 40.0
    config = CONFIG.replace("budget: {max_tokens: 20_480}", f"budget: {{max_gpu_hours: {cap / 3600:.6f}}}")
    draw, kills = random.Random(13), 0
    with lab(config) as place, tempfile.TemporaryDirectory() as aside:
        place.warm = True
        while kills < 3:
            life = place.killed("pretrain", after(draw.uniform(3, cap / 5)))
            kills += life.code != 0
        place.finish("pretrain")
        disturbed = place.outcome()
        record = Path(aside) / "decisions.jsonl"
        shutil.copyfile(place.pretrain / "decisions.jsonl", record)
        place.forget("pretrain")
        place.finish("pretrain", "--replay", str(record))
        differing = disturbed.differences(place.outcome())
    return [
        row("a run under a cap of hours, killed; steps", f"{kills}, {disturbed.manifest['steps']:,}", ""),
        at_most(f"its decisions replayed: differences {', '.join(differing)}".strip(), len(differing), "", 0),
    ]
