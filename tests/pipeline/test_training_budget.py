"""The cap, with a clock that tests own: hundreds of speeds, stalls and kills, in no real time."""

import math
import random
from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest

from model.schedules import wsd
from pipeline.system.errors import UserError
from pipeline.training.budget import Budget, Limits, Measured, Verdict
from pipeline.training.cap import LAST_PROCESS_STARTS, Cap
from pipeline.training.decisions import Decisions

PEAK_SHARE_AT_END = 0.01


@dataclass
class Machine:
    """A made-up machine: how long things take, drawn anew for every run."""

    random: random.Random
    step_seconds: float
    jitter: float
    drift: float  # the last step takes (1 + drift) times the first
    stall_every: float  # mean steps between stalls; 0 = never
    stall_steps: float  # length of a stall in steps
    validation: float
    save: float
    start: float
    end: float
    stalls: list[float] = field(default_factory=list)  # seconds, of every step

    def begin(self, measured: Measured) -> None:
        """A life begins; before anything is loaded."""

    def step(self, used: float) -> float:
        seconds = self.step_seconds * self.random.lognormvariate(0, self.jitter) * (1 + self.drift * used)
        stalled = bool(self.stall_every) and self.random.random() < 1 / self.stall_every
        self.stalls.append(self.stall_steps * self.step_seconds if stalled else 0.0)
        return seconds + self.stalls[-1]

    def event(self, seconds: float) -> float:
        return seconds * self.random.uniform(0.9, 1.1)


@dataclass
class Run:
    """One run over all its lives, as pipeline/training/control.py drives the budget, on a made-up clock."""

    machine: Machine
    limits: Limits
    now: float = 0.0
    decisions: Decisions = field(default_factory=lambda: Decisions(None))
    step: int = 0
    saved: tuple[int, dict] | None = None
    rates: dict[int, float] = field(default_factory=dict)
    annealed: bool = False
    emergency: bool = False

    def life(self, dies_after: float = math.inf, stopped_after: float = math.inf) -> bool:
        """Trains until the end, or until it is killed or asked to stop so many seconds after its start; True when the
        model is exported."""
        death, stop = self.now + dies_after, self.now + stopped_after
        machine = self.machine
        last = bool(self.saved) and self.limits.cap.left_seconds(self.now) < LAST_PROCESS_STARTS * machine.start
        start = machine.event(machine.start)
        self.now += start
        if self.now > stop and not last:
            self.now = stop
            return False
        budget = self.budget = Budget(self.limits, lambda: self.now, self.decisions)
        budget.start_seconds = start
        for kind, seconds in (("checkpoint", machine.save), ("export", machine.save / 2), ("sample", machine.end / 2)):
            budget.measured.estimate(kind, seconds)
        self.step = 0
        machine.begin(budget.measured)
        if self.saved:
            self.step, measured = self.saved
            budget.measured.load_state_dict(measured)
        budget.begin(self.step)
        if self.step == 0:
            self.spend("validation", machine.validation)
        elif self.step < budget.end_step(self.step) and budget.too_late(self.step):
            self.emergency = True
            return self.export()
        else:
            budget.decide(self.step)
        if self.step >= budget.end_step(self.step):
            return self.export()
        due, saved_at = math.floor(budget.fraction(self.step) / 0.2), self.now
        while True:
            segments = self.decisions.segments()
            self.rates[self.step] = wsd(self.step, 10, segments)
            seconds = machine.step(budget.fraction(self.step))
            self.now += seconds
            if self.now > death:
                self.now = death
                return False
            self.step += 1
            budget.measured.step(seconds)
            verdict = budget.decide(self.step)
            if verdict == Verdict.FINISH:
                return self.export()
            if self.now > stop:
                stop = math.inf
                self.spend("checkpoint", machine.save)
                self.saved, saved_at = (self.step, budget.measured.state_dict()), self.now
                if budget.another_attempt_fits(self.step):
                    return False
                if budget.end_soon(self.step, may_step=True):
                    self.emergency = True
                    return self.export()
            marks = math.floor(budget.fraction(self.step) / 0.2)
            if marks > due:
                due = marks
                if budget.may_spend("validation", self.step):
                    self.spend("validation", machine.validation)
            late = self.now - saved_at > budget.checkpoint_interval_seconds()
            if verdict == Verdict.DECAY or (late and budget.may_spend("checkpoint", self.step)):
                self.spend("checkpoint", machine.save)
                self.saved, saved_at = (self.step, budget.measured.state_dict()), self.now

    def spend(self, kind: str, seconds: float) -> None:
        seconds = self.machine.event(seconds)
        self.now += seconds
        self.budget.measured.event(kind, seconds)

    def export(self) -> bool:
        if not self.emergency:
            self.spend("validation", self.machine.validation)
            self.spend("checkpoint", self.machine.save)
        self.spend("export", self.machine.save / 2)
        self.now += self.machine.event(self.machine.end)
        self.annealed = self.budget.annealed(self.step)
        return True


