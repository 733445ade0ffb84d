"""What the variables of a solution hold, step by step: for texts that follow a call by hand.

The solution is run in this process, so only for exercises of our own templates, after they have passed confined.
"""

import sys
from types import FrameType
from typing import Any

from pipeline.corpus.exercises.exercise import Exercise

MOST_STEPS = 14
MOST_CHARACTERS = 60
_SHOWN = (int, float, str, type(None))

Step = tuple[str, str]  # the line that was run, what it changed


def trace(exercise: Exercise, call: str) -> tuple[list[Step], str] | None:
    """The first steps of `call` and its printed result; None for what is not a function, or shows nothing."""
    if exercise.signature.startswith("class "):
        return None
    code = exercise.code(docstring=False)
    lines = code.split("\n")
    name, steps = exercise.name, []
    line = 0  # that runs
    held: dict[str, str] = {}  # what was visible before it

    def follow(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal line, held
        if frame.f_code.co_name != name or frame.f_code.co_filename != "<trace>":
            return None
        if event == "call" and line:
            return None  # of a recursive one only the outermost call
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
