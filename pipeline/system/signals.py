"""One owner of SIGTERM, SIGINT and SIGUSR1.

Two manners, chosen by the stage. Stages whose work is cut into small finished steps (data, init) stop at once:
the handler raises `Stopped`. Training first reaches the end of its step and saves: the handler sets a flag that
the loop looks at (`stop_requested`). A second signal always stops at once. Where a training is so near its end that
it would rather reach it than stop (`end_is_near`), the first signal changes nothing. Under Slurm one request comes
twice, from Slurm and from the job's script that hands it on: what comes within a second of the first is the same.
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
    """Takes over the three signals for this process. Call once, from the main thread, before long work."""
    global _installed
    _installed = True
    for number in SIGNALS:
        signal.signal(number, _handle)


def take_back() -> None:
    """After a library put handlers of its own in place (Lightning wraps SIGTERM): ours again, if they were."""
    if _installed:
        install()


def defer(deferred: bool) -> None:
    """`True`: a first signal only sets the flag. `False`: it raises, now if one came in the meantime."""
    global _deferred
    _deferred = deferred
    if not deferred and (name := stop_requested()):
        raise Stopped(name)


def end_is_near(near: bool = True) -> None:
    """From here on the first signal stops nothing, also where it came already: the work ends by itself soon."""
    global _end_is_near
    _end_is_near = near


def stop_requested() -> str | None:
    """The name of the signal that asked this process to stop, or None."""
    asked = _received[1:] if _end_is_near else _received
    return signal.Signals(asked[0]).name if asked else None


def release_in_worker() -> None:
    """For worker processes: the parent decides when they end."""
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
