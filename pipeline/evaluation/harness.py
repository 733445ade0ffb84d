"""lm-eval on a model's folder: the standard tasks, by the harness that everybody compares with.

In: the folder, names of tasks, a folder of tasks in YAML (offline) or lm-eval's own (their data comes from the hub).
Out: scores with lm-eval's own standard errors. No code of the model folder is run: it is loaded as Phi.
"""

from pathlib import Path
from typing import Any

from pipeline.config import nearest
from pipeline.system.errors import UserError


def check_harness(tasks: list[str], path: str | None) -> None:
    """Raises `UserError` where lm-eval is not installed, its folder of tasks not there, or a task unknown."""
    manager, known = _manager(path), []
    known = manager.all_tasks
    for name in tasks:
        if name not in known:
            raise UserError(
                f"evaluate.lm_eval has '{name}'{nearest(name, known)}; expected a task of lm-eval"
                + (f" in {path}: {', '.join(known) or 'none'}" if path else "")
            )


def run_harness(
    folder: Path, context_tokens: int, tasks: list[str], path: str | None, limit: int
) -> dict[str, dict[str, Any]]:
    """`{"lm_eval/<task>/<metric>": {score, standard_error, items}}` on at most `limit` items of each task."""
    import lm_eval  # pyright: ignore[reportMissingImports]

    arguments = {"pretrained": str(folder), "trust_remote_code": False, "dtype": "float32", "device": _device()}
    arguments["max_length"] = context_tokens
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


def _manager(path: str | None) -> Any:
    try:
        from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError("evaluate.lm_eval needs the package lm-eval: pip install 'hornbook[eval]'") from None
    if path is not None and not Path(path).is_dir():
        raise UserError(f"evaluate.lm_eval_path is '{path}', which is no folder; expected one with tasks in YAML")
    return TaskManager(include_path=path, include_defaults=path is None)


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