def machine_of(seed: int, stalls: bool = False, smooth: bool = False) -> Machine:
    """Machines that differ by orders of magnitude, all costs in proportion to their steps."""
    rng = random.Random(seed)
    step = 10 ** rng.uniform(-2, 1)
    return Machine(
        rng,
        step_seconds=step,
        jitter=0.0 if smooth else rng.uniform(0.0, 0.3),
        drift=0.0 if smooth else rng.uniform(-0.3, 0.5),
        stall_every=rng.uniform(50, 400) if stalls else 0,
        stall_steps=rng.uniform(2, 30) if stalls else 0,
        validation=step * rng.uniform(1, 10),
        save=step * rng.uniform(1, 10),
        start=step * rng.uniform(5, 30),
        end=step * rng.uniform(0.5, 2),
    )


def limits_of(machine: Machine, seed: int, least_steps: int = 400) -> Limits:
    steps = random.Random(seed + 1).uniform(least_steps, 1500)
    fixed = machine.start + 8 * machine.validation + 6 * machine.save + machine.end
    cap = steps * machine.step_seconds + fixed + 5
    return Limits(Cap(cap / 3600), None, 0.3, checkpoint_every_seconds=cap / 7, max_gpu_hours=cap / 3600)


@pytest.mark.parametrize("stalls", [False, True])
def test_hundreds_of_undisturbed_runs_end_annealed_inside_the_cap_and_waste_little(stalls: bool) -> None:
    unused = []
    for seed in range(300):
        machine = machine_of(seed, stalls)
        run = Run(machine, limits_of(machine, seed))
        assert run.life()
        cap = run.limits.cap.seconds or 0.0
        # A stall in the last two steps is nobody's to foresee; every earlier one shortens the decay.
        assert run.now <= cap + sum(machine.stalls[-2:]), f"seed {seed}: {run.now - cap:.2f} s over {cap:.1f}"
        if not stalls:
            assert run.rates[run.step - 1] <= PEAK_SHARE_AT_END, f"seed {seed}: {run.rates[run.step - 1]}"
        assert run.annealed, f"seed {seed}"
        unused.append((cap - run.now) / cap)
    assert sum(unused) / len(unused) <= 0.03
    assert sorted(unused)[int(0.95 * len(unused))] <= (0.05 if not stalls else 0.08)


def test_the_decay_takes_its_share_of_the_steps() -> None:
    for seed in range(50):
        machine = machine_of(seed, smooth=True)
        run = Run(machine, limits_of(machine, seed))
        run.life()
        start = run.decisions.decays()[0]["step"]
        assert (run.step - start) / run.step == pytest.approx(0.3, abs=0.03), f"seed {seed}"


def test_runs_killed_at_random_end_inside_the_cap_and_repeat_no_learning_rate_differently() -> None:
    annealed = 0
    for seed in range(300):
        machine = machine_of(seed)
        run = Run(machine, limits_of(machine, seed, least_steps=600))
        cap, kills, lives = run.limits.cap.seconds or 0.0, random.Random(seed).randint(1, 6), 0
        while not run.life(machine.random.uniform(0.1, 0.9) * cap if lives < kills else math.inf):
            lives += 1
            if run.saved is None:
                break  # nothing was kept: the next life would start over, as a person would see
        else:
            # A life that begins when the cap is over still exports what there is: that is all it may spend.
            over = machine.start * 1.1 + machine.save + machine.end * 1.1 if run.emergency else 0.0
            assert run.now <= cap + over, f"seed {seed}: {run.now - cap:.2f} s over"
            assert run.annealed or run.emergency or run.step - run.decisions.decays()[0]["step"] < 0.06 * run.step
            annealed += run.annealed
    assert annealed > 150


def test_progress_never_falls_and_decisions_replay_to_the_same_rates() -> None:
    for seed in range(100):
        machine = machine_of(seed, stalls=True)
        run = Run(machine, limits_of(machine, seed))
        run.life()
        segments = run.decisions.segments()
        start = segments[0].step
        replayed = [wsd(step, 10, segments) for step in range(run.step)]
        assert replayed == [run.rates[step] for step in range(run.step)], f"seed {seed}"
        decay = replayed[start:]
        assert all(b <= a for a, b in pairwise(decay)), f"seed {seed}"


def test_max_tokens_fixes_the_end_in_steps_from_the_start() -> None:
    machine = machine_of(1)
    run = Run(machine, Limits(Cap(None), 400, 0.3, max_tokens=400))
    assert run.life()
    assert run.step == 400
    assert [(s.step, s.end_step) for s in run.decisions.segments()] == [(280, 400)]
    assert run.budget.stopped_by(run.step) == "tokens"
    assert run.annealed


