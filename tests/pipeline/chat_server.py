"""A chat server on this machine for tests: it answers, fails, stalls and lies as it is told."""

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler

from loopback import serve

LIES = {
    "broken": b"<html>",
    "empty": b"{}",
    "null": b'{"choices": [{"message": {"content": null}}]}',
    "list": b"[[[]]]",
    "number": b'{"choices": [{"message": {"content": 12}}]}',
}
USAGE = {"prompt_tokens": 900, "completion_tokens": 20}


class Server:
    """`behave(n)` says what request number n gets: "answer", a status, `(status, seconds of Retry-After)`, "stall",
    "drip", "hang up", "huge", a usage, or one of `LIES`. `write(body)` is what the model says."""

    def __init__(self, write, behave=lambda n: "answer", usage=USAGE, finish="stop"):
        self.requests, self.headers, self.times, self.running, self.most_running = [], [], [], 0, 0
        self.write, self.behave, self.usage, self.finish = write, behave, usage, finish
        owner, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    owner.requests.append(body)
                    owner.headers.append(dict(self.headers))
                    owner.times.append(time.monotonic())
                    number = len(owner.requests)
                    owner.running += 1
                    owner.most_running = max(owner.most_running, owner.running)
                manner = owner.behave(number)
                try:
                    said = owner.answer(body, manner)
                finally:
                    with lock:  # before the answer is sent: with it the client may ask the next question
                        owner.running -= 1
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the client had enough
                    owner.reply(self, said, manner)

            def log_message(self, *_):
                pass

        self.server = serve(Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def answer(self, body, manner):
        """The bytes of the answer; none for a manner that has no text."""
        if manner == "stall":
            time.sleep(1.0)
        if isinstance(manner, int | tuple) or manner == "hang up":
            return b""
        if manner == "huge":
            return b" " * 5_000_000
        usage = manner if isinstance(manner, dict) else self.usage
        choice = {"message": {"content": self.write(body)}, "finish_reason": self.finish}
        plain = json.dumps({"choices": [choice], "usage": usage}).encode()
        return LIES.get(manner if isinstance(manner, str) else "", plain)

    def reply(self, handler, data, manner):
        if isinstance(manner, int):
            handler.send_error(manner)
            return
        if isinstance(manner, tuple):
            handler.send_response(manner[0])
            handler.send_header("Retry-After", str(manner[1]))
            handler.send_header("Location", "http://127.0.0.1:9/elsewhere")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        if manner == "hang up":
            handler.close_connection = True
            handler.connection.close()
            return
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        for at in range(0, len(data), 40) if manner == "drip" else ():
            handler.wfile.write(data[at : at + 40])
            time.sleep(0.1)
        if manner != "drip":
            handler.wfile.write(data)

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def serve_many():
    """A fixture's generator: `start(write, ...)` gives a server; all are closed at the end."""
    servers = []

    def start(*given, **more):
        servers.append(Server(*given, **more))
        return servers[-1]

    yield start
    for server in servers:
        server.close()
