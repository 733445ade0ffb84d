"""What a run has measured of itself: seconds of a step and of the events around them, on this device and on others.

In: durations as they happen, and what an earlier life's checkpoint kept of them. Out: what the next step or event is
expected to take, with room for how much such durations vary. Plain Python, no torch.
"""

from collections import Counter, deque
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

MARGIN = 1.15  # measured durations of single events (validation, save) vary by about this much
FIRST_MARGIN = (
    1.5  # of what was measured less than three times; a review of the decay's end gives back what was too much
)
FIRST_STEP = "first_step"  # of a life


@dataclass
class Measured:
    """Durations in seconds of this run. Estimates hold until the first measurement of a kind.

    `device`, `peak_flops`: of this life. What another device measured is an estimate on this one: steps go by its own
    time of an earlier life, else by the peaks' ratio, until three steps are done.
    """

    device: str = ""
    peak_flops: float | None = None
    speeds: dict[str, float] = field(default_factory=dict)  # device -> seconds a step, of earlier lives
    moved_from: str | None = None
    steps: deque[float] = field(default_factory=lambda: deque(maxlen=1000))
    events: dict[str, float] = field(default_factory=dict)
    measured: Counter[str] = field(default_factory=Counter)
    inherited_step: float | None = None
    steps_this_life: int = 0
    _step_elsewhere: float | None = None
    _mean: float = 0.0
    _slow: float = 0.0

    def step(self, seconds: float, share_of_full: float = 1.0) -> None:
        """`share_of_full`: of the tokens of a full step. What is to come is full steps, also while a batch-size warm-up
        takes smaller ones. The first of a life is warming up more than work, and counts as it is."""
        self.steps_this_life += 1
        if self.steps_this_life == 1:  # warms up caches, allocators, kernels: what a life costs, no forecast of steps
            self.events[FIRST_STEP] = seconds
            self.measured[FIRST_STEP] += 1
            if self.inherited_step is not None:
                return
        else:
            seconds /= share_of_full
        if self.steps_this_life == 2 and len(self.steps) == 1:
            self.steps.clear()
        self.steps.append(seconds)
        newest_first = list(islice(reversed(self.steps), max(50, self.steps_this_life // 5)))
        last = sorted(newest_first[: max(20, self.steps_this_life // 5)])
        usual = last[:-1] if len(last) >= 3 else last  # a machine that stood still once is no slower for it
        self._mean = sum(usual) / len(usual)
        slowest = sorted(newest_first[:50])[-2:]
        self._slow = slowest[0] if len(self.steps) >= 3 else slowest[-1]

    def event(self, kind: str, seconds: float) -> None:
        """The slowest of a kind counts: events are few, and an overrun is worse than a second left over."""
        earlier = self.events.get(kind, 0.0) if kind in self.measured else 0.0
        self.events[kind] = max(earlier, seconds)
        self.measured[kind] += 1

    def estimate(self, kind: str, seconds: float) -> None:
        if kind not in self.measured:
            self.events[kind] = seconds

    def step_seconds(self) -> float:
        """Mean over the last fifth of the steps of this life, at least 20, the slowest left out; stalls that come again
        count by their share."""
        if len(self.steps) < 3 and self.inherited_step is not None:
            return self.inherited_step
        return self._mean

    @property
    def speed_is_known(self) -> bool:
        """Whether more than a life's first step was measured."""
        return self.steps_this_life > 1 or self.inherited_step is not None

    def slow_step_seconds(self) -> float:
        """The second slowest of the last 50 steps: one stall is no rule."""
        return self._slow if self.steps else self.inherited_step or 0.0

    def expected(self, kind: str) -> float:
        seconds = self.events.get(kind, 0.0)
        if kind == "validation" and self._step_elsewhere and kind not in self.measured:
            seconds *= max(1.0, self.step_seconds() / self._step_elsewhere)  # computes as the steps do
        return seconds * (MARGIN if self.measured[kind] >= 3 else FIRST_MARGIN)

    def state_dict(self) -> dict[str, Any]:
        return {
            "device": self.device,
            "peak_flops": self.peak_flops,
            "speeds": self.speeds,
            # Nothing but a step that compiled is no speed.
            "step_seconds": self.step_seconds() if self.speed_is_known else None,
            "events": {k: self.events[k] for k in sorted(self.measured) if self.measured[k]},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        step, device, peak = state["step_seconds"] or None, state["device"], state["peak_flops"]
        self.speeds = {**state["speeds"], **({device: step} if step else {})}
        if device == self.device:
            self.inherited_step = step
            for kind, seconds in state["events"].items():
                self.event(kind, seconds)
            return
        self.moved_from, self._step_elsewhere = device, step
        ratio = peak / self.peak_flops if peak and self.peak_flops else 1.0
        self.inherited_step = self.speeds.get(self.device) or (step * ratio if step else None)
        for kind, seconds in state["events"].items():
            self.estimate(kind, seconds)
