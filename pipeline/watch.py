"""`hornbook watch`: what a run is doing, seen from its folder alone; on a terminal, or as pages on this machine.

In: `runs/<name>/` and the folders of its stages: the ledger (which stage, alive or not, hours), metrics, decisions,
manifests, samples, jobs that were sent. Out: frames of a terminal (pages: pipeline/serve.py). Nothing is written, and
the run's process is not asked. A run may be queued, under way, killed, finished, or of an older version; a file may be
half written or missing: what cannot be read is left out.
"""

import contextlib
import json
import math
import os
import select
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pipeline import runs
from pipeline.config import STAGES, nearest, yaml_values
from pipeline.storage.files import read_json_lines, root
from pipeline.storage.ledger import HEARTBEAT_SECONDS, LEDGER, spent_hours
from pipeline.storage.run_files import DECISIONS, METRICS
from pipeline.storage.steps import MANIFEST, read_manifest
from pipeline.system.errors import UserError, printable
from pipeline.system.processes import process_lives
from pipeline.system.progress import format_bytes, format_count, format_seconds

if TYPE_CHECKING:
    from rich.text import Text

HELD_OUT = "val/bits_per_byte"
SILENT_SECONDS = 6 * HEARTBEAT_SECONDS  # without a heartbeat of a process that is said to live
LOW_DISK_BYTES = 2 << 30
FRAME_SECONDS = 1.0
TRAINING = ("pretrain", "finetune")
QUEUED, NOTHING = "queued", "nothing yet"
USUAL = (80, 24)


def find(word: str | None) -> str:
    """The name of the run that a word means: a name under `runs/`, or a config's path; None: the one with the newest
    sign of life. Raises `UserError`."""
    top = root() / "runs"
    if word is not None and not word.endswith((".yaml", ".yml")) and (top / word).is_dir():
        word, known = word.rstrip("/"), names()
        members = [name for name in known if name.startswith(f"{word}/")]  # of a study, which is no run itself
        return max(members, key=newest_sign) if members and word not in known else word
    if word is not None and word.endswith((".yaml", ".yml")):
        name = (_yaml(Path(word)) if Path(word).is_file() else {}).get("name")
        if isinstance(name, str) and (top / name).is_dir():
            return name
        raise UserError(f"{word}: no run of it under {top} yet; start one: hornbook data {word}")
    known = sorted(names(), key=newest_sign)
    if word is None and known:
        return known[-1]
    if word is None:
        raise UserError(f"there is no run under {top} yet; start one: hornbook data configs/tiny.yaml")
    raise UserError(f"there is no run '{word}' under {top}{nearest(word, known)}; expected one of: {', '.join(known)}")


def names() -> list[str]:
    """Every run, those that only wait in a queue included."""
    top = root() / "runs"
    sent = {path.parents[2].relative_to(top).as_posix() for path in top.glob("**/jobs/*/submitted.json")}
    return sorted({*runs.names(), *sent})


def newest_sign(name: str) -> float:
    """When a run's files last changed, in seconds of the epoch."""
    folder = root() / "runs" / name
    paths = [folder / LEDGER, *folder.glob("jobs/*/submitted.json"), folder / "pretrain" / METRICS]
    return max(map(_modified, paths))


def _modified(path: Path) -> float:
    with contextlib.suppress(OSError):
        return path.stat().st_mtime
    return 0.0


def _yaml(path: Path) -> dict[str, Any]:
    """A config as it is written, of whatever version; empty where it cannot be read."""
    with contextlib.suppress(OSError, ValueError, yaml.YAMLError, RecursionError):
        found = yaml_values.load(path.read_text(encoding="utf-8", errors="replace"))
        return found if isinstance(found, dict) else {}
    return {}


