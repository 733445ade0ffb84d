"""The ways a command ends early on purpose, and the exit codes that scripts rely on."""

DONE, FAILED, WRONG_INPUT, STOPPED = 0, 1, 2, 75


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
