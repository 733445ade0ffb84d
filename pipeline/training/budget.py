"""The GPU-hour cap: when the decay starts and ends, and what may still be spent before it. Plain Python, no torch.

In: a clock that counts every second of every process of the run (the ledger's), a cap, durations measured in this
run. Out: decisions. The stable phase does not depend on the end, so the clock decides one thing: after step s the
decay of n = s * c / (1 - c) steps starts as soon as those steps and the reserve (last validation, checkpoint, export,
sample, tracking, report, exit) fill what is left. During the decay the end follows the speed of the newest steps, on
record and with progress never falling. Once the rate is low a few more steps use the time that is left.
`max_tokens` fixes the end in steps instead; whichever comes first. Lightning's Timer and its peers start late, forget
killed processes, and end at the full learning rate.

`Measured` keeps the seconds of a step and of the events around it, and predicts them with room for how much they vary.
"""

import math
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import islice
from statistics import median
from typing import Any

from pipeline.system.errors import UserError
from pipeline.training.cap import Cap
from pipeline.training.decisions import Decisions

EXIT_SLACK_SECONDS = 0.6  # manifest, last ledger line, process exit
EXIT_SLACK_SHARE = 0.002  # of the cap: machines that run for a day also stall for a minute
ANNEALED_MIN_SHARE = 0.05  # a decay over a smaller share of the steps is a stop, not an annealing
VALIDATION_MAX_SHARE = 0.06  # of the cap: a slower last validation is cut short, not the decay
LOW_PROGRESS = 0.01  # of a decay: its last part, below a hundredth of the peak rate where the decay is linear
LOW_STEPS_SHARE, FALL_SHARE = 0.018, 0.005  # of the steps: as many may be in that part, and as many are planned to be
NEARER, FARTHER = 8, 4  # the end moves by an eighth of the steps left or more, or by a quarter
SAVE_SHARE = 0.01  # of the time, where no interval is set: a save of 1 s is worth losing 100 s
LEAST_SAVE_INTERVAL_SECONDS = 30.0
SAVE_BYTES_PER_SECOND = 200e6  # written, synced and hashed; a slow disk, until a run has measured its own
SAMPLE_MIN_SECONDS, SAMPLE_MAX_SECONDS, SAMPLE_CAP_SHARE = 0.5, 10.0, 0.01
FLOAT32_MAX_BYTES = 2**30  # larger models are exported in bf16: half the download, nothing lost in use
STOP_SECONDS = 10.0  # of steps, and of the last validation, after a first signal; Slurm's KillWait is 30 s
EVENTS = ("validation", "checkpoint", "export", "sample", "tracking", "report", "remote")
MARGIN = 1.15  # measured durations of single events (validation, save) vary by about this much
FIRST_MARGIN = 1.5  # of what was measured less than three times; as the decay's end is adjusted, any excess is used
CUT_SHORT = ("validation", "checkpoint")  # or left out, where the last one takes longer than it may
PACE_STEPS = 5  # the newest, which show how busy the machine is
LEAST_AHEAD = 10  # steps that a mean is over
SEEN = 8  # of each event, the newest
FIRST_STEP = "first_step"  # the event: of a process

VALIDATION = "validation"  # as a reason: held-out text got worse
STOPPED = "stopped"  # as a reason: too little of the cap is left for another process


class Verdict(Enum):
    """What to do after a step."""

    CONTINUE = "continue"
    DECAY = "the decay starts here: keep a checkpoint from before it"
    FINISH = "the last step is done"


