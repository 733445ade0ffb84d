"""HORNBOOK_REMOTE at an S3 server of its own process on loopback, and at an SFTP server.

The S3 server is moto's (extra `dev`), behind a front of this test that fails, waits, refuses or is full when it is told
to; the client is s3fs (extra `s3`). The SFTP server is Debian's sshd, where it is installed.
"""

import contextlib
import getpass
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from loopback import serve
from making import build
from test_pretrain import Small, small_inputs  # noqa: F401 - a fixture
from test_remote import EXACT, OFTEN, RUN, STEPS, _until, connected, end, machine, made, often  # noqa: F401 - fixtures

from pipeline.remote import place, upload
from pipeline.remote import store as remote_store
from pipeline.remote.place import Place
from pipeline.stages import pretrain_step
from pipeline.system.errors import Busy, UserError

BUCKET = "models"


class Front:
    """Between client and server. `error`: (status, S3's code) that answers requests of the `methods`; `seconds`: before
    each answer; `room_bytes`: of what may still be written."""

    def __init__(self, server_port: int):
        self.server_port = server_port
        self.clear()
        self._server = serve(type("Handler", (_Handler,), {"front": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def clear(self) -> None:
        self.error: tuple[int, str] | None = None
        self.methods = ("GET", "HEAD", "PUT", "POST", "DELETE")
        self.seconds, self.room_bytes = 0.0, float("inf")

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    front: Front
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def do_GET(self) -> None:
        front, body = self.front, self.rfile.read(int(self.headers.get("Content-Length") or 0))
        time.sleep(front.seconds)
        error = front.error if self.command in front.methods else None
        if self.command == "PUT" and error is None:
            front.room_bytes -= len(body)
            error = (507, "QuotaExceeded") if front.room_bytes < 0 else None
        if error is not None:
            words = f"<Error><Code>{error[1]}</Code><Message>a fault of this test</Message></Error>".encode()
            self.answer(error[0], [("Content-Type", "application/xml")], words)
            return
        server = http.client.HTTPConnection("127.0.0.1", front.server_port)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
        server.request(self.command, self.path, body, headers)
        answer = server.getresponse()
        dropped = ("connection", "transfer-encoding", "content-length")
        length = answer.getheader("Content-Length")
        kept = [(name, value) for name, value in answer.getheaders() if name.lower() not in dropped]
        self.answer(answer.status, kept, answer.read(), length if self.command == "HEAD" else None)

    def answer(self, status: int, headers: list[tuple[str, str]], body: bytes, length: str | None = None) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", length or str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def wait_for_port(port: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while True:
        assert process.poll() is None, f"the server ended with {process.returncode}"
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def moto() -> Iterator[int]:
    pytest.importorskip("s3fs", reason="needs s3fs: pip install 'hornbook[s3]'")
    pytest.importorskip("moto.server", reason="needs moto's server: pip install 'hornbook[dev]'")
    port = free_port()
    words = [sys.executable, "-P", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_port(port, process)
        yield port
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def bucket(moto: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Front]:
    """An empty bucket as the remote."""
    import s3fs

    front = Front(moto)
    monkeypatch.setenv("AWS_ENDPOINT_URL", front.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "of-this-test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-this-test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    name = f"{BUCKET}-{time.time_ns()}"
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir(name)
    monkeypatch.setenv(place.REMOTE, f"s3://{name}/runs")
    place._place.cache_clear()
    try:
        yield front
    finally:
        front.clear()
        for thread in threading.enumerate():
            if thread.name == "remote":
                thread.join(10.0)
        front.stop()
        s3fs.S3FileSystem.clear_instance_cache()
        place._place.cache_clear()


def there() -> Place:
    found = place.place()
    assert found is not None
    return found


@pytest.mark.parametrize("remote", ["bucket", "sftp"])
def test_a_run_that_loses_its_machine_resumes_on_another(
    remote: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    request.getfixturevalue(remote)
    monkeypatch.setenv("REMOTE_LOOK_SECONDS", "0.02")
    a = machine(tmp_path, monkeypatch, "a")
    steps = "budget.max_tokens=102_400"  # more than a slow copy of two checkpoints leaves time for
    process = a.start(steps, *EXACT, OFTEN)
    run = f"{RUN}/{a.folder.name}"
    a.wait_for(lambda: len(place.indexes_of(there(), run)) >= 2, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert place.manifest_of(there(), run) is None
    kept = max(place.indexes_of(there(), run))
    shutil.rmtree(a.root)

    (tmp_path / "b").mkdir()
    monkeypatch.setenv("HORNBOOK_ROOT", str(tmp_path / "b"))
    capsys.readouterr()
    b = Small(tmp_path / "b")
    moved = b.run_here(steps, *EXACT)
    said = capsys.readouterr().out
    assert f"is ahead (step {kept}, here 0)" in said
    assert moved["lives"] == 2
    assert place.manifest_of(there(), run) is not None
    assert there().read(f"{run}/{place.OWNER}") is None


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ((500, "InternalError"), "cannot be read ("),
        ((503, "SlowDown"), "cannot be read ("),
        ((400, "ExpiredToken"), "its credentials may be wrong or expired"),
    ],
)
def test_a_bucket_that_refuses_loses_nothing_and_is_filled_when_it_works_again(
    bucket: Front, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture,
    error: tuple[int, str], words: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("HORNBOOK_ROOT", str(tmp_path / "a"))
    store = connected()
    count: list[int] = []
    bucket.error = error
    step = made(tmp_path, count)
    build(step, store=store)
    end(store, 2.0)
    assert step.finished
    said = capsys.readouterr().out
    assert words in said
    assert "has not everything yet" in said
    assert "secret" not in said
    bucket.clear()
    store = connected()
    build(step, store=store)
    end(store, 60.0)
    assert count == [1]
    found = place.manifest_of(there(), place.path_of(step.path))
    assert found is not None
    assert found["fingerprint"] == step.fingerprint


def test_a_full_bucket_never_holds_half_a_folder_that_counts(
    bucket: Front, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("HORNBOOK_ROOT", str(tmp_path / "a"))
    store, step = connected(), made(tmp_path, [])
    bucket.room_bytes = 3000  # the file has 6,000
    build(step, store=store)
    end(store, 2.0)
    folder = place.path_of(step.path)
    assert step.finished
    assert place.manifest_of(there(), folder) is None
    assert "fails (" in capsys.readouterr().out
    monkeypatch.setenv("HORNBOOK_ROOT", str(tmp_path / "b"))
    assert not connected().fetch(step)
    bucket.clear()
    monkeypatch.setenv("HORNBOOK_ROOT", str(tmp_path / "a"))
    store = connected()
    build(step, store=store)
    end(store, 60.0)
    monkeypatch.setenv("HORNBOOK_ROOT", str(tmp_path / "c"))
    assert connected().fetch(step)
    assert (step.path / "part" / "tokens.bin").read_bytes() == b"tokens" * 1000


def test_a_slow_bucket_is_waited_for_as_long_as_was_asked_and_no_longer(
    bucket: Front, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("HORNBOOK_ROOT", str(tmp_path / "a"))
    monkeypatch.setattr(remote_store, "STOP_SECONDS", 0.2)
    store, step = connected(), made(tmp_path, [])
    assert not store.fetch(step)
    bucket.seconds = 3.0
    build(step, store=store)
    end(store, 0.4)
    assert store._uploader is None
    assert "has not everything yet" in capsys.readouterr().out
    assert step.finished


def test_two_machines_never_train_one_run_of_a_bucket(
    bucket: Front, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import json

    a = machine(tmp_path, monkeypatch, "a")
    config = a.config(STEPS)
    step = pretrain_step(config)
    run = place.path_of(step.path)
    store = connected()
    store.fetch_run(step, config)
    ours = json.loads(there().read(f"{run}/{place.OWNER}") or b"null")
    monkeypatch.setattr(place, "TOKEN", "another process")
    monkeypatch.setattr(place, "HOST", "another machine")
    other = connected()
    with pytest.raises(Busy, match=f"process {ours['pid']} on {ours['host']} is training this run"):
        other.fetch_run(step, config)
    for one in (other, store):
        end(one)


# ---- SFTP


class SshServer:
    """sshd with the settings in `home`, and the processes that it starts for each connection."""

    def __init__(self, home: Path, port: int, folder: Path):
        self.home, self.port, self.folder = home, port, folder
        self.start()

    def start(self) -> None:
        words = ["/usr/sbin/sshd", "-D", "-E", str(self.home / "log"), "-f", str(self.home / "config")]
        self.process = subprocess.Popen(words)
        wait_for_port(self.port, self.process)

    def sessions(self) -> list[int]:
        """The processes of its connections, parents first."""
        found = [self.process.pid]
        for pid in found:
            with contextlib.suppress(FileNotFoundError):
                found += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return found[1:]

    def signal(self, number: int, sessions_only: bool = False) -> None:
        for pid in [*([] if sessions_only else [self.process.pid]), *self.sessions()]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.signal(signal.SIGKILL)
            self.process.wait()


@pytest.fixture
def sftp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SshServer]:
    """A folder behind an SSH server of this test's own: its port, keys and settings."""
    server, sftp_server = "/usr/sbin/sshd", Path("/usr/lib/openssh/sftp-server")
    if not (os.access(server, os.X_OK) and sftp_server.exists()):
        pytest.skip("needs OpenSSH's server: apt install openssh-server")
    pytest.importorskip("paramiko", reason="needs paramiko: pip install 'hornbook[sftp]'")
    home = tmp_path / "ssh"
    home.mkdir(mode=0o700)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(home / name)], check=True)
    shutil.copy(home / "user.pub", home / "authorized")
    port = free_port()
    settings = {
        "Port": port, "ListenAddress": "127.0.0.1", "HostKey": home / "host", "PidFile": home / "pid",
        "AuthorizedKeysFile": home / "authorized", "PasswordAuthentication": "no", "UsePAM": "no",
        "StrictModes": "no", "PermitRootLogin": "prohibit-password", "Subsystem": f"sftp {sftp_server}",
    }  # fmt: skip
    (home / "config").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    running = SshServer(home, port, tmp_path / "there")
    try:
        # paramiko takes keys from ~/.ssh or an agent, and a URL has no place for one
        (home / ".ssh").mkdir()
        shutil.copy(home / "user", home / ".ssh" / "id_ed25519")
        monkeypatch.setenv("HOME", str(home))
        monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
        monkeypatch.setenv(place.REMOTE, f"sftp://{getpass.getuser()}@127.0.0.1:{port}{running.folder}")
        yield running
    finally:
        running.stop()
        place._place.cache_clear()


def test_a_folder_goes_to_an_ssh_server_and_comes_back(
    sftp: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HORNBOOK_ROOT", str(tmp_path / "a"))
    count: list[int] = []
    store, step = connected(), made(tmp_path, count)
    first = build(step, store=store)
    end(store, 60.0)
    assert (sftp.folder / place.path_of(step.path) / "manifest.json").is_file()
    monkeypatch.setenv("HORNBOOK_ROOT", str(tmp_path / "b"))
    store = connected()
    assert build(step, store=store) == first
    end(store)
    assert count == [1]
    assert (step.path / "part" / "tokens.bin").read_bytes() == b"tokens" * 1000


def test_two_threads_never_wait_for_each_others_answers(sftp: SshServer) -> None:
    there().write("any", b"content")
    read: list[bytes | None] = []
    threads = [
        threading.Thread(target=lambda: read.extend(there().read("any") for _ in range(100)), daemon=True)
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60.0)
    assert read == [b"content"] * 300


def test_a_connection_that_ends_is_opened_again_without_a_word(
    sftp: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("HORNBOOK_ROOT", str(tmp_path / "a"))
    store, step = connected(), made(tmp_path, [])
    there().write("any", b"content")
    fs, _ = there()._opened()
    sftp.signal(signal.SIGKILL, sessions_only=True)
    _until(lambda: fs.closed)
    assert there().read("any") == b"content"
    build(step, store=store)
    end(store, 60.0)
    assert (sftp.folder / place.path_of(step.path) / "manifest.json").is_file()
    said = capsys.readouterr().out
    assert "cannot be read" not in said
    assert "fails" not in said


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_an_ssh_server_that_goes_away_in_the_middle_of_a_file_is_waited_for_no_longer_than_the_limit(
    sftp: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, number: int
) -> None:
    from pipeline.remote import sftp as sftp_system

    monkeypatch.setattr(sftp_system, "SILENT_SECONDS", 1.0)
    monkeypatch.setattr(place, "CHUNK_BYTES", 1000)  # the file has 6,000
    monkeypatch.setenv("HORNBOOK_ROOT", str(tmp_path / "a"))
    store, count = connected(), list[int]()
    step = made(tmp_path, count)
    part = sftp.folder / place.path_of(step.path) / "part" / "tokens.bin"
    beat, gone = upload.Uploader._beat, threading.Event()

    def leave(self: upload.Uploader) -> None:
        if not gone.is_set() and part.is_file() and 0 < part.stat().st_size < 6000:
            sftp.signal(number)
            gone.set()
        beat(self)

    monkeypatch.setattr(upload.Uploader, "_beat", leave)
    build(step, store=store)
    assert gone.wait(60.0)
    _until(lambda: store.uploader.failing)
    uploader = store.uploader
    with pytest.raises(place.Unreachable):
        there().read("any")
    end(store, 60.0)
    uploader._thread.join(60.0)
    assert not uploader.working
    said = capsys.readouterr().out
    assert said.count(" fails (") == 1
    assert "has not everything yet" in said
    assert step.finished
    assert not (part.parents[1] / "manifest.json").exists()

    sftp.stop()
    sftp.start()
    store = connected()
    build(step, store=store)
    end(store, 60.0)
    assert count == [1]
    assert part.read_bytes() == b"tokens" * 1000
    assert (part.parents[1] / "manifest.json").is_file()


def test_a_silent_ssh_server_costs_a_command_one_wait_and_one_message(
    sftp: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from pipeline.remote import sftp as sftp_system

    monkeypatch.setattr(sftp_system, "SILENT_SECONDS", 0.5)
    monkeypatch.setenv("HORNBOOK_ROOT", str(tmp_path / "a"))
    store, step, opened = connected(), made(tmp_path, []), []
    connect = sftp_system.Sftp._connect
    monkeypatch.setattr(sftp_system.Sftp, "_connect", lambda self: (opened.append(1), connect(self)))
    sftp.signal(signal.SIGSTOP)
    for _ in range(3):
        assert not store.fetch(step)
    assert len(opened) == 1
    assert capsys.readouterr().out.count("cannot be read (TimeoutError: no answer") == 1
    config = machine(tmp_path, monkeypatch, "b").config(STEPS)
    with pytest.raises(UserError, match="nothing of this run is here"):
        store.fetch_run(pretrain_step(config), config)
    end(store)
