"""Schedules: ends, monotony, and decisions about the decay that change while it runs."""

import itertools

import pytest

from model.schedules import DECAYS, LAST_RATE, DecaySegment, decay_progress, warmup_multiplier, wsd


@pytest.mark.parametrize("shape", DECAYS)
def test_decay_shapes_fall_from_one_to_zero(shape: str) -> None:
    values = [DECAYS[shape](i / 1000) for i in range(1001)]
    assert values[0] == 1.0
    assert values[-1] == pytest.approx(0.0, abs=1e-12)
    assert all(a > b for a, b in itertools.pairwise(values))


def test_warmup_rises_to_the_peak_and_learns_from_the_first_step() -> None:
    assert [warmup_multiplier(step, 4) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert warmup_multiplier(0, 0) == 1.0


@pytest.mark.parametrize("shape", DECAYS)
@pytest.mark.parametrize("steps", [100, 317])
def test_the_rate_is_flat_before_the_decay_and_at_its_last_step_small_but_not_zero(shape: str, steps: int) -> None:
    segments = [DecaySegment(step=500, end_step=500 + steps)]
    rates = [wsd(step, 20, segments, shape) for step in range(500 + steps + 5)]
    assert rates[:19] == sorted(rates[:19])
    assert set(rates[19:500]) == {1.0}
    assert all(a >= b for a, b in itertools.pairwise(rates[19:]))
    assert 0.0 < rates[500 + steps - 1] <= 0.01
    assert all(rate == pytest.approx(0.0, abs=1e-12) for rate in rates[500 + steps :])


def test_before_any_decision_there_is_no_decay() -> None:
    assert decay_progress(10**9, []) == 0.0
    assert wsd(10**9, 100, []) == 1.0
    assert decay_progress(99, [DecaySegment(100, 200)]) == 0.0


@pytest.mark.parametrize("new_end", [160, 190, 300, 151, 150, 10])
def test_a_moved_end_keeps_the_rate_falling_and_reaches_zero_there(new_end: int) -> None:
    first = DecaySegment(100, 200)
    second = DecaySegment(150, new_end, progress=decay_progress(150, [first]))
    assert second.progress == 0.5
    rates = [wsd(step, 0, [first, second]) for step in range(310)]
    assert all(a >= b for a, b in itertools.pairwise(rates))
    assert rates[:150] == [wsd(step, 0, [first]) for step in range(150)]  # the past is not rewritten
    end = max(new_end, 150)
    assert rates[end] == 0.0
    assert end == 150 or rates[end - 1] > 0.0


def test_progress_never_falls_even_if_a_later_decision_recorded_less() -> None:
    segments = [DecaySegment(0, 100), DecaySegment(50, 150, progress=0.1)]
    assert decay_progress(50, segments) == 0.5
    assert decay_progress(100, segments) == 0.75


def test_the_order_in_which_decisions_are_listed_does_not_matter() -> None:
    segments = [DecaySegment(0, 100), DecaySegment(50, 150, progress=0.5)]
    assert [wsd(s, 0, segments) for s in range(160)] == [wsd(s, 0, segments[::-1]) for s in range(160)]


@pytest.mark.parametrize("shape", DECAYS)
@pytest.mark.parametrize("left", [1, 2, 7, 30, 49])
def test_a_decay_that_a_kill_left_few_steps_still_ends_low_and_never_rises(shape: str, left: int) -> None:
    first = DecaySegment(100, 400)
    second = DecaySegment(130, 130 + left, progress=decay_progress(130, [first]))
    rates = [wsd(step, 0, [first, second], shape) for step in range(130 + left + 2)]
    assert all(a >= b for a, b in itertools.pairwise(rates))
    assert 0.0 < rates[130 + left - 1] <= LAST_RATE + 1e-9
    assert wsd(0, 0, [DecaySegment(0, left)], shape) < 1.0


def test_a_held_rate_stands_still_and_then_falls_to_the_same_end() -> None:
    first = DecaySegment(100, 200)
    held = DecaySegment(150, 400, progress=0.5, hold_until=360)
    rates = [wsd(step, 0, [first, held]) for step in range(401)]
    assert set(rates[150:360]) == {0.5}
    assert all(a > b for a, b in itertools.pairwise(rates[360:]))
    assert 0.0 < rates[399] <= 0.01
    assert rates[400] == 0.0
    assert wsd(150, 0, [DecaySegment(150, 151, 0.5, hold_until=10**9)]) <= 0.01  # as a damaged record has it


def test_no_rounding_lifts_the_last_rate_over_a_hundredth_of_the_peak() -> None:
    for steps in range(1, 120):
        for first in range(1, 60):
            begun = DecaySegment(0, 3 * first + 7)
            moved = DecaySegment(first, first + steps, decay_progress(first, [begun]))
            assert wsd(first + steps - 1, 0, [begun, moved]) <= 0.01
