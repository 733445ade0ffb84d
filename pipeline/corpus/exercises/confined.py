"""Runs short Python programs confined: each in a fresh process with limits, so that one that loops, forks, eats
memory or writes files is killed and nothing else notices.

In: one or a few programs that run after each other, each in its own namespace, in one fresh process. Out: for each,
"passed", "failed" (an exception), "killed" (a limit) or "blocked" (it tried to start a process, use the network or
write a file). A small server process without our modules, environment or open files forks the children: about 200 a
second and core; a fresh interpreter would be 47.

These limits are for programs that our own templates wrote. They do not hold against a program written to break out;
text from a model needs namespaces besides.
"""

import contextlib
import importlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
from typing import Self

PASSED, FAILED, KILLED, BLOCKED = "passed", "failed", "killed", "blocked"
CPU_SECONDS, WALL_SECONDS = 2, 4.0
MEMORY_BYTES = 256 << 20
FILE_BYTES, OPEN_FILES = 1 << 16, 16
_EXIT_BLOCKED = 128  # below it, bit i of the exit status says that program i failed
_OFTEN_IMPORTED = ("bisect", "collections", "fractions", "heapq", "itertools")
_BLOCKED_EVENTS = (
    "os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "subprocess.Popen", "pty.spawn",
    "os.kill", "os.killpg", "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod", "os.link",
    "os.symlink", "shutil.", "socket.", "ctypes.", "signal.pthread_kill",
)  # fmt: skip


class ConfinedRunner:
    """`with ConfinedRunner() as runner: runner.run(program, ...)`: one server process with a temporary folder."""

    prefix = "hornbook-confined-"  # of the folder's name

    def server(self, folder: str) -> list[str]:
        """The command that serves in `folder`."""
        return [sys.executable, "-I", "-S", os.path.abspath(__file__)]

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix=self.prefix)
        self._server = subprocess.Popen(
            self.server(self._folder.name),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=self._folder.name,
            env={},
            text=True,
            start_new_session=True,
        )
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._stdin, self._stdout = self._server.stdin, self._server.stdout
        return self

    def run(self, *programs: str) -> list[str]:
        """How each program ended. A killed or blocked one ends them all, and all of them get its ending."""
        self._stdin.write(json.dumps(programs) + "\n")
        self._stdin.flush()
        answer = self._stdout.readline()
        if not answer:
            raise RuntimeError("the process that runs exercises ended; run the same command again")
        return json.loads(answer)

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._stdin.close()
            self._stdout.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._server.pid, signal.SIGKILL)
        self._server.wait()
        self._folder.cleanup()


def _serve() -> None:
    """The server: one JSON list of programs a line in, one list of words a line out, until its input closes."""
    for name in _OFTEN_IMPORTED:  # once, not in every child
        importlib.import_module(name)
    for line in sys.stdin:
        sys.stdout.write(json.dumps(_run_child(json.loads(line))) + "\n")
        sys.stdout.flush()


def _run_child(programs: list[str]) -> list[str]:
    child = os.fork()
    if child == 0:
        _child(programs)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.setpgid(child, child)  # also done by the child: whoever comes first
    descriptor = os.pidfd_open(child)
    try:
        ended, _, _ = select.select([descriptor], [], [], WALL_SECONDS)
    finally:
        os.close(descriptor)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)  # the child if it hangs, and whatever it may have started
    _, status = os.waitpid(child, 0)
    if not ended or not os.WIFEXITED(status):
        return [KILLED] * len(programs)
    code = os.WEXITSTATUS(status)
    if code >= _EXIT_BLOCKED:
        return [BLOCKED] * len(programs)
    return [FAILED if code >> i & 1 else PASSED for i in range(len(programs))]


def _child(programs: list[str]) -> None:
    code = (1 << len(programs)) - 1  # failed, until it is known to have passed
    try:
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)
        _confine()
        for i, program in enumerate(programs):
            with contextlib.suppress(BaseException):
                exec(compile(program, "<exercise>", "exec"), {"__name__": "exercise"})
                code &= ~(1 << i)
    finally:
        os._exit(code)


def _confine() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.closerange(3, 64)
    for limit, value in (
        (resource.RLIMIT_CPU, CPU_SECONDS),
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_NPROC, 0),  # root is exempt from this one, hence the audit hook
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))
    sys.addaudithook(_watch)


def _watch(event: str, arguments: tuple) -> None:
    if event.startswith(_BLOCKED_EVENTS) or (event == "open" and _writes(arguments)):
        os._exit(_EXIT_BLOCKED)  # not an exception: the program could catch it


def _writes(arguments: tuple) -> bool:
    mode, flags = arguments[1], arguments[2]
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


if __name__ == "__main__":
    _serve()
    with contextlib.suppress(OSError):  # a parent that was killed cannot remove it
        os.rmdir(os.getcwd())
