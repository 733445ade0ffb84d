"""What an exercise is: signature, task, solution and assertions, and how a template's parts become one.

The expected values in the assertions come from a second, independent way of computing them: so a mistake in a
solution's text is found when the exercise is run.
"""

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any


@dataclass(frozen=True)
class Exercise:
    """`text` is what the model reads: signature, task with examples, solution, assertions."""

    template: str
    variant: str
    signature: str
    task: str
    examples: tuple[str, ...]
    body: str
    tests: tuple[str, ...]

    def _function(self, body: str) -> str:
        lines = [*textwrap.wrap(self.task, 76), "", *self.examples]
        doc = "\n".join(f"    {line}" if line else "" for line in lines).lstrip()
        return f'def {self.signature}:\n    """{doc}\n    """\n{textwrap.indent(body, "    ")}\n'

    @property
    def text(self) -> str:
        return self._function(self.body) + "\n\n" + "\n".join(self.tests) + "\n"

    @property
    def program(self) -> str:
        """What is run to verify it."""
        return self.text

    @property
    def stubbed_program(self) -> str:
        """The same with an empty solution: its assertions must fail."""
        return self._function("return None") + "\n\n" + "\n".join(self.tests) + "\n"


def compose(
    draw: Random, template: str, variant: str, name: str, arguments: str, tasks: Sequence[str], body: str,
    expected: Callable[..., Any], inputs: Sequence[tuple],
) -> Exercise:  # fmt: skip
    """Puts one together: one of the phrasings, one or two examples in the docstring, the rest as assertions."""
    calls = [f"{name}({', '.join(map(repr, values))})" for values in inputs]
    results = [repr(expected(*values)) for values in inputs]
    shown = draw.randint(1, 2)
    examples = tuple(line for c, r in zip(calls[:shown], results[:shown], strict=True) for line in (f">>> {c}", r))
    tests = tuple(f"assert {c} == {r}" for c, r in zip(calls, results, strict=True))
    return Exercise(template, variant, f"{name}({arguments})", draw.choice(tasks), examples, body, tests)
