"""Forecast against fact, in every manifest: the memory of a step and the length of the run, said before they are known.

Memory: what a process holds before it makes the network, plus the traced peak of a step (model/estimate.py); the fact
is the high-water mark over the first three steps of a life. Time: once a tenth of the budget is used, from the speed
measured by then; the fact is the end. Both forecasts are on record in decisions.jsonl when they are made.
"""

from dataclasses import replace
from typing import Any

from pipeline.config import TrainConfig
from pipeline.training.budget import Budget
from pipeline.training.decisions import Decisions
from pipeline.training.devices import Machine
from pipeline.training.micro_batch import memory_plan, train_settings
from pipeline.training.module import PretrainModule

LEAST_CAP_SECONDS = 120.0  # a trace takes a second or two: too much of a shorter run
TIME_AT_FRACTION, LEAST_STEPS = 0.1, 20
MEASURED_STEPS = 3  # the optimizer's states are made in the first


class MemoryForecast:
    """Of one life. `held_before`: bytes held before the network was made (imports, on a CPU), None where unknown."""

    def __init__(self, decisions: Decisions, machine: Machine, held_before: int | None):
        self.decisions, self.machine, self.held_before = decisions, machine, held_before
        self.measured_bytes: int | None = None
        self._steps: int | None = None

    def predict(self, module: PretrainModule, train: TrainConfig, cap_seconds: float | None) -> None:
        """Puts the traced peak of this card and micro-batch on record, once; nothing where the cap is too short."""
        known = self._known(module.windows) is not None
        if known or (cap_seconds is not None and cap_seconds < LEAST_CAP_SECONDS):
            return
        settings = train_settings(train, self.machine.precision)  # on a card traced already, for its micro-batch
        if self.machine.device.type == "cpu":
            several = module.windows * train.sequence_length < train.global_batch_tokens
            settings = replace(settings, device_type="cpu", accumulate=settings.accumulate and several)
        found = memory_plan(module.network.config, settings).estimate(module.windows)
        self.decisions.add(
            "memory", module.step, device=self.machine.name, micro_batch=module.windows, traced_bytes=found.traced_bytes
        )

    def begin(self) -> None:
        """Before the first step of the life."""
        self._steps = 0 if self.machine.memory.restart_peak() else None

    def step(self) -> None:
        """After a step, before anything else takes memory."""
        if self._steps is None or self.measured_bytes is not None:
            return
        self._steps += 1
        if self._steps == MEASURED_STEPS:
            self.measured_bytes = self.machine.memory.newest_peak_bytes()

    def facts(self, windows: int) -> dict[str, Any]:
        """For the manifest: predicted and measured bytes, and predicted over measured where both are known."""
        record = self._known(windows)
        if record is None:
            return {"reason": f"not traced (it takes seconds; done where the cap is {LEAST_CAP_SECONDS:.0f} s or more)"}
        predicted = record["traced_bytes"] + (self.held_before or 0)
        facts = {"traced_bytes": record["traced_bytes"], "held_before_bytes": self.held_before}
        return {
            **facts,
            "predicted_bytes": predicted,
            "measured_bytes": self.measured_bytes,
            "ratio": round(predicted / self.measured_bytes, 4) if self.measured_bytes else None,
        }

    def _known(self, windows: int) -> dict[str, Any] | None:
        wanted = {"device": self.machine.name, "micro_batch": windows}
        found = [r for r in self.decisions.of_kind("memory") if wanted.items() <= r.items()]
        return found[-1] if found else None


def predict_time(budget: Budget, step: int) -> None:
    """Once a tenth of the budget is used: steps and device-seconds at the end, on record."""
    if budget.measured.steps_this_life < LEAST_STEPS or _time_record(budget) is not None:
        return
    if budget.first_decay_has_begun(step) or budget.fraction(step) < TIME_AT_FRACTION:
        return
    steps, seconds = budget.predict(step)
    budget.decisions.add("forecast", step, steps=steps, seconds=round(seconds, 1), **_limits(budget))


def time_facts(budget: Budget, step: int) -> dict[str, Any]:
    """For the manifest: predicted and actual steps and device-seconds. `ratio`: predicted over actual steps, or seconds
    where the tokens set the end. Empty where the run was too short for a forecast."""
    record = _time_record(budget)
    if record is None:
        return {}
    by_tokens = budget.stopped_by(step) == "tokens"
    ratio = record["seconds"] / budget.spent() if by_tokens else record["steps"] / step
    return {
        "at_step": record["step"],
        "predicted_steps": record["steps"],
        "steps": step,
        "predicted_seconds": record["seconds"],
        "seconds": round(budget.spent(), 1),
        "ratio": round(ratio, 4),
    }


def _limits(budget: Budget) -> dict[str, Any]:
    return {"max_gpu_hours": budget.plan.max_gpu_hours, "max_tokens": budget.plan.max_tokens}


def _time_record(budget: Budget) -> dict[str, Any] | None:
    """The forecast for these limits: a raised cap is forecast anew."""
    found = [r for r in budget.decisions.of_kind("forecast") if _limits(budget).items() <= r.items()]
    return found[-1] if found else None
