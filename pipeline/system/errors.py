"""The ways a command ends early on purpose, and the exit codes that scripts rely on."""

DONE, FAILED, WRONG_INPUT, STOPPED = 0, 1, 2, 75
MOST_MESSAGE_CHARACTERS = 1_500


class UserError(Exception):
    """The config or the input is wrong: one message that says what was found, what was expected and
    which key or command mends it. The command prints it without a traceback and exits with 2."""


class Stopped(BaseException):
    """A signal asked the process to stop; everything worth keeping is on disk. Exit code 75: run again to go on.

    A BaseException, like KeyboardInterrupt, so that no library's `except Exception` swallows it.
    """


class Failure(Exception):
    """Something outside config and input stands in the way: one message, no traceback, exit code 1."""


class Busy(Failure):
    """Another live process owns this pretraining. The message says who."""


def printable(message: str) -> str:
    """A message that may quote a stranger's file: of bounded length, and with nothing in it that a terminal obeys."""
    text = "".join(c if c in "\n\t" or c.isprintable() else ascii(c)[1:-1] for c in message)
    if len(text) <= MOST_MESSAGE_CHARACTERS:
        return text
    half = MOST_MESSAGE_CHARACTERS // 2
    return f"{text[:half]} [{len(text) - 2 * half:,} characters left out] {text[-half:]}"
