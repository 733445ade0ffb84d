"""The real W&B client against a server on loopback that dies midway, refuses, is slow or never answers.

A run ends inside its cap, annealed, with every row, and one line says what is missing; `hornbook sync` brings all rows.
"""

import json
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from processes import Command, run
from test_pretrain import DRIVER, Small, cap_seconds, hours, small, small_inputs  # noqa: F401 - fixtures

from pipeline.storage.steps import read_manifest
from pipeline.system.errors import WRONG_INPUT

PROJECT = {"id": "p", "internalId": "1", "name": "hornbook", "entity": {"id": "e", "name": "me"}}
ARTIFACT = {
    "id": "a", "artifactSequence": {"name": "stage", "project": PROJECT}, "versionIndex": 0, "description": None,
    "artifactType": {"name": "stage"}, "metadata": None, "ttlDurationSeconds": 0, "ttlIsInherited": False, "tags": [],
    "historyStep": None, "state": "COMMITTED", "size": 0, "digest": "d", "commitHash": None, "fileCount": 0,
    "createdAt": "2026-01-01T00:00:00Z", "updatedAt": None, "aliases": [],
}  # fmt: skip
CREATED = {"id": "a", "state": "COMMITTED", "artifactSequence": {"id": "s", "latestArtifact": None}}
ANSWERS = {  # of GraphQL, by the name of the operation; what is not named here is answered with nothing
    "Viewer": {"viewer": {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}},
    "CreateRunFiles": {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": []}},
    "ArtifactType": {"project": None},
    "CreateArtifact": {"createArtifact": {"artifact": CREATED}},
    "ArtifactByID": {"artifact": ARTIFACT},
}


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "Wandb"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        manner, _, only_rows = self.server.manner.partition(" ")
        if only_rows == "rows" and not self.path.endswith("/file_stream"):
            manner = "works"
        if manner == "slow":
            self.server.ended.wait(5)
        if manner == "hangs":
            self.server.ended.wait(120)
        if manner in ("hangs", "closes"):
            self.close_connection = True
        elif manner == "refuses":
            self._reply(403, {"error": "no permission"})
        else:
            self._reply(200, self._answer(body))

    def _answer(self, body: bytes) -> dict:
        if self.path.endswith("/file_stream"):
            files = json.loads(body).get("files") or {}
            self.server.rows += map(json.loads, files.get("wandb-history.jsonl", {}).get("content", []))
        if self.path != "/graphql":
            return {}
        asked = json.loads(body)
        found = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
        assert found is not None
        name = found[1]
        self.server.asked.append(name)
        if name == "UpsertBucket":
            run_id = asked["variables"]["name"]
            self.server.runs.add(run_id)
            bucket = {"id": "b", "name": run_id, "displayName": "n", "config": "{}", "historyLineCount": 0}
            return {"data": {"upsertBucket": {"bucket": bucket | {"project": PROJECT}, "inserted": True}}}
        return {"data": ANSWERS.get(name, {})}

    def _reply(self, code: int, value: dict) -> None:
        body = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


class Wandb(ThreadingHTTPServer):
    """As much of a W&B server as its client asks for a run with rows and lineage; `manner`: how it answers now."""

    daemon_threads, block_on_close = True, False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.manner, self.ended = "works", threading.Event()
        self.rows: list[dict] = []
        self.asked: list[str] = []
        self.runs: set[str] = set()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def environment(self, experiment: Small) -> dict[str, str]:
        url = f"http://127.0.0.1:{self.server_address[1]}"
        online = {"WANDB_BASE_URL": url, "WANDB_API_KEY": "k" * 40, "WANDB_MODE": "online"}
        return {**experiment._environment(), **online}

    def handle_error(self, *_: object) -> None: ...  # a client that went away


@pytest.fixture
def server() -> Iterator[Wandb]:
    wandb = Wandb()
    yield wandb
    wandb.ended.set()
    wandb.shutdown()
    wandb.server_close()


def _clients(pid: int) -> list[str]:
    """W&B's own processes that belong to the process `pid`."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes().replace(b"\0", b" ").decode())
        except OSError:  # it has ended
            continue
    return [line for line in lines if "wandb-core" in line and line.endswith(f"--pid {pid} ")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "then"),
    [("works", "closes"), ("works", "hangs"), ("works", "refuses"), ("slow", "slow"), ("hangs", "hangs")],
)
def test_a_run_whose_tracker_fails_ends_inside_its_cap_and_says_in_one_line_what_is_missing(
    first: str, then: str, small: Small, server: Wandb, cap_seconds: float  # noqa: F811
) -> None:  # fmt: skip
    cap = 1.5 * cap_seconds
    server.manner = first
    began = time.monotonic()
    process = Command([str(DRIVER), str(small.path), hours(cap), "tracking.to=wandb"], server.environment(small))
    if first == "works":
        small.wait_for(lambda: server.runs, process)
    small.wait_for_step(5, process)
    server.manner = then
    output = "".join(process.communicate(60 + cap))
    assert process.returncode == 0, output
    assert time.monotonic() - began <= cap, output
    manifest = read_manifest(small.folder)
    assert manifest["annealed"]
    assert [row["step"] for row in small.rows()] == list(range(manifest["steps"] + 1))
    [line] = [line for line in output.splitlines() if "W&B" in line]
    assert re.search(
        r"some of its \d[\d,]* rows may be missing there.*metrics.jsonl has every row; `hornbook sync", line
    )
    deadline = time.monotonic() + 60
    while _clients(process.pid):
        assert time.monotonic() < deadline, "W&B's client outlives the run"
        time.sleep(0.1)


SYNC = """
import sys
import pretrain_driver
from pipeline import retrack
from pipeline.__main__ import main
from pipeline.training import tracking
pretrain_driver.install()
tracking.START_SECONDS, retrack.FINISH_SECONDS = 10, float(sys.argv[2])
main(["sync", "small", "--to=" + sys.argv[1]])
"""


@pytest.mark.slow
def test_sync_says_what_failed_keeps_the_id_and_brings_every_row_once_where_the_server_answers(
    small: Small, server: Wandb  # noqa: F811
) -> None:  # fmt: skip
    small.run_here("budget.max_tokens=10_240")
    environment = server.environment(small)
    environment["PYTHONPATH"] += f":{DRIVER.parent}"
    before = (small.folder / "metrics.jsonl").read_bytes()
    (small.folder / "wandb-id").write_text("earlier\n")

    def sync(manner: str, seconds: float) -> tuple[int, str]:
        server.manner, server.rows = manner, []
        done = run(["-c", SYNC, "wandb", str(seconds)], environment)
        return done.returncode, done.stdout + done.stderr

    for manner, seconds, said in (
        ("hangs", 60, "did not start"),
        ("closes rows", 8, "did not finish within 8 s"),
        ("refuses rows", 60, "the server refused rows"),
    ):
        code, output = sync(manner, seconds)
        assert code == WRONG_INPUT, output
        assert said in output
        assert "run the same command again" in output
        assert (small.folder / "wandb-id").read_text() == "earlier\n", "a resumed run continues its own curve"
    code, output = sync("works", 120)
    assert code == 0, output
    assert sorted(row["step"] for row in server.rows if "samples" not in row) == [row["step"] for row in small.rows()]
    assert (small.folder / "wandb-id").read_text().strip() in server.runs - {"earlier"}
    assert "UseArtifact" in server.asked
    assert (small.folder / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_sync_to_trackio_again_leaves_every_row_once(small: Small) -> None:  # noqa: F811
    pytest.importorskip("trackio")
    small.run_here("budget.max_tokens=10_240")
    environment = {**small._environment(), "TRACKIO_DIR": str(small.root / "trackio"), "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] += f":{DRIVER.parent}"
    for _ in range(2):
        done = run(["-c", SYNC, "trackio", "60"], environment)
        assert done.returncode == 0, done.stdout + done.stderr
    code = (
        "from trackio.sqlite_storage import SQLiteStorage\n"
        "print([row['step'] for row in SQLiteStorage.get_logs('hornbook', 'small')])\n"
    )
    stored = run(["-c", code], environment).stdout
    assert json.loads(stored.splitlines()[-1]) == [row["step"] for row in small.rows()]
