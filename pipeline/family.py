"""Processes that must not outlive the one that started them."""

import contextlib
import ctypes

PR_SET_PDEATHSIG = 1  # sys/prctl.h


def end_with_parent(number: int) -> None:
    """This process gets the signal `number` when its parent dies, even of kill -9 (Linux): nobody waits for it then."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
