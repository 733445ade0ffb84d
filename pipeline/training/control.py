"""What happens between two steps: the clock, validation, checkpoints, signals, metrics, in one fixed order.

In: Lightning's hooks. Out: rows of metrics, decisions, checkpoints, and the end of the run. One callback and not
five, because the order is the contract: a step's validation belongs into the step's row, the row must be on disk
before the checkpoint of that step, and the decay's decision before the learning rate that follows from it.
"""

import logging
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer

from pipeline.config import Config, TrainConfig
from pipeline.evaluation.during_training import ProgressTasks
from pipeline.storage.ledger import Ledger, process_age_seconds
from pipeline.system import signals
from pipeline.system.errors import Failure, UserError
from pipeline.system.progress import Progress, format_seconds
from pipeline.training.batches import TokenBatches
from pipeline.training.budget import SAVE_BYTES_PER_SECOND, Budget, Verdict
from pipeline.training.checkpoint import Checkpoints, State
from pipeline.training.decisions import Replay
from pipeline.training.devices import Machine
from pipeline.training.forecast import MemoryForecast, predict_time
from pipeline.training.module import PretrainModule
from pipeline.training.spikes import FINE, REASONS
from pipeline.training.tracking import Metrics, Mirror
from pipeline.training.validation import Validation

MAX_SKIPPED_IN_A_ROW = 10
SAMPLE_MIN_SECONDS, SAMPLE_MAX_SECONDS, SAMPLE_CAP_SHARE = 0.5, 10.0, 0.01

# Each was understood: it advises against what this design decided, or is not ours to fix.
EXPECTED_WARNINGS = (
    r".*configure_optimizers` returned `None`.*",
    r".*LeafSpec.*",
    r".*srun.*",
    r".*does not have many workers.*",
    r".*GPU available but not used.*",
)
TALKATIVE_LOGGERS = ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero")


class Diverged(Failure):
    """Too many steps in a row were skipped."""


@dataclass
class Parts:
    """What the control works with; built by the recipe in pipeline/pretrain.py."""

    train: TrainConfig
    machine: Machine
    batches: TokenBatches
    validation: Validation
    budget: Budget
    checkpoints: Checkpoints
    metrics: Metrics
    ledger: Ledger
    flops_per_token: int
    replay: Replay | None = None
    stage: str = "pretrain"
    tasks: ProgressTasks | None = None


