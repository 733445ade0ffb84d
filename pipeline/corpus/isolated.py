"""Runs programs that a model wrote: confined as those of our own templates are, and cut off from the machine besides.

The server process first enters namespaces of its own (Linux: user, network, processes, mounts, interprocess
communication, host name) and makes an empty folder its root: no file of the machine can be read, no address be reached.
What a program may import is loaded before. Where the kernel allows no namespaces there is no isolation, and
`IsolatedRunner` refuses.
"""

import contextlib
import ctypes
import importlib
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any, Self

# user, net, pid, ipc, mount, uts: sched.h
_NAMESPACES = 0x10000000 | 0x40000000 | 0x20000000 | 0x08000000 | 0x00020000 | 0x04000000
_NO_NEW_PRIVILEGES = 38  # sys/prctl.h
# A program may import these; after the change of root nothing else can be found.
IMPORTABLE = (
    "bisect", "collections", "copy", "datetime", "decimal", "enum", "fractions", "functools", "heapq", "itertools",
    "json", "math", "operator", "random", "re", "statistics", "string", "textwrap", "typing",
)  # fmt: skip
_READY = "isolated"

if __name__ != "__main__":
    from pipeline.corpus.confined import ConfinedRunner

    class IsolatedRunner(ConfinedRunner):
        """A `ConfinedRunner` for programs that nobody has read. Raises `NotIsolated` on entering where it cannot be."""

        prefix = "hornbook-isolated-"

        def server(self, folder: str) -> list[str]:
            (Path(folder) / "dev").mkdir()
            (Path(folder) / "dev" / "null").touch()  # after the change of root: a file, kept short by limits
            return [os.path.abspath(__file__), str(importlib.import_module("pipeline.corpus.confined").__file__)]

        def __enter__(self) -> Self:
            super().__enter__()
            answer = self._stdout.readline().strip()
            if answer != json.dumps(_READY):
                self.__exit__()
                raise NotIsolated(json.loads(answer) if answer else "the process that was to run them ended")
            return self


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
    state = _isolate(os.getcwd())
    sys.stdout.write(json.dumps(state) + "\n")
    sys.stdout.flush()
    if state == _READY:
        _enter_processes()
        confined._serve()


if __name__ == "__main__":
    _main()
