"""The cap of one training, in device-seconds: the only place that computes what is left of it. Imports no torch.

In: `budget.max_gpu_hours`, and what the source's training used of it where `budget.count_source` charges that.
"""

import math
from dataclasses import dataclass

from pipeline.config import Config
from pipeline.storage.steps import Step, read_manifest


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
    init = step.inputs["init"]
    if not isinstance(init, Step):
        raise TypeError(f"the input 'init' of pretrain must be a step, found {init!r}")
    counted = read_manifest(init.path).get("source_gpu_hours") if config.budget.count_source else None
    return Cap(config.budget.max_gpu_hours, 3600 * (counted or 0.0))
