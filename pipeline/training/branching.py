"""Branches: annealed models for several budgets out of one trunk, each at the cost of its decay.

The stable phase of warmup-stable-decay does not depend on the end (Hu et al. 2024, arXiv 2404.06395, section 4), so
the trunk's state at the place where a shorter run's decay would start is that run's state. In: a config and a
budget. Out: an experiment `<name>/branch-<budget>` whose pretraining resumes from the newest checkpoint of the
trunk's stable phase from which the decay fits; the trunk's seconds up to there count towards its cap. The trunk may be
running, finished or stopped; nothing of it is changed. `budget.branches` makes the trunk keep the checkpoints.
"""

import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import config as configs
from pipeline.config import Config
from pipeline.storage.run_files import trunk_folder
from pipeline.system.errors import UserError
from pipeline.training.budget import planned_decay_start
from pipeline.training.cap import Cap
from pipeline.training.decisions import Decisions
from pipeline.training.mixing import StepSizes

if TYPE_CHECKING:
    from pipeline.training.checkpoint import Checkpoints

_BUDGET = re.compile(r"(\d+(?:\.\d+)?)(h|m|s|K|M|B)")
_HOURS, _TOKENS = {"h": 1.0, "m": 1 / 60, "s": 1 / 3600}, {"K": 1e3, "M": 1e6, "B": 1e9}


def branch(config: Config, budget: str, trunk_fingerprint: Callable[[], str]) -> Config:
    """The experiment that anneals the trunk of `config`, a pretraining of that fingerprint, at `budget`: `6h`, `90m`,
    `45s`, or `500M` tokens. Raises `UserError` for another form, before it asks for the fingerprint."""
    max_gpu_hours, max_tokens = _limits(budget, "--branch")
    limits = dataclasses.replace(
        config.budget,
        max_gpu_hours=max_gpu_hours,
        max_tokens=max_tokens,
        branches=[],
        branch_of=f"{trunk_fingerprint()}@{budget}",
    )
    branched = dataclasses.replace(config, name=f"{config.name}/branch-{budget}", budget=limits)
    configs.validate(branched, "--branch")
    return branched


def planned(config: Config) -> dict[str, tuple[float | None, int | None]]:
    """`budget.branches` for the plan of a run: its name -> GPU-hours, or the step where its decay starts."""
    limits = {name: _limits(str(name), "budget.branches") for name in config.budget.branches}
    return {
        name: (hours, None) if hours is not None else (None, _decay_start(config, tokens or 0))
        for name, (hours, tokens) in limits.items()
    }


def _limits(budget: str, key: str) -> tuple[float | None, int | None]:
    """GPU-hours or tokens."""
    found = _BUDGET.fullmatch(budget)
    if found is None or float(found[1]) == 0:
        raise UserError(f"{key}: '{budget}' is no budget; expected time (6h, 90m, 45s) or tokens (500M, 2B)")
    number, unit = float(found[1]), found[2]
    return (number * _HOURS[unit], None) if unit in _HOURS else (None, round(number * _TOKENS[unit]))


def _decay_start(config: Config, tokens: int) -> int:
    steps = StepSizes(config.train).whole_steps(tokens // config.train.sequence_length)
    return planned_decay_start(max(1, steps), config.train.decay_share)


def begin(config: Config, cap: Cap, folder: Path, decisions: Decisions) -> float:
    """Puts the trunk's checkpoint and its rows of metrics into a branch's empty folder; once. Returns the device-
    seconds that the trunk had spent by then, 0 for a run that is no branch. Raises `UserError` where the trunk has no
    checkpoint that this budget can start from."""
    from pipeline.training.checkpoint import Checkpoints
    from pipeline.training.tracking import cut_metrics

    if config.budget.branch_of is None:
        return 0.0
    if not decisions.of_kind("branch"):
        source = trunk_folder(config.budget.branch_of)
        trunk = Checkpoints(source / "checkpoints", 0, Decisions(source / "decisions.jsonl", read_only=True))
        own = Checkpoints(folder / "checkpoints", config.train.keep_checkpoints, decisions)
        step = _adopt(config, cap, trunk, own)
        shutil.copyfile(source / "metrics.jsonl", folder / "metrics.jsonl")
        cut_metrics(folder / "metrics.jsonl", step)
        spent = own.spent_seconds(step)
        decisions.add("branch", step, trunk=source.name, inherited_seconds=spent)
        print(f"  branches off its trunk {source.name} at step {step:,}", flush=True)
    return decisions.of_kind("branch")[0]["inherited_seconds"]


def facts(decisions: Decisions) -> dict[str, Any]:
    """The lineage of a branch for its manifest; nothing for another run."""
    records = decisions.of_kind("branch")
    if not records:
        return {}
    trunk, step, seconds = (records[0][key] for key in ("trunk", "step", "inherited_seconds"))
    return {"trunk": {"fingerprint": trunk, "steps": step, "gpu_hours": seconds / 3600}}


def _adopt(config: Config, cap: Cap, trunk: "Checkpoints", own: "Checkpoints") -> int:
    """Takes the trunk's checkpoint over; its step."""
    while True:
        step = _start(config, cap, trunk)
        try:
            own.adopt(trunk.path(step))
            return step
        except FileNotFoundError:  # the trunk is running and has just pruned it
            if trunk.path(step).exists():
                raise


def _start(config: Config, cap: Cap, trunk: "Checkpoints") -> int:
    """The newest step of the trunk's stable phase from which the decay fits into the branch's budget."""
    decays, spent = trunk.decisions.decays(), {step: trunk.spent_seconds(step) for step in trunk.steps()}
    stable = {s: seconds for s, seconds in spent.items() if seconds and not (decays and s > decays[0]["step"])}
    if not stable:
        raise UserError(
            f"{trunk.folder.parent} has no checkpoint to branch from; run `hornbook pretrain` without --branch first"
        )
    if cap.own_seconds is not None:
        longest = cap.own_seconds * (1 - config.train.decay_share / 2)
        fits = [s for s, seconds in stable.items() if seconds <= longest]
        kept = ", ".join(f"{seconds / 3600:.4g} GPU-hours" for seconds in stable.values())
    else:
        last = _decay_start(config, config.budget.max_tokens or 0)
        fits = [s for s in stable if s <= last]
        kept = ", ".join(f"{StepSizes(config.train).tokens(s):,} tokens" for s in stable)
    if not fits:
        raise UserError(
            f"the trunk's checkpoints are too late for this branch: it has those at {kept}{cap.source_note}. "
            "Name a larger budget; a trunk keeps the checkpoints for the branches that `budget.branches=[6h, 500M]` "
            "names beforehand"
        )
    return max(fits)