class _Lines:
    """The whole lines of a growing file of JSON; only what is new is read, unless the file was cut or replaced."""

    def __init__(self, path: Path):
        self.path, self.lines = path, []
        self._at, self._inode = 0, None

    def read(self) -> list[dict[str, Any]]:
        with contextlib.suppress(OSError), open(self.path, "rb") as file:
            stat = os.fstat(file.fileno())
            if stat.st_ino != self._inode or stat.st_size < self._at:
                self.lines, self._at, self._inode = [], 0, stat.st_ino
            file.seek(self._at)
            whole = file.read().rpartition(b"\n")[0]
            self._at += len(whole) + 1 if whole else 0
            for line in whole.split(b"\n") if whole else []:
                with contextlib.suppress(ValueError, RecursionError):
                    found = json.loads(line.decode("utf-8", "replace"))
                    self.lines += [found] if isinstance(found, dict) else []
        return self.lines


def _number(row: Mapping[str, Any], key: str) -> float | None:
    """A finite number under a key; None for anything else."""
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e300 or not math.isfinite(value):
        return None
    return float(value)


@dataclass
class Snapshot:
    """What is known of a run at one moment. `state`: running, queued, done, stopped, damaged or `nothing yet`; `doing`:
    what the process said of its work; `loss`, `held_out`: (tokens, value); `newest`: the last row of metrics;
    `left_seconds`: to the end of the training; all None or empty where it is not known."""

    name: str
    state: str = NOTHING
    stage: str | None = None
    doing: str | None = None
    silent_seconds: float | None = None
    stages: dict[str, str] = field(default_factory=dict)
    loss: list[tuple[float, float]] = field(default_factory=list)
    held_out: list[tuple[float, float]] = field(default_factory=list)
    newest: dict[str, float] = field(default_factory=dict)
    device: str | None = None
    hours: dict[str, float] = field(default_factory=dict)
    used_hours: float | None = None
    max_hours: float | None = None
    max_tokens: float | None = None
    price_per_hour: float | None = None
    left_seconds: float | None = None
    forecast: str | None = None
    sample: str | None = None
    jobs: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def active(self) -> bool:
        return self.state in (runs.RUNNING, QUEUED)


