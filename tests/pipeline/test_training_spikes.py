"""Steps that must not be taken: a rule over the run's own losses and norms, the same in every life."""

import math

import pytest
import torch

from pipeline.training.spikes import FINE, LEAST_STEPS, NOT_FINITE, SPIKE, WINDOW_STEPS, Spikes


def losses(count: int, seed: int = 0) -> torch.Tensor:
    return 3.0 + 0.1 * torch.randn(count, generator=torch.Generator().manual_seed(seed))


def judged(spikes: Spikes, values: torch.Tensor, first: int = 0) -> list[int]:
    return [int(spikes.judge(first + i, value, torch.tensor(1.0))) for i, value in enumerate(values)]


def test_noise_is_no_spike_and_ten_sigmas_are() -> None:
    values = losses(300)
    values[[200, 250]] = 4.0
    verdicts = judged(Spikes(6.0, torch.device("cpu")), values)
    assert [i for i, verdict in enumerate(verdicts) if verdict == SPIKE] == [200, 250]
    assert judged(Spikes(0.0, torch.device("cpu")), values) == [FINE] * 300


def test_a_spike_of_the_gradient_norm_counts_too() -> None:
    spikes = Spikes(6.0, torch.device("cpu"))
    judged(spikes, losses(100))
    assert int(spikes.judge(100, torch.tensor(3.0), torch.tensor(5.0))) == SPIKE


def test_before_enough_steps_are_known_nothing_is_a_spike() -> None:
    values = losses(LEAST_STEPS)
    values[-1] = 100.0
    assert judged(Spikes(6.0, torch.device("cpu")), values) == [FINE] * LEAST_STEPS


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", ["loss", "norm"])
def test_what_is_not_finite_is_never_taken_and_never_remembered(bad: float, which: str) -> None:
    spikes = Spikes(6.0, torch.device("cpu"))
    judged(spikes, losses(200))
    pair = (bad, 1.0) if which == "loss" else (3.0, bad)
    assert int(spikes.judge(200, *map(torch.tensor, pair))) == NOT_FINITE
    assert judged(spikes, losses(50, seed=1), first=201) == [FINE] * 50


def test_a_change_that_lasts_is_soon_no_spike() -> None:
    spikes = Spikes(6.0, torch.device("cpu"))
    judged(spikes, losses(WINDOW_STEPS))
    verdicts = judged(spikes, losses(40, seed=2) + 2.0, first=WINDOW_STEPS)
    assert verdicts[0] == SPIKE
    assert verdicts[8:] == [FINE] * 32


def test_a_run_that_goes_on_skips_the_same_steps() -> None:
    values = losses(300)
    values[[150, 222]] = 5.0
    whole = Spikes(6.0, torch.device("cpu"))
    expected = judged(whole, values)
    first, second = Spikes(6.0, torch.device("cpu")), Spikes(6.0, torch.device("cpu"))
    verdicts = judged(first, values[:149])
    second.load(first.state())
    assert verdicts + judged(second, values[149:], first=149) == expected
