"""Shares, a second mix for the decay, caps on epochs: pure functions of the index, and no window twice in an epoch."""

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import config as configs
from pipeline import stages
from pipeline.config import Config, DataConfig, TrainConfig
from pipeline.corpus.text.shards import INDEX_DTYPE, TokenSet
from pipeline.system.errors import UserError
from pipeline.training.batches import TokenBatches
from pipeline.training.budget import planned_decay_start
from pipeline.training.mixing import Order, caps_of, effective_weights, source_weights

LENGTH = 4
TINY = Path(__file__).resolve().parents[2] / "configs" / "tiny.yaml"


def config(weights: dict | None = None, batch_sequences: int = 4, **train) -> Config:
    sources = {name: {"type": "made_up", "weight": weight} for name, weight in (weights or {}).items()}
    values = TrainConfig(sequence_length=LENGTH, global_batch_tokens=batch_sequences * LENGTH, **train)
    return Config(name="test", seed=1, data=DataConfig(sources=sources), train=values)


def batches(windows: dict[str, int], weights: dict | None = None, **train) -> TokenBatches:
    """Sources of that many windows; a window's number is its first token // 4 % 100_000."""
    sets = {}
    for k, (name, n) in enumerate(windows.items()):
        tokens = np.arange(n * LENGTH + 1, dtype=np.uint32) + 400_000 * k
        sets[name] = TokenSet(name, tokens, np.zeros(0, INDEX_DTYPE))
    return TokenBatches(sets, config(weights, **train))


