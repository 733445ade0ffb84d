"""How an exercise is told: as code, as a textbook section, as question and answer, with a gap, with a mistake to find,
from its tests, or followed step by step.

In: an exercise, a random source, a confined runner. Out: the text. What is run to verify a text is in the text itself:
`program_of(text)`. Styles in Markdown show code that is only looked at in blocks marked `text`.
"""

import ast
import io
import re
import sys
import textwrap
import tokenize
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

from pipeline.config import yaml_values
from pipeline.corpus.exercises.confined import FAILED, PASSED, ConfinedRunner
from pipeline.corpus.exercises.exercise import Exercise

_WORDS = yaml_values.load(Path(__file__).with_name("styles.yaml").read_text(encoding="utf-8"))
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)

Style = Callable[[Exercise, Random, ConfinedRunner], str | None]


def program_of(text: str) -> str:
    """The Python of a text: its ```python blocks in order, or all of it where there is no block."""
    blocks = _BLOCK.findall(text)
    return "\n\n".join(blocks) if blocks else text


def function(exercise: Exercise, draw: Random, runner: ConfinedRunner) -> str:
    """Signature, docstring, solution, assertions."""
    return exercise.text


def textbook(exercise: Exercise, draw: Random, runner: ConfinedRunner) -> str:
    """A section: problem, idea, code, what to check, something to try."""
    example = _example(exercise)
    parts = [
        f"# {_title(exercise, draw)}",
        draw.choice(_WORDS["openings"][exercise.difficulty]),
        f"## {draw.choice(['The problem', 'What is asked', 'The task'])}",
        exercise.task,
        *([draw.choice(_WORDS["examples"]).format(*example)] if example else []),
        f"## {draw.choice(['The idea', 'How it works', 'Thinking it through'])}",
        exercise.idea,
        f"## {draw.choice(['The code', 'In Python', 'A solution'])}",
        _code(exercise, docstring=False),
        draw.choice(_WORDS["checks"]),
        _block(exercise.test_lines),
        draw.choice(_WORDS["closings"]),
    ]
    return "\n\n".join(parts) + "\n"


def question(exercise: Exercise, draw: Random, runner: ConfinedRunner) -> str:
    """A question and its answer."""
    asked, answered = draw.choice([("Question:", "Answer:"), ("Q:", "A:"), ("**Question.**", "**Answer.**")])
    example = _example(exercise)
    shown = f" {draw.choice(_WORDS['examples']).format(*example)}" if example and draw.random() < 0.7 else ""
    what = "a class" if exercise.signature.startswith("class ") else "a function"
    lead = draw.choice([f"How would you write {what} for this?", f"Please write {what} `{exercise.name}`.",
                        "How can this be done in Python?", "I am stuck with this task:", "Can you solve this for "
                        "me?"])  # fmt: skip
    code = _code(exercise, docstring=False)
    answer = [exercise.idea, code] if draw.random() < 0.6 else [code, exercise.idea]
    return "\n\n".join(
        [f"{asked} {lead} {exercise.task}{shown}", f"{answered} {answer[0]}" if answer[0] == exercise.idea
         else f"{answered} {draw.choice(['Like this:', 'Here is one way.', 'This does it:'])}\n\n{code}",
         answer[1], draw.choice(_WORDS["checks"]), _block(exercise.test_lines)]
    ) + "\n"  # fmt: skip


def fill(exercise: Exercise, draw: Random, runner: ConfinedRunner) -> str | None:
    """The solution with one line missing, then that line and the whole."""
    lines = exercise.body.split("\n")
    places = [
        i for i, line in enumerate(lines) if len(line.strip()) > 8 and not line.rstrip().endswith((":", "{", "("))
    ]
    if len(lines) < 3 or not places:
        return None
    at = draw.choice(places)
    indent = lines[at][: len(lines[at]) - len(lines[at].lstrip())]
    gap = "\n".join([*lines[:at], f"{indent}____", *lines[at + 1 :]])
    missing = lines[at].strip()
    said = [
        f"The missing line is `{missing}`. {exercise.idea}",
        f"{exercise.idea} So `{missing}` belongs into the gap.",
        f"`{missing}` completes it. {exercise.idea}",
    ]
    return "\n\n".join([
        draw.choice(["Fill in the gap so that the code does what its docstring says.",
                     "One line is missing. Which one?", "Complete the line marked with ____.",
                     "Replace ____ by one line of Python."]),
        _block(exercise.code(gap), "text"), draw.choice(said), _code(exercise), draw.choice(_WORDS["checks"]),
        _block(exercise.test_lines),
    ]) + "\n"  # fmt: skip


