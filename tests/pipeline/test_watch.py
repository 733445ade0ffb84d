"""`hornbook watch`: a run seen from its folder alone, whatever state its files are in; pages for this machine only."""

import fcntl
import http.client
import json
import os
import pty
import random
import re
import select
import socket
import struct
import subprocess
import sys
import termios
import threading
from pathlib import Path

import chromium
import pytest
from page_text import rows, words

from pipeline import serve, watch
from pipeline.storage.files import root as root_of
from pipeline.system.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def lines_of(name: str, width: int = 80, height: int = 24) -> list[str]:
    return [text.plain for text in watch.frame(watch.Watched(name).look(), width, height)]


def ledger_line(stage: str, pid: int | None = None, **more: object) -> str:
    line = {"stage": stage, "fingerprint": "f" * 12, "life": 1, "device": "a card", "devices": 1,
            "pid": pid or os.getpid(), "host": socket.gethostname(), "job": None, "seconds": 60.0, **more}  # fmt: skip
    return json.dumps(line) + "\n"


@pytest.fixture
def under_way(root) -> Path:
    """A pretraining of this process: `runs/mine/` with a link to its folder, 200 rows of metrics."""
    folder, training = root / "runs" / "mine", root / "artifacts" / "pretrain" / "0123456789ab"
    training.mkdir(parents=True), folder.mkdir(parents=True)
    (folder / "pretrain").symlink_to("../../artifacts/pretrain/0123456789ab")
    (folder / "config.yaml").write_text("name: mine\nbudget: {max_gpu_hours: 12, gpu_hour_price: 2.5}\n")
    (folder / "ledger.jsonl").write_text(ledger_line("data", pid=1) + ledger_line("pretrain", doing="pretrain  25%"))
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "life": 1}
    (training / ".lock").write_text(json.dumps(owner))
    written = []
    for step in range(1, 201):
        row = {"step": step, "train/loss": 5 - step / 100, "train/lr": 3e-4, "train/grad_norm": 0.7,
               "perf/tokens_per_second": 51_234.0, "perf/mfu": 0.41, "perf/peak_memory_bytes": 21.5e9,
               "budget/gpu_hours": step / 67, "budget/tokens": step * 1000, "budget/fraction": step / 800}  # fmt: skip
        if step % 50 == 0:
            row["val/bits_per_byte"] = 1.5 - step / 1000
        written.append(json.dumps(row) + "\n")
    (training / "metrics.jsonl").write_text("".join(written))
    forecast = {"kind": "forecast", "step": 20, "steps": 900, "seconds": 43000.0, "steps_range": [800, 1000]}
    skip = {"kind": "skip", "step": 30, "reason": "a spike"}
    (training / "ledger.jsonl").write_text(ledger_line("pretrain", seconds=3600.0))  # a folder's own, of this life
    (training / "decisions.jsonl").write_text(json.dumps(forecast) + "\n" + json.dumps(skip) + "\n")
    (training / "samples.jsonl").write_text(
        json.dumps({"step": 100, "prompt": "def f(", "text": "x):\n\x1b[31mred"}) + "\n"
    )
    return folder


def test_a_run_under_way_shows_all_that_is_asked_of_it(under_way):
    shown = lines_of("mine")
    assert len(shown) <= 24
    text = "\n".join(shown)
    for part in (
        "mine  pretrain  running  a card", "pretrain  25%", "3.0000  step 200, 200k tokens, gradient norm 0.7",
        "1.4500", "1.3000", "51,234 tokens/s, MFU 41%", "21.5 GB at the peak",
        "2.985 of 12 device-hours (25%), 9.01 left",
        "in 9 h 0", "900 steps (800 to 1,000), 716 min", "def f(x):", "steps skipped: 1, the newest for a spike",
    ):  # fmt: skip
        assert part.replace("716 min", "11 h 56 min") in text, part
    assert "\x1b" not in text  # a sample may hold what a terminal obeys
    assert any(0x2800 < ord(letter) < 0x2900 for letter in text)  # the curve


@pytest.mark.parametrize(("width", "height"), [(80, 24), (40, 24), (20, 10), (8, 3), (1, 1), (200, 60)])
def test_a_frame_fits_every_terminal(under_way, width, height):
    shown = lines_of("mine", width, height)
    assert 0 < len(shown) <= height
    assert max(map(len, shown)) <= width


def test_what_is_new_is_read_and_a_file_that_was_cut_is_read_again(under_way):
    run, metrics = watch.Watched("mine"), under_way / "pretrain" / "metrics.jsonl"
    assert run.look().newest["step"] == 200
    whole = json.dumps({"step": 201, "train/loss": 2.5, "budget/tokens": 201_000}) + "\n"
    with metrics.open("a") as file:
        file.write(whole[:20])
    assert run.look().newest["step"] == 200  # half a line is none
    with metrics.open("a") as file:
        file.write(whole[20:])
    assert run.look().newest["step"] == 201
    kept = "".join(metrics.read_text().splitlines(keepends=True)[:10])
    metrics.write_text(kept)  # a resumed process cuts back to its checkpoint
    assert run.look().newest["step"] == 10


