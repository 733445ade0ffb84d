"""The cap of one training: the only place that computes what is left of it; and the checks before a training starts.

In: `budget.max_gpu_hours`, what the source's training used of it where `budget.count_source` charges that, and the
seconds that earlier processes of the training spent. Imports no torch, so that a mistake is found in a second.
"""

import math
from dataclasses import dataclass

from pipeline.config import Config, nearest
from pipeline.storage.files import read_json_lines
from pipeline.storage.ledger import LEDGER, Ledger, process_age_seconds, spent_seconds
from pipeline.storage.run_files import CHECKPOINTS
from pipeline.storage.steps import Step, read_manifest
from pipeline.system.errors import UserError

LEAST_START_SECONDS = 2.0  # imports alone; a fast machine needs this much
LAST_PROCESS_STARTS = 3.0  # this process' start, the next one's, and room for a slow one


@dataclass(frozen=True)
class Cap:
    """`hours`: as configured, None = no cap. `source_seconds`: of these, used by the source's training."""

    hours: float | None
    source_seconds: float = 0.0

    @property
    def seconds(self) -> float | None:
        """All of it, the source's part included."""
        return None if self.hours is None else 3600 * self.hours

    @property
    def own_seconds(self) -> float | None:
        """What the source left for this training."""
        return None if self.seconds is None else self.seconds - self.source_seconds

    def left_seconds(self, spent_seconds: float) -> float:
        """What is left when this training itself has spent `spent_seconds`; infinite without a cap."""
        return math.inf if self.own_seconds is None else self.own_seconds - spent_seconds

    @property
    def source_note(self) -> str:
        """For messages: the source's part, where there is one."""
        hours = self.source_seconds / 3600
        return f"; {hours:.4f} GPU-hours of the budget are its source's (budget.count_source)" if hours else ""


def pretrain_cap(config: Config, step: Step) -> Cap:
    """Of a pretraining whose init folder is made."""
    counted = read_manifest(step.input("init").path).get("source_gpu_hours") if config.budget.count_source else None
    return Cap(config.budget.max_gpu_hours, 3600 * (counted or 0.0))


def check_names(config: Config) -> None:
    """Raises `UserError` for an optimizer or a decay that does not exist. Loads torch."""
    from model.optim import OPTIMIZERS
    from model.schedules import DECAYS

    for key, table in (("optimizer", OPTIMIZERS), ("decay", DECAYS)):
        name = getattr(config.train, key)
        if name not in table:
            raise UserError(f"train.{key} is '{name}'{nearest(name, table)}; expected one of {', '.join(table)}")


def check_cap(stage: str, config: Config, step: Step, cap: Cap, key: str = "budget") -> None:
    """Raises `UserError` where the hours that are left cannot even start the training."""
    if cap.seconds is None:
        return
    spent = spent_seconds(step.path / LEDGER, stage, step.fingerprint) + process_age_seconds()
    needed, why = LEAST_START_SECONDS, "starting up alone"
    if step.finished:
        last = read_manifest(step.path)
        one_step = config.train.global_batch_tokens / max(1.0, last["tokens_per_second"])
        needed = last["start_seconds"] + (last["forecast"].get("actual", {}).get("end_seconds") or 0.0) + one_step
        why = "starting up, one step and one export took that long last time"
    elif any((step.path / CHECKPOINTS).glob("step-*")):
        return  # something is trained: it is exported in any case
    if cap.left_seconds(spent) < needed:
        spent += cap.source_seconds
        raise UserError(
            f"{key}.max_gpu_hours={cap.hours:g} is {cap.seconds:.1f} s, {spent:.1f} s of them are used; "
            f"what is left is less than {needed:.1f} s ({why}). Expected at least {key}.max_gpu_hours="
            f"{math.ceil(spent + 2 * needed) / 3600:.4f}{cap.source_note}"
        )


def is_last_process(cap: Cap, step: Step, ledger: Ledger) -> bool:
    """Whether the hours that are left start this process but not another; asked before the imports, which take most of
    a start. A stop then has to wait until this process has loaded what it is to export."""
    starts = [line["start_seconds"] for line in read_json_lines(ledger.paths[-1], start_seconds=float)]
    if not starts or not any((step.path / CHECKPOINTS).glob("step-*")):
        return False
    return cap.left_seconds(ledger.spent_seconds) < LAST_PROCESS_STARTS * starts[-1]
