"""What happens between two steps: the clock, validation, checkpoints, signals, metrics, in one fixed order.

In: Lightning's hooks. Out: rows of metrics, decisions, checkpoints, and the end of the run. One callback and not
five, because the order is the contract: a step's validation belongs into the step's row, the row must be on disk
before the checkpoint of that step, and the decay's decision before the learning rate that follows from it.
"""

import logging
import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy

from pipeline.config import TrainConfig
from pipeline.storage.ledger import Ledger, process_age_seconds
from pipeline.system import signals
from pipeline.system.errors import UserError
from pipeline.system.progress import Progress
from pipeline.training.batches import TokenBatches
from pipeline.training.budget import Budget, Verdict
from pipeline.training.checkpoint import Checkpoints, State
from pipeline.training.decisions import RecordedRun
from pipeline.training.devices import Machine
from pipeline.training.forecast import MemoryForecast, predict_time
from pipeline.training.memory import host_free_bytes
from pipeline.training.module import PretrainModule
from pipeline.training.spikes import SkippedSteps
from pipeline.training.tracking import Metrics, RateMeter
from pipeline.training.validation import Validation

if TYPE_CHECKING:
    from pipeline.evaluation.during_training import ProgressTasks

# Each was understood: it advises against what this design decided, or is not ours to fix.
EXPECTED_WARNINGS = (
    r".*configure_optimizers` returned `None`.*",
    r".*LeafSpec.*",
    r".*srun.*",
    r".*does not have many workers.*",
    r".*GPU available but not used.*",
)
HOST_FACTOR = 1.5  # of a state's bytes, free in the host's memory before it is copied there
TALKATIVE_LOGGERS = ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero")


@dataclass
class Validated:
    """What a validation found after `step` steps: bits per byte of each set; `intervals`: `sets` and `overall`."""

    step: int = -1
    bits_per_byte: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, Any] = field(default_factory=dict)


