"""Synthetic exercises: a task, a solution and assertions, told in one of several styles, written by programs and
verified by running.

An exercise is kept only if the code in its text passes its assertions in a confined process and the same assertions
fail on a stubbed solution: assertions that pass on a stub test nothing, and would teach nothing.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from data_filters.rule import EXERCISE
from pipeline.corpus.exercises import program_templates as programs
from pipeline.corpus.exercises import value_templates as values
from pipeline.corpus.exercises.confined import FAILED, PASSED, ConfinedRunner
from pipeline.corpus.exercises.exercise import DIFFICULTIES, Exercise
from pipeline.corpus.exercises.styles import PLAIN, RUN_HERE, STYLES, program_of
from pipeline.corpus.text.documents import SetAside
from pipeline.corpus.text.source import Item, Limits, Source, check_limits, chosen, document

LICENSE = "CC0-1.0"  # written by this program
# Stands for the texts in the data step's fingerprint: put another value here when tests/pipeline/test_golden.py finds
# that the templates write other texts, and you meant it.
TEXTS = "a8c90d7c4c9a9a93313931a42ff535dc04cc74ffe27fda3833ce7dc3e5dbf905"

# A template draws values for a difficulty and makes an exercise of one of its ideas. Ideas, not items, are held out
# together.
Template = Callable[[random.Random, str], Exercise]

_ALL: tuple[Template, ...] = (
    values.filter_and_fold, values.rearrange, values.grid, values.intervals, values.two_pointers,
    values.text_steps, values.count_words, values.cipher, values.run_lengths, values.records, values.layout,
    values.brackets, values.story, values.recurrence, values.digits, values.number_theory, values.equations,
    values.clock, programs.search, programs.ordering, programs.dynamic, programs.graphs, programs.recursion,
    programs.machine, programs.stack_programs, programs.containers, programs.trees, programs.heaps_and_sets,
    programs.comprehensions, programs.generators, programs.functions, programs.errors, programs.small_classes,
)  # fmt: skip
TEMPLATES: dict[str, Template] = {function.__name__: function for function in _ALL}


class Exercises(Source):
    """`count` exercises, seeded by `seed`, each verified by running it. `templates`, `difficulties` (easy, medium,
    hard), `styles` (function, textbook, question, fill, debugging, tests_first, walkthrough): which ones; default: all.
    `limit_documents`, `limit_bytes`, `limit_tokens` (at 4 bytes a token): stop earlier."""

    version = 2

    def __init__(
        self, count: int, seed: int = 0, templates: Sequence[str] | None = None,
        difficulties: Sequence[str] | None = None, styles: Sequence[str] | None = None, **common: Any,
    ):  # fmt: skip
        check_limits(count=count)
        self.count, self.seed = count, seed
        self.templates = chosen(templates, TEMPLATES, "templates")
        self.difficulties = chosen(difficulties, DIFFICULTIES, "difficulties")
        self.styles = chosen(styles, STYLES, "styles")
        self.limits = Limits(**common)

    def content_hash(self) -> str:
        """The templates are the input here: other texts of theirs are other documents."""
        return TEXTS

    def items(self, task: int, tasks: int) -> Iterator[Item]:
        with ConfinedRunner() as runner:
            for number in range(task, self.count, tasks):
                yield self._item(number, runner)

    def _item(self, number: int, runner: ConfinedRunner) -> Item:
        """Exercise `number`: a pure function of it and the options, whatever the shards."""
        draw = random.Random(f"{self.seed}/{number}")  # a str seed does not depend on PYTHONHASHSEED
        exercise = TEMPLATES[self._template(number)](draw, draw.choice(self.difficulties))
        style, path = draw.choice(self.styles), f"{exercise.template}/{number:06d}"
        refused = verify(exercise.text, exercise, runner) if STYLES[style] in RUN_HERE else None
        text = None if refused else STYLES[style](exercise, draw, runner)
        if text is None:  # this style cannot be made of this exercise
            style, text = PLAIN, exercise.text
        refused = refused or verify(text, exercise, runner)
        if refused:
            return SetAside(path, refused, text[:2_000], filter="verification")
        return document(
            text,
            path=f"{path}.{'py' if style == PLAIN else 'md'}",
            group=f"{exercise.template}/{exercise.variant}",
            license=LICENSE, kind=EXERCISE, style=style, difficulty=exercise.difficulty,
        )  # fmt: skip

    def _template(self, number: int) -> str:
        """All templates come once before one comes again, in an order of its own each time."""
        turn, place = divmod(number, len(self.templates))
        order = list(self.templates)
        random.Random(f"{self.seed}/order/{turn}").shuffle(order)
        return order[place]


def verify(text: str, exercise: Exercise, runner: ConfinedRunner) -> str | None:
    """None where the code in `text` passes and the stub fails the same assertions; else why it is refused."""
    stubbed = f"{exercise.code(exercise.stub)}\n\n{exercise.test_lines}\n"
    solution, stub = runner.run(program_of(text), stubbed)
    if solution != PASSED:
        return f"solution_{solution}"
    return None if stub == FAILED else f"stub_{stub}"
