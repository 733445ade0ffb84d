"""metrics.jsonl is the truth and is cut back exactly; a mirror that fails or hangs costs a run nothing."""

import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipeline import config as configs
from pipeline.storage.files import read_json_lines
from pipeline.training.tracking import (
    Metrics,
    TensorboardMirror,
    TrackioMirror,
    WandbMirror,
    cut_metrics,
    logged_config,
    set_metrics_aside,
)


def mirror(folder: Path, said: list[str]) -> WandbMirror:
    return WandbMirror(folder / "run", folder / "wandb-id", "name", "project", {"a": 1}, said.append)


def test_rows_are_cut_back_to_the_checkpoint_and_a_torn_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with Metrics(path) as metrics:
        for step in range(10):
            metrics.log({"train/loss": 1.0 / (step + 1)}, step)
    with open(path, "a") as file:
        file.write('{"step": 10, "train/lo')
    set_metrics_aside(path, 6)
    cut_metrics(path, 6)
    assert [row["step"] for row in read_json_lines(path)] == list(range(7))
    assert read_json_lines(path)[3] == {"step": 3, "train/loss": 0.25}
    assert len(read_json_lines(tmp_path / "metrics-before-6.jsonl")) == 10


def test_a_mirror_that_cannot_start_is_said_once_and_rows_still_reach_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    said: list[str] = []
    with Metrics(tmp_path / "metrics.jsonl", mirror(tmp_path, said)) as metrics:
        for step in range(3):
            metrics.log({"train/loss": 1.0}, step)
    assert len(read_json_lines(tmp_path / "metrics.jsonl")) == 3
    assert len(said) == 1
    assert "W&B did not start" in said[0]
    assert "`hornbook sync" in said[0]


def test_a_mirror_that_hangs_delays_neither_a_row_nor_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    never = threading.Event()
    monkeypatch.setattr(WandbMirror, "_start", lambda self: never.wait(30))
    monkeypatch.setattr(WandbMirror, "_log", lambda self, run, row: None)
    monkeypatch.setattr(WandbMirror, "_finish", lambda self, run: None)
    said: list[str] = []
    hanging = mirror(tmp_path, said)
    started = time.monotonic()
    for step in range(1000):
        hanging.log({"step": step})
    hanging.finish_seconds = 0.2
    hanging.finish()
    assert time.monotonic() - started < 10  # it would hang for 30
    assert "did not finish within 0.2 s: some of its 1,000 rows may be missing" in said[0]
    never.set()


def test_without_a_key_the_mirror_is_offline_and_asks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setattr(WandbMirror, "_run", lambda self: None)
    assert not mirror(tmp_path, []).online
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    online = mirror(tmp_path, [])
    assert online.online
    assert online.limit_finish(cap_seconds=144.0) == pytest.approx(2.88), "the end of a short run is short as well"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert not mirror(tmp_path, []).online


def test_a_kill_while_wandb_starts_leaves_the_id_that_the_next_life_goes_on_with(tmp_path: Path, monkeypatch) -> None:
    """Between making W&B's run and writing its id there was a time in which a kill split the curve in two."""
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    seen: list[tuple[str, str]] = []

    def killed(**options: Any) -> None:
        seen.append((options["id"], (tmp_path / "wandb-id").read_text()))
        raise RuntimeError("killed")

    monkeypatch.setattr("wandb.init", killed)
    (tmp_path / "wandb-id").touch()  # what an older hornbook left when it was killed while writing
    for _ in range(2):
        life = mirror(tmp_path, [])
        life.finish_seconds = 60
        life.finish()
    (run_id, written), again = seen
    assert run_id
    assert written == run_id + "\n"
    assert again == seen[0]


class Server(BaseHTTPRequestHandler):
    """A W&B server that is not one: it answers with errors, with garbage, or never."""

    def _answer(self) -> None:
        if self.server.manner == "hangs":  # type: ignore[attr-defined]
            time.sleep(60)
            return
        self.send_response(500 if self.server.manner == "fails" else 200)  # type: ignore[attr-defined]
        self.end_headers()
        self.wfile.write(b"\x00not json{" * 100)

    do_GET = do_POST = _answer

    def log_message(self, *_: object) -> None: ...


