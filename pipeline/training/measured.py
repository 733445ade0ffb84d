"""What a run has measured of itself: seconds of a step and of the events around them, on this device and on others.

In: durations as they happen, and what an earlier life's checkpoint kept of them. Out: what the next step or event is
expected to take, with room for how much such durations vary. Plain Python, no torch.
"""

import math
from collections import Counter, deque
from dataclasses import dataclass, field
from itertools import islice
from statistics import median
from typing import Any

MARGIN = 1.15  # measured durations of single events (validation, save) vary by about this much
FIRST_MARGIN = (
    1.5  # of what was measured less than three times; a review of the decay's end gives back what was too much
)
CUT_SHORT = ("validation", "checkpoint")  # or left out, where the last one takes longer than it may
PACE_STEPS = 5  # the newest, which say how busy the machine is
LEAST_AHEAD = 10  # steps that a mean is over
SEEN = 8  # of a kind of events, the newest
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
    events: dict[str, float] = field(default_factory=dict)  # kind -> seconds of the slowest, or as estimated
    measured: Counter[str] = field(default_factory=Counter)
    inherited_step: float | None = None
    _seen: dict[str, deque[tuple[float, float | None]]] = field(default_factory=dict)  # kind -> (seconds, pace then)
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
        if len(self.steps) == PACE_STEPS:
            self._date_earlier_events()
        newest_first = list(islice(reversed(self.steps), max(50, self.steps_this_life // 5)))
        last = sorted(newest_first[: max(20, self.steps_this_life // 5)])
        usual = last[:-1] if len(last) >= 3 else last  # a machine that stood still once is no slower for it
        self._mean = sum(usual) / len(usual)
        slowest = sorted(newest_first[:50])[-2:]
        self._slow = slowest[0] if len(self.steps) >= 3 else slowest[-1]

    def event(self, kind: str, seconds: float) -> None:
        earlier = self.events.get(kind, 0.0) if kind in self.measured else 0.0
        self.events[kind] = max(earlier, seconds)
        self._seen.setdefault(kind, deque(maxlen=SEEN)).append((seconds, self._pace()))
        self.measured[kind] += 1

    def estimate(self, kind: str, seconds: float) -> None:
        if kind not in self.measured:
            self.events[kind] = seconds

    def step_seconds(self, ahead: float = math.inf) -> float:
        """Mean over the last fifth of the steps of this life, at least 20, the slowest left out; stalls that come again
        count by their share. Over no more than twice as many as lie `ahead`, so that the end of a run does not go by
        how busy the machine was before."""
        if len(self.steps) < 3 and self.inherited_step is not None:
            return self.inherited_step
        if 2 * ahead >= max(20, self.steps_this_life // 5) or len(self.steps) < 2:
            return self._mean
        last = sorted(islice(reversed(self.steps), max(LEAST_AHEAD, math.ceil(2 * ahead))))
        return sum(last[:-1]) / len(last[:-1])

    @property
    def speed_is_known(self) -> bool:
        """Whether more than a life's first step was measured."""
        return self.steps_this_life > 1 or self.inherited_step is not None

    def slow_step_seconds(self) -> float:
        """The second slowest of the last 50 steps: one stall is no rule."""
        return self._slow if self.steps else self.inherited_step or 0.0

    def _pace(self) -> float | None:
        """Mean seconds of the newest steps; None while too few are known."""
        newest = list(islice(reversed(self.steps), PACE_STEPS))
        return sum(newest) / PACE_STEPS if len(newest) == PACE_STEPS else None

    def _date_earlier_events(self) -> None:
        """What was done before there was a pace counts as done at the first one."""
        first = self._pace()
        for kind, seen in self._seen.items():
            self._seen[kind] = deque(((seconds, pace or first) for seconds, pace in seen), maxlen=SEEN)

    def _seconds_of(self, kind: str) -> float:
        """The slowest of a kind: events are few, and an overrun is worse than a second left over. What can be cut short
        counts as usual, at the pace of now where steps were slower then, and as no quicker than the quickest."""
        seen, now = [(seconds, pace) for seconds, pace in self._seen.get(kind, ()) if pace], self._pace()
        if kind not in CUT_SHORT or len(seen) < 3 or now is None:
            return self.events.get(kind, 0.0)
        quickest = min(seconds for seconds, _ in seen)
        return max(quickest, median(seconds * min(1.0, now / pace) for seconds, pace in seen))

    def expected(self, kind: str) -> float:
        seconds = self._seconds_of(kind)
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
