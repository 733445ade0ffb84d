"""Hornbook's commands as processes of their own, forked from one that has imported the libraries already.

A start of Python with torch and Lightning takes 4 s, and several times that on a busy machine; the suite starts some
two hundred. Here the interpreter starts once per test worker (multiprocessing's fork server) and every command is a
fork of it: own process id, signals, exit code, environment and files. Only third-party libraries are imported
beforehand, hornbook's own modules by each command anew. Tests of start-up itself use `subprocess`.
"""

import atexit
import io
import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path

import hub_server

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = [
    "torch",
    "lightning.pytorch",
    "datatrove.executor",
    "tokenizers",
    "safetensors.torch",
    "orjson",
]

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(LIBRARIES)


class Command:
    """A running command, with the part of `subprocess.Popen` that tests use.

    `words`: what follows `python -P`, that is `-m module ...`, `-c code` or a script's path and its arguments. Output
    goes to files, so that no command ever waits for a reader.
    """

    def __init__(self, words: Sequence[str], env: Mapping[str, str] | None = None, cwd: Path | str | None = None):
        folder = tempfile.mkdtemp()
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self.out, self.err = Path(folder, "out"), Path(folder, "err")
        arguments = (list(words), dict(os.environ if env is None else env), str(cwd or Path.cwd()), self.out, self.err)
        self._process = _server.Process(target=_run, args=arguments)
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("hornbook", timeout or 0.0, self.out.read_bytes(), self.err.read_bytes())
        return self._process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it printed and complained, once it has ended."""
        self.wait(timeout)
        return self.out.read_text(), self.err.read_text()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def hornbook(*words: str, root: Path, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """The command a person types, with `root` as HORNBOOK_ROOT, in `cwd` (else in `root`)."""
    more = {"HORNBOOK_ROOT": str(root), "PYTHONPATH": str(ROOT), **env}
    return run(["-m", "pipeline", *words], {**os.environ, **more}, cwd or root, timeout=400)


def run(
    words: Sequence[str], env: Mapping[str, str] | None = None, cwd: Path | str | None = None, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """A command from start to end; killed, with an error, where it takes longer than `timeout` seconds."""
    command = Command(words, env, cwd)
    try:
        out, err = command.communicate(timeout)
    finally:
        command.kill()
    return subprocess.CompletedProcess(list(words), command.wait(), out, err)


def fork_seconds() -> float:
    """Seconds that a command needs here and now until it could train."""
    code = "import pipeline.pretrain, pipeline.training.finish, pipeline.training.control, pipeline.training.validation"
    run(["-c", "pass"])  # starts the server
    started = time.monotonic()
    done = run(["-c", code], {**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    return time.monotonic() - started


def _run(words: list[str], env: dict[str, str], cwd: str, out: Path, err: Path) -> None:
    """In the fork: becomes `python -P words...`, down to the buffering of its output."""
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    for number, path in ((1, out), (2, err)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), encoding="utf-8")
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), encoding="utf-8", line_buffering=True)
    sys.path[:0] = [folder for folder in env.get("PYTHONPATH", "").split(os.pathsep) if folder]
    if any(name.startswith("HF_") for name in env):
        hub_server.reload_settings()
    if "OMP_NUM_THREADS" in env:  # OpenMP read its own value when torch was imported
        import torch

        torch.set_num_threads(int(env["OMP_NUM_THREADS"]))
    code = _exit_code(words)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _exit_code(words: list[str]) -> int:
    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        elif words[0] == "-c":
            sys.argv = ["-c", *words[2:]]
            exec(words[1], {"__name__": "__main__"})
        else:
            sys.argv = words
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0