class Watched:
    """One run, looked at again and again: `look()` reads what is new."""

    def __init__(self, name: str):
        self.name, self.folder = name, root() / "runs" / name
        self._files: dict[Path, _Lines] = {}
        self._config: tuple[float, dict[str, Any]] = (-1.0, {})

    def look(self) -> Snapshot:
        """Never raises for what a run's files hold or lack."""
        found, config = Snapshot(self.name), self._read_config()
        with contextlib.suppress(OSError):
            links = runs.links(self.name)
            found.stages = {stage: runs.state(links[stage]) for stage in STAGES if stage in links}
            for stage, state in found.stages.items():
                if state == runs.DAMAGED:
                    found.warnings.append(f"the manifest of {stage} is damaged: hornbook {stage} makes it again")
        self._read_ledger(found)
        self._read_jobs(found)
        if found.stage is None and found.stages:
            found.stage = list(found.stages)[-1]
        trained = found.stage if found.stage in TRAINING else "pretrain"
        section = config.get("finetune") if trained == "finetune" else config
        budget = section.get("budget") if isinstance(section, dict) else None
        budget = budget if isinstance(budget, dict) else {}
        found.max_hours, found.max_tokens = _number(budget, "max_gpu_hours"), _number(budget, "max_tokens")
        found.price_per_hour = _number(budget, "gpu_hour_price")
        folder = self.folder / trained
        manifest = _manifest(folder)
        self._read_metrics(found, folder)
        self._read_decisions(found, folder, manifest)
        self._read_samples(found, folder, manifest)
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(root()).free
            if found.active and free < LOW_DISK_BYTES:
                found.warnings.append(f"the disk has {format_bytes(free)} left")
        return found

    def _read_config(self) -> dict[str, Any]:
        """As the run wrote it, or of a run that never began as it was sent; parsed again where it changed."""
        path = self.folder / runs.CONFIG
        path = path if path.is_file() else max(self.folder.glob("jobs/*/resolved.yaml"), default=path)
        changed = _modified(path)
        if changed != self._config[0]:
            self._config = changed, _yaml(path)
        return self._config[1]

    def _lines(self, path: Path) -> list[dict[str, Any]]:
        real = Path(os.path.realpath(path))  # a link may lead elsewhere now
        return self._files.setdefault(real, _Lines(real)).read()

    def _read_ledger(self, found: Snapshot) -> None:
        path = self.folder / LEDGER
        lines = [line for line in self._lines(path) if isinstance(line.get("stage"), str)]
        if not lines:
            return
        line = lines[-1]
        silent = max(0.0, time.time() - _modified(path))
        here = line.get("host") == socket.gethostname()
        alive = process_lives(line.get("pid")) if here else silent < SILENT_SECONDS
        found.stage, found.silent_seconds = line["stage"], silent
        found.device = line["device"] if isinstance(line.get("device"), str) else None
        with contextlib.suppress(OSError, KeyError, TypeError, ValueError):
            found.hours = spent_hours(path)
        of_folder = found.stages.get(line["stage"])
        if alive and of_folder != runs.DONE:
            found.state = runs.RUNNING
            found.doing = line["doing"] if isinstance(line.get("doing"), str) else None
            if silent > SILENT_SECONDS:
                found.warnings.append(f"no sign of life for {format_seconds(silent)}: the process may hang")
        else:
            found.state = of_folder or runs.STOPPED
            if found.state == runs.STOPPED:
                resume = f"hornbook {found.stage} {self.name}"
                found.warnings.append(f"{found.stage} stopped before its end; to resume: {resume}")

    def _read_jobs(self, found: Snapshot) -> None:
        """What was sent to Slurm after the last sign of life waits there, as far as the folder can say."""
        sent = sorted(self.folder.glob("jobs/*/submitted.json"))
        if not sent or found.state == runs.RUNNING or _modified(sent[-1]) < _modified(self.folder / LEDGER):
            return
        with contextlib.suppress(OSError, ValueError, RecursionError, AttributeError, TypeError, KeyError):
            jobs = json.loads(sent[-1].read_text(encoding="utf-8"))["jobs"]
            found.jobs = [f"{job['name']}: job {job['id']}{''.join(f' {a}' for a in job['after'])}" for job in jobs]
            found.state = QUEUED if found.jobs else found.state

    def _read_metrics(self, found: Snapshot, folder: Path) -> None:
        rows = self._lines(folder / METRICS)
        for row in rows:
            at = _number(row, "budget/tokens")
            for key, points in (("train/loss", found.loss), (HELD_OUT, found.held_out)):
                value = _number(row, key)
                if at is not None and value is not None:
                    points.append((at, value))
        last = [row for row in rows if "train/loss" in row][-1:]
        found.newest = {key: value for row in last for key in row if (value := _number(row, key)) is not None}
        used = [found.newest.get("budget/gpu_hours")]
        with contextlib.suppress(OSError, KeyError, TypeError, ValueError):  # its own ledger is newer than its rows
            used.append(spent_hours(folder / LEDGER).get(folder.name))
        found.used_hours = max((hours for hours in used if hours is not None), default=None)
        if last and "train/loss" not in found.newest:
            found.warnings.append(f"the loss of step {last[0].get('step')} is no number")
        if len(found.held_out) > 2 and found.held_out[-1][1] > min(value for _, value in found.held_out):
            best = min(found.held_out, key=lambda point: point[1])
            found.warnings.append(f"held-out text was best at {format_count(best[0])} tokens ({best[1]:.4f})")
        if found.state == runs.RUNNING and found.stage in TRAINING:
            found.left_seconds = self._left(found)

    def _left(self, found: Snapshot) -> float | None:
        """By the cap and by the tokens, whichever ends first; less the age of the file that says so."""
        lefts, age = [], max(0.0, time.time() - _modified(self.folder / str(found.stage) / METRICS))
        if found.max_hours is not None and found.used_hours is not None:
            lefts.append(3600 * (found.max_hours - found.used_hours) - (found.silent_seconds or 0.0))
        speed = found.newest.get("perf/tokens_per_second")
        if found.max_tokens is not None and speed and "budget/tokens" in found.newest:
            lefts.append((found.max_tokens - found.newest["budget/tokens"]) / speed - age)
        return max(0.0, min(lefts)) if lefts else None

    def _read_decisions(self, found: Snapshot, folder: Path, manifest: Mapping[str, Any]) -> None:
        records = [r for r in self._lines(folder / DECISIONS) if isinstance(r.get("kind"), str)]
        by_kind = {record["kind"]: record for record in records}  # the newest of each
        with contextlib.suppress(KeyError, TypeError, ValueError):
            record = by_kind["forecast"]
            low, high = record.get("steps_range", [record["steps"]] * 2)
            found.forecast = (
                f"{record['steps']:,} steps ({low:,} to {high:,}), {format_seconds(record['seconds'])} in all"
            )
        with contextlib.suppress(KeyError, TypeError, ValueError):
            found.forecast = (
                f"decay since step {by_kind['decay']['step']:,}, end at step {by_kind['decay']['end_step']:,}"
            )
        if skipped := sum(record["kind"] == "skip" for record in records):
            found.warnings.append(f"steps skipped: {skipped}, the newest for {by_kind['skip'].get('reason')}")
        if "emergency" in by_kind:
            found.warnings.append(f"cut short: {by_kind['emergency'].get('reason')}")
        if manifest.get("annealed") is False and manifest.get("exported_step") in (None, manifest.get("steps")):
            found.warnings.append("the model is NOT annealed: the cap ended before the decay")

    def _read_samples(self, found: Snapshot, folder: Path, manifest: Mapping[str, Any]) -> None:
        kept = read_json_lines(folder / "samples.jsonl", prompt=str, text=str) if folder.is_dir() else []
        made = manifest.get("samples")
        samples = [*kept, *(made if isinstance(made, list) else [])]
        with contextlib.suppress(KeyError, TypeError):
            found.sample = str(samples[-1]["prompt"]) + str(samples[-1]["text"]) if samples else None


