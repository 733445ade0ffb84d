"""An export on its way to the hub: what goes where, what is asked first, and what a refusal says. The hub is a server
on loopback that speaks as much of its protocol as an upload needs."""

import base64
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from loopback import serve

from pipeline.run_stage import run_stage
from pipeline.storage.files import SEAL, seal_of
from pipeline.storage.steps import MANIFEST

CHECKOUT = Path(__file__).resolve().parents[2]
TOKEN = "hf_token_of_the_test"


class Hub:
    """`files`: what was committed; `asked`: (method, path) of every request; `made`: what create was given."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, str]] = []
        self.made: dict = {}
        self.blobs: dict[str, bytes] = {}
        self.refuses = False
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def answer(self, code: int, value: object = None) -> None:
                body = json.dumps(value if value is not None else {}).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                hub.asked.append((self.command, self.path))
                if self.path.startswith("/blob/"):  # an address of the storage carries its own right
                    hub.blobs[self.path.removeprefix("/blob/")] = body
                    return self.answer(200)
                if hub.refuses or self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    return self.answer(403, {"error": "Forbidden"})
                return self.answer(200, hub.reply(self.path, body))

            do_POST = do_PUT = do_GET = handle_any

        self.server = serve(Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def reply(self, path: str, body: bytes) -> object:
        if path == "/api/repos/create":
            self.made = json.loads(body)
            return {"url": f"{self.address}/{self.made['organization']}/{self.made['name']}"}
        if "/preupload/" in path:
            large = (".safetensors", ".gguf")
            return {
                "files": [
                    {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(large) else "regular",
                     "shouldIgnore": False, "oid": None}
                    for f in json.loads(body)["files"]
                ]
            }  # fmt: skip
        if path.endswith("/info/lfs/objects/batch"):
            wanted = json.loads(body)["objects"]
            actions = {o["oid"]: {"upload": {"href": f"{self.address}/blob/{o['oid']}"}} for o in wanted}
            return {"transfer": "basic", "objects": [{**o, "actions": actions[o["oid"]]} for o in wanted]}
        if "/commit/" in path:
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    self.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    self.files[value["path"]] = self.blobs[value["oid"]]
            return {"commitUrl": f"{self.address}/org/small/commit/1", "commitOid": "1" * 40, "success": True}
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        raise AssertionError(path)


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


@pytest.fixture
def exported(pretrained, tmp_path) -> Path:
    run_stage("export", pretrained("export.gguf=[f16]", "export.license=apache-2.0"), "small.yaml")
    return tmp_path / "runs" / "small" / "export"


def push(root: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    cleared = {k: v for k, v in os.environ.items() if k not in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")}
    return subprocess.run(
        [sys.executable, "-P", "-m", "pipeline", "push", *words],
        env={**cleared, "PYTHONPATH": str(CHECKOUT), "HORNBOOK_ROOT": str(root), "HF_HOME": str(root / "hf"),
             "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", **environment},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_an_export_is_uploaded_whole_after_a_dry_run_that_sends_nothing(exported, hub, tmp_path):
    reach = {"HF_ENDPOINT": hub.address, "HF_TOKEN": TOKEN}
    dry = push(tmp_path, "small", "org/small", **reach)
    assert dry.returncode == 0, dry.stderr
    assert "model.safetensors" in dry.stdout
    assert "nothing was uploaded; with --yes" in dry.stdout
    assert hub.asked == []
    done = push(tmp_path, "small", "org/small", "--yes", **reach)
    assert (done.returncode, done.stdout.strip()) == (0, f"{hub.address}/org/small"), done.stderr
    assert hub.made["visibility"] == "private"
    folders = {"": "model", "gguf": "gguf", "dataset": "dataset"}
    expected = {
        (Path(there) / file.relative_to(exported / here)).as_posix(): file.read_bytes()
        for there, here in folders.items()
        for file in (exported / here).rglob("*")
        if file.is_file()
    }
    assert {"model.safetensors", "config.json", "gguf/small-f16.gguf", "gguf/Modelfile"} <= expected.keys()
    card = hub.files.pop("README.md").decode()
    assert expected.pop("README.md").decode() != card
    assert 'name = "org/small"' in card
    assert "vllm serve org/small" in card
    assert "-f gguf/Modelfile" in card
    assert "../" not in card
    assert hub.files.keys() == expected.keys()
    assert all(hashlib.sha256(hub.files[path]).digest() == hashlib.sha256(expected[path]).digest() for path in expected)


def test_private_text_needs_a_flag_and_a_token_is_asked_for_by_name(exported, hub, tmp_path):
    reach = {"HF_ENDPOINT": hub.address}
    done = push(tmp_path, "small", "org/small", "--yes", **reach)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "HF_TOKEN is not set" in done.stderr
    lineage = json.loads((exported / MANIFEST).read_text())["lineage"]
    path = tmp_path / "artifacts" / "data" / lineage["data"] / MANIFEST
    manifest = json.loads(path.read_text())
    manifest.pop(SEAL)
    next(iter(manifest["sources"].values()))["licenses"] = {"own": 3}
    path.write_text(json.dumps({**manifest, SEAL: seal_of(manifest)}))
    reach["HF_TOKEN"] = TOKEN
    assert "needs --allow-private" in push(tmp_path, "small", "org/small", **reach).stdout
    done = push(tmp_path, "small", "org/small", "--yes", **reach)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--allow-private" in done.stderr
    assert hub.asked == []
    done = push(tmp_path, "small", "org/small", "--yes", "--allow-private", "--public", **reach)
    assert done.returncode == 0, done.stderr
    assert hub.made["visibility"] == "public"
    hub.refuses = True
    done = push(tmp_path, "small", "org/small", "--yes", "--allow-private", **reach)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "HF_TOKEN may not write to org" in done.stderr


def test_what_cannot_be_pushed_is_named(pretrained, tmp_path, hub):
    for words, expected in [
        (("small", "org/small"), "run: hornbook export small"),
        (("small", "small"), "expected organisation/name"),
        (("smal", "org/small"), "did you mean 'small'"),
    ]:
        done = push(tmp_path, *words)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert expected in done.stderr
