"""What a pretraining is: its step, its folder, and whether a raised cap reopens it. Imports no torch.

In: a config. Out: the `Step` whose fingerprint names the folder, and answers that `where`, `--dry-run` and the start
of `run` need before anything heavy is loaded.
"""

import contextlib
import re
from dataclasses import replace
from typing import Any

from pipeline import config as configs
from pipeline.config import BudgetConfig, Config
from pipeline.storage.steps import Folder, Step, read_manifest
from pipeline.system.errors import UserError
from pipeline.training.decisions import Decisions
from pipeline.training.mixing import source_weights

VERSION = 2  # raised when the same config, data and init train differently

CHECKPOINTS, DECISIONS, METRICS = "checkpoints", "decisions.jsonl", "metrics.jsonl"
WEIGHTS, TRAINER, INDEX = "model.safetensors", "trainer.pt", "checkpoint.json"  # files of a checkpoint

# content_hash is over model/ alone: checkpoints, metrics and decisions carry the times of one machine.
REPORTS = ("report.html", "*.report.json", "model/README.md")


def checkpoint_name(step: int) -> str:
    """The folder, under `checkpoints/`, of the state after `step` steps."""
    return f"step-{step:08d}"


def checkpoint_step(name: str) -> int | None:
    """The other way round; None for a folder that is no whole checkpoint."""
    match = re.fullmatch(r"step-(\d{8})", name)
    return int(match[1]) if match else None


def pretrain_step(config: Config) -> Step:
    """The pretraining of a config. Raises `UserError` where its init cannot be known yet (an untrained source)."""
    return Step(
        "pretrain",
        VERSION,
        _run_instead,
        config=pretrain_identity(config),
        inputs=input_steps(config),
        libraries=("torch", "lightning"),
        reports=REPORTS,
    )


def pretrain_identity(config: Config) -> dict[str, Any]:
    """What of the config decides a pretraining, its inputs and limits aside."""
    return {
        "train": configs.identity(config.train),
        "seed": config.seed,
        **weights_in_fingerprint(config),
        **({"branch_of": config.budget.branch_of} if config.budget.branch_of else {}),
        **_apart(config.budget),
    }


def _apart(budget: BudgetConfig) -> dict[str, Any]:
    """A run that stands apart has its limits in its fingerprint, so that a raised limit is another run."""
    if not budget.apart:
        return {}
    return {"apart": budget.apart, "limits": [budget.max_gpu_hours, budget.max_tokens]}


def weights_in_fingerprint(config: Config) -> dict[str, Any]:
    """Sources' weights where they decide the mix and are not 1; the data stage knows nothing of them."""
    weights = source_weights(config)
    return {"weights": weights} if weights and config.train.mix is None else {}


def input_steps(config: Config) -> dict[str, Step | str]:
    """What pretraining reads: the token shards and the network it starts from."""
    from pipeline.init import init_step

    init = init_step(config)
    return {"data": init.inputs["data"], "init": init}


def _run_instead(folder: Folder) -> dict[str, Any]:
    raise TypeError("pretraining has a cap and many lives, which `build` knows nothing of: call pipeline.pretrain.run")


def finished_manifest(step: Step, budget: BudgetConfig) -> dict[str, Any] | None:
    """The manifest of a finished run whose limits this budget does not raise; else None (there is work to do)."""
    if not step.finished:
        return None
    manifest = read_manifest(step.path)
    if manifest["stopped_by"] == "validation":  # more of the same text would not help
        return manifest
    limit = "max_tokens" if manifest["stopped_by"] == "tokens" else "max_gpu_hours"
    return None if _larger(getattr(budget, limit), manifest[limit]) else manifest


def at_stated_budget(source: Config) -> Config:
    """A source experiment held to the budget that its config states, whatever else was trained with its shape.

    Returns the run that was trained by hand where it ended at that budget; else one with a folder of its own.
    """
    if source.budget.apart:
        return source
    apart = replace(source, budget=replace(source.budget, apart="source"))
    with contextlib.suppress(UserError):  # the source of the source may be untrained, so that no folder is known
        if _ended_at(pretrain_step(source), source.budget) and not pretrain_step(apart).finished:
            return source
    return apart


def _ended_at(step: Step, budget: BudgetConfig) -> bool:
    """Whether a finished run ended at this very budget, neither below nor above it."""
    manifest = finished_manifest(step, budget)
    if manifest is None or manifest["stopped_by"] == "validation":
        return manifest is not None
    limit = "max_tokens" if manifest["stopped_by"] == "tokens" else "max_gpu_hours"
    return manifest[limit] == getattr(budget, limit)


def raised_decay(decisions: Decisions, budget: BudgetConfig) -> dict[str, Any] | None:
    """The first record of a decay that was planned for a smaller limit than this budget's, or None."""
    decays = decisions.decays()
    if not decays:
        return None
    if decays[-1]["bound_by"] == "validation":
        return None
    limit = "max_tokens" if decays[-1]["bound_by"] == "tokens" else "max_gpu_hours"
    return decays[0] if _larger(getattr(budget, limit), decays[-1][limit]) else None


def _larger(new: float | None, old: float | None) -> bool:
    return old is not None and (new is None or new > old)
