"""Forecasts of a step's memory and of the run's length, made early and compared with the facts in the manifest.

Memory: what a process holds before it makes the network, plus the traced peak of a step (model/estimate.py); the fact
is the high-water mark over the first three steps of a process. Time: once a tenth of the budget is used and again at a
third, from the speed measured by then, with a range; the fact is the end. decisions.jsonl records each forecast when it
is made.
"""

import math
from dataclasses import replace
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from pipeline.config import TrainConfig
from pipeline.training.budget import Budget
from pipeline.training.decisions import Decisions
from pipeline.training.memory import memory_plan, train_settings

if TYPE_CHECKING:
    from pipeline.training.devices import Machine
    from pipeline.training.module import PretrainModule

LEAST_CAP_SECONDS = 120.0  # a trace takes a second or two: too much of a shorter run
TIME_AT_FRACTIONS, LEAST_STEPS = (0.1, 1 / 3), 20
LEAST_SPREAD, MOST_SPREAD = 0.05, 0.8  # of a step's duration: what is never surer, and never less sure
MEASURED_STEPS = 3  # the optimizer's states are made in the first


class MemoryForecast:
    """Of one process. `held_before`: bytes held before the network was made (imports, on a CPU), None where unknown."""

    def __init__(self, decisions: Decisions, machine: "Machine", held_before: int | None):
        self.decisions, self.machine, self.held_before = decisions, machine, held_before
        self.measured_bytes: int | None = None
        self._steps: int | None = None

    def predict(self, module: "PretrainModule", train: TrainConfig, cap_seconds: float | None) -> None:
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
        """Before the first step of the process."""
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


def predict_time(budget: Budget, step: int) -> str | None:
    """Once a tenth of the budget is used, and again at a third: steps and device-seconds at the end, each with a range,
    on record. The line that says so, where it is time."""
    made = len(_time_records(budget))
    if budget.measured.steps_this_life < LEAST_STEPS or made == len(TIME_AT_FRACTIONS):
        return None
    if budget.segment(step) is not None or budget.fraction(step) < TIME_AT_FRACTIONS[made]:
        return None
    steps, seconds = budget.predict(step)
    # Where the clock sets the end, the steps are uncertain and the seconds known; where the tokens do, the reverse.
    share = _uncertain_share(budget, step, steps)
    fixed = steps == budget.limits.max_steps
    left_steps, left_seconds = steps - step, seconds - budget.spent()
    record = budget.decisions.add(
        "forecast",
        step,
        steps=steps,
        seconds=round(seconds, 1),
        steps_range=[steps] * 2 if fixed else [step + round(left_steps / f) for f in (1 + share, 1 - share)],
        seconds_range=[round(seconds + f * left_seconds, 1) if fixed else round(seconds, 1) for f in (-share, share)],
        spent_seconds=round(budget.spent(), 1),
        **_limits(budget),
    )
    low, high = record["steps_range"]
    if fixed:
        low, high = record["seconds_range"]
        return f"  forecast: {seconds:,.0f} s in all ({low:,.0f} to {high:,.0f}) for {steps:,} steps"
    return f"  forecast: {steps:,} steps in all ({low:,} to {high:,})"


def _uncertain_share(budget: Budget, step: int, steps: int) -> float:
    """By how much the mean duration of the steps to come may differ from what was measured, as a share of it: twice the
    spread of the means of five steps, more where few steps were measured of many to come, as machines drift."""
    durations = list(budget.measured.steps)[1:]
    means = [mean(durations[i : i + 5]) for i in range(0, len(durations) - 4, 5)]
    spread = 2 * stdev(means) / mean(means) if len(means) > 1 and mean(means) > 0 else 0.0
    widened = max(LEAST_SPREAD, spread) * math.sqrt(max(1.0, (steps - step) / max(1, len(durations))))
    return min(MOST_SPREAD, widened)


def time_facts(budget: Budget, step: int) -> dict[str, Any]:
    """For the manifest: predicted and actual steps and device-seconds. `ratio`: predicted over actual steps, or seconds
    where the tokens set the end. `range`: of the same; `again`: the forecast made at a third. `planned_step_seconds`
    and `later_step_seconds`: of a step with the work between steps, from the forecast to the end. Empty where the
    run was too short for a forecast."""
    records = _time_records(budget)
    if not records:
        return {}
    by_tokens = budget.stopped_by(step) == "tokens"
    unit, fact = ("seconds", budget.spent()) if by_tokens else ("steps", step)
    first = records[0]
    facts = {
        "at_step": first["step"],
        "predicted_steps": first["steps"],
        "steps": step,
        "predicted_seconds": first["seconds"],
        "seconds": round(budget.spent(), 1),
        "ratio": round(first[unit] / fact, 4),
    }
    if "steps_range" not in first:  # of an earlier version
        return facts
    facts |= {"unit": unit, "range": first[f"{unit}_range"]}
    if step > first["step"] and first["steps"] > first["step"]:
        planned = (first["seconds"] - first["spent_seconds"]) / (first["steps"] - first["step"])
        later = (budget.spent() - first["spent_seconds"]) / (step - first["step"])
        facts |= {"planned_step_seconds": round(planned, 5), "later_step_seconds": round(later, 5)}
    if len(records) > 1:
        again = records[1]
        ratio = round(again[unit] / fact, 4)
        facts["again"] = {"at_step": again["step"], "ratio": ratio, "range": again[f"{unit}_range"]}
    return facts


def _limits(budget: Budget) -> dict[str, Any]:
    return {"max_gpu_hours": budget.limits.max_gpu_hours, "max_tokens": budget.limits.max_tokens}


def _time_records(budget: Budget) -> list[dict[str, Any]]:
    """The forecasts for these limits: a raised cap gets its own."""
    return [r for r in budget.decisions.of_kind("forecast") if _limits(budget).items() <= r.items()]
