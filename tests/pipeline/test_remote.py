"""Copies at HORNBOOK_REMOTE: a run that loses its machine goes on elsewhere; a slow or broken remote costs nothing."""

import io
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from making import build, made_step
from test_pretrain import Small, _seconds_from_now, small_inputs  # noqa: F401 - fixtures

from pipeline.remote import place, upload
from pipeline.remote import store as remote_store
from pipeline.remote.store import RemoteStore, connect
from pipeline.stages import pretrain_step
from pipeline.storage import ledger
from pipeline.storage.steps import Step
from pipeline.storage.store import Store
from pipeline.system.errors import Busy, UserError

EXACT = ("train.precision=32-true", "train.micro_batch=4", "train.checkpoint_every_seconds=1000")
OFTEN = "train.checkpoint_every_seconds=0.02"
STEPS = "budget.max_tokens=25_600"
RUN = "artifacts/pretrain"


class Shaky(MemoryFileSystem):
    """A remote in memory that sleeps before every call, or fails, and keeps who called."""

    protocol = "shaky"
    cachable = False
    store: dict = {}  # noqa: RUF012 - as its parent's
    pseudo_dirs = [""]  # noqa: RUF012
    seconds, broken = 0.0, False
    callers: list[tuple[str, float]] = []  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("shaky://"))

    def _call(self) -> None:
        Shaky.callers.append((threading.current_thread().name, time.monotonic()))
        time.sleep(Shaky.seconds)
        if Shaky.broken:
            raise ConnectionError("no route to shaky://me:secret@host/x?key=1")

    def _open(self, *args, **kwargs):
        self._call()
        return super()._open(*args, **kwargs)

    def cat_file(self, *args, **kwargs):
        self._call()
        return super().cat_file(*args, **kwargs)

    def pipe_file(self, *args, **kwargs):
        self._call()
        return super().pipe_file(*args, **kwargs)

    def ls(self, *args, **kwargs):
        self._call()
        return super().ls(*args, **kwargs)


fsspec.register_implementation("shaky", Shaky, clobber=True)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Looks often; nothing is left of a test in the next."""
    monkeypatch.setattr(upload, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(upload, "PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(remote_store, "PAUSES_SECONDS", (0.01,))
    Shaky.store.clear()
    Shaky.callers.clear()
    Shaky.seconds, Shaky.broken = 0.0, False
    yield
    Shaky.seconds, Shaky.broken = 0.0, False
    for thread in threading.enumerate():
        if thread.name == "remote":  # one that a test did not wait for
            thread.join(10.0)


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the remote."""
    monkeypatch.setenv(place.REMOTE, f"file://{tmp_path / 'there'}")
    return tmp_path / "there"


def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> Small:
    """Another machine: an empty root; data and init come from the remote or are made."""
    (tmp_path / name).mkdir()
    monkeypatch.setenv("HORNBOOK_ROOT", str(tmp_path / name))
    return Small(tmp_path / name)


def end(store: Store, seconds: float = 5.0) -> None:
    """As at the end of a stage."""
    with store.copied(lambda: seconds):
        pass


def connected() -> RemoteStore:
    store = connect()
    assert isinstance(store, RemoteStore)
    return store


def made(folder: Path, count: list[int]) -> Step:
    def make(target) -> dict:
        count.append(1)
        (target.path / "part").mkdir()
        (target.path / "part" / "tokens.bin").write_bytes(b"tokens" * 1000)
        (target.path / "report.html").write_text("page")
        return {}

    return made_step("made", 1, make, {"folder": "any"})


def test_a_finished_folder_comes_from_the_remote_unless_a_byte_of_it_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: Path, capsys: pytest.CaptureFixture
) -> None:
    count: list[int] = []
    step = made(tmp_path, count)
    monkeypatch.setenv("HORNBOOK_ROOT", str(tmp_path / "a"))
    store = connect()
    first = build(step, store=store)
    end(store)
    assert (there / place.path_of(step.path) / "manifest.json").is_file()

    monkeypatch.setenv("HORNBOOK_ROOT", str(tmp_path / "b"))
    (there / place.path_of(step.path) / "report.html").unlink()  # for reading only
    assert build(step, store=store) == first
    assert count == [1]
    assert (step.path / "part" / "tokens.bin").read_bytes() == b"tokens" * 1000
    assert "taken from file://" in capsys.readouterr().out
    end(store)

    monkeypatch.setenv("HORNBOOK_ROOT", str(tmp_path / "c"))
    with open(there / place.path_of(step.path) / "part" / "tokens.bin", "r+b") as file:
        file.write(b"T")
    build(step, store=store)
    assert count == [1, 1]
    assert "is damaged and is not used" in capsys.readouterr().out
    end(store)


