"""Steps that must not be taken: a rule over the run's own losses and norms, the same in every life."""

import json
import math
from pathlib import Path

import pytest
import torch

from pipeline.training.decisions import Decisions
from pipeline.training.spikes import FINE, LEAST_STEPS, NOT_FINITE, SPIKE, WINDOW_STEPS, SkippedSteps, Spikes

# (loss, gradient norm) of steps of real tiny runs: around the highest losses and norms of 48 runs of ordinary text.
RECORDED = json.loads(Path(__file__).with_name("recorded_losses.json").read_text(encoding="utf-8"))


class Arrival:
    """A card's event that never is done by itself."""

    def __init__(self) -> None:
        self.done = self.waited_for = False

    def query(self) -> bool:
        return self.done

    def synchronize(self) -> None:
        self.done = self.waited_for = True


def test_a_verdict_is_read_once_it_has_arrived_and_waited_for_only_behind_a_newer_step(tmp_path, monkeypatch) -> None:
    events: list[Arrival] = []

    def begin_copy(verdict: torch.Tensor) -> tuple[torch.Tensor, Arrival]:
        events.append(Arrival())
        return verdict, events[-1]

    monkeypatch.setattr("pipeline.training.spikes.begin_copy", begin_copy)
    skipped = SkippedSteps(Decisions(tmp_path / "decisions.jsonl"))
    skipped.put(1, torch.tensor(SPIKE))
    assert list(skipped.read()) == []
    events[0].done = True
    assert "step 1 is skipped" in next(skipped.read())
    for step in (2, 3, 4):
        skipped.put(step, torch.tensor(NOT_FINITE))
        assert len(list(skipped.read())) == (step > 2)
    assert [event.waited_for for event in events] == [False, True, True, False]
    assert len(list(skipped.read(wait=True))) == 1
    assert skipped.count == 4


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


def verdicts_of(pairs: list[list[float]]) -> list[int]:
    spikes = Spikes(6.0, torch.device("cpu"))
    return [int(spikes.judge(i, *map(torch.tensor, pair))) for i, pair in enumerate(pairs)]


@pytest.mark.parametrize("run", RECORDED)
def test_small_batches_have_long_tails_that_are_no_spikes(run: str) -> None:
    """Losses up to 1.5 nats and norms up to 7.9 times above the usual, in ordinary text."""
    assert verdicts_of(RECORDED[run]) == [FINE] * len(RECORDED[run])


@pytest.mark.parametrize("run", RECORDED)
@pytest.mark.parametrize("kind", ["ten times the loss", "corrupt batch", "gradient alone"])
def test_every_planted_spike_is_caught_and_hides_no_other(run: str, kind: str) -> None:
    """Five in a window of real losses. A corrupt batch costs more than uniform guessing over the vocabulary."""
    pairs, planted = [list(pair) for pair in RECORDED[run]], [110, 122, 134, 146, 158]
    for step in planted:
        loss, norm = pairs[step]
        pairs[step] = {
            "ten times the loss": [10 * loss, 10 * norm],
            "corrupt batch": [math.log(1024) + 1.8, 3 * norm],
            "gradient alone": [loss, 1000 * norm],
        }[kind]
    assert [i for i, verdict in enumerate(verdicts_of(pairs)) if verdict == SPIKE] == planted


@pytest.mark.parametrize("rise", [1.0, 2.0, 8.0])
def test_a_lasting_rise_never_ends_a_run(rise: float) -> None:
    """Ten skipped in a row would: other text, at which the loss stays higher, is taken before that."""
    spikes = Spikes(6.0, torch.device("cpu"))
    judged(spikes, losses(WINDOW_STEPS))
    assert judged(spikes, losses(40, seed=2) + rise, first=WINDOW_STEPS)[8:] == [FINE] * 32


def test_a_norm_of_zero_and_constant_values_are_no_spikes() -> None:
    assert verdicts_of([[3.0, 0.0]] * 80 + [[3.05, 0.0]] * 3) == [FINE] * 83
