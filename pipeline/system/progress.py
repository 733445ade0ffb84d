"""How far long work is: one line that is rewritten on a terminal, a line a minute elsewhere; readable numbers.

On a terminal a thread of its own draws the line, and prints above it what the process prints meanwhile. So the work
never waits for a terminal that is slow or stopped, pays an assignment for every piece it reports, and nothing tears the
line. `Progress` objects may be nested: the innermost is shown. `doing` says the same to whoever asks (the ledger).
"""

import contextlib
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

DRAW_SECONDS, LINE_EVERY_SECONDS = 0.25, 60.0  # between two pictures on a terminal, and between two lines of a log
DRAIN_SECONDS = 1.0  # how long the end waits for a terminal that takes nothing
BAR, USUAL_WIDTH = 16, 80  # characters

_open: list["Progress"] = []
_terminal: "_Terminal | None" = None
_line_at = -LINE_EVERY_SECONDS  # when a log got its last line


class Progress:
    """Counts towards `total` (in `unit`, of the caller's choice; None where it is not known). `done`: at the start.

    `advance` or `to` after each piece of work, with `figures` to show beside it, such as "loss 3.21", the most
    important first. `left_seconds`: to the end, where the caller knows it better than the speed so far says.
    """

    def __init__(self, description: str, total: float | None = None, unit: str = "", done: float = 0.0):
        self.description, self.total, self.unit = description, total, unit
        self._first, self._started = done, time.monotonic()
        self._shown_at = self._started
        self._state: tuple[float, Sequence[str], float | None, float] = (done, (), None, self._started)
        self._label = ": ".join([bar.description for bar in _open] + [description])
        _open.append(self)
        if _terminal is None:
            _Terminal.open()

    @property
    def due(self) -> bool:
        """Whether something new would be shown: what costs something to find out is asked for only then."""
        return time.monotonic() - self._shown_at >= (LINE_EVERY_SECONDS if _terminal is None else DRAW_SECONDS)

    def advance(self, amount: float = 1, *figures: str) -> None:
        self.to(self._state[0] + amount, *(figures or self._state[1]))

    def to(self, done: float, *figures: str, left_seconds: float | None = None) -> None:
        global _line_at
        now = time.monotonic()
        self._state = done, figures, left_seconds, now
        if not self.due:
            return
        self._shown_at = now
        if _terminal is None and now - _line_at >= LINE_EVERY_SECONDS:
            _line_at = now
            with contextlib.suppress(OSError, ValueError):  # a log that is full or closed costs no work
                print(f"  {self.line()}", file=sys.stderr, flush=True)

    def line(self, width: int | None = None) -> str:
        """What is shown, in at most `width` characters: the bar is left out first, then figures from the last one."""
        done, figures, left_seconds, at = self._state
        now = time.monotonic()
        speed = (done - self._first) / max(1e-9, at - self._started)
        speeds = [f"{format_count(speed)} {self.unit}/s"] if self.unit and done > self._first else []
        if self.total:
            share = min(1.0, max(0.0, done / self.total))
            if left_seconds is None and done > self._first:
                left_seconds = (self.total - done) / speed
            head, parts = f"{self._label} {100 * share:3.0f}%", [*figures, *speeds]
            ends = [] if left_seconds is None else [f"{format_seconds(max(0, left_seconds - (now - at)))} to the end"]
            bar = [f"[{'#' * round(BAR * share)}{'.' * (BAR - round(BAR * share))}]"]
        else:
            amount = [f"{format_count(done)} {self.unit}".strip()] if done else []
            head, parts = self._label, [*amount, *figures, *speeds]
            bar, ends = [], [f"{format_seconds(now - self._started)} so far"]
        if width is None:
            return "  ".join([head, *parts, *ends])
        while True:
            line = "  ".join([head, *bar, *parts, *ends])
            if len(line) <= width or not bar + parts:
                return line[:width]
            (bar or parts).pop()

    def close(self) -> None:
        if self in _open:
            _open.remove(self)
        if not _open and _terminal is not None:
            _terminal.close()


@contextmanager
def progress(description: str, total: float | None = None, unit: str = "", done: float = 0.0) -> Iterator[Progress]:
    """A `Progress` around work; it ends with the work, however that ends."""
    bar = Progress(description, total, unit, done)
    try:
        yield bar
    finally:
        bar.close()


def counted(pieces: Iterable[tuple[str, Any]], bar: Progress) -> Iterator[tuple[str, Any]]:
    """The same (name, tensor), each counted by its numbers when it was used."""
    for name, piece in pieces:
        yield name, piece
        bar.advance(piece.numel())


