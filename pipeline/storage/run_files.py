"""The files of a pretraining's folder by name, and what a finished run or a whole checkpoint says of itself."""

import contextlib
import json
import re
from pathlib import Path
from typing import Any

from pipeline.config import BudgetConfig
from pipeline.storage.files import hash_json, root
from pipeline.storage.steps import Step, read_manifest

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


def trunk_folder(branch_of: str) -> Path:
    """The folder of the pretraining that `budget.branch_of` names."""
    return root() / "artifacts" / "pretrain" / branch_of.partition("@")[0]


def index_in(content: bytes | None) -> dict[str, Any] | None:
    """A checkpoint's index that fits its own hash, or None."""
    with contextlib.suppress(ValueError, RecursionError, KeyError, TypeError, AttributeError):
        index = json.loads(content or b"null")
        if hash_json({k: v for k, v in index.items() if k != "sha256"}) == index["sha256"]:
            return index
    return None


def finished_manifest(step: Step, budget: BudgetConfig) -> dict[str, Any] | None:
    """The manifest of a finished run whose limits this budget does not raise; else None (there is work to do)."""
    if not step.finished:
        return None
    manifest = read_manifest(step.path)
    if manifest["stopped_by"] == "validation":  # more of the same text would not help
        return manifest
    limit = "max_tokens" if manifest["stopped_by"] == "tokens" else "max_gpu_hours"
    return None if raised(getattr(budget, limit), manifest[limit]) else manifest


def raised(new: float | None, old: float | None) -> bool:
    """Whether a limit (None: there is none) was raised."""
    return old is not None and (new is None or new > old)
