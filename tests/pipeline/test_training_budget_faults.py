"""The cap under all faults at once, on a made-up clock: slow starts, compiling, slow patches, stops, kills, cards."""

import math
import random
from dataclasses import dataclass
from statistics import mean

import pytest
from test_training_budget import PEAK_SHARE_AT_END, Machine, Run, machine_of

from pipeline.training.budget import ANNEALED_MIN_SHARE, Limits, Measured
from pipeline.training.cap import Cap

RUNS = 240


@dataclass
class Faulty(Machine):
    """A machine of which every life may be another card, with a first step that compiles, a slow patch and a stop."""

    compile_seconds: float = 0.0
    patch: tuple[float, float, float] = (2.0, 2.0, 1.0)  # from, to (shares of the cap used), times slower
    stops: float = 2.0  # share of the cap used at which the machine stands still
    stop_seconds: float = 0.0
    cards: tuple[float, ...] = (1.0,)  # step times of each life over those of the first
    lives: int = 0
    compiled: bool = False

    def begin(self, measured: Measured) -> None:
        self.card = self.cards[min(self.lives, len(self.cards) - 1)]
        self.lives, self.compiled = self.lives + 1, False
        measured.device, measured.peak_flops = f"card x{self.card}", 1e12 / self.card

    def step(self, used: float) -> float:
        seconds = self.card * super().step(used)
        if not self.compiled:
            self.compiled = True
            seconds += self.compile_seconds
        if self.patch[0] < used < self.patch[1]:
            seconds *= self.patch[2]
        if used > self.stops:
            self.stops, seconds = 2.0, seconds + self.stop_seconds
            self.stalls[-1] = self.stop_seconds
        return seconds


def faulty_run(seed: int, kills: bool, cards: bool) -> tuple[Run, bool]:
    """The run over all lives, and whether a life had to begin anew because nothing was saved."""
    made, rng = machine_of(seed, stalls=seed % 3 == 0), random.Random(seed + 7)
    step = made.step_seconds
    machine = Faulty(**{k: v for k, v in vars(made).items()})
    machine.start = step * rng.uniform(5, 60)
    machine.compile_seconds = step * rng.choice([0, rng.uniform(5, 60)])
    fixed = machine.start + machine.compile_seconds + 8 * machine.validation + 6 * machine.save + machine.end
    cap = step * rng.uniform(300, 900) + fixed + 5
    if seed % 4 == 1:
        begin = rng.uniform(0.1, 0.8)
        machine.patch = (begin, begin + rng.uniform(0.05, 0.2), rng.uniform(1.5, 4))
    if seed % 4 == 2:
        machine.stops, machine.stop_seconds = rng.uniform(0.1, 0.9), cap * rng.uniform(0.02, 0.15)
    if cards:
        machine.cards = tuple(rng.choice([0.4, 0.7, 1.5, 2.5]) for _ in range(6))
    run = Run(machine, Limits(Cap(cap / 3600), None, 0.3, checkpoint_every_seconds=cap / 15, max_gpu_hours=cap / 3600))
    left = rng.randint(1, 3) if kills else 0
    while not run.life(rng.uniform(0.1, 0.6) * cap if left else math.inf):
        left -= 1
        if run.saved is None:
            return run, True
    return run, False


@pytest.mark.parametrize(("kills", "cards"), [(False, False), (True, False), (True, True)])
def test_under_all_faults_a_run_ends_inside_its_cap_low_and_wastes_little(kills: bool, cards: bool) -> None:
    unused, ended, annealed = [], 0, 0
    for seed in range(RUNS):
        run, anew = faulty_run(seed, kills, cards)
        if anew:
            continue
        cap, machine = run.limits.cap.seconds or 0.0, run.machine
        allowed = sum(machine.stalls[-2:])  # a stop in the last two steps is nobody's to foresee
        if run.emergency:  # it still exports what there is: a start and an export
            allowed += 1.1 * (machine.start + machine.save + machine.end)
        assert run.now <= cap + allowed, f"seed {seed}: {run.now - cap:.2f} s over {cap:.1f}"
        if run.emergency:
            continue
        assert run.rates[run.step - 1] <= PEAK_SHARE_AT_END + 1e-9, f"seed {seed}: {run.rates[run.step - 1]}"
        decay = run.step - run.decisions.decays()[0]["step"]
        assert run.annealed or decay < ANNEALED_MIN_SHARE * run.step, f"seed {seed}: {decay} of {run.step}"
        ended, annealed = ended + 1, annealed + run.annealed
        unused.append((cap - run.now) / cap)
    print(f"\n{ended} ended of {RUNS}, {annealed} annealed, unused mean {mean(unused):.4f}, worst {max(unused):.4f}")
    assert ended >= (RUNS if not kills else RUNS // 2)
    assert annealed >= 0.95 * ended
    assert mean(unused) <= 0.03


def test_stops_at_any_time_never_lead_over_the_cap() -> None:
    """As time limits do: life after life is asked to stop, in its start too, until the cap is used."""
    ended, annealed, lives = 0, 0, 0
    for seed in range(RUNS // 3):
        machine, rng = machine_of(seed), random.Random(seed + 11)
        fixed = machine.start + 8 * machine.validation + 6 * machine.save + machine.end
        cap = machine.step_seconds * rng.uniform(50, 900) + 2 * fixed + 10
        limits = Limits(Cap(cap / 3600), None, 0.3, checkpoint_every_seconds=cap / 15, max_gpu_hours=cap / 3600)
        run = Run(machine, limits)
        limit = rng.uniform(0.5, 4) * machine.start + rng.uniform(0.05, 0.6) * cap
        while not run.life(stopped_after=rng.uniform(0.7, 1) * limit):
            lives += 1
            if run.saved is None and run.now + 2 * fixed > cap:
                break
        else:
            assert run.now <= cap, f"seed {seed}: {run.now - cap:.2f} s over {cap:.1f}"
            ended, annealed = ended + 1, annealed + run.annealed
    print(f"\n{ended} ended of {RUNS // 3}, {annealed} annealed, {lives} lives were stopped")
    assert ended >= 0.3 * RUNS
    assert lives >= RUNS // 3
    assert annealed >= 0.85 * ended  # where a step takes seconds, too few fit after a stop
