"""The live line: one that is rewritten on a terminal, one a minute in a log, and no work ever waits for either."""

import fcntl
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading

import pytest

from pipeline.run_stage import run_stage
from pipeline.storage.ledger import Ledger
from pipeline.system import progress as module
from pipeline.system.progress import LINE_EVERY_SECONDS, Progress, doing, progress

WORK = """
import os, subprocess, sys, time
from pipeline.system.progress import progress
with progress("pretrain", 100) as bar:
    for step in range(100):
        bar.to(step + 1, f"loss {9 - step / 100:.2f}", "1,234 tokens/s", left_seconds=7200 - step)
        if step == 50:
            print("an event", flush=True)
            print("another", file=sys.stderr)
        if step == 80 and os.fork() == 0:
            print("from a worker", flush=True)
            os._exit(0)
        time.sleep(0.02)
print("done")
"""


def on_terminal(code: str, columns: int = 80) -> str:
    """What a program writes to a terminal of that width."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    child = subprocess.Popen([sys.executable, "-c", code], stdin=follower, stdout=follower, stderr=follower)
    os.close(follower)
    parts = []
    while True:
        try:
            parts.append(os.read(leader, 1 << 16))
        except OSError:  # the program ended
            break
    os.close(leader)
    assert child.wait() == 0
    return b"".join(parts).decode().replace("\r\n", "\n")


def screen(written: str, columns: int = 80) -> list[str]:
    """What stands on a terminal in the end: a carriage return goes back, and what comes covers what was there."""
    rows, at = [""], 0
    for letter in written:
        if letter == "\n":
            rows.append("")
            at = 0
        elif letter == "\r":
            at = 0
        else:
            rows[-1] = rows[-1][:at].ljust(at) + letter + rows[-1][at + 1 :]
            at += 1
            assert at < columns, rows[-1]
    return [row.rstrip() for row in rows]


@pytest.mark.parametrize("columns", [80, 40])
def test_a_terminal_shows_one_line_and_events_above_it(columns):
    written = on_terminal(WORK, columns)
    shown = screen(written, columns)
    events = [row for row in shown if row]  # the line itself is gone; a worker wrote over its beginning
    assert [*events[:2], events[2][:13], *events[3:]] == ["an event", "another", "from a worker", "done"]
    pictures = [picture for picture in re.split(r"[\r\n]", written) if picture.startswith("pretrain")]
    assert 2 <= len(pictures) <= 60  # of 100 steps: by time
    for picture in pictures[-2:]:
        assert re.match(r"pretrain +\d+%  " + ("loss 8" if columns == 80 else "[12] h "), picture)
        assert picture.strip().endswith("to the end")


def test_a_log_gets_at_most_a_line_a_minute(monkeypatch, capsys):
    clock = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(module, "_line_at", 0.0)
    with progress("data", 3600, "documents") as bar:
        for _ in range(3600):
            clock[0] += 1
            with progress("inner", 10) as inner:
                inner.advance()
            bar.advance(1, "loss 2.5")
    out, lines = capsys.readouterr()
    assert out == ""  # --json stays JSON
    assert len(lines.splitlines()) == 3600 / LINE_EVERY_SECONDS
    assert lines.splitlines()[-1] == "  data 100%  loss 2.5  1 documents/s  0 s to the end"


def test_a_stopped_terminal_stops_no_work():
    """Nobody reads the terminal, whose buffer is soon full; the work ends all the same."""
    code = WORK.replace("range(100)", "range(400)").replace('print("done")', "") + (
        "\nopen(sys.argv[1], 'w').write('ended'); os._exit(0)"
    )
    code = code.replace('print("an event", flush=True)', 'print("an event" * 20_000, flush=True)')
    reader, writer = os.pipe()
    leader, follower = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", code, f"/dev/fd/{writer}"],
        stdin=follower, stdout=follower, stderr=follower, pass_fds=[writer],
    )  # fmt: skip
    os.close(writer)
    try:
        assert os.read(reader, 100) == b"ended"
    finally:
        child.kill()
        child.wait()
        for descriptor in (reader, leader, follower):
            os.close(descriptor)


def test_nested_work_is_named_by_all_of_it_and_stands_in_the_ledger(tmp_path):
    assert doing() is None
    with progress("evaluate"), progress("cloze"), progress("scoring", 200, "tokens", done=50) as bar:
        bar.to(100)
        assert doing().startswith("evaluate: cloze: scoring  50%  ")
        with Ledger(tmp_path / "ledger.jsonl", stage="evaluate", fingerprint="x", device="cpu"):
            pass
    lines = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert lines[0]["doing"].startswith("evaluate: cloze: scoring  50%")
    assert doing() is None


def test_a_line_that_is_too_long_loses_its_bar_then_its_last_figures():
    bar = Progress("pretrain", 1.0)
    try:
        bar.to(0.5, "loss 3.210", "12,345 tokens/s", "0.0087 h left", "step 1,234", left_seconds=31)
        assert bar.line(120).startswith("pretrain  50%  [########........]  loss 3.210  12,345 tokens/s  0.0087 h left")
        assert bar.line(79) == "pretrain  50%  loss 3.210  12,345 tokens/s  0.0087 h left  31 s to the end"
        assert bar.line(40) == "pretrain  50%  31 s to the end"
        assert bar.line(10) == "pretrain  "
    finally:
        bar.close()


def test_a_report_of_work_costs_microseconds(monkeypatch):
    """By calls, not by the clock: between two pictures nothing is formatted and nothing is written."""
    calls = []
    monkeypatch.setattr(Progress, "line", lambda self, width=None: calls.append(width) or "")
    monkeypatch.setattr(module, "DRAW_SECONDS", 3600.0)
    with progress("x", 10) as bar:
        for i in range(10_000):
            bar.to(i, "loss 1")
    assert calls == []


def test_a_stream_that_was_kept_works_after_the_line_is_gone(monkeypatch):
    leader, follower = pty.openpty()
    with os.fdopen(follower, "w", buffering=1) as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setattr(sys, "stdout", io.StringIO())
        with progress("x", 10):
            kept = sys.stderr
            assert kept is not stream
            print("while", file=kept)
        assert sys.stderr is stream
        print("after", file=kept)
        monkeypatch.undo()
    written = b""
    while b"after" not in written:
        written += os.read(leader, 1000)
    assert written.index(b"while") < written.index(b"after")
    assert not [t for t in threading.enumerate() if t.name == "progress"]
    os.close(leader)


def test_every_stage_after_pretraining_says_what_it_does(pretrained, monkeypatch):
    seen: dict[str, float] = {}
    to = Progress.to

    def watched(bar, done, *figures, **more):
        to(bar, done, *figures, **more)
        seen[bar._label] = max(seen.get(bar._label, 0.0), done / bar.total)

    monkeypatch.setattr(Progress, "to", watched)
    config = pretrained("evaluate.tasks=[bits_per_byte, cloze]", "quantize.kinds=[int8]", "quantize.tasks=[cloze]")
    for stage in ("evaluate", "export", "quantize"):
        run_stage(stage, config, "small.yaml")
    assert {"evaluate: bits_per_byte: scoring", "evaluate: cloze: scoring", "export: copying"} <= seen.keys()
    assert {"quantize: cloze: scoring", "quantize: int8: cloze: scoring"} <= seen.keys()
    assert set(seen.values()) == {1.0}  # each came to its end
