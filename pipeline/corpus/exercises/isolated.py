"""Runs programs that a model wrote: confined as those of our own templates are, and cut off from the machine besides.

The server process first enters namespaces of its own (Linux: user, network, processes, mounts, interprocess
communication, host name) and makes an empty folder its root: no file of the machine can be read, no address be reached.
What a program may import is loaded before. Where the kernel does not allow this process namespaces, bubblewrap is asked
for them; without either there is no isolation, and `IsolatedRunner` refuses.
"""

import contextlib
import ctypes
import importlib
import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any, Self

# user, net, pid, ipc, mount, uts: sched.h
_NAMESPACES = 0x10000000 | 0x40000000 | 0x20000000 | 0x08000000 | 0x00020000 | 0x04000000
_NO_NEW_PRIVILEGES = 38  # sys/prctl.h
_CAPABILITY_VERSION = 0x20080522  # linux/capability.h
# A program may import these; after the change of root nothing else can be found.
IMPORTABLE = (
    "bisect", "collections", "copy", "datetime", "decimal", "enum", "fractions", "functools", "heapq", "itertools",
    "json", "math", "operator", "random", "re", "statistics", "string", "textwrap", "typing",
)  # fmt: skip
_READY = "isolated"
NAMESPACES, BUBBLEWRAP = "namespaces", "bubblewrap"

if __name__ != "__main__":
    from pipeline.corpus.exercises.confined import ConfinedRunner

    class IsolatedRunner(ConfinedRunner):
        """A `ConfinedRunner` for programs that nobody has read. Raises `NotIsolated` on entering where it cannot be."""

        prefix = "hornbook-isolated-"

        ways = (NAMESPACES, BUBBLEWRAP)  # tried in turn

        def server(self, folder: str) -> list[str]:
            (Path(folder) / "dev").mkdir()
            (Path(folder) / "dev" / "null").touch()  # after the change of root: a file, kept short by limits
            confined = str(importlib.import_module("pipeline.corpus.exercises.confined").__file__)
            python = [os.path.realpath(sys.executable), "-I", "-S", os.path.abspath(__file__), confined, self._way]
            return [*_bubblewrap(confined), *python] if self._way == BUBBLEWRAP else python

        def __enter__(self) -> Self:
            refused = []
            for way in self.ways:
                if way == BUBBLEWRAP and shutil.which("bwrap") is None:
                    refused.append("bubblewrap: bwrap is not installed")
                    continue
                self._way = way
                super().__enter__()
                answer = self._stdout.readline().strip()
                if answer == json.dumps(_READY):
                    return self
                self.__exit__()
                refused.append(json.loads(answer) if answer else f"{way}: the process that was to run programs ended")
            raise NotIsolated("; ".join(refused))

    def _bubblewrap(confined: str) -> list[str]:
        """Before the command: all namespaces new, nothing but Python and the system's libraries to be seen, nothing to
        be written. bwrap may be allowed what this process is not."""
        shown = ["/usr", "/lib", "/lib64", sys.base_prefix, str(Path(confined).parent)]
        binds = [word for path in shown if os.path.exists(path) for word in ("--ro-bind", path, path)]
        alone = ["--unshare-all", "--die-with-parent", "--cap-drop", "ALL", "--clearenv", "--chdir", "/"]
        return ["bwrap", *alone, *binds, "--dev", "/dev"]


class NotIsolated(RuntimeError):
    """This machine gives no namespaces; a program that a model wrote is not run without them."""


def _isolate(folder: str) -> str:
    """`_READY`, or why not."""
    libc: Any = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NAMESPACES) != 0:
        return f"namespaces: {os.strerror(ctypes.get_errno())}"
    try:
        os.chroot(folder)
        os.chdir("/")
    except OSError as error:
        return f"chroot: {error.strerror}"
    libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    # In a new user namespace a process may do all; without this a program could change its root again and walk out.
    if libc.capset((ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)()) != 0:
        return f"capabilities: {os.strerror(ctypes.get_errno())}"
    return _READY


def _enter_processes() -> None:
    """Goes on in a child, the first process of the new process namespace: all others end with it."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        os._exit(0)


def _main() -> None:
    spec = importlib.util.spec_from_file_location("confined", sys.argv[1])
    assert spec is not None
    assert spec.loader is not None
    confined: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(confined)
    for name in IMPORTABLE:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    state = _READY if sys.argv[2] == BUBBLEWRAP else _isolate(os.getcwd())  # bwrap has done it, or we would not be here
    sys.stdout.write(json.dumps(state) + "\n")
    sys.stdout.flush()
    if state == _READY:
        if sys.argv[2] == NAMESPACES:
            _enter_processes()
        confined._serve()


if __name__ == "__main__":
    _main()
