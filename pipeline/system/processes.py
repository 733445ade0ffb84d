"""Processes: children that end with this one, whether another process is alive, and what none may run under."""

import contextlib
import ctypes
import functools
import os
import signal
import subprocess
from collections.abc import Sequence
from typing import Any

from pipeline.system.errors import UserError

PR_SET_PDEATHSIG = 1  # sys/prctl.h
UNSAFE_SWITCH = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


def end_with_parent(number: int, parent: int) -> None:
    """Linux: this process gets the signal `number` when its parent, the process `parent`, dies, even of kill -9."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # it died before it could be watched
        os.kill(os.getpid(), number)


def start(words: Sequence[str], **more: Any) -> subprocess.Popen:
    """Starts a child that ends with this process. `more`: as `subprocess.Popen` takes it.

    The child has its own process group: Ctrl-C reaches it once, through us, and not a second time before it has saved.
    """
    parent = os.getpid()
    watched = functools.partial(end_with_parent, signal.SIGTERM, parent)
    return subprocess.Popen(words, process_group=0, preexec_fn=watched, **more)


def process_lives(pid: Any) -> bool:
    """Whether a process of this host is alive."""
    try:
        os.kill(int(pid), 0)
    except PermissionError:
        return True
    except (OSError, TypeError, ValueError):
        return False
    return True


def let_segments_grow() -> None:
    """Before torch is loaded: its allocator on a card then joins what was freed in pieces of another size, as after a
    smaller micro-batch. Where the environment sets the allocator, that stays."""
    if not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & os.environ.keys():
        os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"


def refuse_unsafe_loading() -> None:
    """Raises `UserError` if the environment lets `torch.load` run code from a file."""
    if os.environ.get(UNSAFE_SWITCH, "").strip().lower() not in ("", "0", "n", "no", "false"):
        raise UserError(
            f"{UNSAFE_SWITCH}={os.environ[UNSAFE_SWITCH]} is set: a checkpoint could then run code when it is loaded; "
            f"unset {UNSAFE_SWITCH}"
        )
