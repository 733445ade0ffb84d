"""Running a stage: what it needs is resolved first, then its recipe runs. The layer between the command and the stages.

In: the name of a stage, a config, what the user typed. Data that is missing is an error with the command that makes it.
A source experiment that is not trained is trained first where `init.train_source` allows it, each of its stages as a
process with its own folder, lock and ledger. Folders at HORNBOOK_REMOTE are taken from there.
`describe` is `--dry-run`: what would run, what is done, what it would cost; it computes and fetches nothing.
"""

import contextlib
import importlib
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline import config as configs
from pipeline import stages
from pipeline.config import PRETRAINING, BudgetConfig, Config
from pipeline.config.schema import AFTER
from pipeline.pages import html
from pipeline.stages import check_source, is_trained, pretrain_step, source_config, source_is_experiment
from pipeline.storage import pins
from pipeline.storage.experiment import Experiment
from pipeline.storage.hub import is_hub_name, known_shape
from pipeline.storage.locks import FolderLock
from pipeline.storage.run_files import finished_manifest, trunk_folder
from pipeline.storage.steps import Step, read_manifest
from pipeline.storage.store import HERE, Command, Store
from pipeline.system import signals
from pipeline.system.errors import STOPPED, WRONG_INPUT, Failure, Stopped, UserError
from pipeline.system.processes import start as start_child

NEED_DATA = ("init", "evaluate", "quantize")


def run_stage(stage: str, config: Config, words: str, *, replay: str | None = None, as_json: bool = False) -> None:
    """Runs one stage of a config. `words`: what the user typed after the verb. Raises what the stage raises."""
    from pipeline.growing.grow import check_method
    from pipeline.remote.store import connect
    from pipeline.reporting import page

    store, experiment, module = connect(), Experiment(config), module_of(stage)
    config = pin(config, stage, store)
    command = Command(words, store, page.write, as_json, replay)
    if stage == "init":
        check_method(config)
    elif stage in ("evaluate", "export", "quantize"):
        module.check_options(config)  # a mistake in the config, before anything that is missing
    with store.copied(lambda: store.limit_seconds(None)):
        if stage in ("data", "init"):
            check_source(config)  # before hours of work whose result nothing could use
        if stage in NEED_DATA:
            require_data(config, command)
        if stage == "init":
            command = replace(command, waited_seconds=_ensure_source(config, command))
        if stage == "pretrain":
            step = _resolve_pretrain(config, command)
            command = replace(command, progress_tasks=_progress_tasks(config))
        else:
            step = step_of(config, stage, words)
        store.follow(experiment.folder / "config.yaml", pins.record_path(config), experiment.ledger_path)
        module.run(config, step, command)


def pin(config: Config, stage: str, store: Store = HERE) -> Config:
    """The config with a commit in place of every name of the hub. `data` asks the hub anew unless its result for the
    commits on record is unfinished, every other stage for the model of its own alone. Raises `UserError`."""
    if not pins.hub_names(config):
        return config
    path = pins.record_path(config)
    store.fetch_file(path)
    if stage == "data" and not _is_begun(pins.recorded(config)):
        pins.resolve([config], path, lambda key: key.partition(".")[0] not in AFTER)
    else:
        pins.resolve([config], path, lambda key: key == f"{stage}.model")
    return pins.recorded(config)


def _is_begun(config: Config) -> bool:
    """Whether text of the hub was read at the commits on record, and its data stage is not finished."""
    names = pins.hub_names(config)
    if not all(name.pinned for name in names if name.key.startswith("data.")):
        return False
    step = stages.data_step(config)
    reads = [s for s in step.chain() if s.name == "data-read" and s.config["type"] == "huggingface"]
    return not step.finished and any(s.path.is_dir() for s in reads)


def module_of(stage: str) -> ModuleType:
    """The recipe of a stage, loaded when it is needed: some load torch. Each has `run(config, step, command)`; those
    after pretraining also `check_options(config)` and `<stage>_step(config, words)`."""
    return importlib.import_module(f"pipeline.{stage}")


def step_of(config: Config, stage: str, words: str = "<config>") -> Step:
    """The step of a stage. Raises `UserError` where its folder cannot be known yet (an untrained source or model)."""
    if stage == "data":
        return stages.data_step(config)
    if stage == "init":
        return stages.init_step(config)
    if stage == "pretrain":
        return stages.pretrain_step(config)
    return getattr(module_of(stage), f"{stage}_step")(config, words)


def require_data(config: Config, command: Command) -> Step:
    """The finished data step. Raises `UserError` with the command that makes it."""
    step = stages.data_step(config)
    if not command.store.fetch(step):
        raise UserError(f"the data of this config is not made yet; run: hornbook data {command.words}")
    command.store.push(step.path)
    return step


def fetch_source(config: Config, store: Store) -> None:
    """Takes trained source experiments from the store, where they are there and not here."""
    if source_is_experiment(config) and store.name is not None:
        source = source_config(config)
        fetch_source(source, store)
        with contextlib.suppress(UserError):  # its own source is nowhere: the error comes where it is needed
            store.fetch_trained(pretrain_step(source), config.init.source_checkpoint == "before_decay")