def _manifest(folder: Path) -> dict[str, Any]:
    with contextlib.suppress(UserError, OSError):
        return read_manifest(folder) if (folder / MANIFEST).is_file() else {}
    return {}


# ---- a frame of a terminal


def frame(found: Snapshot, width: int, height: int) -> list["Text"]:
    """At most `height` lines of at most `width` characters; the curve takes what the figures leave."""
    from rich.text import Text

    def line(*parts: tuple[str, str] | str) -> "Text":
        text = Text.assemble(*[(printable(p), "") if isinstance(p, str) else (printable(p[0]), p[1]) for p in parts])
        text.truncate(max(1, width), overflow="ellipsis")
        return text

    colour = {runs.RUNNING: "green", runs.DONE: "cyan", QUEUED: "yellow"}.get(found.state, "red")
    stage = f"  {found.stage}" if found.stage else ""
    head = [line((found.name, "bold"), stage, "  ", (found.state, colour), f"  {found.device or ''}")]
    if found.stages:
        head.append(line("stages   ", "  ".join(f"{stage} {state}" for stage, state in found.stages.items())))
    if found.doing:
        head.append(line("now      ", found.doing))
    head += [line("queue    ", job) for job in found.jobs[:4]]
    head += [line(f"{name:<9}", *parts) for name, parts in _figures(found)]
    tail = [line(("WARNING  ", "bold red"), warning) for warning in found.warnings[:3]]
    room = max(0, height - len(head) - len(tail))
    samples = _wrapped(found.sample, width)[: 3 if room > 9 else 0]
    sample = [line(("sample", "dim"))] * bool(samples) + [line("  ", text) for text in samples]
    rows = room - len(sample)
    chart: list[Text] = []
    if len(found.loss) > 1 and rows >= 3 and width >= 24:
        both = width >= 100 and len(found.held_out) > 1
        left = _chart(found.loss, width // 2 if both else width, min(rows, 14), "loss")
        right = _chart(found.held_out, width - width // 2, min(rows, 14), "held-out bits per byte") if both else left
        for a, b in zip(left, right, strict=True):
            chart.append(line((a.ljust(width // 2), "yellow"), (b, "cyan")) if both else line((a, "yellow")))
    return [*head, *chart, *sample, *tail][: max(1, height)]


def in_words(found: Snapshot) -> list[str]:
    """The same without a curve: a line each."""
    lines = [f"{found.stage or ''} {found.state}".strip(), *([found.doing] if found.doing else []), *found.jobs]
    for name, parts in _figures(found):
        lines.append(f"{name}: " + "".join(part if isinstance(part, str) else part[0] for part in parts))
    return [*lines, *(f"WARNING: {warning}" for warning in found.warnings)]


def _figures(found: Snapshot) -> Iterator[tuple[str, list[tuple[str, str] | str]]]:
    newest = found.newest
    if "train/loss" in newest:
        step = f"step {newest.get('step', 0):,.0f}"
        tokens = f", {format_count(newest['budget/tokens'])} tokens" if "budget/tokens" in newest else ""
        norm = f", gradient norm {newest['train/grad_norm']:.3g}" if "train/grad_norm" in newest else ""
        rate = f", rate {newest['train/lr']:.3g}" if "train/lr" in newest else ""
        yield "loss", [(f"{newest['train/loss']:.4f}", "bold yellow"), f"  {step}{tokens}{norm}{rate}"]
    if found.held_out:
        shown = [f"{value:.4f}" for _, value in found.held_out]
        middle = ["..."] if len(shown) > 5 else []
        yield "held out", [("  ".join([*shown[:1], *middle, *shown[1:][-4:]]), "cyan"), "  bits per byte"]
    if "perf/tokens_per_second" in newest:
        mfu = f", MFU {100 * newest['perf/mfu']:.0f}%" if "perf/mfu" in newest else ""
        memory = newest.get("perf/peak_memory_bytes")
        yield "speed", [f"{newest['perf/tokens_per_second']:,.0f} tokens/s{mfu}"]
        if memory:
            yield "memory", [f"{format_bytes(memory)} at the peak"]
    if found.used_hours is not None or found.hours:
        yield "budget", [_budget(found)]
    if found.left_seconds is not None:
        clock = datetime.fromtimestamp(time.time() + found.left_seconds, UTC).astimezone().strftime("%a %H:%M")
        yield "end", [(f"in {format_seconds(found.left_seconds)}", "bold"), f", {clock}"]
    if found.forecast and found.state == runs.RUNNING:
        yield "forecast", [found.forecast]


def _budget(found: Snapshot) -> str:
    used, limit, parts = found.used_hours, found.max_hours, []
    if used is not None and limit:
        parts.append(
            f"{used:.4g} of {limit:g} device-hours ({100 * used / limit:.0f}%), {max(0.0, limit - used):.3g} left"
        )
    elif used is not None:
        parts.append(f"{used:.4g} device-hours")
    if found.max_tokens:
        parts.append(f"{format_count(found.newest.get('budget/tokens', 0))} of {format_count(found.max_tokens)} tokens")
    total = sum(found.hours.values())
    if total and (used is None or total > 1.001 * used):
        parts.append(f"all stages {total:.3g}")
    if found.price_per_hour and total:
        parts.append(f"{total * found.price_per_hour:,.2f} at {found.price_per_hour:g} an hour")
    return "; ".join(parts)


def _wrapped(text: str | None, width: int) -> list[str]:
    import textwrap

    lines = (text or "").expandtabs(4).splitlines()
    return [piece for line in lines for piece in textwrap.wrap(line, max(8, width - 2), drop_whitespace=False)][:3]


def _chart(points: Sequence[tuple[float, float]], width: int, height: int, name: str) -> list[str]:
    """A curve in dots of Braille letters, two by four to a letter, with the ends of its axes in words."""
    values = sorted(value for _, value in points)
    low, high = values[0], min(values[-1], values[0] + 2.5 * max(1e-9, values[len(values) * 3 // 4] - values[0]))
    labels = f"{high:.3f}", f"{low:.3f}"
    margin = max(map(len, labels)) + 1
    columns, rows = max(2, width - margin - 1), max(1, height - 2)
    start, end = points[0][0], max(points[-1][0], points[0][0] + 1e-9)
    sums: dict[int, list[float]] = {}
    for x, y in points:
        sums.setdefault(min(2 * columns - 1, int((x - start) / (end - start) * 2 * columns)), []).append(y)
    cells = [[0x2800] * columns for _ in range(rows)]
    dots = (0x1, 0x2, 0x4, 0x40), (0x8, 0x10, 0x20, 0x80)
    places = sorted((x, sum(ys) / len(ys)) for x, ys in sums.items())
    before = None
    for (x, y), (next_x, next_y) in zip(places, [*places[1:], places[-1]], strict=True):
        for at in range(x, max(x + 1, next_x)):
            value = y + (next_y - y) * (at - x) / max(1, next_x - x)
            share = (min(value, high) - low) / max(1e-9, high - low)
            row = round((1 - min(1.0, max(0.0, share))) * (4 * rows - 1))
            between = range(min(row, before + 1), max(row, before - 1) + 1) if before is not None else [row]
            for each in between if row != before else [row]:
                cells[each // 4][at // 2] |= dots[at % 2][each % 4]
            before = row
    lines = ["".join(map(chr, row)) for row in cells]
    heads = [labels[0], *[""] * (rows - 2), labels[1]] if rows > 1 else [labels[1]]
    first, last = format_count(start), f"{format_count(end)} tokens"
    drawn = [f"{head:>{margin - 1}} {line}" for head, line in zip(heads, lines, strict=True)]
    return [name, *drawn, f"{'':{margin}}{first} {last:>{max(1, columns - len(first) - 1)}}"]


# ---- on a terminal


def show(name: str, once: bool = False) -> None:
    """Follows a run until q or Ctrl-C; with `once`, or where standard output is no terminal, prints one frame."""
    from rich.console import Console, Group
    from rich.live import Live

    watched, console = Watched(name), Console()
    if once or not sys.stdout.isatty():
        width = console.width if sys.stdout.isatty() else USUAL[0]
        for text in frame(watched.look(), width, 200 if not sys.stdout.isatty() else max(USUAL[1], console.height - 1)):
            console.print(text, width=width, no_wrap=True, overflow="ignore", crop=False)
        return
    live = Live(console=console, screen=True, auto_refresh=False)
    with contextlib.suppress(KeyboardInterrupt), _keys() as pressed, live:
        while True:
            began, (width, height) = time.monotonic(), console.size
            hint = "q quits" if width >= 20 else "q"
            lines = frame(watched.look(), width, max(1, height - 1))
            lines += [type(lines[0])("")] * (height - 1 - len(lines)) + [type(lines[0])(hint, style="dim")]
            live.update(Group(*lines), refresh=True)
            busy = time.monotonic() - began  # of one core: a twentieth at most
            if pressed(max(FRAME_SECONDS, 20 * busy)) in ("q", "Q", "\x1b", "\x03"):
                return


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """`pressed(seconds)`: a key that is pressed meanwhile, else an empty string."""
    import termios
    import tty

    if not sys.stdin.isatty():
        yield lambda seconds: time.sleep(seconds) or ""
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)

    def pressed(seconds: float) -> str:
        if not select.select([descriptor], [], [], seconds)[0]:
            return ""
        return os.read(descriptor, 1).decode(errors="replace") or "q"  # a terminal that is gone

    try:
        tty.setcbreak(descriptor)
        changed = termios.tcgetattr(descriptor)
        changed[3] &= ~termios.ISIG  # Ctrl-C is a key: as a signal a second one would leave the screen half restored
        termios.tcsetattr(descriptor, termios.TCSADRAIN, changed)
        yield pressed
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
