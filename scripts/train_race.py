"""A race: every arm in a process of its own, one of them running at a time, in turn, a few steps each.

The parent starts the arms, pinned to the same core, and asks each in turn for a block of steps; all others
wait in a read. So whatever else the machine does meets every arm alike, and an arm's allocator settings stay its own.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any, TextIO

from scripts.bench_rows import ROOT

IN, OUT = "HORNBOOK_RACE_IN", "HORNBOOK_RACE_OUT"
WARMUP_STEPS = 2


class Meter:
    """In an arm's process: `built()` when model and optimizer exist, `step()` after every optimizer step."""

    def __init__(self) -> None:
        self._commands: TextIO = os.fdopen(int(os.environ[IN]), encoding="utf-8")
        self._answers: TextIO = os.fdopen(int(os.environ[OUT]), "w", encoding="utf-8")
        self._cpu: list[float] = []
        self._left, self._built = 1, 0.0

    def built(self) -> None:
        self._built = time.perf_counter()
        self._start_clock()

    def step(self) -> None:
        self._cpu.append(time.process_time() - self._cpu_from)
        self._left -= 1
        if self._left == 0:
            self._answer()
            self._wait()
        self._start_clock()

    def _start_clock(self) -> None:
        self._cpu_from = time.process_time()

    def _answer(self) -> None:
        since_built = time.perf_counter() - self._built
        json.dump({"cpu": self._cpu, "since_built": since_built}, self._answers)
        self._answers.write("\n")
        self._answers.flush()

    def _wait(self) -> None:
        line = self._commands.readline()
        if not line:
            os._exit(0)  # the race is over; whatever loop this is in has nothing left to do
        self._left, self._cpu = int(line), []


@dataclass
class Times:
    """CPU seconds per optimizer step of one arm. `first_step`: from the model being built to its first step's end, by
    the wall clock."""

    cpu: list[float] = field(default_factory=list)
    first_step: float = 0.0

    @property
    def cpu_seconds(self) -> float:
        return median(self.cpu)


class Runner:
    """The parent's end of one arm."""

    def __init__(self, script: str, arm: str, shape: str, environment: Mapping[str, str]) -> None:
        command_read, self._commands = os.pipe()
        self._answers, answer_write = os.pipe()
        environment = {**os.environ, **environment, IN: str(command_read), OUT: str(answer_write)}
        environment |= {f"{kind}_NUM_THREADS": "1" for kind in ("OMP", "MKL", "OPENBLAS")}
        self._process = subprocess.Popen(
            [sys.executable, script, "--arm", arm, shape], cwd=ROOT, env=environment,
            pass_fds=[command_read, answer_write], stdout=subprocess.DEVNULL, stderr=None,
        )  # fmt: skip
        os.close(command_read)
        os.close(answer_write)
        self._lines = os.fdopen(self._answers, encoding="utf-8")
        self.name, self.times = arm, Times()
        self.times.first_step = self._read()["since_built"]

    def run(self, steps: int, counted: bool = True) -> None:
        os.write(self._commands, f"{steps}\n".encode())
        answer = self._read()
        if counted:
            self.times.cpu += answer["cpu"]

    def end(self) -> None:
        os.close(self._commands)
        self._process.wait(60)

    def _read(self) -> dict[str, Any]:
        line = self._lines.readline()
        if not line:
            raise SystemExit(f"the arm '{self.name}' ended early; what it said is above")
        return json.loads(line)


def race(
    script: str, arms: list[str], shape: str, rounds: int, steps: int,
    environments: Mapping[str, Mapping[str, str]] | None = None,
) -> dict[str, Times]:  # fmt: skip
    """Arm -> its times after `rounds` turns of `steps` steps. `script`: what runs an arm, by `--arm NAME SHAPE`;
    `environments`: what an arm finds in its environment besides."""
    own = environments or {}
    # One after the other: each waits when it is ready.
    runners = [Runner(script, arm, shape, own.get(arm, {})) for arm in arms]
    for runner in runners:
        runner.run(WARMUP_STEPS, counted=False)
    for turn in range(rounds):
        for runner in runners if turn % 2 == 0 else reversed(runners):
            runner.run(steps)
    for runner in runners:
        runner.end()
    return {runner.name: runner.times for runner in runners}
