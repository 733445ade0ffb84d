"""The handler of SIGTERM, SIGINT and SIGUSR1.

The stage chooses how it stops. Data and init save each small step, so they stop at once: the handler raises `Stopped`.
Training ends its optimizer step and saves first: the handler sets a flag that the loop reads (`stop_requested`). A
second signal always stops at once. A training that is about to end ignores the first signal (`end_is_near`). Under
Slurm a request arrives twice, from Slurm and from the job's script, so signals within a second count as one.
"""

import signal
import time
from types import FrameType

from pipeline.system.errors import Stopped

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

SAME_REQUEST_SECONDS = 1.0

_received: list[int] = []
_first_at = 0.0
_deferred = False
_end_is_near = False
_installed = False


def install() -> None:
    """Installs the handler. Call once, from the main thread, before long work."""
    global _installed
    _installed = True
    for number in SIGNALS:
        signal.signal(number, _handle)


def take_back() -> None:
    """Installs the handler again after a library replaced it (Lightning wraps SIGTERM), if it was installed."""
    if _installed:
        install()


def defer(deferred: bool) -> None:
    """`True`: a first signal only sets the flag. `False`: it raises `Stopped`, at once if one has arrived."""
    global _deferred
    _deferred = deferred
    if not deferred and (name := stop_requested()):
        raise Stopped(name)


def end_is_near(near: bool = True) -> None:
    """The work ends soon by itself: ignore the first signal, also one that has arrived."""
    global _end_is_near
    _end_is_near = near


def stop_requested() -> str | None:
    """The name of the signal that asked this process to stop, or None."""
    asked = _received[1:] if _end_is_near else _received
    return signal.Signals(asked[0]).name if asked else None


def check() -> None:
    """Raises `Stopped` where a signal asked for it and nothing defers it. For places where work begins or is waited
    for: Python drops what a handler raises inside a callback, as of a fork, and the work would run on.
    """
    if not (_deferred or _end_is_near) and (name := stop_requested()):
        raise Stopped(name)


def release_in_worker() -> None:
    """For worker processes, whose parent decides when they end."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _handle(number: int, frame: FrameType | None) -> None:
    global _first_at
    now = time.monotonic()
    if _received and now - _first_at < SAME_REQUEST_SECONDS:
        return
    _first_at = _first_at if _received else now
    _received.append(number)
    if len(_received) > 1 or not (_deferred or _end_is_near):
        raise Stopped(signal.Signals(number).name)