def test_the_limit_that_comes_first_ends_the_run() -> None:
    machine = machine_of(2)
    limits = limits_of(machine, 2)
    few = Run(machine, replace(limits, max_steps=100))
    many = Run(machine, replace(limits, max_steps=10**6))
    assert few.life()
    assert many.life()
    assert few.step == 100
    assert many.budget.stopped_by(many.step) == "gpu_hours"
    assert many.now <= (limits.cap.seconds or 0.0)
    assert many.annealed


def test_a_cap_below_one_step_and_one_export_is_refused_with_the_numbers() -> None:
    now = [3.0]
    budget = Budget(Limits(Cap(6.0 / 3600), None, 0.3, max_gpu_hours=6 / 3600), lambda: now[0], Decisions(None))
    budget.measured.event("validation", 2.0)
    budget.measured.estimate("export", 2.5)
    with pytest.raises(UserError, match=r"budget\.max_gpu_hours=0\.0016.* is 6\.0 s; 3\.0 s are spent"):
        budget.check_start(0.5)


def test_events_that_would_eat_the_reserve_are_skipped() -> None:
    now = [0.0]
    budget = Budget(Limits(Cap(100.0 / 3600), None, 0.3), lambda: now[0], Decisions(None))
    for _ in range(3):  # often enough to be trusted
        budget.measured.event("validation", 10.0)
    for step in range(1, 51):
        now[0] += 1.0
        budget.measured.step(1.0)
        budget.decide(step)
    assert budget.first_decay() is None
    assert budget.may_spend("validation", 50)
    now[0] += 20
    assert not budget.may_spend("validation", 50)


def test_measurements_survive_a_kill() -> None:
    before = Measured()
    for _ in range(10):
        before.step(2.0)
    before.event("checkpoint", 3.0)
    after = Measured()
    after.load_state_dict(before.state_dict())
    assert after.step_seconds() == 2.0
    assert after.expected("checkpoint") == before.expected("checkpoint")
    after.step(9.0)  # the first step of a life is slow and no forecast
    assert after.step_seconds() == 2.0


@pytest.mark.parametrize("seed", range(20))
def test_a_text_that_ends_ends_the_run_annealed_wherever_the_clock_starts_the_decay(seed: int) -> None:
    # 300 steps of text; of the decay's own, 90: as with a second mix under train.max_epochs.
    def available(decay_start: int) -> int:
        return min(300, decay_start + 90)

    machine = machine_of(seed)
    seconds = machine.step_seconds * random.Random(seed).uniform(100, 800) + 5 * machine.validation + machine.start
    limits = Limits(Cap(seconds / 3600), 300, 0.3, steps_available=available, max_steps_reason="max_epochs")
    run = Run(machine, limits)
    assert run.life()
    assert run.annealed
    start = run.decisions.decays()[0]["step"]
    assert run.step <= available(start)


def test_a_lowered_limit_does_not_ask_for_more_text_than_a_later_decay_has() -> None:
    decisions = Decisions(None)
    limits = Limits(Cap(None), 300, 0.3, steps_available=lambda start: start + 20)
    Budget(limits, lambda: 0.0, decisions).begin(250)
    assert (decisions.decays()[0]["step"], decisions.decays()[0]["end_step"]) == (250, 270)


def test_steps_of_a_batch_size_warm_up_are_measured_as_the_full_steps_to_come() -> None:
    measured = Measured()
    measured.step(9.0, share_of_full=1 / 8)  # the first of a life is mostly warming up
    assert measured.step_seconds() == 9.0
    for share in (1 / 8, 1 / 8, 1 / 4, 1.0):
        measured.step(4.0 * share, share_of_full=share)
    assert measured.step_seconds() == pytest.approx(4.0)


@pytest.mark.parametrize("warmup_steps", [40, 200, 10_000])
@pytest.mark.parametrize("overhead", [0.0, 0.5])  # of a step that is independent of its tokens, in full steps
def test_a_cap_holds_and_is_used_while_steps_grow(warmup_steps: int, overhead: float) -> None:
    cap, full, start = 400.0, 1.0, 1 / 8
    now, step = 10.0, 0
    budget = Budget(Limits(Cap(cap / 3600), None, 0.3), lambda: now, Decisions(None))
    for kind in ("checkpoint", "export", "validation"):
        budget.measured.estimate(kind, 2.0)
    verdict = Verdict.CONTINUE
    while verdict != Verdict.FINISH:
        share = min(1.0, start + (1 - start) * step / warmup_steps)
        seconds = full * (share + overhead) / (1 + overhead)
        now, step = now + seconds, step + 1
        budget.measured.step(seconds, share)
        verdict = budget.decide(step)
        assert step < 100_000
    assert budget.annealed(step)
    assert now + budget.reserve_seconds() <= cap + full
    assert now > 0.9 * cap
