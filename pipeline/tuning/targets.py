"""Ready target tasks for fine-tuning: classify a short text, offline, made by programs.

In: a seed. Out: prompts with the label that follows, to train on and, of other texts, to test on; scored like the
built-in tasks, by which label is likeliest. `sentiment` and `topic` are labels that no pretraining text here teaches;
`bracket` is one that every text with code does, so that a base model starts high and there is little to gain.
"""

import itertools
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pipeline.config import FinetuneConfig, nearest
from pipeline.evaluation.tasks import Question
from pipeline.system.errors import UserError

DEFAULT = "sentiment"  # where nothing names a task or text of one's own
LIKELY_BELOW = 0.5  # the talk: tuning pays most where the base model is below 50% on the task
TEST_SHARE = 0.3  # of the texts that a task can make


@dataclass(frozen=True)
class Target:
    """(prompt, label) pairs; no text of `test` is in `train`."""

    name: str
    labels: tuple[str, ...]
    train: tuple[tuple[str, str], ...]
    test: tuple[tuple[str, str], ...]

    def questions(self) -> list[Question]:
        return [Question(prompt, self.labels, self.labels.index(label)) for prompt, label in self.test]


def sentiment() -> tuple[tuple[str, ...], list[tuple[str, str]]]:
    """What a sentence about a product thinks of it: good, bad or mixed."""
    things = (
        "phone",
        "lamp",
        "jacket",
        "kettle",
        "bicycle",
        "novel",
        "hotel",
        "laptop",
        "camera",
        "sofa",
        "printer",
        "film",
    )
    praise = ("works well", "feels solid", "is easy to use", "looks lovely", "was worth the money", "made us happy")
    blame = ("broke at once", "feels cheap", "is hard to use", "looks dull", "was a waste of money", "made us angry")
    texts = []
    for thing, first, second in itertools.product(things, praise + blame, praise + blame):
        if first != second:
            kinds = {first in praise, second in praise}
            label = "mixed" if len(kinds) == 2 else "good" if True in kinds else "bad"
            texts.append((f"Review: The {thing} {first} and {second}.\nVerdict:", f" {label}"))
    return (" good", " bad", " mixed"), texts


def topic() -> tuple[tuple[str, ...], list[tuple[str, str]]]:
    """What a sentence is about: food, sport, weather or money."""
    words = {
        "food": ("soup", "bread", "cheese", "salad", "pasta", "cake"),
        "sport": ("match", "race", "goal", "team", "coach", "medal"),
        "weather": ("storm", "rain", "snow", "wind", "cloud", "frost"),
        "money": ("loan", "bank", "price", "salary", "tax", "bond"),
    }
    forms = ("She talked about the {a} and the {b}.", "The {a} was followed by the {b}.", "After the {a} came the {b}.",
             "We read of a {a} and a {b} today.")  # fmt: skip
    texts = [
        (f"Text: {form.format(a=a, b=b)}\nTopic:", f" {label}")
        for label, own in words.items()
        for a, b in itertools.permutations(own, 2)
        for form in forms
    ]
    return tuple(f" {label}" for label in words), texts


def bracket() -> tuple[tuple[str, ...], list[tuple[str, str]]]:
    """Which bracket closes what a line of code opened."""
    pairs = {"(": ")", "[": "]", "{": "}"}
    names = ("values", "items", "result", "names", "rows", "data", "keys", "total")
    inside = ("x", "1, 2", "a, b", "'name'", "index", "key", "0", "first, last")
    texts = [
        (f"{name} = {call}{opened}{content}", closed)
        for name in names
        for call in ("", "table", "self.rows", "f")
        for content in inside
        for opened, closed in pairs.items()
        if not (opened == "{" and call)
    ]
    return tuple(pairs.values()), texts


TARGETS: Mapping[str, Callable[[], tuple[tuple[str, ...], list[tuple[str, str]]]]] = {
    "sentiment": sentiment,
    "topic": topic,
    "bracket": bracket,
}


def target_task(options: FinetuneConfig) -> str | None:
    """The ready task that a tuning is measured on; None where its own held-out examples are all."""
    if options.task == "auto":
        return None if options.sources else DEFAULT
    return options.task


def make_target(name: str, examples: int, items: int, seed: int) -> Target:
    """At most so many training examples and test items, labels in equal shares among the test items as far as texts
    reach. Raises `UserError` for a task that does not exist."""
    if name not in TARGETS:
        raise UserError(
            f"finetune.task is '{name}'{nearest(name, TARGETS)}; expected of {', '.join(TARGETS)}, auto or null"
        )
    labels, texts = TARGETS[name]()
    random.Random(f"target/{seed}/{name}").shuffle(texts)
    held_out = round(TEST_SHARE * len(texts))
    by_label = [[text for text in texts[:held_out] if text[1] == label] for label in labels]
    most = min(len(own) for own in by_label)
    test = [text for turn in zip(*(own[:most] for own in by_label), strict=True) for text in turn]
    return Target(name, labels, tuple(texts[held_out:][:examples]), tuple(test[:items]))