def seen(stream: TokenBatches, count: int) -> list[tuple[int, int]]:
    """(source number, window number) of the first sequences."""
    first = stream.sequences(np.arange(count))[0][:, 0]
    return [(int(token) // 400_000, int(token) % 400_000 // LENGTH) for token in first]


def assert_epochs_are_whole(places: list[tuple[int, int]], windows: list[int]) -> None:
    """Each source's windows come in rounds that hold every window exactly once, the last round in part."""
    for source, count in enumerate(windows):
        numbers = [window for s, window in places if s == source]
        for start in range(0, len(numbers), count):
            epoch = numbers[start : start + count]
            assert len(set(epoch)) == len(epoch)
            assert max(epoch) < count


@pytest.mark.parametrize("seed", range(12))
def test_both_phases_together_hold_every_window_once_per_epoch(seed: int) -> None:
    draw = random.Random(seed)
    windows = {name: draw.randint(1, 700) for name in "abcd"[: draw.randint(2, 4)]}
    mixes = [{name: draw.choice([0, 1, 2.5, 7]) + 0.01 for name in windows} for _ in range(2)]
    limits = draw.choice([None, 1, 2.5, {"a": 1.0}])
    stream = batches(windows, mix=mixes[0], decay_mix=mixes[1], max_epochs=limits)
    decay_step = draw.randint(0, 400)
    stream.decay_from(decay_step)
    total = stream.order.total
    places = seen(stream, min(4000, total or 4000))
    assert_epochs_are_whole(places, list(windows.values()))
    for index in [0, 1, 4 * decay_step, len(places) // 2, len(places)]:
        if index <= len(places):
            counted = Counter(source for source, _ in places[:index])
            assert stream.order.counts_before(index) == {name: counted[k] for k, name in enumerate(windows)}
    for name, cap in caps_of(limits, windows).items():
        assert sum(list(windows).index(name) == source for source, _ in places) <= cap


def test_the_shares_change_exactly_where_the_decay_starts() -> None:
    stream = batches({"a": 5000, "b": 5000}, mix={"a": 3, "b": 1}, decay_mix={"a": 1, "b": 1})
    before = seen(stream, 4096)
    stream.decay_from(512)
    after = seen(stream, 2 * 2048)
    assert after[:2048] == before[:2048]
    assert after[2048:] != before[2048:]
    assert stream.shares(0, 2048) == {"a": 0.75, "b": 0.25}
    assert stream.shares(2048, 4096) == {"a": 0.5, "b": 0.5}
    stream.decay_from(None)
    assert seen(stream, 4096) == before


def test_any_index_inside_the_decay_gives_what_reading_from_the_start_gives() -> None:
    options = {"mix": {"a": 3, "b": 1}, "decay_mix": {"b": 1, "c": 2}, "max_epochs": {"b": 3.0}}
    stream, fresh = (batches({"a": 900, "b": 80, "c": 300}, **options) for _ in range(2))
    stream.decay_from(100)
    fresh.decay_from(100)
    inputs, _ = stream.sequences(np.arange(1200))
    some = np.array([1199, 399, 400, 401, 3, 700])
    assert (fresh.sequences(some)[0] == inputs[some]).all()


def test_a_decay_decided_late_never_hands_out_a_batch_of_the_old_mix() -> None:
    options = {"mix": {"a": 1}, "decay_mix": {"b": 1}}
    stream, expected = (batches({"a": 500, "b": 500}, **options) for _ in range(2))
    expected.decay_from(5)
    iterator = iter(stream)
    for step in range(12):
        if step == 5:  # steps 0 to 4 are done; batch 5 is made already, from the stable mix
            stream.decay_from(5)
        assert torch.equal(next(iterator).input_ids_BT, expected.batch(step).input_ids_BT), step
    iterator.close()  # type: ignore[attr-defined]


def test_the_decay_of_an_extended_run_starts_elsewhere_and_repeats_nothing() -> None:
    windows = {"a": 300, "b": 200}
    stream = batches(windows, mix={"a": 1, "b": 1}, decay_mix={"b": 1})
    stream.decay_from(30)
    first = seen(stream, 160)
    stream.decay_from(None)
    trunk = seen(stream, 240)
    stream.decay_from(60)
    longer = seen(stream, 400)
    assert first[:120] == trunk[:120]
    assert longer[:240] == trunk
    assert_epochs_are_whole(longer, list(windows.values()))


def test_a_source_at_its_cap_gives_its_share_to_the_others_in_proportion() -> None:
    stream = batches({"a": 100, "b": 9000, "c": 9000}, mix={"a": 2, "b": 1, "c": 3}, max_epochs={"a": 2.0})
    at_cap = stream.order.segments[1].start
    assert stream.order.counts_before(at_cap)["a"] == 200
    assert stream.order.counts_before(at_cap - 1)["a"] == 199
    assert at_cap == pytest.approx(600, abs=100)  # within a block of 1024 the order is random
    later = stream.shares(at_cap, at_cap + 4096)
    assert later == {"a": 0, "b": 0.25, "c": 0.75}
    assert stream.order.total is None


@pytest.mark.parametrize("limit", [0.5, 1, 2, 3.7])
def test_when_all_sources_are_at_their_cap_the_text_ends(limit: float) -> None:
    windows = {"a": 100, "b": 37, "c": 3}
    stream = batches(windows, max_epochs=limit)
    total = sum(int(limit * n) for n in windows.values())
    assert stream.order.total == total
    places = seen(stream, total)
    assert Counter(s for s, _ in places) == Counter({k: int(limit * n) for k, n in enumerate(windows.values()) if n})
    assert stream.most_steps(lambda last: last) == total // 4
    with pytest.raises(IndexError, match=r"train\.max_epochs"):
        stream.sequences(np.array([total]))


@pytest.mark.parametrize("seed", range(8))
def test_the_longest_run_with_a_second_mix_is_found_and_one_step_more_does_not_fit(seed: int) -> None:
    draw = random.Random(seed)
    windows = {name: draw.randint(20, 3000) for name in "abc"}
    stream = batches(
        windows,
        mix={"a": 1, "b": draw.random(), "c": 0},
        decay_mix={"b": 1, "c": draw.random()},
        max_epochs={"a": 2.0, "b": 1.5, "c": draw.choice([1.0, 4.0])},
    )

    def start(last: int) -> int:
        return planned_decay_start(last, 0.3)

    most = stream.most_steps(start)
    assert most is not None
    fits = [
        steps for steps in range(max(1, most - 100), most + 20) if (stream.steps_available(start(steps)) or 0) >= steps
    ]
    assert fits == list(range(max(1, most - 100), most + 1))
    for earlier in range(0, start(most), 7):  # the clock may start the decay earlier: the planned length still fits
        assert (stream.steps_available(earlier) or 0) >= earlier + round(earlier * 0.3 / 0.7)


def test_without_a_cap_on_every_source_in_use_the_text_never_ends() -> None:
    assert batches({"a": 10, "b": 10}).most_steps(lambda last: last) is None
    assert batches({"a": 10, "b": 10}, max_epochs={"a": 1}).most_steps(lambda last: last) is None
    two = batches({"a": 10, "b": 10}, mix={"a": 1}, decay_mix={"b": 1}, max_epochs={"c": 1})
    assert two.most_steps(lambda last: last - 1) is None
    one = batches({"a": 10, "b": 10}, mix={"a": 1}, decay_mix={"b": 1}, max_epochs={"b": 2})
    assert one.most_steps(lambda last: planned_decay_start(last, 0.5)) == 10  # b's 20 windows are 5 steps of decay


def test_weights_multiply_the_share_that_tokens_give() -> None:
    sizes = {"a": 100, "b": 300}
    weighted = effective_weights(config({"a": 3.0}), sizes)
    assert weighted["a"] == weighted["b"]
    assert effective_weights(config(), sizes) == sizes
    assert effective_weights(config({"a": 1, "b": 1.0}), sizes) == sizes
    assert set(effective_weights(config({"a": 0}), sizes)) == {"b"}
    assert effective_weights(config({"a": 3.0}), sizes, "decay_mix") == weighted
    assert source_weights(config({"a": 3.0, "b": 1})) == {"a": 3.0}
    with pytest.raises(UserError, match=r"weight is 0 for every source"):
        effective_weights(config({"a": 0, "b": 0}), sizes)
    with pytest.raises(UserError, match=r"train\.decay_mix gives a share to 'z'"):
        batches({"a": 10}, decay_mix={"z": 1.0})


def test_a_source_of_weight_zero_is_never_read() -> None:
    stream = batches({"a": 50, "b": 50}, weights={"b": 0})
    assert {source for source, _ in seen(stream, 500)} == {0}
    assert stream.epochs(500) == {"a": 10.0}


def test_the_line_at_the_start_says_tokens_shares_repetition_and_epochs() -> None:
    stream = batches({"a": 100, "b": 300}, mix={"a": 1, "b": 1}, decay_mix={"a": 1})
    assert stream.describe(None, None, False) == (
        "  sources: a 401 tokens, 50.0% of the mix (100.0% in the decay), sampled 2.00x; "
        "b 1,201 tokens, 50.0% of the mix (0.0% in the decay), sampled 0.67x"
    )
    planned = stream.describe(512, 256, True)  # 1024 sequences of both, then 1024 of a alone
    assert planned.count("at most 15.36 epochs") == 1
    assert planned.endswith("at most 1.71 epochs")


def test_many_capped_sources_are_planned_at_once() -> None:
    sizes = {f"s{k}": 50 + 13 * k for k in range(60)}
    order = Order([(0, sizes)], caps_of(1.0, sizes), seed=2)
    assert order.total == sum(sizes.values())
    source, number = order.places(np.arange(order.total))
    for k, size in enumerate(sizes.values()):
        assert sorted(number[source == k]) == list(range(size))


def test_weights_are_in_the_fingerprint_only_where_they_decide_something() -> None:
    def weights(*overrides: str) -> dict:
        return stages.weights_in_fingerprint(configs.load(TINY, overrides))

    assert weights() == weights("data.sources.exercises.weight=1.0") == {}
    assert weights("data.sources.exercises.weight=2") == {"weights": {"exercises": 2.0}}
    assert weights("data.sources.exercises.weight=0") == {"weights": {"exercises": 0.0}}
    assert weights("data.sources.exercises.weight=2", "train.mix.exercises=1") == {}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.sources.exercises.weight=-1"], r"data\.sources\.exercises\.weight is -1; expected a number"),
        (["data.sources.exercises.weight=much"], r"weight is 'much'"),
        (["data.sources.exercises.weight=0", "train.mix.exercises=1"], r"train\.mix gives a share to 'exercises'"),
        (["train.decay_mix.nowhere=1"], r"train\.decay_mix is .*python_library"),
        (["train.decay_mix.exercises=-1"], r"train\.decay_mix is"),
        (["train.mix.exercises=.nan"], r"train\.mix is"),
        (["train.max_epochs=0"], r"train\.max_epochs is 0; expected more than 0"),
        (["train.max_epochs=many"], r"train\.max_epochs is many"),
        (["train.max_epochs=true"], r"train\.max_epochs is True"),
        (["train.max_epochs.nowhere=2"], r"train\.max_epochs is .*nowhere"),
        (["train.packing=tight"], r"train\.packing is 'tight'; expected one of stream, best_fit"),
    ],
)
def test_impossible_mixes_are_refused_when_the_config_is_read(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        configs.load(TINY, overrides)


def test_possible_ones_are_read() -> None:
    words = ["train.max_epochs.exercises=2", "train.mix.exercises=1", "train.decay_mix.exercises=0.5"]
    loaded = configs.load(TINY, [*words, "train.packing=best_fit", "data.sources.exercises.weight=0.5"])
    assert loaded.train.max_epochs == {"exercises": 2}
    assert configs.load(TINY, ["train.max_epochs=1.5"]).train.max_epochs == 1.5
