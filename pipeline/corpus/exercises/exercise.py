"""What an exercise is: signature, task, solution and assertions; and how a template makes one of an idea.

The words of the ideas are in `ideas/*.yaml`, one file a theme: task, solution and explanation, with `$k` where a
drawn value goes. The expected values in the assertions come from a second, independent way of computing them, given by
the template: so a mistake in a solution's text is found when the exercise is run.
"""

import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from string import Template
from typing import Any

import yaml

from pipeline.config import yaml_values

EASY, MEDIUM, HARD = DIFFICULTIES = ("easy", "medium", "hard")
_SINGLE = ("None", "True", "False")
_IMPORTS = {
    "bisect": "from bisect import bisect_left, bisect_right",
    "deque": "from collections import deque",
    "Fraction": "from fractions import Fraction",
    "heapq": "import heapq",
    "islice": "from itertools import islice",
}  # of what the solutions use
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


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


@dataclass(frozen=True)
class Idea:
    """An idea of a template, with `$k` in its texts for what is drawn. `tasks`: phrasings of one task. `tests`: of a
    class, scripts that make an object and assert what its methods return."""

    template: str
    variant: str
    difficulty: str
    signature: str
    tasks: Sequence[str]
    body: str
    idea: str
    tests: Sequence[str] = ()

    def exercise(self, draw: Random, expected: Callable[..., Any], inputs: Sequence[tuple], **values: Any) -> Exercise:
        """A function: one of the phrasings, one or two examples in the docstring, and an assertion for each of
        `inputs`, whose result `expected` computes in another way than the solution."""
        filled = self._filled(values)
        different = {repr(given): given for given in inputs}.values()  # the same call twice tests nothing more
        calls = [f"{filled.signature.partition('(')[0]}({', '.join(map(repr, given))})" for given in different]
        results = [repr(expected(*given)) for given in different]
        shown = [(call, result) for call, result in zip(calls, results, strict=True) if result != "None"]
        examples = tuple(line for call, result in shown[: draw.randint(1, 2)] for line in (f">>> {call}", result))
        tests = tuple(f"assert {c} {'is' if r in _SINGLE else '=='} {r}" for c, r in zip(calls, results, strict=True))
        return filled._exercise(draw.choice(filled.tasks), tests, examples)

    def class_exercise(self, scripts: Sequence[str] = (), **values: Any) -> Exercise:
        """A class, tested by `scripts` or the idea's own. In the stub, no method that is called does anything."""
        filled = self._filled(values)
        heads = re.findall(r"^def (?!__init__\(self\)).*:$", filled.body, re.MULTILINE)
        stub = "\n\n".join(f"{head}\n    return None" for head in heads)
        return filled._exercise(filled.tasks[0], tuple(scripts or filled.tests), (), stub=stub)

    def _filled(self, values: Mapping[str, Any]) -> "Idea":
        fill = lambda text: Template(text).substitute(values) if values else text  # noqa: E731
        tasks, tests = [fill(task) for task in self.tasks], [fill(test) for test in self.tests]
        texts = (fill(self.signature), tasks, fill(self.body), fill(self.idea), tests)
        return Idea(self.template, self.variant, self.difficulty, *texts)

    def _exercise(self, task: str, tests: tuple[str, ...], examples: tuple[str, ...], **more: str) -> Exercise:
        imports = tuple(line for word, line in _IMPORTS.items() if word in self.body)
        return Exercise(
            self.template, self.variant, self.signature, task, examples, self.body, tests, self.idea, self.difficulty,
            imports, **more,
        )  # fmt: skip


def choose(draw: Random, template: str, difficulty: str, variant: str = "") -> Idea:
    """One of the template's ideas of this difficulty; the one called `variant` where that is given."""
    rows = _ideas()[template]
    variant = variant or draw.choice([name for name, row in rows.items() if difficulty in row["difficulty"]])
    row = rows[variant]
    tasks = [row["task"]] if isinstance(row["task"], str) else row["task"]
    texts = (row["signature"], tasks, row["body"], row["idea"], row.get("tests", ()))
    return Idea(template, variant, difficulty, *texts)


@cache
def _ideas() -> dict[str, dict[str, dict[str, Any]]]:
    """{template: {idea: its row}} of all themes."""
    files = (Path(__file__).parent / "ideas").glob("*.yaml")
    return {template: rows for file in files for template, rows in yaml.load(file.read_text("utf-8"), _Loader).items()}


_WORDS = yaml_values.load(Path(__file__).with_name("words.yaml").read_text(encoding="utf-8"))
WORDS, PEOPLE, THINGS, CITIES = (tuple(_WORDS[name]) for name in ("words", "people", "things", "cities"))


def numbers(draw: Random, low: int = -40, high: int = 99, least: int = 4, most: int = 9) -> list[int]:
    return [draw.randint(low, high) for _ in range(draw.randint(least, most))]


def sentence(draw: Random, least: int = 3, most: int = 7) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randint(least, most)))
