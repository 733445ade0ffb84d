"""The evaluate stage: how good a model is, on held-out text and on tasks, each score with its standard error.

In: a model (this experiment's, another's, any model folder) and this experiment's held-out text. Out: `scores.json`.
Tasks are in pipeline/evaluation/tasks.py; `evaluate.lm_eval` names tasks of lm-eval, which reads the model's folder.
"""

from typing import Any

from pipeline import config as configs
from pipeline import stages
from pipeline.config import Config
from pipeline.corpus.text.intervals import over_documents
from pipeline.corpus.text.shards import TokenShards
from pipeline.evaluation.benchmarks import check_harness, check_sets, run_harness, score_sets, set_file
from pipeline.evaluation.language_model import HeldOutText, load_model
from pipeline.evaluation.model_input import ModelInput, find_model, run_step
from pipeline.evaluation.tasks import check_tasks, run_tasks
from pipeline.storage.files import hash_files, write_json
from pipeline.storage.steps import Folder, Step
from pipeline.storage.store import Command

VERSION = 3


def run(config: Config, step: Step, command: Command) -> None:
    """Scores the model and prints a table. Raises `UserError` for an unknown task or a model that cannot be read."""
    run_step(config, step, _make, _score_lines, command, device=config.train.device)


def check_options(config: Config) -> None:
    """Raises `UserError` for tasks and sets that cannot be scored with any model."""
    check_tasks(config.evaluate.tasks, "evaluate.tasks")
    check_sets(config.evaluate.sets, config.data.max_unreadable)
    if config.evaluate.lm_eval:
        check_harness(config.evaluate.lm_eval, config.evaluate.lm_eval_path)


def evaluate_step(config: Config, command: str) -> Step:
    """The evaluation as a cached step."""
    model = find_model("evaluate", config, command)
    files = {name: set_file(name, file) for name, file in config.evaluate.sets.items()}
    sets = {f"set {name}": hash_files([file], file.parent) for name, file in files.items()}
    return Step(
        "evaluate",
        VERSION,
        {"evaluate": {k: v for k, v in configs.identity(config.evaluate).items() if k != "sets"}, "seed": config.seed},
        {"model": model.content, "data": stages.data_step(config), **sets},
        ("torch", *(["lm-eval", "transformers"] if config.evaluate.lm_eval else [])),
    )


def _make(config: Config, model: ModelInput, folder: Folder) -> dict[str, Any]:
    options = config.evaluate
    text = HeldOutText(TokenShards.open(folder.input("data")))
    loaded = load_model(config, model)
    scores = run_tasks(options.tasks, loaded, text, options.items, config.seed)
    scores |= score_sets(options.sets, loaded, options.items, config.seed)
    if options.lm_eval:
        scores |= run_harness(model.folder, model.context_tokens, options.lm_eval, options.lm_eval_path, options.items)
    write_json(folder.path / "scores.json", scores)
    return {"scores": scores}


def _score_lines(manifest: dict[str, Any]) -> str:
    """For a person: score, standard error, items, and the score of guessing where there is one."""
    scores = manifest["scores"]
    width = max(map(len, scores), default=0)
    lines = []
    for name, found in scores.items():
        if found["score"] is None:
            lines.append(f"  {name:<{width}}  not measured: {found['why']}")
            continue
        guess = f"   guessing {found['chance']:.4f}" if found.get("chance") else ""
        error = found["standard_error"]
        shown = f"± {error:.4f}" if error is not None else ""
        counted = over_documents(found) or f"{found['items']:>6,} items{guess}"
        lines.append(f"  {name:<{width}}  {found['score']:8.4f} {shown:<9} {counted}")
    return "\n".join(lines)