def test_states_of_a_run(under_way):
    ledger = under_way / "ledger.jsonl"
    ended = subprocess.Popen(["true"])
    ended.wait()
    ledger.write_text(ledger_line("pretrain", pid=ended.pid))
    (under_way / "pretrain" / ".lock").write_text(json.dumps({"pid": ended.pid, "host": socket.gethostname()}))
    found = watch.Watched("mine").look()
    assert (found.state, found.left_seconds) == ("stopped", None)
    assert "to resume: hornbook pretrain mine" in found.warnings[0]
    jobs = under_way / "jobs" / "2026-12-01T10-00-00" / "submitted.json"
    jobs.parent.mkdir(parents=True)
    jobs.write_text(
        json.dumps({"jobs": [{"id": "77", "name": "mine.pretrain.ab", "file": "x", "after": ["afterok:76"]}]})
    )
    os.utime(ledger, (1e9, 1e9))
    assert watch.Watched("mine").look().state == "queued"
    assert "queue    mine.pretrain.ab: job 77 afterok:76" in lines_of("mine")
    ledger.write_text(ledger_line("pretrain"))  # the job began
    os.utime(jobs, (1e9, 1e9))
    assert watch.Watched("mine").look().state == "running"
    os.utime(ledger, (1e9, 1e9))
    assert any("no sign of life" in warning for warning in watch.Watched("mine").look().warnings)


def test_a_run_that_was_only_sent_is_queued(root):
    jobs = root / "runs" / "new" / "jobs" / "2026-12-01T10-00-00" / "submitted.json"
    jobs.parent.mkdir(parents=True)
    jobs.write_text(json.dumps({"jobs": [{"id": "7", "name": "new.data.ab", "file": "x", "after": []}]}))
    assert watch.find(None) == "new"
    assert lines_of("new") == ["new  queued  ", "queue    new.data.ab: job 7"]


def test_damaged_missing_and_older_files_never_end_it(under_way):
    """Every file of the run cut, replaced by rubbish or by other JSON, one after the other and together."""
    draw, files = random.Random(1), [p for p in under_way.rglob("*") if p.is_file()]
    files += [p for p in (under_way / "pretrain").resolve().iterdir() if p.is_file()]
    rubbish = (b"", b"\xff\xfe\x00", b"null\n", b'{"stage": 3}\n', b"[1]\n" * 3, b'{"train/loss": "x", "step": {}}\n',
               b'{"train/loss": NaN, "budget/tokens": 1e999}\n', b"[" * 5_000 + b"\n", b"{}\n")  # fmt: skip
    for _ in range(40):
        path = draw.choice(files)
        before = path.read_bytes() if path.is_file() else b""
        path.write_bytes(draw.choice([*rubbish, before[: draw.randrange(len(before) + 1)]]))
        if draw.random() < 0.1:
            path.unlink()
        assert lines_of("mine")[0].startswith("mine  ")
    serve._Pages([]).make("/")
    assert "mine" in words(serve._Pages([]).make("/run/mine") or "")


def test_a_finished_run(pretrained):
    found = watch.Watched("small").look()
    assert (found.state, found.stage) == ("done", "pretrain")
    assert found.held_out
    assert found.sample.startswith("def ")
    assert watch.find("small") == watch.find(str(root_of() / "small.yaml")) == watch.find(None) == "small"
    with pytest.raises(UserError, match=r"no run 'smal'.* \(did you mean 'small'\?\); expected one of: small"):
        watch.find("smal")


def test_a_study_is_watched_by_its_newest_member(under_way):
    member = under_way.parent / "sweep" / "large-s1"
    member.mkdir(parents=True)
    (member / "ledger.jsonl").write_text(ledger_line("data"))
    (under_way.parent / "sweep" / "study.json").write_text("{}")
    assert watch.find("sweep") == "sweep/large-s1"
    assert lines_of("sweep/large-s1")[0].startswith("sweep/large-s1  data  running")


def test_without_a_run_it_says_how_to_start_one(root):
    with pytest.raises(UserError, match=r"start one: hornbook data configs/tiny\.yaml"):
        watch.find(None)


def command(*words: str) -> list[str]:
    return [sys.executable, "-P", "-m", "pipeline", "watch", *words]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"}