class Control(Callback):
    """Runs the hooks of one life. After `fit`: `stopped` names a signal, `finished` says that the last step is done."""

    def __init__(self, parts: Parts, module: PretrainModule, memory: MemoryForecast):
        self.parts, self.module, self.memory = parts, module, memory
        self.stopped: str | None = None
        self.finished = False
        self.skipped = 0
        self.last_bits_per_byte: dict[str, float] = {}
        self.initial_bits_per_byte: dict[str, float] = {}
        self.last_intervals: dict[str, Any] = {}
        self.initial_intervals: dict[str, Any] = {}
        self.validated_at = -1
        self.final_row: dict[str, Any] = {}  # of the last step; `finish` adds its validation and writes it
        self._skipped_in_a_row = 0
        self._unread: tuple[int, torch.Tensor] | None = None  # a step's verdict: read late, so that no device idles
        self._rate = _Rate()
        self._saved_at_seconds = time.monotonic()
        self._validations_due = 0
        self._progress: Progress | None = None

    # ---- Lightning's hooks

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        signals.take_back()
        parts, step = self.parts, self.module.step
        self._progress = Progress(parts.stage, 1.0)
        parts.budget.begin(step)
        if step == 0:
            self._first_validation()
        else:
            self._after_decision(parts.budget.decide(step), trainer)
        self._validations_due = math.floor(parts.budget.fraction(step) / parts.train.validate_every_share)
        parts.budget.start_seconds = process_age_seconds()
        parts.ledger.card = {**parts.ledger.card, "start_seconds": round(parts.budget.start_seconds, 2)}
        self._stop_if_asked(trainer)
        self.use_decisions()
        self.memory.begin()
        self._rate.restart()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> int | None:
        return -1 if trainer.should_stop else None  # a stop that was decided before the first step of this life

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        parts, step = self.parts, self.module.step
        if self.module.abandoned is not None:
            self._stop_if_asked(trainer)
            return
        signals.defer(True)  # from here on there is something to save
        self.memory.step()
        parts.ledger.check()
        self._read_verdict()
        self._unread = step, self.module.last_verdict
        tokens = parts.batches.sizes.sequences(step - 1) * parts.train.sequence_length
        parts.budget.measured.step(self._rate.lap(tokens), tokens / parts.train.global_batch_tokens)
        if line := predict_time(parts.budget, step):
            self._say(line)
        self._review_threads()
        verdict = parts.budget.decide(step)
        row = self._train_row(step) if step % parts.train.log_every_steps == 0 or verdict != Verdict.GO_ON else {}
        if verdict == Verdict.FINISH:
            self.final_row = row
        else:
            if self._validation_is_due(step):
                limit = parts.budget.validation_limit_seconds()
                row = {**(row or self._train_row(step)), **self.validate(limit_seconds=limit)}
                verdict = self._mind_the_best(step, verdict)
            if self._tasks_are_due(step):
                row = {**(row or self._train_row(step)), **self._run_tasks(step)}
            if row:
                parts.metrics.log(row, step)
                self._show(step, row)
        self._after_decision(verdict, trainer)
        self._keep_for_branches(step)
        self._stop_if_asked(trainer)
        if not trainer.should_stop and self._checkpoint_is_due(step):
            self.save()
        self.use_decisions()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close_progress()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close_progress()

    # ---- acts, each timed for the budget

    def validate(
        self, limit_seconds: float = math.inf, check_seconds: Callable[[float], None] = lambda seconds: None
    ) -> dict[str, float]:
        """Bits per byte of every set under their metric names; empty where a signal came. See `Validation.run`."""
        self._review_threads()
        validation = self.parts.validation
        result = validation.run(self.module.network, signals.stop_requested, limit_seconds, check_seconds)
        if result is None:
            return {}
        self._spent_on("validation", validation.seconds)
        self.last_bits_per_byte, self.validated_at = result, self.module.step
        self.last_intervals = {"sets": validation.intervals, "overall": validation.overall_interval}
        return validation.metrics(result)

    def save(self) -> None:
        """A checkpoint of the state after the newest step, unless there is one already."""
        parts, started = self.parts, time.monotonic()
        self._read_verdict()
        parts.metrics.sync()
        state = self.state()
        if state.step not in parts.checkpoints.steps():
            parts.checkpoints.save(state)
            seconds = time.monotonic() - started
            self._spent_on("checkpoint", seconds)
            # An export is a third of the bytes (weights without Adam's two moments), hashed once more.
            parts.budget.measured.estimate("export", seconds / 2 + 0.1)
        self._saved_at_seconds = time.monotonic()

    def budget_row(self) -> dict[str, float]:
        """What is used of the budget after the newest step."""
        step = self.module.step
        return {
            "budget/gpu_hours": self.parts.ledger.spent_seconds / 3600,
            "budget/tokens": self.parts.batches.sizes.tokens(step),
            "budget/fraction": self.parts.budget.fraction(step),
        }

    def state(self) -> State:
        """Everything that a later life needs, at the end of a step."""
        optimizer = {k: v for k, v in self.module.optimizer.state_dict().items() if not k.startswith("master/")}
        values = {
            "spent_seconds": round(self.parts.ledger.spent_seconds, 3),
            "measured": self.parts.budget.measured.state_dict(),
            "skipped": self.skipped,
            "seen": self.module.spikes.state(),
            "tokens_sha256": self.module.tokens_sha256,
            "initial_bits_per_byte": self.initial_bits_per_byte,
            "initial_intervals": self.initial_intervals,
            "validated": {
                "step": self.validated_at,
                "bits_per_byte": self.last_bits_per_byte,
                "intervals": self.last_intervals,
            },
            "final_row": self.final_row,
            "rate": self._rate.state_dict(),
        }
        step = self.module.step
        sequence_index = self.parts.batches.sizes.first_sequence(step)
        weights = self.module.optimizer.master_state_dict()
        return State(step, sequence_index, weights, optimizer, values, self.module.abandoned)

    def load(self, state: State) -> None:
        """Puts weights, optimizer, position and measurements of a checkpoint in place."""
        weights = {f"master/{name}": tensor for name, tensor in state.weights.items()}
        self.module.optimizer.load_state_dict({**weights, **state.optimizer})
        self.module.step = self.parts.batches.start_step = state.step
        self.parts.budget.measured.load_state_dict(state.values["measured"])
        self.skipped = state.values["skipped"]
        self.module.spikes.load(state.values["seen"])
        self.module.tokens_sha256 = state.values["tokens_sha256"]
        self.initial_bits_per_byte = state.values["initial_bits_per_byte"]
        self.validated_at = state.values["validated"]["step"]
        self.last_bits_per_byte = state.values["validated"]["bits_per_byte"]
        self.initial_intervals = state.values.get("initial_intervals", {})  # of a checkpoint from before: not known
        self.last_intervals = state.values["validated"].get("intervals", {})
        self.final_row = state.values["final_row"]
        self._rate.load_state_dict(state.values["rate"])

    def estimate_ends(self, config: Config, mirror: Mirror | None, report_seconds: float, copy_seconds: float) -> None:
        """What the end of the run costs, until it is measured: from bytes, from the limits set for it, and from a
        report as it was written at the start."""
        measured, parameters = self.parts.budget.measured, self.module.network.config.parameters
        state_bytes = 4 * parameters * 3  # fp32 weights and Adam's two moments
        measured.estimate("checkpoint", 0.1 + state_bytes / SAVE_BYTES_PER_SECOND)
        measured.estimate("export", 0.1 + state_bytes / 2 / SAVE_BYTES_PER_SECOND)
        if config.sample.prompts:
            measured.estimate("sample", sample_seconds(self.parts.budget.plan.cap_seconds))
        if self.parts.tasks is not None:
            measured.estimate("tasks", self.parts.tasks.limit_seconds)
        if mirror is not None:
            measured.estimate("tracking", mirror.limit_finish(self.parts.budget.plan.cap_seconds))
        measured.estimate("report", report_seconds)
        measured.estimate("remote", copy_seconds)

    @property
    def tokens_per_second(self) -> float:
        """Over the training steps of all lives that a checkpoint kept, validation and saves left out."""
        return self._rate.mean()

    @property
    def mfu(self) -> float | None:
        return self._mfu(self.tokens_per_second)

    def use_decisions(self) -> None:
        """The learning rate and the mix follow from what is on record; called before the next batch is taken. Of a
        run that is repeated the micro-batch and the threads too."""
        if self.parts.replay is not None:
            step, replay = self.module.step, self.parts.replay
            self.module.windows = replay.setting("micro_batch", step) or self.module.windows
            if self.parts.machine.device.type == "cpu":
                torch.set_num_threads(replay.setting("threads", step) or torch.get_num_threads())
        self.module.segments = self.parts.budget.decisions.segments()
        record = self.parts.budget.first_decay()
        self.parts.batches.decay_from(record["step"] if record else None)

    # ---- details

    def _review_threads(self) -> None:
        """On a CPU: as many threads as are faster now. On record, because sums then run in another order."""
        if self.parts.replay is not None:
            return
        started, changed = time.monotonic(), self.parts.machine.threads.review()
        if changed is not None:
            self.parts.budget.decisions.add("threads", self.module.step, threads=changed)
        self._rate.leave_out(time.monotonic() - started)

    def _spent_on(self, kind: str, seconds: float) -> None:
        self.parts.budget.measured.event(kind, seconds)
        self._rate.leave_out(seconds)

    def _first_validation(self) -> None:
        """Right after init or growth; it also measures what the last validation will cost."""
        parts, budget = self.parts, self.parts.budget
        left = budget.remaining_seconds()

        def check(seconds: float) -> None:
            if seconds > left / 2:  # the last validation takes as long as this one
                raise UserError(
                    f"one validation of {parts.validation.predicted_tokens:,} tokens takes {seconds:,.0f} s or more "
                    f"here, over half of what is left of the cap ({left:,.0f} s): raise budget.max_gpu_hours or lower "
                    "data.validation.max_bytes"
                )

        metrics = self.validate(check_seconds=check)
        self.initial_bits_per_byte, self.initial_intervals = dict(self.last_bits_per_byte), dict(self.last_intervals)
        if metrics:
            parts.metrics.log({**metrics, **self.budget_row()}, 0)
            self._show(0, metrics)
        step_tokens, validated = parts.train.global_batch_tokens, parts.validation.predicted_tokens
        # A step is three times the work per token; a validation of few tokens is mostly warming up and says nothing.
        budget.check_start(3 * parts.validation.seconds / validated * step_tokens if validated > step_tokens else 0.0)

    def _after_decision(self, verdict: Verdict, trainer: Trainer) -> None:
        if verdict == Verdict.DECAY:
            self.save()
            record = self.parts.budget.first_decay() or {}
            steps = record["end_step"] - record["step"]
            self._say(f"  decay starts at step {record['step']:,}: {steps:,} steps to the end ({record['reason']})")
        elif verdict == Verdict.FINISH:
            self.finished = trainer.should_stop = True

    def _mind_the_best(self, step: int, verdict: Verdict) -> Verdict:
        """After a validation: keeps a new best; the verdict where `train.stop_after_worse` has another one."""
        patience = self.parts.train.stop_after_worse
        if not self.record_validation(step):
            may_end = patience and verdict == Verdict.GO_ON
            return self.parts.budget.verdict_of_validations(step, patience) if may_end else verdict
        if self.parts.budget.may_spend("checkpoint", step):
            self.save()
        return verdict

    def record_validation(self, step: int) -> bool:
        """Under `train.stop_after_worse` the newest validation goes on record; whether it is the best so far."""
        bits = self.parts.validation.overall(self.last_bits_per_byte) if self.validated_at == step else None
        if not self.parts.train.stop_after_worse or bits is None:
            return False
        return self.parts.budget.decisions.record_validation(step, bits)

    def _keep_for_branches(self, step: int) -> None:
        due = self.parts.budget.branches_due(step)
        for name in due:
            self.parts.budget.decisions.add("branch_point", step, branch=name)  # first: `save` prunes by it
        if due:
            self.save()

    def _stop_if_asked(self, trainer: Trainer) -> None:
        name = signals.stop_requested()
        if not name or self.finished:
            return
        self.save()
        if self.is_last_life():
            left = self.parts.budget.remaining_seconds()
            self._say(f"  {name}: {left:.1f} s of the cap are too few for another life, so the end comes now")
            may_step = self.module.abandoned is None
            self.finished = trainer.should_stop = self.parts.budget.end_soon(self.module.step, may_step)
        else:
            self.stopped = name
            trainer.should_stop = True

    def is_last_life(self) -> bool:
        """Whether what is left of the cap is too little for another one. If so, a first signal stops nothing more."""
        last = not self.parts.budget.another_life_fits(self.module.step)
        if last:
            signals.end_is_near()
        return last

    def _validation_is_due(self, step: int) -> bool:
        due = math.floor(self.parts.budget.fraction(step) / self.parts.train.validate_every_share)
        if due <= self._validations_due:
            return False
        self._validations_due = due
        return self.parts.budget.may_spend("validation", step)

    def _tasks_are_due(self, step: int) -> bool:
        sizes, tasks = self.parts.batches.sizes, self.parts.tasks
        if tasks is None or not tasks.due(sizes.tokens(step - 1), sizes.tokens(step)):
            return False
        return self.parts.budget.may_spend("tasks", step)

    def _run_tasks(self, step: int) -> dict[str, float]:
        started, tasks = time.monotonic(), self.parts.tasks
        rows = {} if tasks is None else tasks.run(self.module.network, step)
        self._spent_on("tasks", time.monotonic() - started)
        return rows

    def _checkpoint_is_due(self, step: int) -> bool:
        waited = time.monotonic() - self._saved_at_seconds
        if waited < self.parts.budget.checkpoint_interval_seconds():
            return False
        return self.parts.budget.may_spend("checkpoint", step)

    def _read_verdict(self) -> None:
        """Looks at whether the newest step was taken, and counts what was skipped."""
        if self._unread is None:
            return
        (step, verdict), self._unread = self._unread, None
        if (found := int(verdict)) == FINE:
            self._skipped_in_a_row = 0
            return
        self.skipped += 1
        self._skipped_in_a_row += 1
        decisions = self.parts.budget.decisions
        if all(record["step"] != step for record in decisions.of_kind("skip")):  # a life after a kill skips it again
            decisions.add("skip", step, reason=REASONS[found])
            self._say(f"  step {step:,} is skipped: {REASONS[found]}")
        if self._skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise Diverged(
                f"{MAX_SKIPPED_IN_A_ROW} steps in a row up to step {step} were skipped ({REASONS[found]}); the last "
                "checkpoint is from before. Lower train.learning_rate or train.clip_norm, or set "
                "train.precision=32-true"
            )

    def _train_row(self, step: int) -> dict[str, float]:
        per_second = self._rate.recent()
        if step_seconds := self.parts.budget.measured.step_seconds():
            speed = round(self.parts.train.global_batch_tokens / step_seconds, 1)
            self.parts.ledger.card = {**self.parts.ledger.card, "tokens_per_second": speed}
        row: dict[str, Any] = {
            "train/loss": float(self.module.last_loss),
            "train/lr": self.module.last_learning_rate,
            "train/grad_norm": float(self.module.last_grad_norm),
            "perf/tokens_per_second": round(per_second, 1),
            "perf/mfu": self._mfu(per_second),
            "perf/peak_memory_bytes": self.parts.machine.memory.peak_bytes(),
            **self.budget_row(),
        }
        return row

    def _mfu(self, tokens_per_second: float) -> float | None:
        return self.parts.machine.mfu(tokens_per_second * self.parts.flops_per_token)

    def _show(self, step: int, row: dict[str, Any]) -> None:
        if "val/bits_per_byte" in row:
            per_set = ", ".join(f"{k.split('/')[1]} {v:.4f}" for k, v in row.items() if k.count("/") == 2)
            between = self.last_intervals.get("overall")
            error = f" ± {(between[1] - between[0]) / 2:.4f}" if between else ""
            self._say(f"  step {step:,}: {row['val/bits_per_byte']:.4f}{error} bits per byte ({per_set})")
        if self._progress is not None and "train/loss" in row:
            remaining = self.parts.budget.remaining_seconds()
            left = f", {format_seconds(max(0.0, remaining))} of the cap left" if math.isfinite(remaining) else ""
            note = f"step {step:,}, loss {row['train/loss']:.3f}, {row['perf/tokens_per_second']:,.0f} tokens/s{left}"
            self._progress.to(row["budget/fraction"], note)

    def _say(self, line: str) -> None:
        if self._progress is not None:
            self._progress.write(line)

    def _close_progress(self) -> None:
        if self._progress is not None:
            self._progress.close()
            self._progress = None