def debugging(exercise: Exercise, draw: Random, runner: ConfinedRunner) -> str | None:
    """A solution with a mistake, the test that shows it, the mistake explained, and the fix."""
    bug = plant_bug(exercise, draw, runner)
    if bug is None:
        return None
    right, wrong = exercise.body.split("\n")[bug.line - 1].strip(), bug.body.split("\n")[bug.line - 1].strip()
    found = [
        f"The mistake is in the line `{wrong}`: it has `{bug.wrong}` where `{bug.right}` is needed.",
        f"Look at `{wrong}`. With `{bug.wrong}` it does something else; it should be `{right}`.",
        f"`{bug.wrong}` in the line `{wrong}` is wrong. It must be `{bug.right}`.",
    ]
    return "\n\n".join([
        draw.choice(["This code does not do what it should.", "Find the mistake in this code.",
                     "A colleague wrote this, and a test fails.", "There is one bug in these lines."]),
        f"{draw.choice(['The task was:', 'It should do this:', 'What it is for:'])} {exercise.task}",
        _block(exercise.code(bug.body, docstring=False), "text"),
        draw.choice(["This check fails:", "Here one sees it:", "What goes wrong:"]), _block(bug.test, "text"),
        draw.choice(found), exercise.idea, draw.choice(["Mended:", "The corrected code:", "With the change:"]),
        _code(exercise, docstring=False), _block(exercise.test_lines),
    ]) + "\n"  # fmt: skip


def tests_first(exercise: Exercise, draw: Random, runner: ConfinedRunner) -> str:
    """The checks come first, and the code that makes them pass follows."""
    what = "class" if exercise.signature.startswith("class ") else "function"
    return "\n\n".join([
        draw.choice([f"Write the {what} `{exercise.name}` so that these checks pass.",
                     f"These checks describe a {what}. Write it.",
                     f"Start from the tests: what must `{exercise.name}` do?"]),
        _block(exercise.test_lines, "text"),
        draw.choice([f"Read as a sentence, they ask for this: {exercise.task}", f"In words: {exercise.task}"]),
        exercise.idea, _code(exercise), draw.choice(["Now all of them hold:", "Run them again:", "The checks:"]),
        _block(exercise.test_lines),
    ]) + "\n"  # fmt: skip


def walkthrough(exercise: Exercise, draw: Random, runner: ConfinedRunner) -> str | None:
    """One call followed step by step, with what each line changed."""
    example = _example(exercise)
    followed = trace(exercise, example[0]) if example else None
    if example is None or followed is None:
        return None
    steps, result = followed
    table = ["| step | line | after it |", "|---|---|---|"]
    table += [
        f"| {n} | `{line}` | {after} |" for n, (line, after) in enumerate(steps[:MOST_STEPS], 1) if "|" not in line
    ]
    more = f" ({len(steps) - MOST_STEPS} more steps are left out.)" if len(steps) > MOST_STEPS else ""
    return "\n\n".join([
        draw.choice([f"# What does `{example[0]}` do?", f"# Following `{exercise.name}` step by step",
                     f"# `{exercise.name}`, line by line"]),
        f"{exercise.task} {exercise.idea}", _code(exercise, docstring=False),
        draw.choice([f"Follow the call `{example[0]}`. Only lines that change a variable are shown.",
                     f"Here is what happens in `{example[0]}`, for each line that changes something.",
                     f"Take `{example[0]}` and write down every change."]),
        "\n".join(table), f"{draw.choice(['The result is', 'So it returns', 'It ends with'])} `{result}`.{more}",
        draw.choice(_WORDS["checks"]), _block(exercise.test_lines),
    ]) + "\n"  # fmt: skip


STYLES: dict[str, Style] = {
    style.__name__: style for style in (function, textbook, question, fill, debugging, tests_first, walkthrough)
}
PLAIN = "function"  # can be made of any exercise
RUN_HERE = (walkthrough,)  # styles that run the solution in this process: it must have passed confined before


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
    """A changed token (an operator, a number, a name such as `min`) by which at least one assertion fails in a confined
    process while nothing else goes wrong, so that what the text says is true; None where none of a few tries does."""
    places = _places(exercise.body)
    for line, start, right, wrong in draw.sample(places, min(TRIES, len(places))):
        lines = exercise.body.split("\n")
        lines[line - 1] = lines[line - 1][:start] + wrong + lines[line - 1][start + len(right) :]
        body = "\n".join(lines)
        code = replace(exercise, body=body).code(docstring=False)
        tests = (textwrap.indent(test, "    ") for test in exercise.tests)
        ended = runner.run(*(_GUARDED.format(lines=MOST_LINES, code=code, test=test) for test in tests))
        if FAILED in ended and set(ended) <= {PASSED, FAILED}:
            return Bug(body, line, wrong, right, exercise.tests[ended.index(FAILED)])
    return None


