"""What an exercise is: signature, task, solution and assertions, and how a template's parts become one.

The expected values in the assertions come from a second, independent way of computing them: so a mistake in a
solution's text is found when the exercise is run.
"""

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

EASY, MEDIUM, HARD = DIFFICULTIES = ("easy", "medium", "hard")
_SINGLE = ("None", "True", "False")


@dataclass(frozen=True)
class Exercise:
    """`signature`: of a function, or `class Name`. `body`: the solution, under its docstring. `stub`: what stands in
    its place to see whether the tests test anything. `tests`: assertions, or short scripts that hold some.
    `idea`: how the solution works, in sentences. `variant` names the idea without its numbers."""

    template: str
    variant: str
    signature: str
    task: str
    examples: tuple[str, ...]
    body: str
    tests: tuple[str, ...]
    idea: str = ""
    difficulty: str = MEDIUM
    imports: tuple[str, ...] = ()
    stub: str = "return None"

    @property
    def name(self) -> str:
        return self.signature.removeprefix("class ").partition("(")[0]

    def code(self, body: str | None = None, *, docstring: bool = True) -> str:
        """The function or class, with `body` instead of the solution."""
        head = f"{self.signature}:" if self.signature.startswith("class ") else f"def {self.signature}:"
        lines = [*textwrap.wrap(self.task, 76), "", *self.examples] if self.examples else textwrap.wrap(self.task, 76)
        doc = "\n".join(f"    {line}" if line else "" for line in lines).lstrip()
        before = "".join(f"{line}\n" for line in self.imports) + ("\n\n" if self.imports else "")
        said = f'    """{doc}\n    """\n' if docstring else ""
        return f"{before}{head}\n{said}{textwrap.indent(self.body if body is None else body, '    ')}\n"

    @property
    def test_lines(self) -> str:
        return "\n".join(self.tests)

    @property
    def text(self) -> str:
        """The plainest style: code, then assertions."""
        return f"{self.code()}\n\n{self.test_lines}\n"


def compose(
    draw: Random, template: str, variant: str, name: str, arguments: str, tasks: Sequence[str], body: str,
    expected: Callable[..., Any], inputs: Sequence[tuple], *, idea: str = "", difficulty: str = MEDIUM,
    imports: Sequence[str] = (),
) -> Exercise:  # fmt: skip
    """Puts a function together: one of the phrasings, one or two examples in the docstring, the rest as assertions."""
    different = {repr(values): values for values in inputs}.values()  # the same call twice tests nothing more
    calls = [f"{name}({', '.join(map(repr, values))})" for values in different]
    results = [repr(expected(*values)) for values in different]
    said = [(call, result) for call, result in zip(calls, results, strict=True) if result != "None"]  # shows nothing
    examples = tuple(line for call, result in said[: draw.randint(1, 2)] for line in (f">>> {call}", result))
    tests = tuple(f"assert {c} {'is' if r in _SINGLE else '=='} {r}" for c, r in zip(calls, results, strict=True))
    task, signature = draw.choice(tasks), f"{name}({arguments})"
    return Exercise(
        template, variant, signature, task, examples, body, tests, idea, difficulty, tuple(imports)
    )  # fmt: skip


def compose_class(
    draw: Random, template: str, variant: str, name: str, task: str, body: str, scripts: Sequence[Sequence[str]],
    *, idea: str, difficulty: str, methods: Sequence[str], imports: Sequence[str] = (),
) -> Exercise:  # fmt: skip
    """Puts a class together. `scripts`: lines that make an object and assert what its methods answer. `methods`:
    their heads, for the stub, in which none does anything."""
    stub = "\n\n".join(f"def {head}:\n    return None" for head in methods)
    tests = tuple("\n".join(lines) for lines in scripts)
    return Exercise(
        template, variant, f"class {name}", task, (), body, tests, idea, difficulty, tuple(imports), stub
    )  # fmt: skip


def rows_of(difficulty: str, rows: Sequence[tuple]) -> list[tuple]:
    """The rows of a template's table that are of this difficulty, without their first column. A row may be of
    several: `(("easy", "medium"), ...)`."""
    found = [row[1:] for row in rows if difficulty == row[0] or difficulty in row[0]]
    assert found, difficulty
    return found