def test_output_to_a_file_is_one_frame(under_way):
    done = subprocess.run(command("mine"), env=environment(), capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    shown = done.stdout.decode()
    assert "\x1b" not in shown
    assert "step 200, 200k tokens" in shown
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize("key", [b"q", b"\x03"])
def test_on_a_terminal_it_follows_the_run_until_q_or_ctrl_c(under_way, key):
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe(sys.executable, command("mine"), environment())
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    written, asked = b"", False
    while select.select([terminal], [], [], 120)[0]:
        try:
            written += os.read(terminal, 1 << 16)
        except OSError:
            break
        if b"step 200" in written and not asked:
            asked = True
            with (under_way / "pretrain" / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"step": 201, "train/loss": 2.9, "budget/tokens": 201_000}) + "\n")
        if b"step 201" in written:
            os.write(terminal, key)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert b"step 201" in written
    assert b"\x1b[?1049h" in written  # a screen of its own, left in the end
    assert b"\x1b[?1049l" in written


@pytest.fixture
def server(pretrained):
    with serve.make_server(port=0) as found:
        threading.Thread(target=found.serve_forever, args=(0.05,), daemon=True).start()
        yield found
        found.shutdown()


def ask(server, path: str, host: str | None = None, method: str = "GET", **headers: str):
    """(status, headers, body)."""
    port = server.server_address[1]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.putrequest(method, path, skip_host=True)
    for name, value in {"Host": host or f"127.0.0.1:{port}", **headers}.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, answer.headers, body


def test_pages_are_for_this_machine_only(server):
    port = server.server_address[1]
    assert server.server_address[0] == "127.0.0.1"
    assert ask(server, "/")[0] == ask(server, "/", host=f"localhost:{port}")[0] == 200
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1:{port}.evil.example", "[::1]", ""):
        assert ask(server, "/", host=host or " ")[0] == 403, host
    status, headers, _ = ask(server, "/run/small")
    assert status == 200
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert headers["Access-Control-Allow-Origin"] is None
    assert ask(server, "/", method="POST")[0] == 501


def test_no_file_is_served(server):
    for path in ("/etc/passwd", "/run/../../../../etc/passwd", "/run/..%2f..%2f..%2fetc%2fpasswd",
                 "/run/%2e%2e/small", "/run/", "/run/small/ledger.jsonl", "/run//small", "//etc/passwd", "/run/nothere",
                 "/small"):  # fmt: skip
        assert ask(server, path)[0] == 404, path


def test_a_page_that_did_not_change_is_not_sent_again(server):
    _, headers, body = ask(server, "/run/small")
    assert body.count("<svg") >= 5
    status, _, again = ask(server, "/run/small", If_None_Match=headers["ETag"])
    assert (status, again) == (304, "")
    assert ask(server, "/run/small", method="HEAD")[2] == ""
    assert "data-live" not in re.search("<body[^>]*>", body)[0]  # a finished run is not asked for again


def take_config(run: Path) -> None:
    config = (root_of() / "runs/small/config.yaml").read_text(encoding="utf-8")
    (run / "config.yaml").write_text(config.replace("name: small", f"name: {run.name}"), encoding="utf-8")


def test_runs_stand_side_by_side_and_one_under_way_is_refreshed(server, under_way):
    (under_way / "config.yaml").write_text(
        (root_of() / "runs/small/config.yaml").read_text().replace("name: small", "name: mine")
    )
    _, _, page = ask(server, "/")
    assert {row[0]: row[1] for row in rows(page)[1:3]} == {"small": "annealed", "mine": "under way"}
    assert 'href="/run/mine"' in page
    assert "<body data-live>" in page
    _, _, report = ask(server, "/run/mine")
    assert "Pretraining under way" in words(report)
    assert "<body data-live>" in report
    assert "pretrain running pretrain 25% loss: 3.0000 step 200, 200k tokens" in words(report)


@pytest.mark.skipif(chromium.PROGRAM is None, reason="needs chromium: apt-get install chromium")
def test_a_browser_shows_new_rows_without_a_reload(server, under_way):
    (under_way / "config.yaml").write_text(
        (root_of() / "runs/small/config.yaml").read_text().replace("name: small", "name: mine")
    )
    with chromium.Chromium() as browser:
        browser.open(f"http://127.0.0.1:{server.server_address[1]}/run/mine")
        last = "JSON.parse(document.querySelector('svg').dataset.hover).end"
        assert browser.run(last) == 200_000
        browser.run("window.kept = 1")
        with (under_way / "pretrain" / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": 300, "train/loss": 2.9, "budget/tokens": 300_000}) + "\n")
        browser.run("refresh()")
        assert browser.run(last) == 300_000
        assert browser.run("window.kept") == 1
        box = browser.run("document.querySelector('figure svg').getBoundingClientRect().toJSON()")
        browser.point(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        assert "train" in browser.run("document.querySelector('.values:not([hidden])').innerText")
        assert browser.errors() == []


def test_a_taken_port_is_named(server):
    with pytest.raises(UserError, match=r"port \d+ of 127.0.0.1 cannot be used .*--port 8766"):
        serve.make_server(port=server.server_address[1])
