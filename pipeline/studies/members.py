"""The members of a study as ordinary experiments: their configs, their equal budgets, their names.

A member is a cell of the design with a seed. Members that differ in their form alone (as stored, or quantized) are one
experiment, trained once. Budgets: `gpu_hours` are seconds of every process of source, pretraining and tuning together;
`flops` are 6 N + attention for each trained token (model/config.py). A tuning that keeps the base frozen costs two
thirds of that plus the adapter's own: forward and the gradients of activations remain, those of the weights do not.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline import config as configs
from pipeline.config import RUNTIME, Config
from pipeline.growing.grow import check_method
from pipeline.stages import check_source, source_config, source_is_experiment
from pipeline.storage.experiment import Experiment
from pipeline.storage.files import hash_json, root, write_text
from pipeline.storage.pins import recorded
from pipeline.studies.design import QUALITY, TASKS, Cell
from pipeline.studies.file import AS_STORED, FORM, SPEND, Study, nested
from pipeline.system.errors import UserError
from pipeline.tuning.data import make_target, target_task

FROZEN_SHARE = 2 / 3  # of a training step's FLOPs, where no weight of the base gets a gradient
MEMBER = "member.yaml"  # the resolved config that the stages of a member read


@dataclass(frozen=True)
class Training:
    """One experiment of a study. `levels`: of its first member. `tuned`: whether it ends in finetune. `forms`: the
    quantized forms that its members are read in."""

    config: Config
    levels: Cell
    seed: int
    tuned: bool
    forms: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def path(self) -> Path:
        return Experiment(self.config).folder / MEMBER

    def write(self) -> Path:
        """The config for the stages' own processes."""
        write_text(self.path, configs.to_yaml(self.config))
        return self.path


@dataclass(frozen=True)
class Member:
    """A cell with a seed, the form it is read in, and the experiment behind it."""

    cell: Cell
    seed: int
    form: str
    training: Training


def members(study: Study) -> list[Member]:
    """All of them, seed by seed, so that a study that is cut short has whole rounds. Raises `UserError` for a member
    whose config is wrong, or whose parts do not add up to the budget."""
    made: dict[str, Training] = {}
    found = []
    for seed in dict.fromkeys(seed for _, seeds in study.cells for seed in seeds):
        for cell in [cell for cell, seeds in study.cells if seed in seeds]:
            overrides, form, spend = _overrides(study, cell)
            key = hash_json([overrides, spend, seed])
            if key not in made:
                made[key] = _training(study, cell, seed, overrides, spend)
            found.append((cell, seed, form, key))
    for key, one in made.items():  # all forms of one training are quantized together, so that one report serves them
        forms = tuple(dict.fromkeys(form for *_, form, k in found if k == key and form != AS_STORED))
        config = replace(one.config, quantize=replace(one.config.quantize, kinds=list(forms)))
        made[key] = replace(one, forms=forms, config=config)
    return [Member(cell, seed, form, made[key]) for cell, seed, form, key in found]


def trainings(found: list[Member]) -> list[Training]:
    """The experiments behind members, each once."""
    return list({member.training.name: member.training for member in found}.values())


def flops_per_token(config: Config) -> float:
    """Training FLOPs of a token of this experiment's pretraining."""
    return float(config.model.flops_per_token(config.train.sequence_length))


def tuning_flops_per_token(config: Config) -> float:
    """Training FLOPs of a token of its tuning."""
    options = config.finetune
    whole = float(config.model.flops_per_token(options.train.sequence_length))
    if options.method == "full":
        return whole
    shapes = config.model.tensor_shapes()
    adapted = [s for name, s in shapes.items() if any(f".{t}.weight" in name for t in options.targets)]
    return FROZEN_SHARE * whole + 6.0 * sum(options.rank * (rows + columns) for rows, columns in adapted)


def _overrides(study: Study, cell: Cell) -> tuple[dict[str, Any], str, dict[str, float]]:
    """What the cell's levels set together, the form, and what is spent where. Raises `UserError` where two levels set
    one key to different values."""
    values: dict[str, Any] = {}
    set_by: dict[str, str] = {}
    spend: dict[str, float] = {}
    form = AS_STORED
    for axis, level in cell.items():
        for key, value in study.axes[axis][level].items():
            if key == FORM:
                form = value
            elif key == SPEND:
                spend |= value
            elif key in values and values[key] != value:
                raise UserError(f"study {study.path}: {set_by[key]} and {axis}.{level} both set {key}")
            else:
                values[key], set_by[key] = value, f"{axis}.{level}"
    return values, form, {key: share for key, share in spend.items() if share > 0}


