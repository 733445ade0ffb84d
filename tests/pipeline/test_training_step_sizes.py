"""Batch-size warm-up: steps grow in whole parts of the first, every token is read once, any step is found at once."""

import pytest
import torch
from test_training_batches import LENGTH, token_set

from pipeline import config as configs
from pipeline.config import Config, TrainConfig
from pipeline.system.errors import UserError
from pipeline.training.batches import TokenBatches
from pipeline.training.memory import divisors
from pipeline.training.mixing import StepSizes


def train_of(start: int | None, full: int, warmup: int, length: int = LENGTH, **more: object) -> TrainConfig:
    """Sizes in sequences."""
    return TrainConfig(
        sequence_length=length,
        global_batch_tokens=full * length,
        batch_start_tokens=None if start is None else start * length,
        batch_warmup_tokens=warmup * length,
        **more,  # type: ignore[arg-type]
    )


def test_without_a_warm_up_every_step_is_full() -> None:
    sizes = StepSizes(train_of(None, 6, 0))
    assert [sizes.first_sequence(step) for step in (0, 1, 7)] == [0, 6, 42]
    assert [sizes.whole_steps(n) for n in (0, 5, 6, 41, 42)] == [0, 0, 1, 6, 7]
    assert sizes.tokens(7) == 42 * LENGTH


@pytest.mark.parametrize(("start", "full", "warmup"), [(2, 8, 40), (1, 16, 3), (4, 8, 1000), (3, 3, 10), (5, 40, 1)])
def test_steps_grow_to_the_full_step_in_multiples_of_the_first(start: int, full: int, warmup: int) -> None:
    sizes = StepSizes(train_of(start, full, warmup))
    steps = [sizes.sequences(step) for step in range(2000)]
    assert steps[0] == start
    assert steps == sorted(steps)
    assert all(size % start == 0 for size in steps)
    ends = next(step for step in range(2000) if sizes.first_sequence(step) >= warmup)
    assert set(steps[ends:]) == {full}
    assert [sizes.first_sequence(step) for step in range(2000)] == [sum(steps[:step]) for step in range(2000)]
    for n in range(0, sizes.first_sequence(300), 7):
        whole = sizes.whole_steps(n)
        assert sizes.first_sequence(whole) <= n < sizes.first_sequence(whole + 1)


def test_half_way_through_the_warm_up_a_step_is_half_way_between_start_and_full() -> None:
    sizes = StepSizes(train_of(1, 100, 100_000))
    half = sizes.whole_steps(50_000)
    assert sizes.sequences(half) == pytest.approx(50, abs=1)


def test_the_text_is_the_same_in_the_same_order_and_any_batch_is_found_at_once() -> None:
    def batches(train: TrainConfig) -> TokenBatches:
        return TokenBatches({"a": token_set("a", 2000), "b": token_set("b", 600, 100_000)}, Config("x", 5, train=train))

    growing, constant = batches(train_of(2, 8, 30)), batches(train_of(None, 8, 0))
    steps = growing.sizes.whole_steps(80) + 1
    read = torch.cat([growing.batch(step).input_ids_BT for step in range(steps)])
    assert torch.equal(read[:80], torch.cat([constant.batch(step).input_ids_BT for step in range(10)]))
    growing.start_step = 4
    first = next(iterator := iter(growing))
    iterator.close()  # type: ignore[attr-defined]
    at = growing.sizes.first_sequence(4)
    assert torch.equal(first.input_ids_BT, read[at : at + growing.sizes.sequences(4)])
    assert growing.epochs(growing.sizes.first_sequence(9)) == constant.epochs(growing.sizes.first_sequence(9))


def test_a_cap_on_epochs_is_counted_in_the_steps_that_the_warm_up_leaves() -> None:
    stream = TokenBatches({"a": token_set("a", 100 * LENGTH + 1)}, Config("x", train=train_of(2, 8, 30, max_epochs=1)))
    steps = stream.steps_available(None)
    assert steps is not None
    assert steps > 100 // 8
    assert len(stream.batch(steps - 1).input_ids_BT) == 8
    with pytest.raises(IndexError, match="max_epochs"):
        stream.batch(steps)


def test_micro_batches_divide_the_first_step() -> None:
    assert divisors(train_of(6, 24, 100)) == [1, 2, 3, 6]
    assert divisors(train_of(None, 24, 0)) == [1, 2, 3, 4, 6, 8, 12, 24]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_start_tokens": 512}, "needs both"),
        ({"batch_warmup_tokens": 512}, "needs both"),
        ({"batch_start_tokens": 300, "batch_warmup_tokens": 9000}, "expected a multiple of train.sequence_length"),
        ({"batch_start_tokens": 1536, "batch_warmup_tokens": 9000}, "divides train.global_batch_tokens"),
        ({"batch_start_tokens": 512, "batch_warmup_tokens": 9000, "micro_batch": 4}, "first step of a batch-size"),
    ],
)
def test_an_impossible_warm_up_is_refused_before_any_work(values: dict, message: str) -> None:
    model = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
             "num_attention_heads": 2, "max_position_embeddings": 256}  # fmt: skip
    train = {"sequence_length": 256, "global_batch_tokens": 2048, **values}
    with pytest.raises(UserError, match=message):
        configs.from_values({"name": "x", "model": model, "train": train}, where="x")