def test_a_run_that_loses_its_machine_goes_on_elsewhere_bit_by_bit_and_its_hours_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: Path, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("REMOTE_LOOK_SECONDS", "0.02")
    a = machine(tmp_path, monkeypatch, "a")
    process = a.start(STEPS, *EXACT, OFTEN)
    run = there / RUN / a.folder.name
    a.wait_for(lambda: len(list(run.glob("checkpoints/*/checkpoint.json"))) >= 2, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    seconds = ledger.spent_seconds(run / "ledger.jsonl", "pretrain", a.folder.name)
    assert seconds > 0
    kept = sorted(int(path.parent.name[5:]) for path in run.glob("checkpoints/*/checkpoint.json"))
    shutil.rmtree(a.root)

    _half_of_the_newest_is_not_taken(tmp_path, monkeypatch, there, run, kept)

    (tmp_path / "b").mkdir()
    monkeypatch.setenv("HORNBOOK_ROOT", str(tmp_path / "b"))
    capsys.readouterr()
    b = Small(tmp_path / "b")
    moved = b.run_here(STEPS, *EXACT)
    said = capsys.readouterr().out
    assert f"is ahead (step {kept[-1]}, here 0)" in said
    assert said.count("taken from file://") == 2  # data and init: nothing is made again
    assert moved["lives"] == 2
    assert moved["gpu_hours"] * 3600 >= seconds + 0.5
    assert (run / "manifest.json").is_file()
    assert not (run / "owner.json").exists()
    assert ledger.spent_seconds(run / "ledger.jsonl", "pretrain", b.folder.name) >= moved["gpu_hours"] * 3600 - 0.1

    monkeypatch.delenv(place.REMOTE)
    whole = machine(tmp_path, monkeypatch, "c")
    undisturbed = whole.run_here(STEPS, *EXACT)
    assert moved["content_hash"] == undisturbed["content_hash"]
    assert moved["tokens_sha256"] == undisturbed["tokens_sha256"]
    assert b.losses() == whole.losses()

    monkeypatch.setenv(place.REMOTE, f"file://{there}")
    (tmp_path / "d").mkdir()
    monkeypatch.setenv("HORNBOOK_ROOT", str(tmp_path / "d"))
    d = Small(tmp_path / "d")
    assert d.run_here(STEPS, *EXACT) == moved
    assert "up to date" in capsys.readouterr().out


def _half_of_the_newest_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: Path, run: Path, kept: list[int]
) -> None:
    """Torn weights are found by their hash; files without an index were never pushed to their end."""
    aside = tmp_path / "aside"
    shutil.copytree(there, aside)
    newest = run / "checkpoints" / f"step-{kept[-1]:08d}"
    for name, harm in (("torn", _tear), ("half", lambda path: (path / "checkpoint.json").unlink())):
        harm(newest)
        (tmp_path / name).mkdir()
        monkeypatch.setenv("HORNBOOK_ROOT", str(tmp_path / name))
        small = Small(tmp_path / name)
        store = connect()
        store.fetch_run(pretrain_step(small.config(STEPS)), small.config(STEPS))
        assert [path.name for path in (small.folder / "checkpoints").iterdir()] == [f"step-{kept[-2]:08d}"]
        end(store)
        shutil.rmtree(there)
        shutil.copytree(aside, there)


def _tear(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 1000)


