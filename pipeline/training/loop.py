"""The training loop that pretraining and fine-tuning share.

In: a network, batches, a validation, what ends it, the experiment's ledger. Out: facts for the manifest. Every second
of every process counts against the cap. A run that was killed resumes from its newest whole checkpoint, one whose cap
was raised from before its decay, and whatever the clock decides is on disk before it is used.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import Config, nearest
from pipeline.storage.experiment import Experiment
from pipeline.storage.files import read_json_lines
from pipeline.storage.ledger import LEDGER, Ledger, process_age_seconds, spent_seconds
from pipeline.storage.run_files import CHECKPOINTS, METRICS
from pipeline.storage.steps import Step, read_manifest
from pipeline.system import signals
from pipeline.system.errors import Stopped, UserError
from pipeline.training.cap import Cap
from pipeline.training.decisions import Decisions, RecordedRun, raised_decay

if TYPE_CHECKING:
    from pipeline.evaluation.during_training import ProgressTasks
    from pipeline.training.control import Control

LEAST_START_SECONDS = 2.0  # imports alone; a fast machine needs this much
LAST_LIFE_STARTS = 3.0  # this life's start, the next one's, and room for a slow one


class Training:
    """One attempt at a training: what pretraining and fine-tuning share around their loops.

    `config`: its `train`, `budget`, `sample` and `tracking` rule. On creation the device is chosen, the decisions of
    earlier attempts are read and a branch takes its trunk's state over; `run` trains. `replay`: a `decisions.jsonl`
    of another run, to be repeated.
    """

    def __init__(
        self, stage: str, config: Config, step: Step, cap: Cap, experiment: Experiment, ledger: Ledger,
        replay: str | None = None,
    ):  # fmt: skip
        from pipeline.training import branching, devices, tracking
        from pipeline.training.forecast import MemoryForecast

        self.stage, self.config, self.step, self.cap, self.ledger = stage, config, step, cap, ledger
        self.folder = step.path
        self.replay = None if replay is None else RecordedRun(Path(replay))
        signals.end_is_near(False)
        if self.replay is not None:
            config.train.precision = self.replay.precision.pop()
        self.machine = devices.choose(config.train)
        ledger.device = self.machine.name
        print(f"{stage}: {self.machine.describe()}", flush=True)
        self.mirror = tracking.mirror_of(config, step, experiment.folder, lambda line: print(f"  {line}", flush=True))
        self.decisions = _open_decisions(config, self.folder, self.replay)
        ledger.inherited_seconds = branching.begin(config, cap, self.folder, self.decisions)
        self.memory = MemoryForecast(self.decisions, self.machine, self.machine.memory.held_bytes())

    def run(
        self,
        network: Any,
        batches: Any,
        validation: Any,
        finish: Callable[["Control"], dict[str, Any]],
        *,
        report_seconds: float = 0.0,
        copy_seconds: float = 0.0,
        tasks: "ProgressTasks | None" = None,
    ) -> dict[str, Any]:
        """Trains from the newest whole checkpoint to the end; returns the facts of the manifest.

        `network`: on its device, frozen weights already cast. `finish(control)`: facts, after the last step and inside
        the cap. `report_seconds`, `copy_seconds`: what the report and the copies take at the end, inside the cap.
        Raises `Stopped` where a signal came; everything worth keeping is on disk.
        """
        from model.adapters import is_adapted
        from pipeline.training import branching, tracking
        from pipeline.training.budget import Budget, estimate_ends, planned_decay_start
        from pipeline.training.checkpoint import Checkpoints, seed_random_state
        from pipeline.training.control import Control, build_trainer, restore
        from pipeline.training.module import PretrainModule

        config, settings, decisions, ledger = self.config, self.config.train, self.decisions, self.ledger
        # Of a run that is repeated the record says where it ends, and not the clock.
        cap = self.cap if self.replay is None else replace(self.cap, hours=None)
        plan = _plan(config, cap, batches)
        budget = Budget(plan, lambda: ledger.spent_seconds, decisions)
        budget.replayed_end = None if self.replay is None else self.replay.end_step
        start = None if plan.max_steps is None else planned_decay_start(plan.max_steps, settings.decay_share)
        print(batches.describe(plan.max_steps, start, at_most=plan.cap_seconds is not None), flush=True)
        checkpoints = Checkpoints(self.folder / CHECKPOINTS, settings.keep_checkpoints, decisions)
        module = PretrainModule(network, settings, self.machine.precision)
        seed_random_state(config.seed)
        state = checkpoints.load()
        tracking.cut_metrics(self.folder / METRICS, _last_row(state))
        with tracking.Metrics(self.folder / METRICS, self.mirror) as metrics:
            control = Control(
                stage=self.stage,
                train=settings,
                machine=self.machine,
                module=module,
                batches=batches,
                validation=validation,
                budget=budget,
                checkpoints=checkpoints,
                metrics=metrics,
                ledger=ledger,
                memory=self.memory,
                flops_per_token=network.config.flops_per_token(settings.sequence_length),
                recorded=self.replay,
                tasks=tasks,
            )
            budget.measured.device, budget.measured.peak_flops = self.machine.name, self.machine.peak_flops
            estimate_ends(
                budget.measured,
                plan.cap_seconds,
                parameters=network.config.parameters,
                samples=bool(config.sample.prompts),
                tasks_seconds=tasks.limit_seconds if tasks else 0.0,
                tracking_seconds=self.mirror.limit_finish(plan.cap_seconds) if self.mirror else 0.0,
                report_seconds=report_seconds,
                copy_seconds=copy_seconds,
            )
            if state is not None:
                restore(control, state)
            _begin_life(config, decisions, control, ledger)
            if not is_adapted(network):  # the plan is of a training of all weights
                self.memory.predict(module, settings, plan.cap_seconds)
            if not _only_the_end_is_left(control):
                build_trainer(self.machine, self.folder, control).fit(module, batches)
            if control.stopped:
                raise Stopped(control.stopped)
            facts = {**finish(control), **branching.facts(decisions)}
            self._mirror_artifacts(module.step, facts["samples"])
        decisions.add("finish", module.step, annealed=facts["annealed"], stopped_by=facts["stopped_by"])
        if not facts["annealed"] and facts["exported_step"] == module.step:
            print("WARNING: this model is NOT annealed: too little of the cap was left for the decay", flush=True)
        return facts

    def _mirror_artifacts(self, step: int, samples: list[dict[str, Any]]) -> None:
        if self.mirror is None:
            return
        self.mirror.samples(step, samples)
        inputs = {name: needed for name, needed in self.step.inputs.items() if isinstance(needed, Step)}
        self.mirror.artifacts({name: read_manifest(needed.path) for name, needed in inputs.items()})


def check_names(config: Config) -> None:
    """Raises `UserError` for an optimizer or a decay that there is not. Loads torch."""
    from model.optim import OPTIMIZERS
    from model.schedules import DECAYS

    for key, table in (("optimizer", OPTIMIZERS), ("decay", DECAYS)):
        name = getattr(config.train, key)
        if name not in table:
            raise UserError(f"train.{key} is '{name}'{nearest(name, table)}; expected one of {', '.join(table)}")


def check_cap(stage: str, config: Config, step: Step, cap: Cap, key: str = "budget") -> None:
    """What can be said before any long work: whether the hours left are enough to start at all."""
    if cap.seconds is None:
        return
    spent = spent_seconds(step.path / LEDGER, stage, step.fingerprint) + process_age_seconds()
    needed, why = LEAST_START_SECONDS, "starting up alone"
    if step.finished:
        last = read_manifest(step.path)
        one_step = config.train.global_batch_tokens / max(1.0, last["tokens_per_second"])
        needed = last["start_seconds"] + (last["forecast"].get("actual", {}).get("end_seconds") or 0.0) + one_step
        why = "starting up, one step and one export took that long last time"
    elif any((step.path / "checkpoints").glob("step-*")):
        return  # something is trained: it is exported in any case
    if cap.left_seconds(spent) < needed:
        spent += cap.source_seconds
        raise UserError(
            f"{key}.max_gpu_hours={cap.hours:g} is {cap.seconds:.1f} s, {spent:.1f} s of them are used; "
            f"what is left is less than {needed:.1f} s ({why}). Expected at least {key}.max_gpu_hours="
            f"{math.ceil(spent + 2 * needed) / 3600:.4f}{cap.source_note}"
        )


def is_last_life(cap: Cap, step: Step, ledger: Ledger) -> bool:
    """Before the imports, which take most of a start: whether the hours that are left start this life but not another.
    A stop has to wait then, until this life has loaded what it is to export."""
    starts = [line["start_seconds"] for line in read_json_lines(ledger.paths[-1], start_seconds=float)]
    if not starts or not any((step.path / "checkpoints").glob("step-*")):
        return False
    return cap.left_seconds(ledger.spent_seconds) < LAST_LIFE_STARTS * starts[-1]


def _open_decisions(config: Config, folder: Path, replay: RecordedRun | None) -> Decisions:
    """The record so far; a raised cap opens a new branch from before the decay."""
    from pipeline.training.tracking import set_metrics_aside

    decisions = Decisions(folder / "decisions.jsonl")
    if replay is not None:
        replay.begin(decisions)
        return decisions
    decay = raised_decay(decisions, config.budget)
    if decay is not None:
        set_metrics_aside(folder / "metrics.jsonl", decay["step"])
        limits = {"max_gpu_hours": config.budget.max_gpu_hours, "max_tokens": config.budget.max_tokens}
        decisions.add("extend", decay["step"], **limits)
        print(f"  the cap was raised: going on from step {decay['step']:,}, before the decay", flush=True)
    return decisions


def _plan(config: Config, cap: Cap, batches: Any) -> Any:
    """The limits of the run: the hours, and the tokens or what `train.max_epochs` leaves of them."""
    from pipeline.training import branching
    from pipeline.training.budget import Plan, planned_decay_start

    budget, train = config.budget, config.train
    sizes = batches.sizes
    asked = None if budget.max_tokens is None else max(1, sizes.whole_steps(budget.max_tokens // train.sequence_length))
    most = batches.most_steps(lambda last: planned_decay_start(last, train.decay_share))
    if most == 0:
        raise UserError(
            f"train.max_epochs={train.max_epochs} leaves less text than one step of {sizes.tokens(1):,} "
            "tokens: raise it, or lower train.global_batch_tokens"
        )
    if most is None and asked is None and budget.max_gpu_hours is None:
        raise UserError(
            f"the config sets no end: train.max_epochs={train.max_epochs} leaves a source without one; set "
            "budget.max_gpu_hours (or budget.max_tokens)"
        )
    bounded = most is not None and (asked is None or most < asked)
    if most is not None and bounded:
        wanted = f", fewer than budget.max_tokens={budget.max_tokens:,}" if budget.max_tokens else ""
        tokens = sizes.tokens(most)
        print(f"  train.max_epochs ends the text after {tokens:,} tokens in {most:,} steps{wanted}", flush=True)
    return Plan(
        cap=cap,
        max_steps=most if bounded else asked,
        decay_share=train.decay_share,
        checkpoint_every_seconds=train.checkpoint_every_seconds,
        validate_every_share=train.validate_every_share,
        max_gpu_hours=budget.max_gpu_hours,
        max_tokens=None if bounded else budget.max_tokens,
        max_steps_reason="max_epochs" if bounded else "max_tokens",
        steps_available=batches.steps_available,
        branches=branching.planned(config),
    )


def _last_row(state: Any) -> int:
    """The step of the last row of metrics that the checkpoint vouches for."""
    if state is None:
        return -1
    # The last step's row waits for its validation: `finish` writes both, in the next life if need be.
    waits = state.values["final_row"] and state.values["validated"]["step"] != state.step
    return state.step - 1 if waits else state.step


def _begin_life(config: Config, decisions: Decisions, control: Any, ledger: Ledger) -> None:
    """What the machine decided for this life, before anything follows from it."""
    from pipeline.training import devices as cards

    machine, module, measured = control.machine, control.module, control.budget.measured
    place = {"step": module.step, "windows": module.windows}
    moved = cards.begin_life(decisions, ledger, machine, measured, config.budget, **place)
    if module.step:
        print(f"  life {ledger.life}: going on from step {module.step:,}", flush=True)
    if moved:
        print(f"  {moved}", flush=True)


def _only_the_end_is_left(control: Any) -> bool:
    """Trained to the end and killed while exporting, or killed so late that only an export fits."""
    budget, step = control.budget, control.module.step
    control.use_decisions()
    if step == 0:
        return False
    if step >= budget.end_step(step):
        return True
    if not budget.too_late(step):
        return False
    left = round(budget.remaining_seconds(), 1)
    budget.decisions.add("emergency", step, reason="a kill left too little of the cap", remaining_seconds=left)
    print(
        f"WARNING: {left:.1f} s of the cap are left, too few for a decay: exporting step {step:,} as it is", flush=True
    )
    return True
