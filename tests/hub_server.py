"""A model and data hub on loopback: what `huggingface_hub` 2.x and `datasets` 5.x ask of one through HF_ENDPOINT.

In: repositories as `{path: bytes}`; each `commit` is a revision that stays, and `main` is the newest one. Faults are
asked for by a pattern of the request's path: a status code, a connection that is cut after some bytes, a call before
the answer. Every request is kept, so that a test sees what was asked for.
"""

import contextlib
import hashlib
import importlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from loopback import serve

API = re.compile(
    r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info|refs|auth-check)(?:/([^/]+))?(?:/(.*))?)?"
)
FILE = re.compile(r"/(?:(datasets)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
BYTES = "application/octet-stream"


@dataclass
class Fault:
    """`times`: how many requests it meets; a `code` of None lets the request through."""

    pattern: str
    code: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    cut_after_bytes: int | None = None
    times: float = float("inf")
    call: Callable[[], Any] = lambda: None


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    range: str | None
    code: int


class Hub:
    """`url`: for HF_ENDPOINT. `repositories`: (kind, name) -> commit -> files, the newest commit last."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], dict[str, dict[str, bytes]]] = {}
        self.gated: dict[str, int] = {}
        self.renamed: dict[str, str] = {}
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self._server = serve(type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def stop(self) -> None:
        """From here on nothing answers."""
        self._server.shutdown()
        self._server.server_close()

    def commit(self, kind: str, name: str, files: Mapping[str, bytes]) -> str:
        """A new revision of a repository, to which `main` moves; its commit."""
        history = self.repositories.setdefault((kind, name), {})
        content = b"".join(path.encode() + data for path, data in sorted(files.items()))
        commit = hashlib.sha1(f"{kind} {name} {len(history)} ".encode() + content).hexdigest()
        history[commit] = dict(files)
        return commit

    def asked(self, pattern: str) -> list[Request]:
        return [request for request in self.requests if re.search(pattern, request.path)]


@contextlib.contextmanager
def running() -> Iterator[Hub]:
    hub = Hub()
    try:
        yield hub
    finally:
        hub.stop()


def reload_settings() -> None:
    """The libraries read HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE when they are imported: read again."""
    if "huggingface_hub" in sys.modules:
        import huggingface_hub

        importlib.reload(huggingface_hub.constants)
        huggingface_hub.HfFileSystem.clear_instance_cache()
    if "datasets" in sys.modules:
        import datasets

        importlib.reload(datasets.config)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def answer(
        self, code: int, body: Any = b"", headers: Mapping[str, str] | None = None, kind: str = "application/json",
        length: int | None = None,
    ) -> None:  # fmt: skip
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        path = self.path
        self.hub.requests.append(Request(self.command, path, self.headers.get("Range"), code))
        self.send_response(code)
        sent = {"Content-Type": kind, "Content-Length": str(len(data) if length is None else length), **(headers or {})}
        for name, value in sent.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.cut is not None and len(data) > self.cut:
            self.wfile.write(data[: self.cut])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
            return
        self.wfile.write(data)

    def refuse(self, code: int, error: str, words: str) -> None:
        self.answer(code, {"error": words}, {"X-Error-Code": error, "X-Error-Message": words})

    def do_GET(self) -> None:
        self.cut: int | None = None
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        for fault in self.hub.faults:
            if fault.times > 0 and re.search(fault.pattern, f"{self.command} {path}"):
                fault.times -= 1
                fault.call()
                self.cut = fault.cut_after_bytes
                if fault.code is not None:
                    return self.answer(fault.code, {"error": "a fault of this test"}, fault.headers)
                break
        if found := API.fullmatch(path):
            kind, name, verb, revision, below = found.groups()
        elif found := FILE.fullmatch(path):
            kind, name, revision, below = found.groups()
            kind, verb = kind or "models", "file"
        else:
            return self.refuse(404, "", f"no such page: {path}")
        if name in self.hub.renamed:
            return self.answer(307, b"", {"Location": self.path.replace(name, self.hub.renamed[name])})
        history = self.hub.repositories.get((kind, name))
        if history is None:
            return self.refuse(401, "RepoNotFound", "Repository not found")
        commit = [*history][-1] if revision in (None, "main") else revision
        if commit not in history:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if name in self.hub.gated and verb not in (None, "revision"):
            code = self.hub.gated[name]
            return self.refuse(code, "GatedRepo", f"Access to {kind[:-1]} {name} is restricted")
        files = history[commit]
        if verb == "file":
            return self.file(files, commit, below)
        return self.api(verb, name, commit, files, below or "", body)

    do_HEAD = do_POST = do_GET

    def api(self, verb: str, name: str, commit: str, files: dict[str, bytes], below: str, body: bytes) -> None:
        if verb == "auth-check":
            return self.answer(200, {})
        if verb in (None, "revision"):
            siblings = [{"rfilename": path} for path in sorted(files)]
            gated = "manual" if name in self.hub.gated else False
            facts = {"_id": "0", "id": name, "sha": commit, "private": False, "gated": gated, "disabled": False}
            return self.answer(200, {**facts, "downloads": 0, "likes": 0, "tags": [], "siblings": siblings})
        if verb == "refs":
            main = {"name": "main", "ref": "refs/heads/main", "targetCommit": commit}
            return self.answer(200, {"branches": [main], "converts": [], "tags": []})
        if verb == "paths-info":
            wanted = json.loads(body)["paths"] if body.startswith(b"{") else parse_qs(body.decode()).get("paths", [])
            wanted = [wanted] if isinstance(wanted, str) else wanted
            return self.answer(200, [entry for path in wanted if (entry := _entry(path, files)) is not None])
        folder = f"{below}/" if below else ""
        inside = [path for path in sorted(files) if path.startswith(folder)]
        if folder and not inside:
            return self.refuse(404, "EntryNotFound", f"{below} does not exist")
        if parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() not in ("true", "1"):
            inside = list(dict.fromkeys(folder + path[len(folder) :].split("/")[0] for path in inside))
        return self.answer(200, [_entry(path, files) for path in inside])

    def file(self, files: dict[str, bytes], commit: str, path: str) -> None:
        if path not in files:
            return self.refuse(404, "EntryNotFound", "Entry not found")
        data = files[path]
        headers = {"ETag": f'"{_blob(data)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if self.command == "HEAD" or not found:
            return self.answer(200, b"" if self.command == "HEAD" else data, headers, BYTES, length=len(data))
        first, last = int(found[1]), min(int(found[2] or len(data) - 1), len(data) - 1)
        if first >= len(data):
            return self.answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        return self.answer(206, data[first : last + 1], headers, BYTES)


def _blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _entry(path: str, files: Mapping[str, bytes]) -> dict[str, Any] | None:
    if path in files:
        return {"type": "file", "oid": _blob(files[path]), "size": len(files[path]), "path": path}
    if any(name.startswith(f"{path}/") for name in files):
        return {"type": "directory", "oid": "0" * 40, "size": 0, "path": path}
    return None
