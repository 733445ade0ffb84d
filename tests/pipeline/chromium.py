"""A headless Chromium that a test drives through the DevTools protocol, over a pipe: no port, no library."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Self

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
         "--hide-scrollbars", "--disable-background-networking", "--remote-debugging-pipe")  # fmt: skip


class Chromium:
    """`with Chromium() as browser:` one tab. `messages`: what the pages wrote to their console, and their errors."""

    def __enter__(self) -> Self:
        assert PROGRAM is not None
        self._folder = tempfile.TemporaryDirectory(prefix="hornbook-chromium-", ignore_cleanup_errors=True)
        (theirs_in, self._out), (self._in, theirs_out) = os.pipe(), os.pipe()

        def place_pipes() -> None:  # the protocol's descriptors are 3 and 4, whatever these are here
            high = [fcntl.fcntl(end, fcntl.F_DUPFD, 100) for end in (theirs_in, theirs_out)]
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        words = [PROGRAM, *FLAGS, f"--user-data-dir={self._folder.name}", "about:blank"]
        self._process = subprocess.Popen(
            words, preexec_fn=place_pipes, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        os.close(theirs_in), os.close(theirs_out)
        self._number, self._rest, self.messages = 0, b"", []
        self._session = None
        try:
            self._attach()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _attach(self) -> None:
        target = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network"):
            self.call(f"{domain}.enable")

    def __exit__(self, *_: object) -> None:
        os.close(self._out), os.close(self._in)
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._folder.cleanup()

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a command. Raises `RuntimeError` with the browser's reason."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            if not (more := os.read(self._in, 1 << 16)):
                raise RuntimeError("the browser ended")
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\0")
        event = json.loads(line)
        if event.get("method") in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Network.requestWillBeSent"):
            self.messages.append(event)
        self.last = event
        return event

    def open(self, address: str | Path, width: int = 820, height: int = 900) -> None:
        """Shows a page in a window of that size and waits until it is loaded."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Page.navigate", url=address.as_uri() if isinstance(address, Path) else address)
        while self.last.get("method") != "Page.loadEventFired":
            self._read()

    def run(self, code: str) -> Any:
        """The JSON value of an expression on the page; of a promise, what it becomes."""
        found = self.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"]["exception"]["description"])
        return found["result"].get("value")

    def point(self, x: float, y: float, *, click: bool = False) -> None:
        """Moves the pointer to a place of the window, and clicks there."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for kind in ("mousePressed", "mouseReleased") if click else ():
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def key(self, name: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=name, code=name)

    def errors(self) -> list[Any]:
        return [e for e in self.messages if e["method"] == "Runtime.exceptionThrown"]

    def requests(self) -> list[str]:
        return [e["params"]["request"]["url"] for e in self.messages if e["method"] == "Network.requestWillBeSent"]