@dataclass
class Limits:
    """The limits of one run. `cap`: by the clock; `max_steps`: from `budget.max_tokens`.

    `decay_share`: share of the steps. `checkpoint_every_seconds` (None: by what a save costs) and
    `validate_every_share`: the periodic events, which the prediction includes and which are skipped where they would
    eat the reserve. `max_steps_reason`: the key that set `max_steps`; where it is "max_epochs", `max_tokens` is None:
    raising that reopens nothing. `steps_available`: how long the text lasts if the decay starts at a step, None =
    without end. `branches`: name -> (GPU-hours, None) or (None, step where its decay starts) of the models that
    `hornbook pretrain --branch` will anneal from this run.
    """

    cap: Cap
    max_steps: int | None
    decay_share: float
    checkpoint_every_seconds: float | None = None
    validate_every_share: float = 0.2
    max_gpu_hours: float | None = None
    max_tokens: int | None = None
    steps_available: Callable[[int], int | None] = lambda decay_start: None
    max_steps_reason: str = "max_tokens"
    branches: Mapping[str, tuple[float | None, int | None]] = field(default_factory=dict)


def save_interval_seconds(every_seconds: float | None, save_seconds: float) -> float:
    """As set, else so that saves, each of `save_seconds`, take `SAVE_SHARE` of the time."""
    if every_seconds is not None:
        return every_seconds
    return max(LEAST_SAVE_INTERVAL_SECONDS, save_seconds / SAVE_SHARE)


def planned_decay_start(last: int, decay_share: float) -> int:
    """Where the decay of a run of `last` steps starts."""
    return last - max(1, round(last * decay_share))


def estimate_ends(
    measured: "Measured", cap_seconds: float | None, parameters: int, samples: bool, **limits: float
) -> None:
    """Puts in what saving and the end of the run cost, until it is measured: the saves from their bytes, samples by
    their share of the cap, the others (`tasks`, `tracking`, `report`, `remote`) as they are limited."""
    state_bytes = 4 * parameters * 3  # fp32 weights and Adam's two moments
    measured.estimate("checkpoint", 0.1 + state_bytes / SAVE_BYTES_PER_SECOND)
    measured.estimate("export", 0.1 + state_bytes / 2 / SAVE_BYTES_PER_SECOND)
    share = SAMPLE_CAP_SHARE * cap_seconds if cap_seconds is not None else SAMPLE_MAX_SECONDS
    measured.estimate("sample", min(SAMPLE_MAX_SECONDS, max(SAMPLE_MIN_SECONDS, share)) if samples else 0.0)
    for event, seconds in limits.items():
        measured.estimate(event, seconds)


