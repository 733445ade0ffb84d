"""Clocks that jump and a process that stands still: same result, same hours."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from scripts.bench_rows import Rows, at_least, at_most, row
from scripts.soak_parts.lab import after, lab

STAGES = ("data", "init", "pretrain")
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
        expected = {stage: place.finish(stage) and place.content(stage) for stage in STAGES}
        undisturbed = place.outcome()
        place.environment["LD_PRELOAD"] = str(_library(place.folder))
        environment = {**os.environ, **place.environment}
        clocks = int(
            subprocess.run([sys.executable, "-c", SEEN], env=environment, capture_output=True, text=True).stdout
        )
        place.forget(*STAGES)
        for stage in STAGES:
            for _ in range(1 if quick else KILLS):
                place.killed(stage, after(draw.uniform(0.5, 8.0)))
            life = place.finish(stage)
            wrong += place.content(stage) != expected[stage]
            hours = max(hours, abs(life.seconds - place.spent(stage).get(life.pid, life.seconds)))
        differing = place.outcome().differences(undisturbed)
    return [
        at_least("wall clocks that one process saw within 2 s, days apart", clocks, "clocks", 3),
        at_most("stages with another result under them, killed and gone on", wrong, "stages", 0),
        at_most(f"  differences to the undisturbed run {', '.join(differing)}".rstrip(), len(differing), "", 0),
        at_most("  hours of a life: the ledger against a clock that does not jump, worst", hours, "s", SLACK_SECONDS),
    ]


def _library(folder: Path) -> Path:
    source, library = folder / "jumps.c", folder / "jumps.so"
    source.write_text(JUMPS)
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source)], check=True)
    return library


def suspended(quick: bool) -> Rows:
    """SIGSTOP for longer than a heartbeat, then SIGCONT."""
    with lab() as place:
        place.finish("pretrain")
        undisturbed = place.outcome()
        place.forget("pretrain")
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