def test_a_raised_cap_goes_on_from_before_the_decay_on_another_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: Path
) -> None:
    machine(tmp_path, monkeypatch, "a").run_here("budget.max_tokens=10_240", *EXACT)
    b = machine(tmp_path, monkeypatch, "b")
    longer = b.run_here("budget.max_tokens=15_360", *EXACT)
    assert (longer["steps"], longer["annealed"], longer["lives"]) == (30, True, 2)
    records = [json.loads(line) for line in (b.folder / "decisions.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if record["kind"] == "extend"] == [14]
    assert [row["step"] for row in b.rows()] == list(range(31))


def test_a_slow_remote_is_never_called_from_the_training_loop_and_never_passes_the_cap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from pipeline.training.control import Control

    a = machine(tmp_path, monkeypatch, "a")
    monkeypatch.setenv(place.REMOTE, "shaky://box/runs")
    loop: list[float] = []

    def begin(self: Control, *args) -> None:
        loop.append(time.monotonic())
        Shaky.seconds = 3.0
        plain(self, *args)

    plain = Control.on_train_start
    monkeypatch.setattr(Control, "on_train_start", begin)
    cap = ledger.process_age_seconds() + 10
    manifest = a.run_here(f"budget.max_gpu_hours={cap / 3600:.6f}", "train.checkpoint_every_seconds=0.5")
    assert ledger.process_age_seconds() <= cap
    assert manifest["gpu_hours_total"] * 3600 <= cap
    assert manifest["annealed"]
    assert {name for name, when in Shaky.callers if when > loop[0]} == {"remote"}
    assert "has not everything yet" in capsys.readouterr().out


def test_a_failing_remote_is_said_once_and_again_when_it_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from pipeline.training.control import Control

    a = machine(tmp_path, monkeypatch, "a")
    monkeypatch.setenv(place.REMOTE, "shaky://me:secret@box/runs")
    plain = Control.on_train_start

    def begin(self: Control, *args) -> None:
        Shaky.broken = True
        plain(self, *args)

    monkeypatch.setattr(Control, "on_train_start", begin)
    started = time.monotonic()
    a.run_here("budget.max_tokens=10_240", *EXACT)
    assert time.monotonic() - started < remote_store.FINISH_SECONDS / 10
    said = capsys.readouterr().out
    assert said.count("fails (ConnectionError") == 1, said
    assert "secret" not in said
    assert "key=1" not in said

    Shaky.broken = True
    assert a.run_here("budget.max_tokens=10_240", *EXACT)["steps"] == 20  # up to date
    assert "has not everything yet" in capsys.readouterr().out
    config, store = a.config("budget.max_tokens=10_240", *EXACT), connected()
    store.copy_finished(pretrain_step(config), config)  # as the same command does again
    _until(lambda: store.uploader.failing)
    Shaky.broken = False
    _until(lambda: not store.uploader.failing)
    end(store)
    assert any(name.endswith("manifest.json") and RUN in name for name in Shaky.store)
    assert any(name.endswith("checkpoint.json") for name in Shaky.store)
    assert "works again" in capsys.readouterr().out


def _until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_bare_machine_does_not_start_anew_where_it_cannot_see_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = machine(tmp_path, monkeypatch, "a")
    monkeypatch.setenv(place.REMOTE, "shaky://box/runs")
    Shaky.broken = True
    with pytest.raises(UserError, match="nothing of this run is here"):
        a.run_here(_seconds_from_now(20))


def test_a_second_machine_is_turned_away_and_a_first_one_that_was_away_stops_copying(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: Path, capsys: pytest.CaptureFixture
) -> None:
    a = machine(tmp_path, monkeypatch, "a")
    step = pretrain_step(a.config(STEPS))
    signed = there / RUN / step.fingerprint / "owner.json"
    signed.parent.mkdir(parents=True)
    other = {"host": "elsewhere", "pid": 7, "token": "other", "time": time.time() - 5}
    signed.write_text(json.dumps(other))
    with pytest.raises(Busy, match="process 7 on elsewhere is training this run"):
        a.run_here(STEPS)
    signed.write_text(json.dumps({**other, "time": time.time() - 61}))
    monkeypatch.setattr(upload, "BEAT_SECONDS", 0.05)
    store = connected()
    store.fetch_run(step, a.config(STEPS))
    assert json.loads(signed.read_text())["token"] != "other"

    def taken_over() -> bool:
        if store.uploader.taken_over:
            return True
        signed.write_text(json.dumps({**other, "time": time.time()}))  # a beat may write over it
        return False

    _until(taken_over)
    assert "process 7 on elsewhere has taken this run over" in capsys.readouterr().out
    assert json.loads(signed.read_text())["token"] == "other"


def test_a_stage_that_ends_leaves_the_signature_of_a_machine_that_took_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: Path
) -> None:
    a = machine(tmp_path, monkeypatch, "a")
    step = pretrain_step(a.config(STEPS))
    signed = there / RUN / step.fingerprint / "owner.json"
    store = connected()
    store.fetch_run(step, a.config(STEPS))
    uploader = store.uploader
    # The next signature is due in 15 s: it ends before it looks again.
    _until(lambda: uploader._run is not None and uploader._beat_at > 0)
    signed.write_text(json.dumps({"host": "elsewhere", "pid": 7, "token": "other", "time": time.time()}))
    end(store, 30.0)
    assert not uploader.taken_over
    assert json.loads(signed.read_text())["token"] == "other"


def test_a_run_that_is_taken_over_in_the_middle_of_a_file_is_no_fault_of_the_remote(there: Path) -> None:
    def between() -> None:
        raise upload.TakenOver("process 7 on elsewhere has taken this run over")

    with pytest.raises(upload.TakenOver):
        place.Place(f"file://{there}").send(io.BytesIO(b"content"), "run/file", between)


def test_messages_hold_no_credentials_and_an_unknown_url_is_said_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = place.Place("sftp://me:p%40ss@host/folder?key=abc")
    assert where.name == "sftp://host/folder"
    assert where.hide("login of me with p@ss at sftp://me:p%40ss@host/folder?key=abc") == (
        "login of *** with *** at sftp://host/folder"
    )
    monkeypatch.setenv("HORNBOOK_ROOT", str(tmp_path))
    monkeypatch.setenv(place.REMOTE, "nosuch://me:secret@host/x")
    with pytest.raises(UserError, match="nosuch://host/x cannot be used") as caught:
        build(made(tmp_path, []), store=connect())
    assert "secret" not in str(caught.value)


def test_hours_of_two_machines_are_added_even_where_their_lives_have_one_number(tmp_path: Path) -> None:
    line = {"stage": "pretrain", "fingerprint": "f", "life": 1, "devices": 1, "pid": 1, "seconds": 10.0, "host": "a"}
    path = tmp_path / "ledger.jsonl"
    path.write_text(json.dumps(line) + '\n{"torn')
    other = json.dumps(line) + "\n" + json.dumps({**line, "host": "b", "seconds": 5.0}) + "\n"
    ledger.merge(path, other.encode())
    ledger.merge(path, other.encode())
    assert ledger.spent_seconds(path, "pretrain", "f") == 15.0
    assert len(path.read_text().splitlines()) == 3