def sample_seconds(cap_seconds: float | None) -> float:
    """How long samples may be written at the end: a share of the cap, within bounds."""
    share = SAMPLE_CAP_SHARE * cap_seconds if cap_seconds is not None else SAMPLE_MAX_SECONDS
    return min(SAMPLE_MAX_SECONDS, max(SAMPLE_MIN_SECONDS, share))


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


class _Rate:
    """Tokens per second: over all, and since the last `recent()`. Validation and saves are left out."""

    def __init__(self) -> None:
        self.seconds, self.tokens = 0.0, 0
        self._recent_seconds, self._recent_tokens, self._recent_value = 0.0, 0, 0.0
        self._from = time.monotonic()

    def restart(self) -> None:
        self._from = time.monotonic()

    def leave_out(self, seconds: float) -> None:
        self._from += seconds

    def lap(self, tokens: int) -> float:
        """Ends a step; the seconds since the one before ended, waiting for the batch and bookkeeping included."""
        now = time.monotonic()
        seconds, self._from = now - self._from, now
        self.seconds, self.tokens = self.seconds + seconds, self.tokens + tokens
        self._recent_seconds, self._recent_tokens = self._recent_seconds + seconds, self._recent_tokens + tokens
        return seconds

    def recent(self) -> float:
        if self._recent_seconds > 0:
            self._recent_value = self._recent_tokens / self._recent_seconds
            self._recent_seconds, self._recent_tokens = 0.0, 0
        return self._recent_value

    def mean(self) -> float:
        return self.tokens / self.seconds if self.seconds > 0 else 0.0

    def state_dict(self) -> dict[str, float]:
        return {"seconds": self.seconds, "tokens": self.tokens}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seconds, self.tokens = state["seconds"], int(state["tokens"])
