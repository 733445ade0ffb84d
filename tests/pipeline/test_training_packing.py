"""Windows: every token predicted as often as promised, packed as the plain algorithm packs, with little padding."""

from collections import Counter

import numpy as np
import pytest

from pipeline.config import Config, TrainConfig
from pipeline.corpus.text.shards import INDEX_DTYPE, TokenSet
from pipeline.training.batches import TokenBatches
from pipeline.training.packing import IGNORED_LABEL, BestFit, Stream, best_fit, windows_of

EOS = 0


def documents(lengths: np.ndarray) -> TokenSet:
    """Tokens 1, 2, 3, ... over all documents, but for the end-of-text at the end of each."""
    index = np.zeros(len(lengths), INDEX_DTYPE)
    index["length"], index["offset"] = lengths, np.cumsum(lengths) - lengths
    tokens = np.arange(1, int(lengths.sum()) + 1, dtype=np.uint32)
    tokens[(index["offset"] + index["length"])[index["length"] > 0] - 1] = EOS
    return TokenSet("a", tokens, index)


def plain_best_fit(lengths: list[int], capacity: int) -> list[int]:
    """Places left in every window, sorted: best-fit decreasing, one document at a time."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in rooms if room >= length]
        if fitting:
            rooms.remove(min(fitting))
        rooms.append((min(fitting) if fitting else capacity) - length)
    return sorted(rooms)


@pytest.mark.parametrize("seed", range(60))
def test_best_fit_packs_as_the_plain_algorithm_does(seed: int) -> None:
    draw = np.random.default_rng(seed)
    capacity = int(draw.integers(2, 60))
    lengths = np.minimum(draw.integers(1, capacity + 1, draw.integers(1, 200)), draw.integers(1, capacity + 1))
    window, count = best_fit(lengths.astype(np.uint32), capacity)
    used = np.bincount(window, lengths, minlength=count).astype(int)
    assert used.min() > 0
    assert sorted(capacity - used) == plain_best_fit(lengths.tolist(), capacity)
    again, _ = best_fit(lengths.astype(np.uint32), capacity)
    assert (again == window).all()


@pytest.mark.parametrize("seed", range(30))
def test_best_fit_predicts_every_token_but_a_documents_first_exactly_once_from_the_one_before(seed: int) -> None:
    draw = np.random.default_rng(seed)
    length = int(draw.integers(2, 40))
    lengths = draw.integers(0, 3 * length, draw.integers(1, 60))
    lengths[0] = length + int(draw.integers(-1, 3))  # around the size of a window, where cutting begins
    token_set = documents(lengths)
    packed = BestFit("a", token_set.tokens, token_set.index, length)
    inputs, labels = packed.windows(np.arange(packed.count))
    predicted = labels != IGNORED_LABEL
    assert inputs.shape == labels.shape == (packed.count, length)
    assert np.count_nonzero(predicted) == packed.predicted

    index = token_set.index[token_set.index["length"] > 0]
    firsts = set(token_set.tokens[index["offset"]][index["length"] > 1].tolist())
    inner = {int(t) for t in token_set.tokens} - firsts - {EOS}
    words = Counter(labels[predicted & (labels != EOS)].tolist())
    assert all(words[token] == 1 for token in inner)
    assert all(words[token] <= 1 for token in firsts)
    assert set(words) <= inner | firsts
    # From the token before; a document's first from the end of another, or not at all.
    here = predicted & (labels != EOS)
    assert set(inputs[here & (inputs + 1 != labels)].tolist()) <= {EOS}
    assert {int(t) for t in labels[here & (inputs == EOS)]} <= firsts
    # Not predicted is only a first token that leads its window: such windows hold no other such document.
    missing = [token for token in firsts if words[token] == 0]
    assert set(missing) <= set(inputs[:, 0].tolist())
    # Ends of text: once for every document of two tokens or more.
    long_enough = int(np.count_nonzero(index["length"] > 1))
    ends = int(np.count_nonzero(predicted & (labels == EOS)))
    alone = int(np.count_nonzero(index["length"] == 1))
    assert long_enough <= ends <= long_enough + alone


def test_documents_that_fit_are_never_cut_and_stand_in_the_order_of_the_corpus() -> None:
    draw = np.random.default_rng(0)
    token_set = documents(draw.integers(2, 33, 300))
    packed = BestFit("a", token_set.tokens, token_set.index, 32)
    inputs, labels = packed.windows(np.arange(packed.count))
    for row, targets in zip(inputs, labels, strict=True):
        window = [*row.tolist(), int(targets[-1])]
        if window[-1] == IGNORED_LABEL:
            window = window[: int(np.flatnonzero(targets != IGNORED_LABEL)[-1]) + 2]
        assert window[-1] == EOS
        words = [token for token in window if token != EOS]
        assert words == sorted(words)


def test_any_windows_in_any_order_are_those_of_the_whole() -> None:
    token_set = documents(np.random.default_rng(3).integers(1, 90, 500))
    packed = BestFit("a", token_set.tokens, token_set.index, 40)
    inputs, labels = packed.windows(np.arange(packed.count))
    some = np.random.default_rng(4).integers(0, packed.count, 64)
    assert (packed.windows(some)[0] == inputs[some]).all()
    assert (packed.windows(some)[1] == labels[some]).all()


@pytest.mark.parametrize("sequence_length", [128, 512, 2048])
@pytest.mark.parametrize(("median", "spread"), [(150, 1.0), (600, 1.2), (1500, 0.8)])
def test_padding_stays_under_one_percent_on_realistic_lengths(sequence_length: int, median: int, spread: float) -> None:
    lengths = np.random.default_rng(0).lognormal(np.log(median), spread, 20_000)
    token_set = documents(np.maximum(2, lengths).astype(np.int64))
    config = Config(name="test", train=TrainConfig(sequence_length, 4 * sequence_length, packing="best_fit"))
    stream = TokenBatches({"a": token_set}, config)
    packed = stream.streams["a"]
    assert isinstance(packed, BestFit)
    assert stream.padding_share() == 1 - packed.predicted / (packed.count * sequence_length)
    assert 0 <= stream.padding_share() < 0.01


def test_an_epoch_of_batches_holds_every_packed_window_once() -> None:
    token_set = documents(np.random.default_rng(5).integers(2, 90, 400))
    config = Config(name="test", train=TrainConfig(32, 64, packing="best_fit"))
    stream = TokenBatches({"a": token_set}, config)
    packed = stream.streams["a"]
    everything = packed.windows(np.arange(packed.count))[0]
    epoch = stream.sequences(np.arange(packed.count))[0]
    assert sorted(map(tuple, epoch)) == sorted(map(tuple, everything))


def test_the_stream_counts_its_padding_too() -> None:
    stream = windows_of(documents(np.array([12])), 8)
    assert isinstance(stream, Stream)
    assert (stream.count, stream.predicted) == (2, 11)
    assert np.count_nonzero(stream.windows(np.arange(2))[1] == IGNORED_LABEL) == 2 * 8 - 11
