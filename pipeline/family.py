"""Processes that must not outlive the one that started them."""

import contextlib
import ctypes
import os

PR_SET_PDEATHSIG = 1  # sys/prctl.h


def end_with_parent(number: int, parent: int) -> None:
    """This process gets the signal `number` when its parent, the process `parent`, dies, even of kill -9 (Linux):
    nobody waits for it then. At once where the parent died before it could be watched."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)
