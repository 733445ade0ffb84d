"""The built-in tasks. They work offline, on held-out text or on items made by programs, and small models can score
above chance on them.

In: a `LanguageModel`, the held-out text, the number of items. Out: scores by name, each with its standard error and,
where there is one, the score of guessing. The items of a task depend only on the seed and the held-out text, so that
two models answer the same questions. Nothing that the items are cut from was trained on.
To add a task: a function here and a line in `TASKS`.
"""

import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.config import nearest
from pipeline.corpus.exercises.confined import PASSED
from pipeline.corpus.exercises.isolated import IsolatedRunner, NotIsolated
from pipeline.corpus.exercises.styles import program_of
from pipeline.evaluation.language_model import HeldOutText, LanguageModel, Scores, held_out_bits_per_byte, share
from pipeline.system.errors import UserError
from pipeline.system.progress import progress

CHOICES = 4
CLOZE_CONTEXT_WORDS, CLOZE_WORDS = 40, 6
SHOTS = 5  # solved sums before each question
LEVELS: Mapping[str, Callable[[random.Random], tuple[str, int]]]
EXERCISE = re.compile(
    r'((?:(?:import|from) [^\n]+\n)*\s*(?:def|class) [^\n]+:\n    """.*?"""\n)(    .*?)\n\n\n(\S.*)', re.DOTALL
)
STOP = ("\n\n\n", "\nassert", "\ndef ", "\nclass ", "\n#", "\nprint", "\nif ")  # where a function has ended
ROOM = 1.5  # a solution may be this many times as long as the known one


@dataclass(frozen=True)
class Question:
    """`options[right]` is what follows `prompt`."""

    prompt: str
    options: tuple[str, ...]
    right: int


def bits_per_byte(model: LanguageModel, text: HeldOutText, items: int, seed: int) -> Scores:
    """Bits per UTF-8 byte of the held-out text of every source, over all of it: comparable between tokenizers."""
    return {f"bits_per_byte/{name}": score for name, score in held_out_bits_per_byte(model, text).items()}


def cloze(model: LanguageModel, text: HeldOutText, items: int, seed: int) -> Scores:
    """Which of four pieces of held-out text continues a held-out text; the other three are from elsewhere in the same
    source. By likelihood per byte. Guessing: 25%."""
    found: Scores = {}
    for name, documents in text.documents.items():
        questions = _cloze_questions(documents, items, random.Random(f"cloze/{seed}/{name}"))
        if len(questions) > 1:
            found[f"cloze/{name}"] = share(answer(model, questions), 1 / CHOICES)
    return found


def arithmetic(model: LanguageModel, text: HeldOutText, items: int, seed: int) -> Scores:
    """Sums and products by difficulty, after five solved ones. `exact`: the likeliest continuation is the number.
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
        with progress("answering", len(exact), "items") as bar:
            said = []
            for prompt, number in exact:
                said.append(model.complete(prompt, 8, stop=("\n",)).strip() == number)
                bar.advance()
        found[f"arithmetic/{level}/exact"] = share(said)
    return found


def exercises(model: LanguageModel, text: HeldOutText, items: int, seed: int) -> Scores:
    """Held-out verified exercises: the model writes the solution after signature and docstring, greedily, and it is
    right if it passes the exercise's assertions when run confined (pass@1)."""
    # After Chen et al. 2021 (arXiv 2107.03374) with one sample. No score where programs cannot be isolated: what a
    # model writes is never run with this process's rights.
    found = find_exercises(dict.fromkeys(d for documents in text.documents.values() for d in documents))
    if not found:
        return {}
    chosen = random.Random(f"exercises/{seed}").sample(found, min(items, len(found)))
    try:
        with IsolatedRunner() as runner, progress("solving", len(chosen), "items") as bar:
            right = []
            for exercise in chosen:
                room = int(ROOM * len(model.encode(exercise.body))) + 8
                body = model.complete(exercise.prompt, room, STOP)
                right.append(runner.run(exercise.program(body)) == [PASSED])
                bar.advance()
    except NotIsolated as reason:
        why = f"a model's programs are run in namespaces of their own only, and this machine gives none ({reason})"
        return {"exercises/pass@1": {"score": None, "why": why}}
    return {"exercises/pass@1": share(right)}


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
        with progress(name):
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


@dataclass(frozen=True)
class HeldOutExercise:
    """`prompt`: what the model reads; `body`: the known solution; `tests`: assertions."""

    prompt: str
    body: str
    tests: str

    def program(self, body: str) -> str:
        return f"{self.prompt}{body}\n\n\n{self.tests}\n"


def find_exercises(documents: Iterable[str]) -> list[HeldOutExercise]:
    """The documents whose code has the form of corpus/exercises/exercise.py: signature with docstring, solution,
    assertions."""
    matches = (EXERCISE.fullmatch(program_of(text).strip()) for text in documents)
    return [HeldOutExercise(*match.groups()) for match in matches if match]


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