def _training(study: Study, cell: Cell, seed: int, overrides: dict[str, Any], spend: dict[str, float]) -> Training:
    named = [
        level
        for axis, level in cell.items()
        if len(study.axes[axis]) > 1 and not all(set(o) <= {FORM} for o in study.axes[axis].values())
    ]
    name = f"{study.name}/{'-'.join([*named, f's{seed}'])}"
    where = f"study {study.path}, member {name}"
    tasks = [QUALITY, *(measure for measure in study.measures if measure in TASKS)]
    values = configs.merge(study.values, nested(overrides))
    values = configs.merge(values, {"name": name, "seed": seed, "quantize": {"tasks": tasks}})
    if study.stop is not None:  # every share at which members are compared needs a validation
        values = configs.merge(values, {"train": {"validate_every_share": study.stop.at[0]}})
    configs.resolve_source_path(values, study.base)
    config = _with_budget(study, recorded(configs.from_values(values, where)), spend, where)
    # Runtime keys are in no fingerprint: without `apart`, members that differ in them alone would be one run.
    kinds, given = configs.key_kinds(), sorted(configs.flat(overrides).items())
    runtime = [(key, value) for key, value in given if kinds.get(key, ("",))[0] == RUNTIME]
    for section, prefix in ((config.budget, "train."), (config.finetune.budget, "finetune.train.")):
        keys = [f"{key}={value}" for key, value in runtime if key.startswith(prefix)]
        section.apart = ", ".join(filter(None, [section.apart, *keys])) or None
    check_method(config)
    check_source(config)
    if spend.get("finetune") and (task := target_task(config.finetune)) is not None:
        make_target(task, 1, 2, seed)  # raises for a task that does not exist
    return Training(config, {**cell}, seed, bool(spend.get("finetune")))


def _with_budget(study: Study, config: Config, spend: Mapping[str, float], where: str) -> Config:
    """The equal budget, cut into what the source, the pretraining and the tuning get."""
    source, tuning = spend.get("source", 0.0), spend.get("finetune", 0.0)
    if source + tuning >= 1:
        raise UserError(f"{where}: spend {dict(spend)} leaves nothing of the budget for pretraining")
    if source_is_experiment(config) != (source > 0):
        said = "trains a source" if source_is_experiment(config) else "has no source to train"
        raise UserError(
            f"{where}: init.source is {config.init.source} and spend.source is {source:g}: the member {said}, and "
            "members need equal budgets; set both in one level, or neither"
        )
    kind, total = study.equal
    own, rest = 1 - source - tuning, {}
    if source:
        named = {"name": f"{config.name}/source", "tracking": {"to": "none"}}
        over = configs.merge(config.init.source_overrides, named)
        sized = source_config(replace(config, init=replace(config.init, source_overrides=over)))
        over = configs.merge(over, {"budget": _limit(kind, source * total, flops_per_token(sized))})
        rest["init"] = replace(config.init, source_overrides=over, train_source=True)
    budget = replace(
        config.budget, count_source=kind == "gpu_hours" and source > 0, branches=[],
        **_limit(kind, (own + source if kind == "gpu_hours" else own) * total, flops_per_token(config)),
    )  # fmt: skip
    if tuning:
        limit = _limit(kind, tuning * total, tuning_flops_per_token(config))
        rest["finetune"] = replace(config.finetune, budget=replace(config.finetune.budget, **limit))
        rest["quantize"] = replace(config.quantize, model=str(root() / "runs" / config.name / "finetune" / "model"))
    return replace(config, budget=budget, **rest)


def _limit(kind: str, amount: float, flops: float) -> dict[str, Any]:
    """A limit is in no fingerprint, because raising one extends the run. `apart` keeps members from extending each
    other's runs."""
    if kind == "gpu_hours":
        return {"max_gpu_hours": amount, "max_tokens": None, "apart": f"{amount:.8g} GPU-hours"}
    tokens = max(1, round(amount / flops))
    return {"max_gpu_hours": None, "max_tokens": tokens, "apart": f"{tokens} tokens"}
