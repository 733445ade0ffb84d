"""Every token once per epoch, any place computable at once, shares of a mix kept."""

import hashlib
from collections import Counter

import numpy as np
import pytest
import torch

from pipeline.config import Config, TrainConfig
from pipeline.corpus.text.shards import INDEX_DTYPE, TokenSet
from pipeline.system.errors import UserError
from pipeline.training.batches import Copies, TokenBatches
from pipeline.training.mixing import Mixer, key_of, permute
from pipeline.training.packing import IGNORED_LABEL

LENGTH = 7


def token_set(name: str, n_tokens: int, first: int = 0) -> TokenSet:
    """Tokens first, first+1, ...: each token says where it lies."""
    return TokenSet(name, np.arange(first, first + n_tokens, dtype=np.uint32), np.zeros(0, INDEX_DTYPE))


def batches(sizes: dict[str, int], batch_sequences: int = 4, seed: int = 0, mix: dict | None = None) -> TokenBatches:
    sets = {name: token_set(name, n, 100_000 * k) for k, (name, n) in enumerate(sizes.items())}
    train = TrainConfig(sequence_length=LENGTH, global_batch_tokens=batch_sequences * LENGTH, mix=mix)
    return TokenBatches(sets, Config(name="test", seed=seed, train=train))


@pytest.mark.parametrize(("mix", "digest"), [(None, "a2e450cb8fac98d4"), ({"a": 1, "b": 3.0}, "40d27665cfa6fd3a")])
def test_the_default_order_is_what_it_was(mix: dict | None, digest: str) -> None:
    # Made by version 1 of the pretrain step; if it changes, runs of old checkpoints would read other text.
    found = hashlib.sha256()
    for rows in batches({"a": 5000, "b": 900, "c": 60}, seed=3, mix=mix).sequences(np.arange(5000)):
        found.update(np.ascontiguousarray(rows).tobytes())
    assert found.hexdigest()[:16] == digest


@pytest.mark.parametrize("size", [1, 2, 3, 16, 17, 1000, 4096, 5001])
def test_the_order_is_a_permutation_for_any_size_and_differs_by_key(size: int) -> None:
    values = np.arange(size)
    first, second = permute(values, size, key_of("a", 1)), permute(values, size, key_of("a", 2))
    assert sorted(first) == list(range(size))
    assert sorted(second) == list(range(size))
    if size > 100:
        assert np.mean(first == second) < 0.05
        assert abs(np.corrcoef(values, first)[0, 1]) < 0.2


@pytest.mark.parametrize("n_tokens", [8, 50, 71, 701])
def test_every_token_is_predicted_exactly_once_per_epoch_from_the_one_before(n_tokens: int) -> None:
    stream = batches({"a": n_tokens})
    count = stream.streams["a"].count
    for epoch in range(3):
        inputs, labels = stream.sequences(np.arange(epoch * count, (epoch + 1) * count))
        predicted = labels[labels != IGNORED_LABEL]
        assert sorted(predicted) == list(range(1, n_tokens))
        assert (inputs[labels != IGNORED_LABEL] + 1 == predicted).all()


def test_epochs_have_different_orders_and_seeds_too() -> None:
    stream, other = batches({"a": 701}), batches({"a": 701}, seed=1)
    first, second = stream.sequences(np.arange(100))[0], stream.sequences(np.arange(100, 200))[0]
    assert not (first == second).all()
    assert not (first == other.sequences(np.arange(100))[0]).all()


def test_any_index_gives_what_reading_from_the_start_gives() -> None:
    stream = batches({"a": 5000, "b": 900, "c": 60})
    inputs, labels = stream.sequences(np.arange(3000))
    fresh = batches({"a": 5000, "b": 900, "c": 60})
    some = np.array([2999, 0, 1023, 1024, 1025, 7, 2048, 512])
    again = fresh.sequences(some)
    assert (again[0] == inputs[some]).all()
    assert (again[1] == labels[some]).all()


def test_the_batch_size_does_not_disturb_the_order() -> None:
    small, large = batches({"a": 900, "b": 300}, batch_sequences=2), batches({"a": 900, "b": 300}, batch_sequences=6)
    rows = torch.cat([small.batch(step).input_ids_BT for step in range(6)])
    assert torch.equal(rows, torch.cat([large.batch(step).input_ids_BT for step in range(2)]))


def test_the_loader_starts_where_it_is_told_and_has_a_length() -> None:
    stream = batches({"a": 900, "b": 300})
    stream.start_step = 5
    iterator = iter(stream)
    first, second = next(iterator), next(iterator)
    iterator.close()  # type: ignore[attr-defined]
    assert torch.equal(first.input_ids_BT, stream.batch(5).input_ids_BT)
    assert torch.equal(second.labels_BT, stream.batch(6).labels_BT)
    assert len(stream) > 10**9


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_card_gets_the_same_batches_ahead_of_their_steps() -> None:
    host, ahead = batches({"a": 900, "b": 300}), batches({"a": 900, "b": 300})
    ahead.copies = Copies(torch.device("cuda", 0))
    card = iter(ahead)
    for step in range(20):
        copied = next(card)
        assert copied.input_ids_BT.is_cuda
        assert torch.equal(copied.input_ids_BT.cpu(), host.batch(step).input_ids_BT)
        assert torch.equal(copied.labels_BT.cpu(), host.batch(step).labels_BT)


