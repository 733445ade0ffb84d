"""The experiment's ledger: every second of every process of every stage, appended and synced.

`runs/<experiment>/ledger.jsonl` gets a line at start, at least every five seconds, and at exit. `seconds` counts
from the start of the *process* (imports included) and only grows within one life, so a stage's spent time is the
sum over lives of the largest value, and a life that was killed loses at most one heartbeat.
"""

import json
import os
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.storage.files import read_json_lines
from pipeline.system.disk import DiskFull, append_synced
from pipeline.system.progress import doing

HEARTBEAT_SECONDS = 5.0
LEDGER = "ledger.jsonl"
CARD_KEYS = ("micro_batch", "tokens_per_second", "price_per_hour")


def process_age_seconds() -> float:
    """Seconds since this process was started by the kernel; since import where there is no /proc."""
    return time.monotonic() - _PROCESS_START


def _process_start() -> float:
    try:
        with open("/proc/self/stat", encoding="ascii", errors="replace") as file:
            ticks = int(file.read().rsplit(")", 1)[1].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        return time.monotonic() - max(0.0, age)
    except (OSError, ValueError, IndexError, AttributeError):
        return time.monotonic()


_PROCESS_START = _process_start()


class Ledger:
    """One process's entry in the ledger. `with Ledger(...) as ledger:` around a stage's work.

    `fingerprint` may be empty for a stage whose folder is not known yet. `devices` multiplies: two devices for an
    hour are two device-hours. On a CPU the same accounting counts device-hours of the machine. `folder`: the stage's
    own folder, which then keeps the same lines and is what lives are counted from: the same pretraining under another
    experiment's name must not get a fresh clock. `waited_seconds`: of this process, left out because another process's
    ledger has them.
    """

    def __init__(
        self,
        path: Path,
        *,
        stage: str,
        fingerprint: str,
        device: str,
        devices: int = 1,
        folder: Path | None = None,
        waited_seconds: float = 0.0,
    ):
        self.stage, self.fingerprint = stage, fingerprint
        self.paths = [path] if folder is None else [path, folder / LEDGER]
        self.device, self.devices = device, devices
        self.life = 0
        self.waited_seconds = waited_seconds
        self.earlier_seconds = 0.0
        """Device-seconds of earlier lives alone."""
        self.inherited_seconds = 0.0
        """Device-seconds of the trunk that a branch continues; in another ledger, but under the same cap."""
        self.card: dict[str, Any] = {}
        """What this life knows of its device: micro_batch, tokens_per_second, price_per_hour. On every line."""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._write_lock = threading.Lock()
        self._failure: Exception | None = None

    def __enter__(self) -> "Ledger":
        for path in self.paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            _end_torn_line(path)
        lives = _lives(self.paths[-1], self.stage, self.fingerprint)
        self.life = len(lives) + 1
        self.earlier_seconds = sum(lives.values())
        self.write()
        self._thread = threading.Thread(target=self._beat, name="ledger", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        try:
            self.write()
        except (OSError, DiskFull):
            if kind is None:  # else what ended the stage is to be said; the last heartbeat stands
                raise

    def write(self) -> None:
        """Appends and syncs one line now."""
        line = {
            "stage": self.stage,
            "fingerprint": self.fingerprint,
            "life": self.life,
            "device": self.device,
            "devices": self.devices,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "job": os.environ.get("SLURM_JOB_ID"),
            "seconds": round(self._own_seconds, 3),
            "doing": doing(),
            **self.card,
        }
        for path in self.paths:
            with self._write_lock:
                append_synced(path, json.dumps(line).encode() + b"\n")

    @property
    def spent_seconds(self) -> float:
        """Device-seconds of this stage so far: the trunk's, where this is a branch, earlier lives and this one."""
        return self.inherited_seconds + self.earlier_seconds + self._own_seconds * self.devices

    @property
    def _own_seconds(self) -> float:
        return process_age_seconds() - self.waited_seconds

    def check(self) -> None:
        """Raises what a heartbeat could not write: hours that nobody records must not be spent."""
        if self._failure is not None:
            raise self._failure

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            try:
                self.write()
                self._failure = None
            except (OSError, DiskFull) as error:
                self._failure = error


def spent_hours(path: Path) -> dict[str, float]:
    """Device-hours by stage over all lives and fingerprints of one experiment."""
    totals: dict[str, float] = defaultdict(float)
    for stage, fingerprint in {(line["stage"], line["fingerprint"]) for line in _lines(path)}:
        totals[stage] += sum(_lives(path, stage, fingerprint).values()) / 3600
    return dict(totals)


def cards(path: Path, stage: str, fingerprint: str) -> list[dict[str, Any]]:
    """One stage's folder by device, in the order they came: `device`, `lives`, `gpu_hours`, what the newest life there
    said of it (`micro_batch`, `tokens_per_second`, `price_per_hour`), and `cost` where a price is known."""
    lines = [line for line in _lines(path) if line["stage"] == stage and line["fingerprint"] == fingerprint]
    seconds, newest = _lives(path, stage, fingerprint), {_process(line): line for line in lines}
    found: dict[str, dict[str, Any]] = {}
    for life, line in sorted(newest.items()):
        card = found.setdefault(
            line.get("device", ""), {"device": line.get("device", ""), "lives": 0, "gpu_hours": 0.0}
        )
        card["lives"] += 1
        card["gpu_hours"] += seconds[life] / 3600
        card.update({key: line[key] for key in CARD_KEYS if line.get(key) is not None})
    for card in found.values():
        if "price_per_hour" in card:
            card["cost"] = round(card["gpu_hours"] * card["price_per_hour"], 4)
    return list(found.values())


def spent_seconds(path: Path, stage: str, fingerprint: str) -> float:
    """Device-seconds of one stage's folder over all lives so far."""
    return sum(_lives(path, stage, fingerprint).values())


def merge(path: Path, other: bytes) -> None:
    """Adds the lines of another machine's copy of this ledger that it lacks."""
    mine = set(path.read_bytes().splitlines()) if path.is_file() else set()
    lacking = [line for line in other.splitlines() if line.endswith(b"}") and line not in mine]
    if lacking:
        _end_torn_line(path)
        append_synced(path, b"".join(line + b"\n" for line in lacking))


def _end_torn_line(path: Path) -> None:
    """A line cut by a kill is ended, so that ours starts on a line of its own."""
    if path.is_file() and path.stat().st_size:
        with open(path, "rb+") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")


def _lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a ledger. Each is the largest of its life so far, so a damaged one loses a heartbeat."""
    needed = {"life": int, "pid": int, "devices": int, "seconds": float, "stage": str, "fingerprint": str}
    names = ("host", "device")  # which machine: hours count where a line does not say it, too
    return [
        line
        for line in read_json_lines(path, **needed)
        if all(isinstance(line.get(name, ""), str) for name in names) and line["seconds"] >= 0
    ]


def _process(line: Mapping[str, Any]) -> tuple[int, int, str]:
    return line["life"], line["pid"], line.get("host", "")


def _lives(path: Path, stage: str, fingerprint: str) -> dict[tuple[int, int, str], float]:
    """(life, process, host) -> device-seconds, each at its last heartbeat. Two that began together count twice."""
    seconds: dict[tuple[int, int, str], float] = {}
    for line in _lines(path):
        if line["stage"] == stage and line["fingerprint"] == fingerprint:
            spent = line["seconds"] * line["devices"]
            seconds[_process(line)] = max(seconds.get(_process(line), 0.0), spent)
    return seconds
