"""Learning-rate multipliers: pure functions of the step, given the decisions that were recorded about the decay.

In: a step number and the decay's segments. Out: a multiplier of the peak learning rate in [0, 1]. Warmup, stable,
decay (WSD; MiniCPM, arXiv 2404.06395): the stable phase does not depend on the end, so the clock decides only when the
decay starts and where it ends, and each such decision is written down as a `DecaySegment` before it is used.
A resumed run reads the segments back and continues on the same curve.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass


def linear(progress: float) -> float:
    """1 - progress."""
    return 1.0 - progress


def one_minus_sqrt(progress: float) -> float:
    """1 - sqrt(progress): steep at first, long at low rates (Haegele et al. 2024, arXiv 2405.18392)."""
    return 1.0 - math.sqrt(progress)


def cosine(progress: float) -> float:
    """Half a cosine: flat at both ends."""
    return 0.5 + 0.5 * math.cos(math.pi * progress)


DECAYS: dict[str, Callable[[float], float]] = {"linear": linear, "one_minus_sqrt": one_minus_sqrt, "cosine": cosine}


LAST_RATE = 0.01  # of the peak: at most this at the last step of a linear decay, however short; less for other shapes


@dataclass(frozen=True)
class DecaySegment:
    """One decision: at the start of `step` the decay has come to `progress`, and it reaches 1 at `end_step`.

    The first segment starts the decay (progress 0). Later ones move its end, when the speed turned out different;
    they start at the progress reached so far. `end_step` is the first step that is no longer taken. Where a machine got
    much faster late in the decay, the rate stands still until `hold_until`: progress then moves on from there.
    """

    step: int
    end_step: int
    progress: float = 0.0
    hold_until: int = 0

    @property
    def falls_from(self) -> int:
        return max(self.step, min(self.hold_until, self.end_step - 1))


def warmup_multiplier(step: int, warmup_steps: int) -> float:
    """(step + 1) / warmup_steps, at most 1: the first step already learns, step warmup_steps - 1 runs at the peak."""
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps > 0 else 1.0


def decay_progress(step: float, segments: Sequence[DecaySegment]) -> float:
    """How far the decay has come at `step`, in [0, 1]: piecewise linear, 0 before the first segment.

    The last segment whose step has come rules. Progress never falls, whatever a later segment recorded.
    """
    progress = 0.0
    ordered = sorted(segments, key=lambda segment: segment.step)
    for index, segment in enumerate(ordered):
        if segment.step > step:
            break
        until = min(step, ordered[index + 1].step) if index + 1 < len(ordered) else step
        start = max(progress, segment.progress)
        length = segment.end_step - segment.falls_from
        fallen = max(0.0, until - segment.falls_from)
        progress = 1.0 if until >= segment.end_step else start + (1.0 - start) * fallen / length
    return min(progress, 1.0)


def wsd(step: int, warmup_steps: int, segments: Sequence[DecaySegment], shape: str = "linear") -> float:
    """Multiplier of the learning rate for the 0-based optimizer step `step`.

    The decay is read in the middle of a step: the last step (end_step - 1) then has a small rate (linear: 0.5 / steps
    of the decay) and is not wasted at exactly 0. Where few steps are left, as after a kill, it is read later in the
    step, so that the last one has at most `LAST_RATE`. From end_step on it is 0.
    """
    ruling = sorted((segment for segment in segments if segment.step <= step), key=lambda segment: segment.step)
    progress = decay_progress(step + _read_at(ruling[-1]), ruling) if ruling else 0.0
    multiplier = min(warmup_multiplier(step, warmup_steps), DECAYS[shape](progress))
    is_last = bool(ruling) and step == ruling[-1].end_step - 1
    return min(multiplier, LAST_RATE) if is_last else multiplier  # rounding can lift it a little above


def _read_at(segment: DecaySegment) -> float:
    """The place within a step at which a decay is read, in [0.5, 1)."""
    length, falls = segment.end_step - segment.falls_from, 1.0 - segment.progress
    return max(0.5, 1.0 - LAST_RATE * length / falls) if falls > 0 else 0.5