def test_a_batch_counts_its_predicted_labels() -> None:
    stream = batches({"a": 10}, batch_sequences=2)  # windows of 7 and of 2 labels
    assert stream.batch(0).predicted == 9


def test_without_a_mix_sources_come_in_proportion_and_end_their_epochs_together() -> None:
    stream = batches({"a": 7001, "b": 701, "c": 71})
    epochs = stream.epochs(2 * (1000 + 100 + 10))
    assert epochs == pytest.approx({"a": 2.0, "b": 2.0, "c": 2.0}, abs=0.15)


def test_a_mix_keeps_its_shares_in_every_block_and_counts_epochs() -> None:
    stream = batches({"a": 7001, "b": 701}, mix={"a": 1.0, "b": 3.0})
    sources, _ = stream.order.places(np.arange(10 * 1024))
    for block in sources.reshape(10, 1024):
        assert Counter(block.tolist()) == {0: 256, 1: 768}
    assert stream.epochs(1024) == {"a": 256 / 1000, "b": 768 / 100}


def test_a_source_smaller_than_one_place_per_block_still_gets_its_share() -> None:
    mixer = Mixer({"large": 10**6, "rare": 100}, 0)
    assert mixer.counts_before(10**6 + 100) == pytest.approx([10**6, 100], abs=1)


@pytest.mark.parametrize("count", [2, 40, 100])
def test_many_sources_get_exact_quotas_without_gap_or_repetition(count: int) -> None:
    mixer = Mixer({f"s{k}": 3 * k + 1 for k in range(count)}, 4)
    places = 2 * mixer.slots
    sources, numbers = mixer.places(np.arange(places))
    for k, expected in enumerate(mixer.counts_before(places)):
        assert sorted(numbers[sources == k]) == list(range(expected))


def test_a_mix_with_a_source_that_has_no_tokens_names_it() -> None:
    with pytest.raises(UserError, match=r"train\.mix gives a share to 'b'"):
        batches({"a": 700, "b": 1}, mix={"a": 0.5, "b": 0.5})
    with pytest.raises(UserError, match="kept no tokens"):
        batches({"a": 1})


def scored(name: str, lengths: list[int], scores: list[float]) -> TokenSet:
    """Documents of these lengths; every token says where it lies."""
    ends = np.cumsum(lengths)
    rows = [(e - n, n, 4 * n, s) for e, n, s in zip(ends, lengths, scores, strict=True)]
    return TokenSet(name, np.arange(ends[-1], dtype=np.uint32), np.array(rows, INDEX_DTYPE))


@pytest.mark.parametrize("packing", ["stream", "best_fit"])
def test_the_decay_reads_only_documents_of_the_score_asked_for(packing: str) -> None:
    sets = {"a": scored("a", [30, 9, 40, 25], [0.2, 0.9, 0.1, 0.8]), "b": scored("b", [50], [0.3])}
    train = TrainConfig(sequence_length=LENGTH, global_batch_tokens=2 * LENGTH, packing=packing, decay_min_score=0.8)
    stream = TokenBatches(sets, Config(name="test", train=train))
    stream.decay_from(5)
    good = {*range(30, 39), *range(79, 104)}
    seen = [
        set(stream.batch(step).input_ids_BT.flatten().tolist()) for step in range(5 + stream.streams["a (best)"].count)
    ]
    assert not set().union(*seen[:5]) <= good  # the stable phase reads everything
    decay = set().union(*seen[5:])
    assert decay <= good
    assert good - decay <= {38, 103}  # each document once per epoch; a last token is only ever a label
    assert stream.epochs(10)["a (best)"] == 0
    assert stream.epochs(10 + stream.streams["a (best)"].count)["a (best)"] == 1
    assert "a (best) 34 tokens, 0.0% of the mix (100.0% in the decay)" in stream.describe(10, 5, at_most=False)
    assert stream.shares(10, 20) == {"a": 0, "b": 0, "a (best)": 1}
    again = TokenBatches(sets, Config(name="test", train=train))
    again.decay_from(5)
    assert torch.equal(again.batch(9).input_ids_BT, stream.batch(9).input_ids_BT)  # a function of the step alone


def test_a_score_that_no_document_has_is_an_error() -> None:
    train = TrainConfig(sequence_length=LENGTH, global_batch_tokens=2 * LENGTH, decay_min_score=0.95)
    with pytest.raises(UserError, match=r"train\.decay_min_score=0\.95"):
        TokenBatches({"a": scored("a", [30], [0.2])}, Config(name="test", train=train))


def test_every_epoch_has_an_order_of_its_own() -> None:
    stream = batches({"a": 7 * 200 + 1}, seed=2)
    windows = [stream.window_numbers(stream.streams["a"], np.arange(200) + 200 * epoch) for epoch in range(3)]
    for first, second in ((0, 1), (1, 2), (0, 2)):
        assert sorted(windows[first]) == sorted(windows[second])
        assert np.mean(windows[first] == windows[second]) < 0.05
