"""Runs a library's parser on one hostile document: whatever it raises, and a parse that will not end, becomes the
name of a cause, and the next document goes on."""

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.corpus.text.compressed import Unreadable

# Of processor time, so that a busy machine makes no difference. An article of 8 MB takes 2 s; what is parsed is bounded
# in size besides, so this only ends what a document was built to do (trafilatura: 13 s for 2 MB of 120,000 paragraphs).
PARSE_CPU_SECONDS = 15


class _Expired(BaseException):
    """No `except Exception` of a library swallows it."""


def parsed(parse: Callable[[], str], seconds: float = PARSE_CPU_SECONDS) -> str:
    """`parse()`. Raises `Unreadable`: its own, else `cannot_parse` with type and message, or `parse_timeout`."""
    try:
        with _deadline(seconds):
            return parse()
    except Unreadable:
        raise
    except _Expired:
        raise Unreadable("parse_timeout", f"over {seconds:g} s of processor time") from None
    except Exception as error:  # a parser may raise anything on damaged input, and only this document is lost
        raise Unreadable("cannot_parse", f"{type(error).__name__}: {error}") from None


def quiet(*loggers: str) -> None:
    """Parsers warn about every oddity of every document; what matters is counted by cause."""
    for name in loggers:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only there can a signal interrupt
        yield
        return

    def expire(*_: Any) -> None:
        raise _Expired

    before = signal.signal(signal.SIGPROF, expire)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