def _resolve_pretrain(config: Config, command: Command) -> Step:
    """The step of a pretraining whose inputs are here. Raises `UserError` for what would end it later, and `Busy`
    where another machine trains it."""
    from pipeline.planner.costs import validation_cost, validation_tokens

    store = command.store
    fetch_source(config, store)
    signals.defer(True)  # until the ledger is open: a process that is stopped before would not count
    step = pretrain_step(config)
    if finished_manifest(step, config.budget) is None:
        signals.defer(store.name is None)  # a download may take long
        store.fetch_run(step, config)
        signals.defer(True)
    if finished_manifest(step, config.budget) is not None:
        store.copy_finished(step, config)
        return step
    for name in ("data", "init"):
        needed = step.input(name)
        if not store.fetch(needed):
            raise UserError(f"{needed.path} is not made yet; run: hornbook {name} {command.words}")
        store.push(needed.path)  # another machine can resume only with all of the inputs
    configs.check_end(config.train, config.budget)
    if config.budget.branch_of:
        store.fetch_trunk(trunk_folder(config.budget.branch_of))
    # In hours the cost is checked by the first pieces of the first validation.
    cost, warning = validation_cost(config, validation_tokens(read_manifest(step.input("data").path)))
    print(f"  WARNING: {warning}" if warning else f"  {cost}", flush=True)
    if config.evaluate.every_tokens:
        from pipeline.evaluation.benchmarks import check_sets
        from pipeline.evaluation.tasks import check_tasks

        check_tasks(config.evaluate.during, "evaluate.during")
        check_sets(config.evaluate.sets, config.data.max_unreadable)
    return step


def _progress_tasks(config: Config) -> Callable[..., Any] | None:
    """What makes the tasks of a training under way; None where the config asks for none."""
    if not config.evaluate.every_tokens:
        return None

    def make(*arguments: Any) -> Any:
        from pipeline.evaluation.during_training import ProgressTasks  # loads torch

        return ProgressTasks(*arguments)

    return make


def _ensure_source(config: Config, command: Command) -> float:
    """Trains the source experiment where that is allowed and needed. Returns the seconds that took: the source's own
    ledger has them."""
    fetch_source(config, command.store)
    started = time.monotonic()
    if not source_is_experiment(config) or is_trained(source := source_config(config)):
        return 0.0
    if not config.init.train_source:
        raise stages.untrained_source(config)
    experiment = Experiment(source)
    experiment.folder.mkdir(parents=True, exist_ok=True)
    with FolderLock(experiment.folder, wait=True):  # another experiment may want the same source at the same time
        if not is_trained(source):
            experiment.record()
            print(f"source '{source.name}' is not trained yet: training it first, {stages.price(source)}", flush=True)
            _train_source(source, experiment.folder / "config.yaml")
    return time.monotonic() - started


def _train_source(source: Config, path: Path) -> None:
    for verb in ("init", "pretrain"):
        _run_child(verb, path, f"runs/{source.name}/config.yaml")
        if verb == "init":  # a pretraining that a killed parent left behind is ending: wait for it, never beside it
            folder = pretrain_step(source).path
            folder.mkdir(parents=True, exist_ok=True)
            with FolderLock(folder, wait=True):
                pass


def _run_child(verb: str, path: Path, source_command: str) -> None:
    """One stage of the source as its own process, with its own folder, lock and ledger."""
    child = start_child([sys.executable, "-P", "-m", "pipeline", verb, str(path)])
    try:
        code = child.wait()
    except BaseException:
        child.terminate()
        child.wait()
        raise
    if code == STOPPED:
        raise Stopped("SIGTERM")
    failure = f"the source's stage failed (its message is above): hornbook {verb} {source_command}"
    if code == WRONG_INPUT:
        raise UserError(failure)
    if code != 0:
        raise Failure(failure)


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
    model, train, budget = config.model, config.train, _budget(config, stage)
    if stage in PRETRAINING:
        needed: tuple[str, ...] = PRETRAINING[: PRETRAINING.index(stage) + 1]
    else:
        needed = (stage,) if getattr(config, stage).model else (*PRETRAINING, stage)
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


def _budget(config: Config, stage: str) -> BudgetConfig:
    return config.finetune.budget if stage == "finetune" else config.budget


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
        done = finished_manifest(step, _budget(config, stage)) is not None  # a raised cap reopens a finished run
    steps = [{"step": _name(s), "fingerprint": s.fingerprint, "done": s.finished} for s in own]
    return {"stage": stage, "folder": str(step.path), "done": done, "steps": steps, "why": None}


def _name(step: Step) -> str:
    return f"{step.name} {step.config['source']}" if "source" in step.config else step.name


def show(facts: dict[str, Any]) -> str:
    """For a person: sizes, what each stage would do, what is missing."""
    return html.render("dry_run.txt", facts=facts).rstrip("\n")
