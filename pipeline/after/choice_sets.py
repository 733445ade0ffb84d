"""Public multiple-choice sets from files on this machine, such as HellaSwag, ARC or PIQA as the hub hands them out.

In: `evaluate.sets`, name -> a .jsonl or .parquet file. Out: the share of items whose right option is the likeliest per
byte, under `sets/<name>`. The forms that are read: hornbook's own `prompt`, `options`, `right`; HellaSwag's `ctx`,
`endings`, `label`; ARC's and CommonsenseQA's `question`, `choices {text, label}`, `answerKey`; PIQA's `goal`, `sol1`,
`sol2`, `label`. Nothing is fetched.
"""

import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.after.scores import share
from pipeline.after.tasks import LanguageModel, Question, Scores, answer
from pipeline.errors import UserError

FORMS = "prompt/options/right, ctx/endings/label, question/choices/answerKey or goal/sol1/sol2/label"


def check_sets(sets: Mapping[str, str], key: str = "evaluate.sets") -> None:
    """Raises `UserError` where a file is missing, of another kind, or its first item has none of the forms."""
    for name, file in sets.items():
        path = Path(file).expanduser()
        if not path.is_file() or path.suffix not in (".jsonl", ".parquet"):
            raise UserError(f"{key}.{name} is {file}; expected a .jsonl or .parquet file of multiple-choice items")
        next(_questions(path, f"{key}.{name}"), None)


def score_sets(sets: Mapping[str, str], model: LanguageModel, items: int, seed: int) -> Scores:
    """`sets/<name>` of each, over at most `items` items drawn by the seed: the same for every model."""
    found: Scores = {}
    for name, file in sets.items():
        questions = list(_questions(Path(file).expanduser(), f"evaluate.sets.{name}"))
        if not questions:
            raise UserError(f"evaluate.sets.{name}: {file} holds no item")
        chosen = random.Random(f"sets/{seed}/{name}").sample(questions, min(items, len(questions)))
        chance = sum(1 / len(q.options) for q in chosen) / len(chosen)
        found[f"sets/{name}"] = share(answer(model, chosen), chance)
    return found


def _questions(path: Path, key: str) -> Iterator[Question]:
    for number, record in enumerate(_records(path, key), 1):
        try:
            yield _question(record)
        except (KeyError, TypeError, ValueError, IndexError):
            shown = ", ".join(record) if isinstance(record, Mapping) else type(record).__name__
            raise UserError(f"{key}: item {number} of {path} has {shown}; expected {FORMS}") from None


def _records(path: Path, key: str) -> Iterator[Any]:
    if path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        try:
            for batch in parquet.ParquetFile(path).iter_batches():
                yield from batch.to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"{key}: {path} cannot be read as Parquet ({error})") from None
        return
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield json.loads(line)
                except (ValueError, RecursionError):
                    raise UserError(f"{key}: line {number} of {path} is no JSON") from None


def _question(record: Any) -> Question:
    """Raises KeyError, TypeError, ValueError or IndexError for a record of no known form."""
    if "endings" in record:
        return _made(record["ctx"], record["endings"], int(record["label"]))
    if "goal" in record:
        return _made(record["goal"], [record["sol1"], record["sol2"]], int(record["label"]))
    if "choices" in record:
        labels = list(record["choices"]["label"])
        prompt = f"Question: {record['question']}\nAnswer:"
        return _made(prompt, record["choices"]["text"], labels.index(record["answerKey"]))
    return _made(record["prompt"], record["options"], int(record["right"]))


def _made(prompt: str, options: list[str], right: int) -> Question:
    options = [option if option[:1].isspace() else f" {option}" for option in options]
    if len(options) < 2 or not 0 <= right < len(options) or not all(option.strip() for option in options):
        raise ValueError("an item has at least two options, and one of them is right")
    return Question(str(prompt), tuple(options), right)