def doing() -> str | None:
    """What the innermost work under way shows; None where there is none."""
    found = list(_open)
    return found[-1].line() if found else None


class _Terminal:
    """The thread that draws. While it runs, `sys.stdout` and `sys.stderr`, as far as they are terminals, hand what is
    printed to it: it alone writes there."""

    def __init__(self, streams: dict[str, Any]):
        self.streams, self.descriptor = streams, next(iter(streams.values())).fileno()
        self.printed: deque[str] = deque()
        self._drawn = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    @staticmethod
    def open() -> None:
        """Starts it where standard error or output is a terminal."""
        global _terminal
        found = {n: s for n in ("stderr", "stdout") if (s := getattr(sys, n)) is not None and s.isatty()}
        if found:
            _terminal = _Terminal(found)
            for name, stream in found.items():
                stream.flush()
                setattr(sys, name, _Above(stream, _terminal))
            _terminal._thread.start()

    def close(self) -> None:
        """Ends it. What was printed is shown, unless the terminal takes nothing for `DRAIN_SECONDS`."""
        self.give_back()
        self._stop.set()
        self._thread.join(DRAIN_SECONDS)

    def give_back(self) -> None:
        global _terminal
        _terminal = None
        for name, stream in self.streams.items():
            if isinstance(getattr(sys, name), _Above):
                setattr(sys, name, stream)

    def _run(self) -> None:
        with contextlib.suppress(OSError):  # the terminal is gone, the work is not
            while not self._stop.wait(DRAW_SECONDS):
                self._draw(_open[-1:], whole_lines=True)
            while self.printed or self._drawn:
                self._draw([], whole_lines=False)

    def _draw(self, shown: Sequence[Progress], whole_lines: bool) -> None:
        """Prints what was printed and draws the line anew, unless the terminal takes nothing now."""
        if not select.select([], [self.descriptor], [], DRAW_SECONDS)[1]:
            return
        texts = "".join(self.printed.popleft() for _ in range(len(self.printed)))
        line = shown[0].line(self._width()) if shown else ""
        rest = texts[texts.rfind("\n") + 1 :] if whole_lines else ""
        texts = texts[: len(texts) - len(rest)]
        if rest:
            self.printed.appendleft(rest)
        clear = f"\r{' ' * len(self._drawn)}\r" if texts or len(line) < len(self._drawn) else ""
        pending = f"{clear}{texts}{line}{chr(13) if line else ''}".encode(errors="replace")
        self._drawn = line
        while pending:
            pending = pending[os.write(self.descriptor, pending) :]

    def _width(self) -> int:
        with contextlib.suppress(OSError):
            return (os.get_terminal_size(self.descriptor).columns or USUAL_WIDTH) - 1
        return USUAL_WIDTH - 1


class _Above:
    """A terminal's stream while a line is drawn on it; afterwards the stream itself, for whoever kept it."""

    def __init__(self, stream: Any, terminal: _Terminal):
        self._stream, self._of = stream, terminal

    def write(self, text: str) -> int:
        if _terminal is self._of:
            self._of.printed.append(text)
            return len(text)
        return self._stream.write(text)

    def writelines(self, lines: Sequence[str]) -> None:
        self.write("".join(lines))

    def flush(self) -> None:
        if _terminal is not self._of:
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def close_all() -> None:
    """At the end of a command: nothing is drawn any more, and all that was printed is shown."""
    for bar in list(_open):
        bar.close()


def _in_child() -> None:
    """A forked worker draws nothing; the thread is its parent's."""
    _open.clear()
    if _terminal is not None:
        _terminal.give_back()


os.register_at_fork(after_in_child=_in_child)


def format_count(number: float) -> str:
    """`577`, `1.65M`, `2.1T`: three digits and a letter for the size."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"


def format_bytes(count: float) -> str:
    """`812 B`, `4.70 MB`, `1.2 GB`: decimal, as disks are sold and files are listed."""
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"


def aligned(rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """The lines of a table: the first `left` columns begin at their left edge, the others end at their right one."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = [str.ljust if i < left else str.rjust for i in range(len(widths))]
    return ["  ".join(side(cell, w) for side, cell, w in zip(sides, row, widths, strict=True)) for row in rows]


def format_attempts(count: int) -> str:
    """`1 attempt`, `2 attempts`: the processes that a training took."""
    return f"{count} attempt" + ("" if count == 1 else "s")


def format_seconds(seconds: float) -> str:
    """`42 s`, `3 min 05 s`, `7 h 12 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
