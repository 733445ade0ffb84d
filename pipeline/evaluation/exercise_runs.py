"""pass@1 on held-out exercises: the model writes the solution, and it is run.

In: held-out documents in the form of corpus/exercises/exercise.py: signature, docstring, solution, assertions. Out:
the share whose greedy solution passes all assertions, after Chen et al. 2021 (arXiv 2107.03374) with one sample.
"""

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pipeline.corpus.exercises.confined import PASSED
from pipeline.corpus.exercises.isolated import IsolatedRunner, NotIsolated
from pipeline.corpus.exercises.styles import program_of
from pipeline.evaluation.held_out import HeldOutText
from pipeline.evaluation.language_model import LanguageModel
from pipeline.evaluation.scores import share

FORM = re.compile(
    r'((?:(?:import|from) [^\n]+\n)*\s*(?:def|class) [^\n]+:\n    """.*?"""\n)(    .*?)\n\n\n(\S.*)', re.DOTALL
)
STOP = ("\n\n\n", "\nassert", "\ndef ", "\nclass ", "\n#", "\nprint", "\nif ")  # where a function is over
ROOM = 1.5  # a solution may be this many times as long as the known one


@dataclass(frozen=True)
class HeldOutExercise:
    """`prompt`: what the model reads; `body`: the known solution; `tests`: assertions."""

    prompt: str
    body: str
    tests: str

    def program(self, body: str) -> str:
        return f"{self.prompt}{body}\n\n\n{self.tests}\n"


def find_exercises(documents: Iterable[str]) -> list[HeldOutExercise]:
    """The documents whose code has the form of an exercise: signature with docstring, solution, assertions."""
    matches = (FORM.fullmatch(program_of(text).strip()) for text in documents)
    return [HeldOutExercise(*match.groups()) for match in matches if match]


def pass_at_1(model: LanguageModel, text: HeldOutText, items: int, seed: int) -> dict[str, dict[str, Any]]:
    """`{"exercises/pass@1": score}`; a score without a value and why, where programs cannot be isolated here. Empty
    where no held-out document is an exercise."""
    found = find_exercises(dict.fromkeys(d for documents in text.documents.values() for d in documents))
    if not found:
        return {}
    chosen = random.Random(f"exercises/{seed}").sample(found, min(items, len(found)))
    try:
        with IsolatedRunner() as runner:
            right = []
            for exercise in chosen:
                room = int(ROOM * len(model.encode(exercise.body))) + 8
                body = model.complete(exercise.prompt, room, STOP)
                right.append(runner.run(exercise.program(body)) == [PASSED])
    except NotIsolated as reason:
        why = f"a model's programs are run in namespaces of their own only, and this machine gives none ({reason})"
        return {"exercises/pass@1": {"score": None, "why": why}}
    return {"exercises/pass@1": share(right)}
