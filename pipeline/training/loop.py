"""The training loop that pretraining and fine-tuning share. Loads torch.

In: a network, batches, a validation, what ends it, the experiment's ledger. Out: facts for the manifest. Every second
of every process counts against the cap. A run that was killed resumes from its newest whole checkpoint, one whose cap
was raised from before its decay, and whatever the clock decides is on disk before it is used.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.adapters import is_adapted
from model.transformer import Transformer
from pipeline.config import Config
from pipeline.storage.experiment import Experiment
from pipeline.storage.ledger import Ledger
from pipeline.storage.run_files import CHECKPOINTS, DECISIONS, METRICS
from pipeline.storage.steps import Step, read_manifest
from pipeline.system import signals
from pipeline.system.errors import Stopped, UserError
from pipeline.training import branching, devices, tracking
from pipeline.training.batches import TokenBatches
from pipeline.training.budget import Budget, Limits, estimate_ends, planned_decay_start
from pipeline.training.cap import Cap
from pipeline.training.checkpoint import Checkpoints, State, seed_random_state
from pipeline.training.control import Control, build_trainer, restore
from pipeline.training.decisions import Decisions, RecordedRun, raised_decay
from pipeline.training.forecast import MemoryForecast
from pipeline.training.module import PretrainModule
from pipeline.training.validation import Validation

if TYPE_CHECKING:
    from pipeline.evaluation.during_training import ProgressTasks


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
        self.stage, self.config, self.step, self.ledger = stage, config, step, ledger
        self.folder = step.path
        self.recorded = None if replay is None else RecordedRun(Path(replay))
        # Of a run that is repeated the record says where it ends, and not the clock.
        self.cap = cap if replay is None else replace(cap, hours=None)
        signals.end_is_near(False)
        if self.recorded is not None:
            config.train.precision = self.recorded.precision
        self.machine = devices.choose(config.train)
        ledger.device = self.machine.name
        print(f"{stage}: {self.machine.describe()}", flush=True)
        self.mirror = tracking.mirror_of(config, step, experiment.folder, lambda line: print(f"  {line}", flush=True))
        self.decisions = _open_decisions(config, self.folder, self.recorded)
        ledger.inherited_seconds = branching.begin(config, cap, self.folder, self.decisions)
        self.memory = MemoryForecast(self.decisions, self.machine, self.machine.memory.held_bytes())

    def run(
        self,
        network: Transformer,
        batches: TokenBatches,
        validation: Validation,
        finish: Callable[[Control], dict[str, Any]],
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
        settings, decisions = self.config.train, self.decisions
        limits = _limits(self.config, self.cap, batches)
        budget = Budget(limits, lambda: self.ledger.spent_seconds, decisions)
        budget.replayed_end = self.recorded and self.recorded.end_step
        start = None if limits.max_steps is None else planned_decay_start(limits.max_steps, settings.decay_share)
        print(batches.describe(limits.max_steps, start, at_most=limits.cap.seconds is not None), flush=True)
        checkpoints = Checkpoints(self.folder / CHECKPOINTS, settings.keep_checkpoints, decisions)
        module = PretrainModule(network, settings, self.machine.precision)
        seed_random_state(self.config.seed)  # before the checkpoint, which brings its own
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
                ledger=self.ledger,
                memory=self.memory,
                flops_per_token=network.config.flops_per_token(settings.sequence_length),
                recorded=self.recorded,
                tasks=tasks,
            )
            self._begin(control, state, report_seconds, copy_seconds)
            if not _only_the_end_is_left(control):
                build_trainer(self.machine, self.folder, control).fit(module, batches)
            if control.stopped:
                raise Stopped(control.stopped)
            facts = {**finish(control), **branching.facts(decisions)}
            self._mirror_end(module.step, facts["samples"])
        decisions.add("finish", module.step, annealed=facts["annealed"], stopped_by=facts["stopped_by"])
        if not facts["annealed"] and facts["exported_step"] == module.step:
            print("WARNING: this model is NOT annealed: too little of the cap was left for the decay", flush=True)
        return facts

    def _begin(self, control: Control, state: State | None, report_seconds: float, copy_seconds: float) -> None:
        """What is known of durations, the state of the newest checkpoint, and what the machine decides for this
        process, on record before anything follows from it."""
        budget, network, cap_seconds = control.budget, control.module.network, self.cap.seconds
        budget.measured.device, budget.measured.peak_flops = self.machine.name, self.machine.peak_flops
        estimate_ends(
            budget.measured,
            cap_seconds,
            network.config.parameters,
            samples=bool(self.config.sample.prompts),
            tasks=control.tasks.limit_seconds if control.tasks else 0.0,
            tracking=self.mirror.limit_finish(cap_seconds) if self.mirror else 0.0,
            report=report_seconds,
            remote=copy_seconds,
        )
        if state is not None:
            restore(control, state)
        step, windows = control.module.step, control.module.windows
        moved = devices.begin_process(
            self.decisions, self.ledger, self.machine, budget.measured, self.config.budget, step=step, windows=windows
        )
        if step:
            print(f"  attempt {self.ledger.life}: resuming at step {step:,}", flush=True)
        if moved:
            print(f"  {moved}", flush=True)
        if not is_adapted(network):  # the memory plan is of a training of all weights
            self.memory.predict(control.module, self.config.train, cap_seconds)

    def _mirror_end(self, step: int, samples: list[dict[str, Any]]) -> None:
        if self.mirror is None:
            return
        self.mirror.samples(step, samples)
        inputs = {name: needed for name, needed in self.step.inputs.items() if isinstance(needed, Step)}
        self.mirror.artifacts({name: read_manifest(needed.path) for name, needed in inputs.items()})


def _open_decisions(config: Config, folder: Path, recorded: RecordedRun | None) -> Decisions:
    """The record so far; a raised cap extends the run from before the decay."""
    decisions = Decisions(folder / DECISIONS)
    if recorded is not None:
        recorded.begin(decisions)
        return decisions
    decay = raised_decay(decisions, config.budget)
    if decay is not None:
        tracking.set_metrics_aside(folder / METRICS, decay["step"])
        limits = {"max_gpu_hours": config.budget.max_gpu_hours, "max_tokens": config.budget.max_tokens}
        decisions.add("extend", decay["step"], **limits)
        print(f"  the cap was raised: resuming at step {decay['step']:,}, before the decay", flush=True)
    return decisions


def _limits(config: Config, cap: Cap, batches: TokenBatches) -> Limits:
    """The limits of the run: the hours, and the tokens or what `train.max_epochs` leaves of them."""
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
    # The text binds before budget.max_tokens: raising that key then reopens nothing, so it is not among the limits.
    bounded = most is not None and (asked is None or most < asked)
    if most is not None and bounded:
        wanted = f", fewer than budget.max_tokens={budget.max_tokens:,}" if budget.max_tokens else ""
        tokens = sizes.tokens(most)
        print(f"  train.max_epochs ends the text after {tokens:,} tokens in {most:,} steps{wanted}", flush=True)
    return Limits(
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


def _last_row(state: State | None) -> int:
    """The step of the last row of metrics that the checkpoint vouches for."""
    if state is None:
        return -1
    # The last step's row waits for its validation: `finish` writes both, in the next process if it must.
    waits = state.values["final_row"] and state.values["validated"]["step"] != state.step
    return state.step - 1 if waits else state.step


def _only_the_end_is_left(control: Control) -> bool:
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
    print(f"WARNING: {left:.1f} s of the cap are left, too few for a decay: exporting step {step:,} as is", flush=True)
    return True