def _places(body: str) -> list[tuple[int, int, str, str]]:
    """(line, column, token, what it becomes) of all tokens that can be changed."""
    found, inside = [], 0
    for token in tokenize.generate_tokens(io.StringIO(body).readline):
        # Since Python 3.12 (PEP 701) an f-string is several tokens; before, it was one, which stays as it is.
        inside += {"FSTRING_START": 1, "FSTRING_END": -1}.get(tokenize.tok_name[token.type], 0)
        if inside:
            continue
        changed = _CHANGES.get(token.string)
        if token.type == tokenize.NUMBER and token.string.isdigit() and len(token.string) < 5:
            changed = str(int(token.string) + 1)
        if changed and token.type in (tokenize.OP, tokenize.NAME, tokenize.NUMBER):
            found.append((*token.start, token.string, changed))
    return found


MOST_STEPS = 14
MOST_CHARACTERS = 60
_SHOWN = (int, float, str, type(None))


def trace(exercise: Exercise, call: str) -> tuple[list[tuple[str, str]], str] | None:
    """(the line that was run, what it changed) of the first steps of `call`, and its printed result; None for what is
    not a function, or shows nothing. Runs the solution in this process: it must have passed confined before."""
    if exercise.signature.startswith("class "):
        return None
    code = exercise.code(docstring=False)
    lines = code.split("\n")
    comprehensions = _comprehensions(code)
    name, steps = exercise.name, []
    line = 0  # that runs
    held: dict[str, str] = {}  # what was visible before it

    def follow(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal line, held
        if frame.f_code.co_name != name or frame.f_code.co_filename != "<trace>":
            return None
        if event == "call" and line:
            return None  # of a recursive one only the outermost call
        # Since Python 3.12 (PEP 709) each turn of a comprehension is an event of this frame, and shows its variables.
        if event == "line" and any(line in span and frame.f_lineno in span for span in comprehensions):
            return follow
        now = _visible(frame.f_locals)
        if event in ("line", "return") and line:
            changed = [f"`{k} = {v}`" for k, v in now.items() if held.get(k) != v]
            text = lines[line - 1].strip()
            if changed:
                steps.append((text, ", ".join(changed)))
        line, held = frame.f_lineno if event != "call" else 0, now
        return follow

    names: dict[str, Any] = {}
    exec(compile(code, "<trace>", "exec"), names)
    before = sys.gettrace()
    sys.settrace(follow)
    try:
        result = eval(call, names)
    finally:
        sys.settrace(before)
    return (steps, repr(result)) if len(steps) > 1 else None


def _comprehensions(code: str) -> list[range]:
    """The lines of each, but for generators, which are frames of their own."""
    kinds = (ast.ListComp, ast.SetComp, ast.DictComp)
    found = [node for node in ast.walk(ast.parse(code)) if isinstance(node, kinds)]
    return [range(node.lineno, (node.end_lineno or node.lineno) + 1) for node in found]


def _visible(values: dict[str, Any]) -> dict[str, str]:
    return {
        k: repr(v) for k, v in values.items() if _plain(v) and len(repr(v)) <= MOST_CHARACTERS and "|" not in repr(v)
    }


def _plain(value: Any) -> bool:
    """Whether it prints the same in every process: no set, function or generator in it."""
    if isinstance(value, dict):
        return all(map(_plain, value)) and all(map(_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_plain, value))
    return isinstance(value, _SHOWN)


def _block(code: str, language: str = "python") -> str:
    return f"```{language}\n{code.rstrip()}\n```"


def _code(exercise: Exercise, *, docstring: bool = True) -> str:
    return _block(exercise.code(docstring=docstring))


def _example(exercise: Exercise) -> tuple[str, str] | None:
    return (exercise.examples[0].removeprefix(">>> "), exercise.examples[1]) if exercise.examples else None


def _title(exercise: Exercise, draw: Random) -> str:
    topic, idea = (name.replace("_", " ").replace("-", ", ") for name in (exercise.template, exercise.variant))
    return draw.choice([f"{topic.capitalize()}: {idea}", f"{idea.capitalize()}", f"A lesson on {topic}: {idea}"])
