"""What each stage up to pretraining is: its step, what it reads, and whether it is done. Imports no torch.

In: a config. Out: the `Step` whose fingerprint names a stage's folder, and the answers that `where`, `--dry-run`,
`clean`, reports and studies need before anything heavy is loaded. Nothing is made, trained or fetched here. A source
experiment is a config of its own, with a data, init and pretrain stage of its own: `init_step` of the one needs
`pretrain_step` of the other, so the three are defined together.
"""

import contextlib
import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline import config as configs
from pipeline.config import BudgetConfig, Config
from pipeline.corpus.steps import data_step
from pipeline.storage.experiment import Experiment
from pipeline.storage.hub import check_model, content_of_model
from pipeline.storage.pins import recorded
from pipeline.storage.run_files import (
    CHECKPOINTS,
    DECISIONS,
    INDEX,
    REPORTS,
    WEIGHTS,
    checkpoint_name,
    finished_manifest,
    index_in,
)
from pipeline.storage.steps import Step, read_manifest
from pipeline.system.errors import UserError
from pipeline.training.decisions import Decisions
from pipeline.training.mixing import source_weights

__all__ = ["data_step", "init_step", "pretrain_step"]

INIT_VERSION = 2  # raised when the same config, data and source give other weights
PRETRAIN_VERSION = 2  # raised when the same config, data and init train differently


def init_step(config: Config) -> Step:
    """The init stage as a cached step; imports no torch. Raises `UserError` where its source is not trained yet."""
    source = config.init.source
    inputs: dict[str, Step | str] = {"data": data_step(config)}
    if source is not None:
        inputs["source"] = _source_content(config)
    return Step(
        "init",
        INIT_VERSION,
        init_identity(config),
        inputs,
        ("torch", "safetensors"),
        reports=(*Step.reports, "README.md"),
    )


def init_identity(config: Config) -> dict[str, Any]:
    """What of the config decides the init stage's output, its inputs aside."""
    return {
        "model": config.model.identity(),
        "init": {k: v for k, v in configs.identity(config.init).items() if k != "source"},
        "seed": config.seed,
        "sequence_length": config.train.sequence_length,
    }