@dataclass(eq=False, kw_only=True)
class Control(Callback):
    """Runs the hooks of one process. After `fit`: `stopped` names a signal, `finished` says that the last step is done.

    `first` and `last`: the validation before the first step and the newest one. `final_row`: of the last step; `finish`
    adds its validation and writes it. `recorded`: the run that this one repeats.
    """

    stage: str
    train: TrainConfig
    machine: Machine
    module: PretrainModule
    batches: TokenBatches
    validation: Validation
    budget: Budget
    checkpoints: Checkpoints
    metrics: Metrics
    ledger: Ledger
    memory: MemoryForecast
    flops_per_token: int
    recorded: RecordedRun | None = None
    tasks: "ProgressTasks | None" = None

    stopped: str | None = field(init=False, default=None)
    finished: bool = field(init=False, default=False)
    first: Validated = field(init=False, default_factory=Validated)
    last: Validated = field(init=False, default_factory=Validated)
    final_row: dict[str, Any] = field(init=False, default_factory=dict)
    rate: RateMeter = field(init=False, default_factory=RateMeter)
    _saved_at_seconds: float = field(init=False, default_factory=time.monotonic)
    _validations_due: int = field(init=False, default=0)
    _progress: Progress | None = field(init=False, default=None)
    _figures: tuple[str, ...] = field(init=False, default=())  # of the newest row

    def __post_init__(self) -> None:
        self.skips = SkippedSteps(self.budget.decisions)

    # ---- Lightning's hooks

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        signals.take_back()
        step = self.module.step
        self._progress = Progress(self.stage, 1.0, done=self.budget.fraction(step))
        self.budget.begin(step)
        if step == 0:
            self._first_validation()
        else:
            self._after_decision(self.budget.decide(step), trainer)
        self._validations_due = math.floor(self.budget.fraction(step) / self.train.validate_every_share)
        self.budget.start_seconds = process_age_seconds()
        self.ledger.card = {**self.ledger.card, "start_seconds": round(self.budget.start_seconds, 2)}
        self._stop_if_asked(trainer)
        self.use_decisions()
        self.memory.begin()
        self.rate.restart()  # last: what was done before the first step is no step's time

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> int | None:
        return -1 if trainer.should_stop else None  # a stop that was decided before the first step of this process

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        step = self.module.step
        if self.module.abandoned is not None:
            self._stop_if_asked(trainer)
            return
        signals.defer(True)  # from here on there is something to save
        self.memory.step()  # before anything else takes memory
        self.ledger.check()
        if (seconds := self.checkpoints.settle(wait=False)) is not None:
            self._saving_took(seconds)
        self.skips.put(step, self.module.last_verdict)
        self._read_verdicts()
        # The step is measured before the decision, so that the clock decides by the newest speed.
        tokens = self.batches.sizes.sequences(step - 1) * self.train.sequence_length
        self.budget.measured.step(self.rate.lap(tokens), tokens / self.train.global_batch_tokens)
        if line := predict_time(self.budget, step):
            self._print(line)
        self._review_threads()
        verdict = self.budget.decide(step)
        verdict = self._write_row(step, verdict)
        # The checkpoint comes after the row, which it vouches for.
        self._after_decision(verdict, trainer)
        self._keep_for_branches(step)
        self._show_progress(step)
        self._stop_if_asked(trainer)
        if not trainer.should_stop and self._checkpoint_is_due(step):
            self.save(behind=True)
        self.use_decisions()  # last: the next batch and its learning rate follow from all that was decided

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close_progress()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close_progress()

    # ---- what `loop` and `finish` call too

    def validate(
        self, limit_seconds: float = math.inf, check_seconds: Callable[[float], None] = lambda seconds: None
    ) -> dict[str, float]:
        """Bits per byte of every set under their metric names; empty where a signal came. See `Validation.run`."""
        self._review_threads()
        result = self.validation.run(self.module.network, signals.stop_requested, limit_seconds, check_seconds)
        if result is None:
            return {}
        self._spent_on("validation", self.validation.seconds)
        intervals = {"sets": self.validation.intervals, "overall": self.validation.overall_interval}
        self.last = Validated(self.module.step, result, intervals)
        return self.validation.metrics(result)

    def record_validation(self, step: int) -> bool:
        """Under `train.stop_after_worse` the newest validation goes on record; whether it is the best so far."""
        bits = self.validation.overall(self.last.bits_per_byte) if self.last.step == step else None
        if not self.train.stop_after_worse or bits is None:
            return False
        return self.budget.decisions.record_validation(step, bits)

    def save(self, behind: bool = False) -> None:
        """A checkpoint of the state after the newest step, unless there is one already. `behind`: the steps go on while
        it is written, where the card's state fits into the host's free memory."""
        started = time.monotonic()
        self._read_verdicts(wait=True)
        self.metrics.sync()
        state = state_of(self)
        if state.step not in self.checkpoints.steps():
            if behind and self._may_save_behind(state):
                self.checkpoints.save_behind(state)
            else:
                self.checkpoints.save(state)
                self._saving_took(time.monotonic() - started)
            self.rate.leave_out(time.monotonic() - started)
        self._saved_at_seconds = time.monotonic()

    def _may_save_behind(self, state: State) -> bool:
        return self.machine.device.type == "cuda" and HOST_FACTOR * state.bytes < host_free_bytes()

    def _saving_took(self, seconds: float) -> None:
        self.budget.measured.event("checkpoint", seconds)
        # An export is a third of the bytes (weights without Adam's two moments), hashed once more.
        self.budget.measured.estimate("export", seconds / 2 + 0.1)

    def budget_row(self) -> dict[str, float]:
        """What is used of the budget after the newest step."""
        step = self.module.step
        return {
            "budget/gpu_hours": self.ledger.spent_seconds / 3600,
            "budget/tokens": self.batches.sizes.tokens(step),
            "budget/fraction": self.budget.fraction(step),
        }

    def mfu(self, tokens_per_second: float) -> float | None:
        """The share of the device's peak that this speed is, None where no peak is known."""
        return self.machine.mfu(tokens_per_second * self.flops_per_token)

    def use_decisions(self) -> None:
        """The learning rate and the mix follow from what is on record; called before the next batch is taken. Where a
        recorded run is repeated, the micro-batch and the threads do too."""
        if self.recorded is not None:
            step = self.module.step
            self.module.windows = self.recorded.setting("micro_batch", step) or self.module.windows
            if self.machine.device.type == "cpu":
                torch.set_num_threads(self.recorded.setting("threads", step) or torch.get_num_threads())
        self.module.segments = self.budget.decisions.segments()
        record = self.budget.first_decay()
        self.batches.decay_from(record["step"] if record else None)

    def is_last_process(self) -> bool:
        """Whether what is left of the cap is too little for another one. If so, a first signal stops nothing more."""
        last = not self.budget.another_attempt_fits(self.module.step)
        if last:
            signals.end_is_near()
        return last

    # ---- details, in the order in which a step needs them

    def _first_validation(self) -> None:
        """Right after init or growth; it also measures what the last validation will cost."""
        left, tokens = self.budget.remaining_seconds(), self.validation.predicted_tokens

        def check(seconds: float) -> None:
            if seconds > left / 2:  # the last validation takes as long as this one
                raise UserError(
                    f"one validation of {tokens:,} tokens takes {seconds:,.0f} s or more here, over half of what is "
                    f"left of the cap ({left:,.0f} s): raise budget.max_gpu_hours or lower data.validation.max_bytes"
                )

        metrics = self.validate(check_seconds=check)
        self.first = self.last
        if metrics:
            self.metrics.log({**metrics, **self.budget_row()}, 0)
            self._show(0, metrics)
        # A step is three times the work per token; a validation of few tokens is mostly warming up and says nothing.
        step_tokens = self.train.global_batch_tokens
        known = tokens > step_tokens
        self.budget.check_start(3 * self.validation.seconds / tokens * step_tokens if known else 0.0)

    def _read_verdicts(self, wait: bool = False) -> None:
        for line in self.skips.read(wait):
            self._print(line)

    def _review_threads(self) -> None:
        """On a CPU: as many threads as are faster now. On record, because sums then run in another order."""
        if self.recorded is not None:
            return
        started, changed = time.monotonic(), self.machine.threads.review()
        if changed is not None:
            self.budget.decisions.add("threads", self.module.step, threads=changed)
        self.rate.leave_out(time.monotonic() - started)

    def _write_row(self, step: int, verdict: Verdict) -> Verdict:
        """The step's row, with the validation and the tasks that are due in it; the verdict, which a validation may
        change. The last step's row is kept instead: `finish` writes it with the last validation."""
        row = self._train_row(step) if step % self.train.log_every_steps == 0 or verdict != Verdict.CONTINUE else {}
        if verdict == Verdict.FINISH:
            self.final_row = row
            return verdict
        if self._validation_is_due(step):
            limit = self.budget.validation_limit_seconds()
            row = {**(row or self._train_row(step)), **self.validate(limit_seconds=limit)}
            verdict = self._stop_after_worse(step, verdict)
        sizes, tasks = self.batches.sizes, self.tasks
        due = tasks is not None and tasks.due(sizes.tokens(step - 1), sizes.tokens(step))
        if tasks is not None and due and self.budget.may_spend("tasks", step):
            row = row or self._train_row(step)
            started = time.monotonic()
            row |= tasks.run(self.module.network, step)
            self._spent_on("tasks", time.monotonic() - started)
        if row:
            self.metrics.log(row, step)
            self._show(step, row)
        return verdict

    def _train_row(self, step: int) -> dict[str, Any]:
        per_second = self.rate.recent()
        if step_seconds := self.budget.measured.step_seconds():
            speed = round(self.train.global_batch_tokens / step_seconds, 1)
            self.ledger.card = {**self.ledger.card, "tokens_per_second": speed}
        return {
            "train/loss": float(self.module.last_loss),
            "train/lr": self.module.last_learning_rate,
            "train/grad_norm": float(self.module.last_grad_norm),
            "perf/tokens_per_second": round(per_second, 1),
            "perf/mfu": self.mfu(per_second),
            "perf/peak_memory_bytes": self.machine.memory.peak_bytes(),
            **self.budget_row(),
        }

    def _validation_is_due(self, step: int) -> bool:
        due = math.floor(self.budget.fraction(step) / self.train.validate_every_share)
        if due <= self._validations_due:
            return False
        self._validations_due = due
        return self.budget.may_spend("validation", step)

    def _stop_after_worse(self, step: int, verdict: Verdict) -> Verdict:
        """After a validation: keeps a new best; the verdict where `train.stop_after_worse` has another one."""
        patience = self.train.stop_after_worse
        if not self.record_validation(step):
            may_end = patience and verdict == Verdict.CONTINUE
            return self.budget.verdict_of_validations(step, patience) if may_end else verdict
        if self.budget.may_spend("checkpoint", step):
            self.save()
        return verdict

    def _after_decision(self, verdict: Verdict, trainer: Trainer) -> None:
        if verdict == Verdict.DECAY:
            self.save(behind=True)
            record = self.budget.first_decay() or {}
            steps = record["end_step"] - record["step"]
            self._print(f"  decay starts at step {record['step']:,}: {steps:,} steps to the end ({record['reason']})")
        elif verdict == Verdict.FINISH:
            self.finished = trainer.should_stop = True

    def _keep_for_branches(self, step: int) -> None:
        due = self.budget.branches_due(step)
        for name in due:
            self.budget.decisions.add("branch_point", step, branch=name)  # first: `save` prunes by it
        if due:
            self.save(behind=True)

    def _stop_if_asked(self, trainer: Trainer) -> None:
        name = signals.stop_requested()
        if not name or self.finished:
            return
        self.save()
        if self.is_last_process():
            left = self.budget.remaining_seconds()
            self._print(f"  {name}: {left:.1f} s of the cap are too few for another process, so the run ends now")
            may_step = self.module.abandoned is None
            self.finished = trainer.should_stop = self.budget.end_soon(self.module.step, may_step)
        else:
            self.stopped = name
            trainer.should_stop = True

    def _checkpoint_is_due(self, step: int) -> bool:
        waited = time.monotonic() - self._saved_at_seconds
        return waited >= self.budget.checkpoint_interval_seconds() and self.budget.may_spend("checkpoint", step)

    def _spent_on(self, event: str, seconds: float) -> None:
        self.budget.measured.event(event, seconds)
        self.rate.leave_out(seconds)

    def _show(self, step: int, row: Mapping[str, Any]) -> None:
        if "val/bits_per_byte" in row:
            per_set = ", ".join(f"{k.split('/')[1]} {v:.4f}" for k, v in row.items() if k.count("/") == 2)
            interval = self.last.intervals.get("overall")
            error = f" ± {(interval[1] - interval[0]) / 2:.4f}" if interval else ""
            self._print(f"  step {step:,}: {row['val/bits_per_byte']:.4f}{error} bits per byte ({per_set})")
        if "train/loss" in row:
            self._figures = (f"loss {row['train/loss']:.3f}", f"{row['perf/tokens_per_second']:,.0f} tokens/s")

    def _show_progress(self, step: int) -> None:
        """The live line. The loss is the newest row's: to read it after every step would wait for the device."""
        if self._progress is None or not self._progress.due:
            return
        left = self.budget.remaining_seconds()
        hours = [f"{max(0.0, left) / 3600:.3g} h left"] if left < math.inf else []
        end = max(0.0, self.budget.predict(step)[1] - self.budget.spent())
        figures = *self._figures, *hours, f"step {step:,}"
        self._progress.to(self.budget.fraction(step), *figures, left_seconds=end if end < math.inf else None)

    def _print(self, line: str) -> None:
        if self._progress is not None:
            print(line, flush=True)

    def _close_progress(self) -> None:
        if self._progress is not None:
            self._progress.close()
            self._progress = None


