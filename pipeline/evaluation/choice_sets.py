"""Public multiple-choice sets from files on this machine, such as HellaSwag, ARC or PIQA as the hub hands them out.

In: `evaluate.sets`, name -> a .jsonl or .parquet file. Out: the share of items whose right option is the likeliest per
byte, under `sets/<name>`. The forms that are read: hornbook's own `prompt`, `options`, `right`; HellaSwag's `ctx`,
`endings`, `label`; ARC's and CommonsenseQA's `question`, `choices {text, label}`, `answerKey`; PIQA's `goal`, `sol1`,
`sol2`, `label`. Nothing is fetched.
"""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.corpus.sources.record_files import record_of
from pipeline.corpus.text.user_files import MAX_UNREADABLE, Found, Unreadable, mended, plain_ending, read_files
from pipeline.evaluation.language_model import LanguageModel
from pipeline.evaluation.scores import share
from pipeline.evaluation.tasks import Question, Scores, answer
from pipeline.system.errors import UserError

ENDINGS = (".jsonl", ".ndjson", ".json", ".parquet")
FORMS = "prompt/options/right, ctx/endings/label, question/choices/answerKey or goal/sol1/sol2/label"


def check_sets(sets: Mapping[str, str], max_unreadable: float = MAX_UNREADABLE, key: str = "evaluate.sets") -> None:
    """Prints how many items of each set are set aside, having none of the forms. Raises `UserError` where a file is
    missing or of another kind, and where those are more than the share `max_unreadable`."""
    for name, file in sets.items():
        _read(set_file(name, file, key), f"{key}.{name}").check(max_unreadable)


def set_file(name: str, file: str, key: str = "evaluate.sets") -> Path:
    """The file of a set. Raises `UserError` where it is missing or of another kind."""
    path = Path(file).expanduser()
    if not path.is_file() or plain_ending(path) not in ENDINGS:
        raise UserError(f"{key}.{name} is {file}; expected a .jsonl or .parquet file of multiple-choice items")
    return path


def score_sets(sets: Mapping[str, str], model: LanguageModel, items: int, seed: int) -> Scores:
    """`sets/<name>` of each, over at most `items` items drawn by the seed: the same for every model."""
    found: Scores = {}
    for name, file in sets.items():
        questions = _read(Path(file).expanduser(), f"evaluate.sets.{name}").made
        if not questions:
            raise UserError(f"evaluate.sets.{name}: {file} holds no item")
        chosen = random.Random(f"sets/{seed}/{name}").sample(questions, min(items, len(questions)))
        chance = sum(1 / len(q.options) for q in chosen) / len(chosen)
        found[f"sets/{name}"] = share(answer(model, chosen), chance)
    return found


def _read(path: Path, key: str) -> Found[Question]:
    if plain_ending(path) != ".parquet":
        return read_files([path], _made_of, key)
    import pyarrow
    from pyarrow import parquet

    found: Found[Question] = Found(key)
    try:
        for batch in parquet.ParquetFile(path).iter_batches():
            for row in range(batch.num_rows):
                place = f"item {len(found.made) + found.causes.total() + 1}"
                found.add(path, place, mended(record_of(batch, row)), _made_of)
    except (pyarrow.ArrowException, OSError, ValueError, KeyError) as error:  # of damaged names, too
        raise UserError(f"{key}: {path} cannot be read as Parquet ({error})") from None
    return found


def _made_of(record: Any, place: str) -> Question:
    try:
        return _question(record)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError):
        shown = ", ".join(record)[:200] if isinstance(record, Mapping) else type(record).__name__
        raise Unreadable("unknown_form", f"has {shown}; expected {FORMS}") from None


def _question(record: Any) -> Question:
    """Raises KeyError, TypeError, ValueError or IndexError for a record of no known form."""
    if "endings" in record:
        return _made(record["ctx"], record["endings"], _number(record["label"]))
    if "goal" in record:
        return _made(record["goal"], [record["sol1"], record["sol2"]], _number(record["label"]))
    if "choices" in record:
        labels = list(record["choices"]["label"])
        prompt = f"Question: {record['question']}\nAnswer:"
        return _made(prompt, record["choices"]["text"], labels.index(record["answerKey"]))
    return _made(record["prompt"], record["options"], _number(record["right"]))


def _number(value: Any) -> int:
    """`3`, `"3"` or `3.0`."""
    if isinstance(value, bool) or int(value) != float(value):
        raise ValueError(f"{value!r} is no place in a list")
    return int(value)


def _made(prompt: str, options: list[str], right: int) -> Question:
    if not isinstance(prompt, str):
        raise TypeError("a prompt is text")
    options = [option if option[:1].isspace() else f" {option}" for option in options]
    if len(options) < 2 or not 0 <= right < len(options) or not all(option.strip() for option in options):
        raise ValueError("an item has at least two options, and one of them is right")
    return Question(prompt, tuple(options), right)