@pytest.mark.parametrize("manner", ["hangs", "fails", "lies", "refuses"])
def test_a_server_that_hangs_fails_lies_or_refuses_costs_no_row_and_no_second(manner, tmp_path, monkeypatch) -> None:
    """The real W&B client against a loopback server; it starts a process of its own and tries for seconds."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.manner, server.daemon_threads, server.block_on_close = manner, True, False  # type: ignore[attr-defined]
    port = server.server_address[1]
    if manner == "refuses":
        server.server_close()
    else:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    for name, value in {
        "WANDB_BASE_URL": f"http://127.0.0.1:{port}",
        "WANDB_API_KEY": "k" * 40,
        "WANDB_MODE": "online",
        "WANDB_DIR": str(tmp_path),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("pipeline.training.tracking.START_SECONDS", 2)
    said: list[str] = []
    tracker = mirror(tmp_path, said)
    tracker.finish_seconds = 0.3
    rows = []  # each by itself: W&B's start in the other thread takes turns with all of them for the interpreter
    began = time.monotonic()
    with Metrics(tmp_path / "metrics.jsonl", tracker) as metrics:
        for step in range(500):
            started = time.monotonic()
            metrics.log({"train/loss": 1.0}, step)
            rows.append(time.monotonic() - started)
    assert max(rows) < 0.5, "a row waits for nobody"
    assert time.monotonic() - began < 10
    assert len(read_json_lines(tmp_path / "metrics.jsonl")) == 500
    tracker._thread.join(30)
    assert said, "said once that it is off, or that it did not finish"
    if manner != "refuses":
        server.shutdown()
        server.server_close()


def test_trackio_holds_every_row_and_a_resumed_run_continues_it(tmp_path: Path) -> None:
    """In processes of their own: trackio reads where its store lies when it is imported."""
    pytest.importorskip("trackio")
    code = (
        "import sys\nfrom pipeline.training.tracking import TrackioMirror\nsaid = []\n"
        "mirror = TrackioMirror('small', 'hornbook', {'seed': 1}, said.append)\nmirror.finish_seconds = 60\n"
        "for step in map(int, sys.argv[1:]):\n"
        "    mirror.log({'step': step, 'train/loss': 1 / (step + 1), 'val/bits_per_byte': None})\n"
        "mirror.finish()\nassert not said, said\n"
        "from trackio.sqlite_storage import SQLiteStorage\n"
        "print([[row['step'], row['train/loss']] for row in SQLiteStorage.get_logs('hornbook', 'small')])\n"
    )
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    for steps, expected in ((["0", "1"], [[0, 1.0], [1, 0.5]]), (["3"], [[0, 1.0], [1, 0.5], [3, 0.25]])):
        done = subprocess.run([sys.executable, "-c", code, *steps], env=environment, capture_output=True, text=True,
                              timeout=300)  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout.splitlines()[-1]) == expected


def test_a_tracker_that_is_not_installed_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    said: list[str] = []
    tracker = TrackioMirror("small", "hornbook", {}, said.append)
    tracker.finish()
    assert "pip install 'hornbook[trackio]'" in said[0]


def test_tensorboard_files_hold_every_row(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    said: list[str] = []
    tracker = TensorboardMirror(tmp_path / "tensorboard", said.append)
    tracker.finish_seconds = 60
    with Metrics(tmp_path / "metrics.jsonl", tracker) as metrics:
        for step in range(5):
            metrics.log({"train/loss": 1.0 / (step + 1), "perf/mfu": None}, step)
        tracker.samples(4, [{"prompt": "a", "text": "b"}])
    assert said == []
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("train/loss")] == list(range(5))
    assert events.Scalars("train/loss")[3].value == 0.25
    assert "samples/0/text_summary" in events.Tags()["tensors"]


SECRET = "sk-0123456789abcdef"


def test_no_secret_of_the_environment_the_config_or_a_path_leaves_by_a_mirror(tmp_path: Path, monkeypatch) -> None:
    """W&B's own offline files hold what would be uploaded: none of them may hold the planted key, or this path."""
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MY_KEY"):
        monkeypatch.setenv(name, SECRET)
    monkeypatch.setattr(sys, "argv", ["hornbook", "pretrain", f"api_key={SECRET}"])
    folder = tmp_path / f"customer-{SECRET}"
    path = folder / "small.yaml"
    folder.mkdir()
    path.write_text(
        f"name: small\nmodel: {{vocab_size: 512, hidden_size: 64, intermediate_size: 128, num_hidden_layers: 2,\n"
        f"  num_attention_heads: 4, max_position_embeddings: 256}}\n"
        f"data: {{sources: {{notes: {{type: text, path: 'https://u:{SECRET}@host/x', license: own}}}},\n"
        f"  filters: {{quality: {{min_score: 0.5}}}}}}\n"
        f"init: {{method: exact, source: {folder}/source.yaml}}\n"
        f"sample: {{prompts: ['{SECRET}']}}\ntokenizer: {{path: {folder}/tokenizer.json}}\n"
    )
    config = configs.load(path)
    logged = logged_config(config, {"data": "abc"})
    assert logged["data"]["sources"] == {"notes": {"type": "text", "license": "own"}}
    assert logged["data"]["filters"] == {"quality": {"min_score": 0.5}}
    assert SECRET not in json.dumps(logged)
    said: list[str] = []
    tracker = WandbMirror(tmp_path / "run", tmp_path / "id", "small", "project", logged, said.append)
    tracker.finish_seconds = 60
    tracker.log({"step": 1, "train/loss": 2.0})
    tracker.artifacts({"pretrain": {"fingerprint": "f", "content_hash": "c", "seconds": 1.0, "gpu_hours": 0.1}})
    tracker.finish()
    assert said == []
    files = [f for f in (tmp_path / "run").rglob("*") if f.is_file() and not f.is_symlink()]
    assert any(f.suffix == ".wandb" for f in files)
    for file in files:
        if "logs" not in file.parts:  # W&B's own debug logs are never uploaded
            content = file.read_bytes()
            assert SECRET.encode() not in content, file
            assert str(Path.home()).encode() not in content, file


def test_numbers_are_plain_json(tmp_path: Path) -> None:
    with Metrics(tmp_path / "metrics.jsonl") as metrics:
        metrics.log({"perf/mfu": None, "train/loss": 2.5}, 1)
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "perf/mfu": None, "train/loss": 2.5}