class Budget:
    """Decides after every step. `clock`: device-seconds of all processes so far, from their starts on.

    Call `decide(step)` once when `step` steps are done; do what the `Verdict` says; ask `may_spend` before every
    periodic event; feed `measured`.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float], decisions: Decisions):
        self.limits, self.clock, self.decisions = limits, clock, decisions
        self.measured = Measured()
        self.replayed_end: int | None = None  # the step at which the run that this one repeats ended
        self.start_seconds = 0.0  # of this process, until its first step: what a branch will need again
        self._ends_soon = False

    def begin(self, step: int) -> None:
        """Once per process, `step` steps done: with `max_tokens` the decay's place is on record from the start."""
        last, decays = self.limits.max_steps, self.decisions.decays()
        if last is None or (decays and decays[-1]["end_step"] <= last):
            return
        if self.segment(step) is None:
            start = max(step, planned_decay_start(last, self.limits.decay_share))
            end = min(max(last, start), self._text_ends(start))
            self._record(start, end_step=end, progress=0.0, reason=self.limits.max_steps_reason)
        else:  # max_tokens was lowered while the decay ran
            self._record(step, max(last, step), self.decisions.progress(step), self.limits.max_steps_reason)

    def spent(self) -> float:
        """Device-seconds that count so far, those of the source included where the cap counts them."""
        return self.clock() + self.limits.cap.source_seconds

    def remaining_seconds(self) -> float:
        return self.limits.cap.left_seconds(self.clock())

    def reserve_seconds(self) -> float:
        """What must be left when the last step ends, plus a usual and a slow step against surprises."""
        ends = sum(self._expected(kind) for kind in EVENTS)
        slack = EXIT_SLACK_SECONDS + EXIT_SLACK_SHARE * (self.limits.cap.seconds or 0.0)
        return ends + self._surprise_seconds() + slack + self._warm_up_seconds()

    def _surprise_seconds(self) -> float:
        return self.measured.step_seconds() + self.measured.slow_step_seconds()

    def _warm_up_seconds(self) -> float:
        """What a resumed process has still to pay at its first step, compiling above all."""
        measured = self.measured
        if measured.steps_this_life or FIRST_STEP not in measured.events:
            return 0.0
        return max(0.0, measured.events[FIRST_STEP] - measured.step_seconds())

    def checkpoint_interval_seconds(self) -> float:
        """Between two periodic saves, by what a save of this run was measured to take."""
        return save_interval_seconds(self.limits.checkpoint_every_seconds, self.measured.events.get("checkpoint", 0.0))

    def validation_limit_seconds(self, last: bool = False) -> float:
        """How long a validation may take: its share of the cap; the last one whatever the rest of the end leaves."""
        if self.limits.cap.seconds is None:
            return math.inf
        if not last:
            return VALIDATION_MAX_SHARE * self.limits.cap.seconds
        rest = self.reserve_seconds() - self._expected("validation") - self._surprise_seconds()
        left = max(0.0, self.remaining_seconds() - rest)
        return min(left, STOP_SECONDS) if self._ends_soon else left

    def may_save_last(self) -> bool:
        """Whether the last checkpoint fits beside the export, which alone must be. Where a disk was suddenly slow it
        does not: without it a kill inside the export costs the steps since the save before."""
        if self.limits.cap.seconds is None:
            return True
        return self.remaining_seconds() >= self._expected("checkpoint") + self._expected("export") + EXIT_SLACK_SECONDS

    def sample_limit_seconds(self) -> float:
        """How long samples may take: what is set aside for them, or less where the rest of the end needs it."""
        rest = self._expected("tracking") + self._expected("report") + EXIT_SLACK_SECONDS
        return min(self.measured.events.get("sample", 0.0), max(0.0, self.remaining_seconds() - rest))

    def _expected(self, kind: str) -> float:
        seconds = self.measured.expected(kind)
        if kind == "validation" and self.limits.cap.seconds is not None:
            return min(seconds, VALIDATION_MAX_SHARE * self.limits.cap.seconds)
        return seconds

    def check_start(self, first_step_seconds: float) -> None:
        """Raises `UserError` where not even one step and one export fit; for a run that has no checkpoint yet."""
        needed = self.reserve_seconds() + first_step_seconds
        if self.remaining_seconds() < needed:
            spent, cap = self.spent(), self.limits.cap.seconds or 0.0
            parts = ", ".join(f"{kind} {self._expected(kind):.1f}" for kind in EVENTS)
            raise UserError(
                f"budget.max_gpu_hours={self.limits.max_gpu_hours:g} is {cap:.1f} s; {spent:.1f} s are spent on "
                f"starting up and one step with everything after it needs {needed:.1f} s more (step "
                f"{first_step_seconds:.1f}, {parts}, exit {EXIT_SLACK_SECONDS:.1f}); expected at least "
                f"budget.max_gpu_hours={math.ceil(1.2 * (spent + needed)) / 3600:.4f}"
            )

    def decide(self, step: int) -> Verdict:
        """The verdict when `step` steps are done. All that the clock decides is on disk when this returns."""
        segment = self.segment(step)
        if segment is None:
            self._start_decay_if_due(step)
            segment = self.segment(step)
        else:
            self._adjust_end(step)
        if step >= self.end_step(step):
            return Verdict.FINISH
        return Verdict.DECAY if step == self._decay_start() else Verdict.CONTINUE

    def worse(self, step: int) -> Verdict:
        """Held-out text got worse: the decay starts here, whatever is left of the budget; one that runs ends here."""
        if self.segment(step) is not None:
            self._record(step, step, self.decisions.progress(step), VALIDATION)
            return Verdict.FINISH
        length = max(1, min(self._planned_length(step), self._steps_that_fit(self._decay_seconds())))
        self._record(step, step + self._bounded(length, step, step), 0.0, VALIDATION)
        return Verdict.DECAY

    def verdict_of_validations(self, step: int, patience: int) -> Verdict:
        """Under `train.stop_after_worse`, after a validation at `step` that is not the best: `patience` of them in a
        row above the best start the decay, and as many more in the decay end the run (early stopping with patience;
        Prechelt 1998, "Early stopping - but when?"). It follows from the `validated` records alone, so that a killed
        run decides the same again."""
        validations = {s: bits for s, bits in self.decisions.validations().items() if s <= step}
        best = min(validations, key=validations.__getitem__)
        decay = self.first_decay()
        since = decay["step"] if decay and decay["step"] <= step else -1
        worse = [s for s in validations if s > max(best, since)]
        return self.worse(step) if len(worse) >= patience else Verdict.CONTINUE

    def branches_due(self, step: int) -> list[str]:
        """Those of `limits.branches` whose decay would have to start now: the state after `step` is to be kept."""
        if not self.limits.branches or self.segment(step) is not None:
            return []
        kept = {record["branch"] for record in self.decisions.of_kind("branch_point")}
        return [name for name in self.limits.branches if name not in kept and self._branch_is_due(name, step)]

    def _branch_is_due(self, name: str, step: int) -> bool:
        hours, start = self.limits.branches[name]
        if start is not None:
            return step >= start
        limits = replace(self.limits, cap=replace(self.limits.cap, hours=hours), max_steps=None, branches={})
        branch = Budget(limits, lambda: self.clock() + self.start_seconds, Decisions(None))
        branch.measured = self.measured
        branch._start_decay_if_due(step)
        return bool(branch.decisions.decays())

    def end_step(self, step: int) -> float:
        """The first step that is not taken, as far as it is known when `step` steps are done."""
        if self.replayed_end is not None:
            return self.replayed_end
        segment = self.segment(step)
        return math.inf if segment is None else segment["end_step"]

    def too_late(self, step: int) -> bool:
        """At the start of a process that resumes at `step`: whether not even one step fits before the reserve."""
        if step >= self.end_step(step):
            return False  # trained to the end already; only the export is missing
        return self.remaining_seconds() < self.reserve_seconds() + self.measured.step_seconds()

    def another_attempt_fits(self, step: int) -> bool:
        """Whether a process that starts as this one did could still export, and take a step where one is missing."""
        if self.limits.cap.seconds is None:
            return True
        needed = FIRST_MARGIN * self.start_seconds + self._expected("checkpoint") + self._expected("export")
        if step < self.end_step(step):
            first = max(self.measured.events.get(FIRST_STEP, 0.0), self.measured.step_seconds())
            needed += first + self.reserve_seconds() - self._expected("export")
        return self.remaining_seconds() >= needed + EXIT_SLACK_SECONDS

    def end_soon(self, step: int, may_step: bool) -> bool:
        """A stop came that no other process can follow: the decay ends with the steps that fit into the cap and into
        `STOP_SECONDS`. Returns whether there are none: then the run ends here, annealed only if its decay is over."""
        if step >= self.end_step(step):
            return True
        available = min(self.remaining_seconds() - self.reserve_seconds(), STOP_SECONDS)
        steps = self._steps_that_fit(available) if may_step and available > 0 else 0
        steps = self._bounded(steps, step, step)
        if steps < 1:
            left = round(self.remaining_seconds(), 1)
            self.decisions.add("emergency", step, reason="a stop left too little of the cap", remaining_seconds=left)
            return True
        self._ends_soon = True
        if step + steps < self.end_step(step):
            self._record(step, step + steps, self.decisions.progress(step), STOPPED)
        return False

    def may_spend(self, kind: str, step: int) -> bool:
        """Whether a periodic event fits without shortening the decay below its share."""
        if self._ends_soon:
            return False
        segment = self.segment(step)
        steps = self._planned_length(step) if segment is None else max(0, segment["end_step"] - step)
        return (
            steps * self.measured.step_seconds() + self._expected(kind) + self.reserve_seconds()
            <= self.remaining_seconds()
        )

    def fraction(self, step: int) -> float:
        """Share of the budget used, by whichever limit is nearer its end."""
        shares = [0.0]
        if self.limits.cap.seconds is not None:
            shares.append(self.spent() / self.limits.cap.seconds)
        if self.limits.max_steps is not None:
            shares.append(step / self.limits.max_steps)
        return min(1.0, max(shares))

    def annealed(self, step: int) -> bool:
        """Whether the learning rate fell to its end over a decay worth the name (see ANNEALED_MIN_SHARE)."""
        start = self._decay_start()
        if start is None or self.decisions.progress(step) < 1.0:
            return False
        return step - start >= ANNEALED_MIN_SHARE * step or step - start >= self._planned_length(start)

    def stopped_by(self, step: int) -> str:
        if self._ended_by_validation():
            return VALIDATION
        return "tokens" if self.limits.max_steps is not None and step >= self.limits.max_steps else "gpu_hours"

    def _ended_by_validation(self) -> bool:
        return any(record["reason"] == VALIDATION for record in self.decisions.decays())

    def predict(self, step: int) -> tuple[int, float]:
        """Steps and device-seconds at the end, by what is measured when `step` steps are done."""
        measured = self.measured
        available = self._decay_seconds()
        total = math.inf if math.isinf(available) else step + self._steps_that_fit(available)
        if self.limits.max_steps is not None:
            total = min(total, self.limits.max_steps)
        steps = max(step, int(total))
        training = (steps - step) * measured.step_seconds()
        if self.limits.cap.seconds is None:
            every = self.limits.validate_every_share
            validations = math.floor((1 - 1e-9) / every) - math.floor(self.fraction(step) / every)
            training += validations * measured.events.get("validation", 0.0)
        ends = sum(measured.events.get(kind, 0.0) for kind in EVENTS)
        return steps, self.spent() + training + self._periodic_seconds(training) + ends

    def first_decay(self) -> dict[str, Any] | None:
        """The record that started the decay, with the forecast made then."""
        decays = self.decisions.decays()
        return decays[0] if decays else None

    def _planned_length(self, step: int) -> int:
        """Steps of a decay that follows `step` stable ones, so that it is `decay_share` of all."""
        share = self.limits.decay_share
        return max(1, round(step * share / (1 - share)))

    def _decay_start(self) -> int | None:
        record = self.first_decay()
        return None if record is None else record["step"]

    def segment(self, step: int) -> dict[str, Any] | None:
        """The decay record that rules after `step` steps; None before the decay."""
        return next((r for r in reversed(self.decisions.decays()) if r["step"] <= step), None)

    def _text_ends(self, decay_start: int) -> int:
        """The first step for which `train.max_epochs` leaves no text, with a decay from there."""
        available = self.limits.steps_available(decay_start)
        return 2**62 if available is None else available

    def _bounded(self, steps: int, step: int, decay_start: int) -> int:
        """As many of `steps` as `max_steps` and the text leave after `step`."""
        if self.limits.max_steps is None:
            return steps
        return min(steps, self.limits.max_steps - step, self._text_ends(decay_start) - step)

    def _decay_seconds(self) -> float:
        """What is left for a decay that starts now: the reserve and the checkpoint from before it are taken off."""
        return self.remaining_seconds() - self.reserve_seconds() - self.measured.expected("checkpoint")

    def _start_decay_if_due(self, step: int) -> None:
        if step == 0:
            return
        length = self._planned_length(step)
        # One more stable step makes the decay longer by c / (1 - c) steps as well.
        one_more = (1 + self.limits.decay_share / (1 - self.limits.decay_share)) * self.measured.step_seconds()
        available = self._decay_seconds()
        # A process' first step warms up and says little of the speed: it starts a decay only where nothing else fits.
        if not self.measured.speed_is_known and self.measured.step_seconds() < available:
            return
        predicted = length * self.measured.step_seconds()
        predicted += self._periodic_seconds(predicted)
        if predicted + one_more / 2 < available:  # half: the exact place lies between two steps
            return
        length = max(1, min(length, self._steps_that_fit(available)))
        self._record(step, step + self._bounded(length, step, step), 0.0, "max_gpu_hours")

    def _adjust_end(self, step: int) -> None:
        """Nearer where it would overrun, farther where time would be left over."""
        segment = self.segment(step)
        left = 0 if segment is None else segment["end_step"] - step
        if left <= 0 or self.limits.cap.seconds is None:
            return
        progress, low = self.decisions.progress(step), self._low_steps(step)
        # The limit in tokens and the end of the text bind before the clock: no speed moves the end past them.
        fitting = self._bounded(self._steps_to_the_end(low), step, self._decay_start() or 0)
        if fitting > left:
            # After a stop or a worse validation time that is left over is no reason to train on. Once the rate is low,
            # more steps gain little, so their number is limited too.
            fixed = self._ends_soon or self._ended_by_validation()
            most = math.floor(LOW_STEPS_SHARE * step) - low if progress > 1 - LOW_PROGRESS else fitting
            fitting = left if fixed else max(left, min(fitting, most))
        # Far from the end a difference is noise that settles; near it every step counts. Nearer sooner than
        # farther, because an overrun breaks the cap and a second left over does not.
        if fitting < left - (left // NEARER if left > 8 else 0) or fitting > left + left // FARTHER:
            hold = step + max(0, fitting - self._longest_fall(step, progress))
            self._record(step, step + fitting, progress, "slower" if fitting < left else "faster", hold)

    def _steps_to_the_end(self, low: int) -> int:
        """How many steps still fit into a decay that runs. While no step was low there is one more, which lands."""
        available = self.remaining_seconds() - self.reserve_seconds()
        if low:
            return max(0, self._steps_that_fit(available + self.measured.step_seconds(), newest=True))
        return max(1, self._steps_that_fit(available, newest=True))

    def _low_steps(self, step: int) -> int:
        """Steps that were taken in the decay's last part."""
        low = 0
        while low < step and self.decisions.progress(step - low - 0.5) >= 1 - LOW_PROGRESS:
            low += 1
        return low

    def _longest_fall(self, step: int, progress: float) -> int:
        """Over how many steps the rest of the decay may fall so that few of them are low. Where more fit, because the
        machine got much faster, the rate first stays where it is; low steps are kept for the uncertain end."""
        return max(1, math.floor(FALL_SHARE * step * max(1.0, (1 - progress) / LOW_PROGRESS)))

    def _steps_that_fit(self, available: float, newest: bool = False) -> int:
        """`newest`: at the pace of about as many steps as fit."""
        if math.isinf(available):
            return 2**62
        each = self.measured.step_seconds()
        if newest and each > 0:
            each = self.measured.step_seconds(available / each)
        return math.floor((available - self._periodic_seconds(available)) / each) if each > 0 else 10**9

    def _periodic_seconds(self, duration: float) -> float:
        """What validations and saves will cost during the next `duration` seconds."""
        if not math.isfinite(duration) or duration <= 0:
            return 0.0
        save = self.measured.expected("checkpoint")
        saves = duration // (self.checkpoint_interval_seconds() + save)
        if self.limits.cap.seconds is None:
            return saves * save
        used = self.spent() / self.limits.cap.seconds
        last = min(used + duration / self.limits.cap.seconds, 1 - 1e-9)
        every = self.limits.validate_every_share
        validations = max(0, math.floor(last / every) - math.floor(used / every))
        return saves * save + validations * self._expected("validation")

    def _record(self, step: int, end_step: int, progress: float, reason: str, hold_until: int = 0) -> None:
        finite = math.isfinite(self.remaining_seconds())
        bound_by = "tokens" if end_step == self.limits.max_steps else "gpu_hours"
        if reason == VALIDATION or self._ended_by_validation():
            bound_by = VALIDATION
        self.decisions.add(
            "decay",
            step,
            end_step=end_step,
            progress=progress,
            **({"hold_until": hold_until} if hold_until > step else {}),
            reason=reason,
            bound_by=bound_by,
            max_gpu_hours=self.limits.max_gpu_hours,
            max_tokens=self.limits.max_tokens,
            step_seconds=round(self.measured.step_seconds(), 6),
            reserve_seconds=round(self.reserve_seconds(), 3),
            remaining_seconds=round(self.remaining_seconds(), 3) if finite else None,
        )


@dataclass
class Measured:
    """Durations in seconds of this run. Estimates hold until the first measurement of an event.

    `device`, `peak_flops`: of this process. What another device measured is an estimate on this one: a step takes what
    it took here in an earlier process, else what the ratio of the peaks says, until three steps are done.
    """

    device: str = ""
    peak_flops: float | None = None
    speeds: dict[str, float] = field(default_factory=dict)  # device -> seconds a step, of earlier processes
    moved_from: str | None = None
    steps: deque[float] = field(default_factory=lambda: deque(maxlen=1000))
    events: dict[str, float] = field(default_factory=dict)  # event -> seconds of the slowest, or as estimated
    measured: Counter[str] = field(default_factory=Counter)
    inherited_step: float | None = None
    _seen: dict[str, deque[tuple[float, float | None]]] = field(default_factory=dict)  # event -> (seconds, pace then)
    steps_this_life: int = 0
    _step_elsewhere: float | None = None
    _mean: float = 0.0
    _slow: float = 0.0

    def step(self, seconds: float, share_of_full: float = 1.0) -> None:
        """`share_of_full`: of the tokens of a full step, because the steps to come are full ones, also while a
        batch-size warm-up takes smaller ones. The first step of a process counts as it is: it mostly warms up."""
        self.steps_this_life += 1
        if self.steps_this_life == 1:  # caches, allocators, kernels: the cost of a process, no forecast of steps
            self.events[FIRST_STEP] = seconds
            self.measured[FIRST_STEP] += 1
            if self.inherited_step is not None:
                return
        else:
            seconds /= share_of_full
        if self.steps_this_life == 2 and len(self.steps) == 1:
            self.steps.clear()  # the second step is the first that says how fast the device is
        self.steps.append(seconds)
        if len(self.steps) == PACE_STEPS:
            self._date_earlier_events()
        # Kept up to date here, because several questions are asked after every step.
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
        """Mean over the last fifth of the steps of this process, at least 20, the slowest left out; stalls that come
        again count by their share. Over no more than twice as many as lie `ahead`, so that the end of a run does not
        depend on how busy the machine was before."""
        if len(self.steps) < 3 and self.inherited_step is not None:
            return self.inherited_step
        if 2 * ahead >= max(20, self.steps_this_life // 5) or len(self.steps) < 2:
            return self._mean
        last = sorted(islice(reversed(self.steps), max(LEAST_AHEAD, math.ceil(2 * ahead))))
        return sum(last[:-1]) / len(last[:-1])

    @property
    def speed_is_known(self) -> bool:
        """Whether more than a process' first step was measured."""
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
        """The slowest of an event: events are few, and an overrun is worse than a second left over. For one that can be
        cut short it is the median, scaled to the present pace where steps were slower then, but no less than the
        quickest."""
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
            # A step that compiled is no speed.
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
