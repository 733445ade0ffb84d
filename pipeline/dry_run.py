"""`--dry-run`: what a verb would run, what is done already, what it would cost. Nothing is computed or fetched."""

from typing import Any

from pipeline import config as configs
from pipeline.config import PRETRAINING, Config
from pipeline.pages import html
from pipeline.run_stage import module_of, step_of
from pipeline.stages import check_source
from pipeline.storage.hub import is_hub_name, known_shape
from pipeline.storage.run_files import finished_manifest
from pipeline.storage.steps import Step
from pipeline.system.errors import UserError


def describe(config: Config, stage: str, command: str = "<config>") -> dict[str, Any]:
    """Facts of one config and the state of every stage up to `stage`, as plain JSON values. A stage after pretraining
    that takes another model needs none of this experiment's stages."""
    tensors: list[str] = []
    _check_model(config, stage, command)
    if stage not in PRETRAINING:
        module_of(stage).check_options(config)
    if stage in ("init", "pretrain"):
        from pipeline.init import tensor_map

        tensors = tensor_map(config)  # raises for a growth that is impossible
    model, train, budget = config.model, config.train, config.budget
    if stage in PRETRAINING:
        needed: tuple[str, ...] = PRETRAINING[: PRETRAINING.index(stage) + 1]
    else:
        needed = (stage,) if getattr(config, stage).model else (*PRETRAINING, stage)
    budget = config.finetune.budget if stage == "finetune" else budget
    hours, price = budget.max_gpu_hours, budget.gpu_hour_price
    return {
        "name": config.name,
        "stage": stage,
        "parameters": model.parameters,
        "non_embedding_parameters": model.non_embedding_parameters,
        "flops_per_token": model.flops_per_token(train.sequence_length),
        "tokens_per_step": train.global_batch_tokens,
        "tokens_of_first_step": train.batch_start_tokens or train.global_batch_tokens,
        "sequence_length": train.sequence_length,
        "max_gpu_hours": hours,
        "max_tokens": budget.max_tokens,
        "cost": hours * price if hours and price else None,
        "source": config.init.source,
        "stages": [_state(config, name, command) for name in needed],
        "tensors": tensors if stage == "init" else [],
    }


def _check_model(config: Config, stage: str, command: str) -> None:
    """The model that the stage starts from, as far as it is here. Raises `UserError` where the stage refuses it."""
    wanted = None if stage in PRETRAINING else getattr(config, stage).model
    if wanted is None:
        check_source(config)
    elif wanted.endswith((".yaml", ".yml")):
        configs.load(wanted)
    elif not is_hub_name(wanted):
        from pipeline.evaluation.model_input import check_model, find_model

        check_model(find_model(stage, config, command), stage)
    else:
        known_shape(wanted, f"{stage}.model")


def _state(config: Config, stage: str, command: str) -> dict[str, Any]:
    wanted = None if stage in PRETRAINING else getattr(config, stage).model
    if wanted and is_hub_name(wanted):
        why = f"{stage}.model is '{wanted}', which is fetched when the stage runs"
        return {"stage": stage, "folder": None, "done": False, "steps": [], "why": why}
    try:
        step = step_of(config, stage, command)
    except UserError as reason:
        if stage == "data":  # what is wrong here is wrong, not yet to do
            raise
        return {"stage": stage, "folder": None, "done": False, "steps": [], "why": str(reason)}
    own = step.chain() if stage == "data" else [step]
    done = step.finished
    if stage in ("pretrain", "finetune"):
        budget = config.budget if stage == "pretrain" else config.finetune.budget
        done = finished_manifest(step, budget) is not None  # a raised cap reopens a finished run
    steps = [{"step": _name(s), "fingerprint": s.fingerprint, "done": s.finished} for s in own]
    return {"stage": stage, "folder": str(step.path), "done": done, "steps": steps, "why": None}


def _name(step: Step) -> str:
    return f"{step.name} {step.config['source']}" if "source" in step.config else step.name


def show(facts: dict[str, Any]) -> str:
    """For a person: sizes, what each stage would do, what is missing."""
    return html.render("dry_run.txt", facts=facts).rstrip("\n")
