"""Bits per byte over documents: what is counted, its interval, parts of a validation, and when it is given up."""

import math

import numpy as np
import pytest
import torch

from pipeline.corpus.text.intervals import beside, interval, ratio_of_sums, shown, t_quantile
from pipeline.corpus.text.shards import INDEX_DTYPE, TokenSet
from pipeline.training.packing import Examples
from pipeline.training.validation import Validation

END = 0


class Network:
    """Each label costs as many nats as its id says."""

    def __init__(self):
        self.lm_head, self.calls = torch.nn.Linear(1, 1), 0

    def token_nats(self, inputs, labels):
        self.calls += 1
        return torch.where(labels == -100, 0, labels).float()


def token_set(name: str, documents: list[list[int]], sizes: list[int]) -> TokenSet:
    index = np.zeros(len(documents), INDEX_DTYPE)
    index["length"], index["bytes"] = [len(d) for d in documents], sizes
    index["offset"] = np.cumsum(index["length"]) - index["length"]
    return TokenSet(name, np.array([i for d in documents for i in d], np.uint16), index)


def made_up(count: int, seed: int = 1) -> tuple[list[list[int]], list[int]]:
    draw = np.random.default_rng(seed)
    documents = [[*draw.integers(1, 9, draw.integers(1, 40)).tolist(), END] for _ in range(count)]
    return documents, [3 * len(d) for d in documents]


@pytest.mark.parametrize("length", [7, 16, 500])
def test_every_token_is_counted_in_its_document_and_an_end_of_text_in_none(length):
    documents, sizes = made_up(60)
    validation = Validation({"web": token_set("web", documents, sizes)}, length, END)
    found = validation.run(Network())  # type: ignore[arg-type]
    nats = [float(sum(d)) for d in documents]
    nats[0] -= documents[0][0]  # nothing stands before the first token of all
    bits = [n / math.log(2) for n in nats]
    first = [len(d) - 2 for d in documents[:1]]
    if first[0] == 0:
        bits, sizes = bits[1:], sizes[1:]
    value, error = ratio_of_sums(bits, sizes)
    assert found == {"web": pytest.approx(value, rel=1e-9)}
    assert validation.intervals == {"web": interval(value, error, len(bits))}
    assert validation.overall_interval == validation.intervals["web"]
    assert validation.share == 1.0
    assert validation.documents() == {"web": 60}


def test_without_an_end_of_text_every_last_token_counts():
    documents = [[1, 2, 3], [4, 5]]
    found = Validation({"text": token_set("text", documents, [3, 2])}, 4).run(Network())  # type: ignore[arg-type]
    assert found == {"text": pytest.approx((2 + 3 + 4 + 5) / math.log(2) / 5)}


def test_examples_are_documents_too():
    rows = [([1, 2, 3, 4], [False, False, True, True]), ([5, 6, 7], [False, True, True])]
    validation = Validation({"chat": Examples.of("chat", rows, 4, 12)}, 4)
    assert validation.run(Network()) == {"chat": pytest.approx((3 + 4 + 6 + 7) / math.log(2) / 12)}  # type: ignore[arg-type]
    assert validation.documents() == {"chat": 2}
    assert validation.intervals["chat"] is not None


def test_a_single_document_has_a_figure_and_no_interval():
    validation = Validation({"web": token_set("web", [[1, 2, 3, END]], [9])}, 8, END)
    assert validation.run(Network()) == {"web": pytest.approx(5 / math.log(2) / 9)}  # type: ignore[arg-type]
    assert validation.intervals == {"web": None}


def test_the_interval_covers_the_figure_of_all_documents_about_as_often_as_it_says():
    """Samples of 40 of 4,000 documents: about 95% of their intervals hold the figure of all."""
    documents, sizes = made_up(4_000, seed=3)
    sizes = [
        max(1, s + int(n)) for s, n in zip(sizes, np.random.default_rng(5).integers(-20, 60, len(sizes)), strict=True)
    ]
    nats = np.array([float(sum(d)) for d in documents])
    truth = nats.sum() / sum(sizes)
    draw, held = np.random.default_rng(9), 0
    for _ in range(400):
        chosen = draw.choice(len(documents), 40, replace=False)
        value, error = ratio_of_sums(nats[chosen].tolist(), np.array(sizes)[chosen].tolist())
        low, high = interval(value, error, 40)  # type: ignore[misc]
        held += low <= truth <= high
    assert 0.91 <= held / 400 <= 0.985


def test_it_is_said_as_soon_as_it_can_be_told_how_long_a_validation_takes(monkeypatch):
    documents, sizes = made_up(3_000)
    clock = iter(range(10_000))
    monkeypatch.setattr("pipeline.training.validation.time.monotonic", lambda: float(next(clock)))
    monkeypatch.setattr("pipeline.training.validation.FORWARD_TOKENS", 1_000)
    network, told = Network(), []

    class TooLong(Exception):
        pass

    def check(seconds: float) -> None:
        told.append(seconds)
        if seconds > 100:
            raise TooLong

    with pytest.raises(TooLong):
        Validation({"web": token_set("web", documents, sizes)}, 50, END).run(network, check_seconds=check)  # type: ignore[arg-type]
    assert network.calls <= 4
    assert told == sorted(told)


def test_what_stands_beside_a_figure():
    facts = {
        "bits_per_byte_interval": {"a": [1.0, 2.5], "b": None},
        "validation_documents": {"a": 1_200, "b": 1},
        "validation_groups": {"a": 31},
    }
    assert beside(facts, "a") == "1.0000 to 2.5000; 1,200 documents, 31 groups"
    assert beside(facts, "b") == "1 document"
    assert beside({}, "a") == shown(None) == ""
    assert t_quantile(100_000) == pytest.approx(1.96, abs=0.001)