def state_of(control: Control) -> State:
    """Everything that a later process needs, at the end of a step."""
    module, step = control.module, control.module.step
    optimizer = {k: v for k, v in module.optimizer.state_dict().items() if not k.startswith("master/")}
    values = {
        "spent_seconds": round(control.ledger.spent_seconds, 3),
        "measured": control.budget.measured.state_dict(),
        "skipped": control.skips.count,
        "seen": module.spikes.state(),
        "tokens_sha256": module.tokens_sha256,
        "initial_bits_per_byte": control.first.bits_per_byte,
        "initial_intervals": control.first.intervals,
        "validated": asdict(control.last),
        "final_row": control.final_row,
        "rate": control.rate.state_dict(),
    }
    sequence_index = control.batches.sizes.first_sequence(step)
    return State(step, sequence_index, module.optimizer.master_state_dict(), optimizer, values, module.abandoned)


def restore(control: Control, state: State) -> None:
    """Puts weights, optimizer, position and measurements of a checkpoint in place."""
    module, values = control.module, state.values
    weights = {f"master/{name}": tensor for name, tensor in state.weights.items()}
    module.optimizer.load_state_dict({**weights, **state.optimizer})
    module.step = control.batches.start_step = state.step
    module.spikes.load(values["seen"])
    module.tokens_sha256 = values["tokens_sha256"]
    control.budget.measured.load_state_dict(values["measured"])
    control.skips.count = values["skipped"]
    # Checkpoints of earlier versions have no intervals.
    control.first = Validated(0, values["initial_bits_per_byte"], values.get("initial_intervals", {}))
    control.last = Validated(**values["validated"])
    control.final_row = values["final_row"]
    control.rate.load_state_dict(values["rate"])


class _OneDevice(SingleDeviceStrategy):
    """Lightning's, without its last act: moving the network to the CPU, where `finish` would validate for minutes."""

    def teardown(self) -> None:
        assert self.accelerator is not None
        self.accelerator.teardown()  # gives a card's unused blocks back


def build_trainer(machine: Machine, folder: Path, control: Control) -> Trainer:
    """Lightning's Trainer with the loop and the placement on the device alone; it runs until `control` stops it.

    Its Timer, ModelCheckpoint, Slurm requeue and sanity check are off: its clock forgets killed processes, its
    checkpoints are not atomic, and its requeue saves in the middle of a step.
    """
    for name in TALKATIVE_LOGGERS:  # devices found, advertisements: at the level of information
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    return Trainer(
        accelerator={"cuda": "gpu"}.get(machine.device.type, machine.device.type),
        devices=1,
        strategy=_OneDevice(machine.device),
        precision="32-true",  # our own casts: `train.precision` decides them, see model/optim.py
        plugins=[LightningEnvironment()],
        logger=False,
        callbacks=[control],
        max_epochs=-1,
        max_steps=-1,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=str(folder),
    )
