"""The built-in tasks: offline, made from held-out text or by programs, and such that a small model can show skill.

In: a `LanguageModel`, the held-out text, how many items. Out: scores by name, each with its standard error and, where
there is one, the score of guessing. The items of a task depend on the seed and the held-out text alone, so that two
models answer the same questions; texts that they are cut from were not trained on.
To add one: a function here and a line in `TASKS`.
"""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config import nearest
from pipeline.evaluation.held_out import HeldOutText
from pipeline.evaluation.language_model import LanguageModel
from pipeline.evaluation.scores import share
from pipeline.system.errors import UserError

Scores = dict[str, dict[str, Any]]
CHOICES = 4
CLOZE_CONTEXT_WORDS, CLOZE_WORDS = 40, 6
SHOTS = 5  # solved sums that stand before each question
LEVELS: Mapping[str, Callable[[random.Random], tuple[str, int]]]


@dataclass(frozen=True)
class Question:
    """`options[right]` is what follows `prompt`."""

    prompt: str
    options: tuple[str, ...]
    right: int


def bits_per_byte(model: LanguageModel, text: HeldOutText, items: int, seed: int) -> Scores:
    """Bits per UTF-8 byte of the held-out text of every source, over all of it: comparable between tokenizers."""
    from pipeline.evaluation.held_out import bits_per_byte as measured

    return {f"bits_per_byte/{name}": score for name, score in measured(model, text).items()}


def cloze(model: LanguageModel, text: HeldOutText, items: int, seed: int) -> Scores:
    """Which of four pieces of held-out text goes on a held-out text; the other three are from elsewhere in the same
    source. By likelihood per byte. Guessing: 25%."""
    found: Scores = {}
    for name, documents in text.documents.items():
        questions = _cloze_questions(documents, items, random.Random(f"cloze/{seed}/{name}"))
        if len(questions) > 1:
            found[f"cloze/{name}"] = share(answer(model, questions), 1 / CHOICES)
    return found


def arithmetic(model: LanguageModel, text: HeldOutText, items: int, seed: int) -> Scores:
    """Sums and products by difficulty, after five solved ones: right where the likeliest continuation is the number.
    `choice`: the right number among four. Guessing: 0% and 25%."""
    found: Scores = {}
    for level, make in LEVELS.items():
        draw = random.Random(f"arithmetic/{seed}/{level}")
        questions, exact = [], []
        for _ in range(items):
            solved = [make(draw) for _ in range(SHOTS)]
            asked, number = make(draw)
            prompt = "".join(f"{q} = {a}\n" for q, a in solved) + f"{asked} ="
            wrong = draw.sample([number + d for d in (-10, -3, -2, -1, 1, 2, 3, 10) if number + d >= 0], CHOICES - 1)
            options = [number, *wrong]
            draw.shuffle(options)
            questions.append(Question(prompt, tuple(f" {option}" for option in options), options.index(number)))
            exact.append((prompt, str(number)))
        found[f"arithmetic/{level}/choice"] = share(answer(model, questions), 1 / CHOICES)
        said = [model.complete(prompt, 8, stop=("\n",)).strip() == number for prompt, number in exact]
        found[f"arithmetic/{level}/exact"] = share(said)
    return found


def exercises(model: LanguageModel, text: HeldOutText, items: int, seed: int) -> Scores:
    """Held-out verified exercises: the model writes the solution after signature and docstring, greedily, and it is
    right if it passes the exercise's assertions when run confined (pass@1)."""
    from pipeline.evaluation.exercise_runs import pass_at_1

    return pass_at_1(model, text, items, seed)


TASKS: dict[str, Callable[[LanguageModel, HeldOutText, int, int], Scores]] = {
    "bits_per_byte": bits_per_byte,
    "cloze": cloze,
    "arithmetic": arithmetic,
    "exercises": exercises,
}


def check_tasks(names: Sequence[str], key: str) -> None:
    """Raises `UserError` for a task that does not exist."""
    for name in names:
        if name not in TASKS:
            raise UserError(f"{key} has '{name}'{nearest(str(name), TASKS)}; expected of {', '.join(TASKS)}")


def run_tasks(names: Sequence[str], model: LanguageModel, text: HeldOutText, items: int, seed: int) -> Scores:
    """The scores of all tasks named."""
    found: Scores = {}
    for name in names:
        found |= TASKS[name](model, text, items, seed)
    return found


def answer(model: LanguageModel, questions: Sequence[Question]) -> list[bool]:
    """Whether the option with the fewest nats per byte is the right one."""
    nats = iter(model.nats([(q.prompt, option) for q in questions for option in q.options]))
    right = []
    for question in questions:
        each = [next(nats) / len(option.encode()) for option in question.options]
        right.append(each.index(min(each)) == question.right)
    return right


def _cloze_questions(documents: Sequence[str], items: int, draw: random.Random) -> list[Question]:
    """Places in the documents, each with what follows there and three pieces from other places."""
    pieces = []
    for document in documents:
        ends = [match.end() for match in re.finditer(r"\s+\S+", document)]
        for at in range(CLOZE_CONTEXT_WORDS, len(ends) - CLOZE_WORDS, CLOZE_CONTEXT_WORDS):
            start = ends[at - CLOZE_CONTEXT_WORDS]
            pieces.append((document[start : ends[at]], document[ends[at] : ends[at + CLOZE_WORDS]]))
    if len(pieces) < CHOICES:
        return []
    questions = []
    for place in draw.sample(range(len(pieces)), min(items, len(pieces))):
        prompt, follows = pieces[place]
        others = list({piece for _, piece in pieces if piece != follows})
        if len(others) < CHOICES - 1:
            continue
        options = [follows, *draw.sample(sorted(others), CHOICES - 1)]
        draw.shuffle(options)
        questions.append(Question(prompt, tuple(options), options.index(follows)))
    return questions


def _sum(digits: int) -> Callable[[random.Random], tuple[str, int]]:
    def make(draw: random.Random) -> tuple[str, int]:
        a, b = (draw.randrange(10 ** (digits - 1) if digits > 1 else 0, 10**digits) for _ in range(2))
        return f"{a} + {b}", a + b

    return make


def _product(draw: random.Random) -> tuple[str, int]:
    a, b = draw.randrange(2, 10), draw.randrange(2, 10)
    return f"{a} * {b}", a * b


LEVELS = {"1-digit sums": _sum(1), "2-digit sums": _sum(2), "3-digit sums": _sum(3), "1-digit products": _product}
