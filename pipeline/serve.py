"""`hornbook watch --web`: the reports of the runs as pages at 127.0.0.1, fetched again while a run is active.

In: the folders of the runs. Out: `/`, several runs side by side with links to all, and `/run/<name>`, a run's report
as it stands. Only this machine is served: the socket is bound to 127.0.0.1, and a request must name it as its host, so
that no page of another site can read one here through a name that leads to this address (DNS rebinding). No file is
served: a page is made for a name that is among the runs.
"""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock
from urllib.parse import quote, unquote, urlsplit

from pipeline import runs
from pipeline.pages import html
from pipeline.reporting import page, several
from pipeline.system.errors import UserError
from pipeline.watch import Snapshot, Watched, in_words, names, newest_sign

HOST, PORT = "127.0.0.1", 8765
NO_REPORT = (UserError, OSError, KeyError, TypeError, ValueError)  # of a run that waits, is half made, or of old
SIDE_BY_SIDE = 4  # runs on the first page, the newest ones
HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}


def make_server(chosen: Sequence[str] = (), port: int = PORT) -> ThreadingHTTPServer:
    """A server that waits for `serve_forever`. `chosen`: the runs of its first page; `port`: 0 for any that is free.
    Raises `UserError` where the port is taken."""
    handler = type("Pages", (_Handler,), {"pages": _Pages(chosen)})
    try:
        return ThreadingHTTPServer((HOST, port), handler)
    except (OSError, OverflowError) as error:
        raise UserError(
            f"port {port} of {HOST} cannot be used ({error}); name another one: --port {PORT + 1}"
        ) from None


def serve(chosen: Sequence[str], port: int) -> None:
    """Serves until Ctrl-C. Raises `UserError`."""
    with make_server(chosen, port) as server:
        print(f"http://{HOST}:{server.server_address[1]}/  (Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return


class _Pages:
    """Makes the pages; one at a time, because several readers of one page need it made once."""

    def __init__(self, chosen: Sequence[str]):
        self.chosen, self._watched, self._lock = list(chosen), {}, Lock()

    def make(self, path: str) -> str | None:
        """The page at an address, None where there is none."""
        known = names()
        with self._lock:
            if path == "/":
                return self._first(known)
            name = unquote(path.removeprefix("/run/"))
            return self._report(name) if path.startswith("/run/") and name in known else None

    def _look(self, name: str) -> Snapshot:
        return self._watched.setdefault(name, Watched(name)).look()

    def _report(self, name: str) -> str:
        found = self._look(name)
        try:
            return page.render(page.so_far(runs.load(name)), live=in_words(found) if found.active else ())
        except NO_REPORT as error:
            return html.render("waiting.html", heading=name, live=found.active, lines=in_words(found), why=str(error))

    def _first(self, known: Sequence[str]) -> str:
        states = {name: self._look(name) for name in known}
        drawn = []
        for name in self.chosen or sorted(known, key=newest_sign)[: -SIDE_BY_SIDE - 1 : -1]:
            with suppress(*NO_REPORT):
                config = runs.load(name)
                drawn.append((config, page.so_far(config)))
        shown = {report["name"] for _, report in drawn}
        others = [(name, states[name].state) for name in known if name not in shown]
        links = {name: f"/run/{quote(name, safe='')}" for name in known}
        live = any(found.active for found in states.values())
        return several.render(drawn, heading="hornbook", links=links, live=live, others=others)


class _Handler(BaseHTTPRequestHandler):
    """One request. What is not a GET of a page from this machine is refused."""

    pages: _Pages
    server_version, sys_version = "hornbook", ""
    timeout = 30

    def do_GET(self) -> None:
        port = self.connection.getsockname()[1]
        if self.headers.get("Host") not in {f"{HOST}:{port}", f"localhost:{port}"}:
            return self.send_error(HTTPStatus.FORBIDDEN, f"this page is for {HOST}:{port} only")
        made = self.pages.make(urlsplit(self.path).path)
        if made is None:
            return self.send_error(HTTPStatus.NOT_FOUND, "there is no such run")
        content = made.encode()
        tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        fresh = self.headers.get("If-None-Match") == tag
        self.send_response(HTTPStatus.NOT_MODIFIED if fresh else HTTPStatus.OK)
        for name, value in {**HEADERS, "ETag": tag, "Content-Length": str(0 if fresh else len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if not fresh and self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Requests are not printed."""
