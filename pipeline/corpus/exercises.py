"""Synthetic exercises: a task in a docstring, a solution, and assertions, written by programs and verified by running.

An exercise is kept only if its solution passes its assertions in a confined process and the same assertions fail on
a stubbed solution: assertions that pass on a stub test nothing, and would teach nothing.
"""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_filters.rule import EXERCISE
from pipeline.artifacts import hash_file, hash_json
from pipeline.corpus.confined import FAILED, PASSED, ConfinedRunner
from pipeline.corpus.documents import SetAside
from pipeline.corpus.exercise import Exercise
from pipeline.corpus.exercise_templates import TEMPLATES
from pipeline.corpus.source import Item, Limits, Source, check_limits, document

LICENSE = "CC0-1.0"  # written by this program
ATTEMPTS = 20  # to find a text that this shard has not yet written


class Exercises(Source):
    """`count` exercises from the templates of `exercise_templates.py`, seeded by `seed`, each verified by running it.
    `limit_documents`, `limit_bytes`, `limit_tokens` (at 4 bytes a token): stop earlier."""

    def __init__(self, count: int, seed: int = 0, **common: Any):
        check_limits(count=count)
        self.count, self.seed = count, seed
        self.limits = Limits(**common)

    def content_hash(self) -> str:
        """The templates are the input here: an edited one makes other exercises."""
        here = Path(__file__).parent
        return hash_json([hash_file(here / name) for name in ("exercise.py", "exercise_templates.py", "confined.py")])

    def items(self, task: int, tasks: int) -> Iterator[Item]:
        numbers = range(task, self.count, tasks)
        seen: set[str] = set()
        with ConfinedRunner() as runner:
            for number in numbers:
                exercise = self._write(number, seen)
                path = f"{exercise.template}/{number:06d}"
                refused = verify(exercise, runner)
                if refused:
                    yield SetAside(path, refused, exercise.text[:2_000], filter="verification")
                else:
                    group = f"{exercise.template}/{exercise.variant}"
                    yield document(exercise.text, path=path, group=group, license=LICENSE, kind=EXERCISE)

    def _write(self, number: int, seen: set[str]) -> Exercise:
        """Exercise `number`, drawn by its own seed; drawn again where this shard has the text already."""
        draw = random.Random(f"{self.seed}/{number}")  # a str seed does not depend on PYTHONHASHSEED
        name = draw.choice(sorted(TEMPLATES))
        exercise = TEMPLATES[name](draw)
        for _ in range(ATTEMPTS):
            if exercise.text not in seen:
                break
            exercise = TEMPLATES[name](draw)
        seen.add(exercise.text)
        return exercise


def verify(exercise: Exercise, runner: ConfinedRunner) -> str | None:
    """None where the solution passes and the stub fails; else why the exercise is refused."""
    solution, stub = runner.run(exercise.program, exercise.stubbed_program)
    if solution != PASSED:
        return f"solution_{solution}"
    return None if stub == FAILED else f"stub_{stub}"
