"""Public benchmarks: multiple-choice sets from files on this machine, and the tasks of lm-eval.

`score_sets` reads `evaluate.sets`, name -> a .jsonl or .parquet file, in the form in which the hub distributes
HellaSwag (`ctx`, `endings`, `label`), ARC and CommonsenseQA (`question`, `choices {text, label}`, `answerKey`), PIQA
(`goal`, `sol1`, `sol2`, `label`), or hornbook's own (`prompt`, `options`, `right`). It returns the share of items whose
right option is the likeliest per byte, under `sets/<name>`. Nothing is downloaded.

`run_harness` runs lm-eval on a model's folder, with tasks from a folder of YAML files (offline) or its own (their data
comes from the hub), and returns its scores with its own standard errors. No code of the model folder is run.
"""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pipeline.config import nearest
from pipeline.corpus.sources.records import record_of
from pipeline.corpus.text.user_files import MAX_UNREADABLE, Found, Unreadable, mended, plain_ending, read_files
from pipeline.evaluation.language_model import LanguageModel, Scores, share
from pipeline.evaluation.tasks import Question, answer
from pipeline.system.errors import UserError

ENDINGS = (".jsonl", ".ndjson", ".json", ".parquet")
FORMS = "prompt/options/right, ctx/endings/label, question/choices/answerKey or goal/sol1/sol2/label"


def check_sets(sets: Mapping[str, str], max_unreadable: float = MAX_UNREADABLE) -> None:
    """Prints how many items of each set have none of the known forms and are skipped. Raises `UserError` where a file
    is missing or of another type, and where the skipped items are more than the share `max_unreadable`."""
    for name, file in sets.items():
        _read(set_file(name, file), f"evaluate.sets.{name}").check(max_unreadable)


def set_file(name: str, file: str) -> Path:
    """The file of a set. Raises `UserError` where it is missing or of another type."""
    path = Path(file).expanduser()
    if not path.is_file() or plain_ending(path) not in ENDINGS:
        raise UserError(f"evaluate.sets.{name} is {file}; expected a .jsonl or .parquet file of multiple-choice items")
    return path


def score_sets(sets: Mapping[str, str], model: LanguageModel, items: int, seed: int) -> Scores:
    """`sets/<name>` of each, over at most `items` items drawn by the seed: the same for every model.
    Raises `UserError`."""
    found: Scores = {}
    for name, file in sets.items():
        questions = _read(Path(file).expanduser(), f"evaluate.sets.{name}").made
        if not questions:
            raise UserError(f"evaluate.sets.{name}: {file} holds no item")
        chosen = random.Random(f"sets/{seed}/{name}").sample(questions, min(items, len(questions)))
        chance = sum(1 / len(q.options) for q in chosen) / len(chosen)
        found[f"sets/{name}"] = share(answer(model, chosen), chance)
    return found


def check_harness(tasks: list[str], path: str | None) -> None:
    """Raises `UserError` where lm-eval is not installed, its folder of tasks is missing, or a task is unknown."""
    known = _manager(path).all_tasks
    for name in tasks:
        if name not in known:
            raise UserError(
                f"evaluate.lm_eval has '{name}'{nearest(name, known)}; expected a task of lm-eval"
                + (f" in {path}: {', '.join(known) or 'none'}" if path else "")
            )


def run_harness(folder: Path, context_tokens: int, tasks: list[str], path: str | None, limit: int) -> Scores:
    """`{"lm_eval/<task>/<metric>": {score, standard_error, items}}` on at most `limit` items of each task."""
    import lm_eval  # pyright: ignore[reportMissingImports]

    arguments = {"pretrained": str(folder), "trust_remote_code": False, "dtype": "float32"}
    arguments |= {"device": "cuda" if torch.cuda.is_available() else "cpu", "max_length": context_tokens}
    results = lm_eval.simple_evaluate(
        model="hf",
        model_args=arguments,
        tasks=tasks,
        task_manager=_manager(path),
        limit=limit,
        bootstrap_iters=0,
        verbosity="ERROR",
    )
    assert results is not None
    found = {}
    for task, scores in results["results"].items():
        items = results.get("n-samples", {}).get(task, {}).get("effective")
        for key, value in scores.items():
            metric, comma, kind = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = scores.get(f"{metric}_stderr,{kind}")
            error = round(error, 6) if isinstance(error, int | float) else None
            found[f"lm_eval/{task}/{metric}"] = {"score": round(value, 6), "standard_error": error, "items": items or 0}
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
        raise ValueError(f"{value!r} is not a place in a list")
    return int(value)


def _made(prompt: str, options: list[str], right: int) -> Question:
    if not isinstance(prompt, str):
        raise TypeError("a prompt is text")
    options = [option if option[:1].isspace() else f" {option}" for option in options]
    if len(options) < 2 or not 0 <= right < len(options) or not all(option.strip() for option in options):
        raise ValueError("an item has at least two options, and one of them is right")
    return Question(prompt, tuple(options), right)


def _manager(path: str | None) -> Any:
    try:
        from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError("evaluate.lm_eval needs the package lm-eval: pip install 'hornbook[eval]'") from None
    if path is not None and not Path(path).is_dir():
        raise UserError(f"evaluate.lm_eval_path is '{path}', which is not a folder; expected one with tasks in YAML")
    return TaskManager(include_path=path, include_defaults=path is None)