def pretrain_step(config: Config) -> Step:
    """The pretraining of a config. Raises `UserError` where its init cannot be known yet (an untrained source)."""
    return Step(
        "pretrain",
        PRETRAIN_VERSION,
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


def input_steps(config: Config) -> dict[str, Step | str]:
    """What pretraining reads: the token shards and the network it starts from."""
    init = init_step(config)
    return {"data": init.inputs["data"], "init": init}


def weights_in_fingerprint(config: Config) -> dict[str, Any]:
    """Sources' weights where they decide the mix and are not 1; the data stage knows nothing of them."""
    weights = source_weights(config)
    return {"weights": weights} if weights and config.train.mix is None else {}


def _apart(budget: BudgetConfig) -> dict[str, Any]:
    """A run that stands apart has its limits in its fingerprint, so that a raised limit is another run."""
    if not budget.apart:
        return {}
    return {"apart": budget.apart, "limits": [budget.max_gpu_hours, budget.max_tokens]}


def source_is_experiment(config: Config) -> bool:
    return config.init.source is not None and config.init.source.endswith((".yaml", ".yml"))


def source_config(config: Config) -> Config:
    """The source experiment: its own file, with data, tokenizer and seed of the experiment that asks for it.

    It has the hours that its config states. Another experiment may train the same shape for longer, and a run can be
    extended; neither changes what this one grows from. Raises `UserError`.
    """
    path = Path(config.init.source or "")
    values = configs.merge(configs.read_with_base(path), config.init.source_overrides)
    configs.resolve_source_path(values, path)
    if (values.get("init") or {}).get("source") == config.init.source:
        raise UserError(f"{path}: init.source names the file itself; name a smaller experiment, or set it to null")
    asker = configs.to_values(config)
    for key in ("data", "tokenizer", "seed"):
        values[key] = asker[key]
    return at_stated_budget(recorded(configs.from_values(values, where=str(path))))


def check_source(config: Config) -> None:
    """What the model is to grow from is there and can be read, as far as that is known without training or fetching.
    Raises `UserError`."""
    if source_is_experiment(config):
        check_source(source_config(config))
    elif config.init.source is not None:
        check_model(config.init.source, "init.source")


def at_stated_budget(source: Config) -> Config:
    """A source experiment held to the budget that its config states, whatever else was trained with its shape.

    Returns the run that was trained by hand where it ended at that budget; else one with a folder of its own.
    """
    if source.budget.apart:
        return source
    apart = replace(source, budget=replace(source.budget, apart="source"))
    with contextlib.suppress(UserError):  # the source of the source may be untrained, so that no folder is known
        by_hand = pretrain_step(source)
        held = replace(by_hand, config=pretrain_identity(apart))  # the same inputs, whose hashes take their time
        if _ended_at(by_hand, source.budget) and not held.finished:
            return source
    return apart


def _ended_at(step: Step, budget: BudgetConfig) -> bool:
    """Whether a finished run ended at this very budget, neither below nor above it."""
    manifest = finished_manifest(step, budget)
    if manifest is None or manifest["stopped_by"] == "validation":
        return manifest is not None
    limit = "max_tokens" if manifest["stopped_by"] == "tokens" else "max_gpu_hours"
    return manifest[limit] == getattr(budget, limit)


def is_trained(config: Config) -> bool:
    """Whether nothing is left to do for this experiment's pretraining, its own sources included."""
    if source_is_experiment(config) and not is_trained(source_config(config)):
        return False
    return finished_manifest(pretrain_step(config), config.budget) is not None


def untrained_source(config: Config) -> UserError:
    """The error for a source experiment that nothing allows to train: its price and the commands."""
    source = source_config(config)
    path = Experiment(source).folder / "config.yaml"
    return UserError(
        f"the source experiment '{source.name}' ({config.init.source}) is not trained yet; it costs {price(source)}. "
        f"Run: hornbook init {path} && hornbook pretrain {path}, or set init.train_source=true"
    )


def price(source: Config) -> str:
    if source.budget.max_gpu_hours:
        return f"at most {source.budget.max_gpu_hours:g} GPU-hours"
    return f"{source.budget.max_tokens:,} tokens" if source.budget.max_tokens else "an unlimited budget"


def _source_content(config: Config) -> str:
    """What the fingerprint holds of the source: the content of its weights, not its name or its hours."""
    if not source_is_experiment(config):
        return content_of_model(config.init.source or "", "init.source")
    source = source_config(config)
    step = pretrain_step(source)
    if not step.finished:
        raise UserError(
            f"the source experiment {config.init.source} is not trained yet (it costs {price(source)}), so this "
            "stage's folder is not known; run init first"
        )
    if config.init.source_checkpoint == "before_decay":
        return before_decay(step).sha256
    return read_manifest(step.path)["content_hash"]


@dataclasses.dataclass(frozen=True)
class EarlyCheckpoint:
    """The checkpoint of a pretraining from just before its decay; `sha256` of its weights, as its own index says."""

    folder: Path
    step: int
    sha256: str


def before_decay(step: Step) -> EarlyCheckpoint:
    """The checkpoint that a finished pretraining kept from before its decay. Raises `UserError` where it is gone."""
    decays = Decisions(step.path / DECISIONS, read_only=True).decays()
    missing = "never came to its decay" if not decays else f"lacks its checkpoint of step {decays[0]['step']}"
    if decays:
        folder = step.path / CHECKPOINTS / checkpoint_name(decays[0]["step"])
        if (folder / WEIGHTS).is_file() and (folder / INDEX).is_file():
            index = index_in((folder / INDEX).read_bytes())
            if index is not None:
                return EarlyCheckpoint(folder, decays[0]["step"], index["files"][WEIGHTS]["sha256"])
            missing = f"has a damaged checkpoint of step {decays[0]['step']}"
    raise UserError(f"the source {step.path} {missing}; set init.source_checkpoint=final, or train it again")
