"""A solution with one planted mistake that its own tests find: the raw material of debugging exercises.

One token of the solution is changed (an operator, a number, a name such as `min`); a change counts only if at least
one assertion then fails, in a confined process, and nothing else goes wrong. So what the text says is true.
"""

import io
import textwrap
import tokenize
from dataclasses import dataclass, replace
from random import Random

from pipeline.corpus.exercises.confined import FAILED, PASSED, ConfinedRunner
from pipeline.corpus.exercises.exercise import Exercise

TRIES = 8
MOST_LINES = 20_000  # that a changed solution may run; more is an endless loop
_CHANGES = {
    "<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==", "+": "-", "-": "+", "*": "+", "+=": "-=",
    "//": "%", "%": "//", "and": "or", "or": "and", "min": "max", "max": "min", "True": "False", "False": "True",
}  # fmt: skip

# Ends at once, without an answer, what does not end by itself; and takes every error but a failed assertion for none.
_GUARDED = """
import sys

def _watch(frame, event, argument, left=[{lines}]):
    left[0] -= 1
    if left[0] < 0:
        __import__("os").kill(0, 9)
    return _watch

{code}

sys.settrace(_watch)
try:
{test}
except AssertionError:
    raise
except BaseException:
    pass
"""


@dataclass(frozen=True)
class Bug:
    """`body`: the solution with the mistake in `line` (from 1), `wrong` instead of `right`; `test` is what fails."""

    body: str
    line: int
    wrong: str
    right: str
    test: str


def plant_bug(exercise: Exercise, draw: Random, runner: ConfinedRunner) -> Bug | None:
    """A mistake that some test of the exercise finds, or None where none of a few tries is one."""
    places = _places(exercise.body)
    for line, start, right, wrong in draw.sample(places, min(TRIES, len(places))):
        lines = exercise.body.split("\n")
        lines[line - 1] = lines[line - 1][:start] + wrong + lines[line - 1][start + len(right) :]
        body = "\n".join(lines)
        ended = runner.run(*(_guarded(replace(exercise, body=body), test) for test in exercise.tests))
        if FAILED in ended and set(ended) <= {PASSED, FAILED}:
            return Bug(body, line, wrong, right, exercise.tests[ended.index(FAILED)])
    return None


def _guarded(exercise: Exercise, test: str) -> str:
    return _GUARDED.format(lines=MOST_LINES, code=exercise.code(docstring=False), test=textwrap.indent(test, "    "))


def _places(body: str) -> list[tuple[int, int, str, str]]:
    """(line, column, token, what it becomes) of all tokens that can be changed."""
    found = []
    for token in tokenize.generate_tokens(io.StringIO(body).readline):
        changed = _CHANGES.get(token.string)
        if token.type == tokenize.NUMBER and token.string.isdigit() and len(token.string) < 5:
            changed = str(int(token.string) + 1)
        if changed and token.type in (tokenize.OP, tokenize.NAME, tokenize.NUMBER):
            found.append((*token.start, token.string, changed))
    return found
