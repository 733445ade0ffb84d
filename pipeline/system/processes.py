"""Processes: whether one lives, and children that must not outlive the one that started them."""

import contextlib
import ctypes
import functools
import os
import signal
import subprocess
from collections.abc import Sequence
from typing import Any

PR_SET_PDEATHSIG = 1  # sys/prctl.h


def end_with_parent(number: int, parent: int) -> None:
    """This process gets the signal `number` when its parent, the process `parent`, dies, even of kill -9 (Linux):
    nobody waits for it then. At once where the parent died before it could be watched."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


def start(words: Sequence[str], **more: Any) -> subprocess.Popen:
    """A child that ends with this process, in a process group of its own: Ctrl-C reaches it once, through us, and not a
    second time before it has saved. `more`: as `subprocess.Popen` takes it."""
    parent = os.getpid()
    watched = functools.partial(end_with_parent, signal.SIGTERM, parent)
    return subprocess.Popen(words, process_group=0, preexec_fn=watched, **more)


def process_lives(pid: Any) -> bool:
    """Whether a process of this host lives."""
    try:
        os.kill(int(pid), 0)
    except PermissionError:
        return True
    except (OSError, TypeError, ValueError):
        return False
    return True
