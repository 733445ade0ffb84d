"""Progress with remaining time, as a bar on a terminal and as a line every 15 seconds elsewhere; readable numbers."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

LINE_EVERY_SECONDS = 15.0


class Progress:
    """Counts towards `total` (units of the caller's choice); `advance(n, "loss 3.21")` after each piece of work."""

    def __init__(self, description: str, total: float | None, unit: str = ""):
        self.description, self.total, self.unit = description, total, unit
        self._done, self._started = 0.0, time.monotonic()
        self._last_line = self._started
        self._bar = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, desc=description, unit=unit, unit_scale=True, dynamic_ncols=True, leave=False)

    def advance(self, amount: float = 1, note: str = "") -> None:
        self.to(self._done + amount, note)

    def to(self, done: float, note: str = "") -> None:
        amount, self._done = done - self._done, done
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(amount)
            return
        now = time.monotonic()
        if now - self._last_line >= LINE_EVERY_SECONDS:
            self._last_line = now
            print(f"  {self.description}: {self._share(now)} {note}".rstrip(), flush=True)

    def _share(self, now: float) -> str:
        if not self.total or self._done <= 0:
            return f"{self._done:,.0f} {self.unit}"
        left = (now - self._started) * (self.total - self._done) / self._done
        return f"{100 * self._done / self.total:.0f}%, {format_seconds(max(0.0, left))} left"

    def write(self, line: str) -> None:
        """Prints a line without tearing the bar."""
        if self._bar is not None:
            self._bar.write(line)
        else:
            print(line, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


@contextmanager
def progress(description: str, total: float | None, unit: str = "") -> Iterator[Progress]:
    bar = Progress(description, total, unit)
    try:
        yield bar
    finally:
        bar.close()


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
