"""The ways a command ends early on purpose, and the exit codes that scripts rely on."""

DONE, FAILED, WRONG_INPUT, STOPPED = 0, 1, 2, 75
LESS_MEMORY = (
    "set train.micro_batch=0 (found by trying), train.activation_checkpointing=full, or train.optimizer=adamw8bit with "
    "train.precision=bf16-sr"
)
MOST_MESSAGE_CHARACTERS = 1_500


class UserError(Exception):
    """The config or the input is wrong. The message names what was found, what was expected and which key or command
    fixes it. The command prints it without a traceback and exits with 2."""


class Stopped(BaseException):
    """A signal asked the process to stop; everything worth keeping is on disk. Exit code 75: the same command resumes.

    A BaseException, like KeyboardInterrupt, so that no library's `except Exception` swallows it.
    """


class Failure(Exception):
    """Something outside the config and the input prevents the work: one message, no traceback, exit code 1."""


class Busy(Failure):
    """Another live process owns this pretraining. The message names it."""


def printable(message: str) -> str:
    """A message that may quote an untrusted file: bounded in length and without terminal control characters."""
    text = "".join(c if c in "\n\t" or c.isprintable() else ascii(c)[1:-1] for c in message)
    if len(text) <= MOST_MESSAGE_CHARACTERS:
        return text
    half = MOST_MESSAGE_CHARACTERS // 2
    return f"{text[:half]} [{len(text) - 2 * half:,} characters left out] {text[-half:]}"
