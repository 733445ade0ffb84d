"""Batches as a pure function of (seed, sequence index): nothing is stored, any position is computed directly.

In: token sets of the train split and shares per source. Out: windows of `sequence_length` tokens with their labels.
How: each source is one long stream, cut into windows; window i predicts tokens i*T+1 .. (i+1)*T, so that an epoch
predicts every token exactly once (the first has nothing before it). The order of an epoch is a keyed permutation
of the window numbers. Which source the n-th sequence comes from is fixed per block of slots with exact quotas.
So resuming needs one integer, and a change of the batch size does not disturb the order.
Letters: B sequences, T tokens.
"""

import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.corpus.shards import TokenSet
from pipeline.errors import UserError

IGNORED_LABEL = -100
BLOCK_SLOTS = 1024  # sequences over which the shares of the mix hold to within one sequence
FEISTEL_ROUNDS = 6  # four are enough for a pseudo-random permutation (Luby-Rackoff); two more cost nothing
SHARE_UNITS = 2**32  # shares given as floats are rounded to this, so that quotas are exact integers


class Batch(NamedTuple):
    """`input_ids_BT`, `labels_BT` (int64; -100 = not predicted) and how many labels are predicted."""

    input_ids_BT: Tensor
    labels_BT: Tensor
    predicted: int


@dataclass(frozen=True)
class Stream:
    """The windows of one source. `count` windows per epoch, the last one may be shorter."""

    name: str
    tokens: np.ndarray
    sequence_length: int

    @property
    def count(self) -> int:
        return -(-(len(self.tokens) - 1) // self.sequence_length)

    def windows(self, numbers_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and labels of the given windows; what lies past the end is padding with label -100."""
        starts_B1 = numbers_B[:, None].astype(np.int64) * self.sequence_length
        places = starts_B1 + np.arange(self.sequence_length + 1)
        last = len(self.tokens) - 1
        ids = self.tokens[np.minimum(places, last)].astype(np.int64)
        labels_BT = np.where(places[:, 1:] <= last, ids[:, 1:], IGNORED_LABEL)
        return ids[:, :-1], labels_BT


def key_of(*parts: object) -> int:
    """A 64-bit key from names and numbers; the same on every machine and Python."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little")


def permute(values: np.ndarray, size: int, key: int) -> np.ndarray:
    """Where a keyed permutation of 0 .. size-1 puts each value: a Feistel network over the next even power of
    two, walked on until the result is inside (Black and Rogaway 2002, cycle walking)."""
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    result = values.astype(np.uint64)
    outside = np.ones(len(result), dtype=bool)
    while outside.any():
        left, right = result[outside] >> half, result[outside] & mask
        for number in range(FEISTEL_ROUNDS):
            left, right = right, left ^ (_scramble(right, key + number) & mask)
        result[outside] = (left << half) | right
        outside = result >= np.uint64(size)
    return result.astype(np.int64)


def _scramble(values: np.ndarray, key: int) -> np.ndarray:
    """The finalizer of splitmix64: every input bit reaches every output bit."""
    with np.errstate(over="ignore"):
        x = values + np.uint64((key * 0x9E3779B97F4A7C15) % 2**64)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class Mixer:
    """Which source, and which of its sequences, is at a place of the mixed stream.

    Over the first b blocks source k has floor(b * slots * share_k) places, and the largest source what is left:
    quotas are met at every block's end, also by a source too small for one place per block.
    """

    def __init__(self, weights: Mapping[str, int], seed: int):
        self.names = [name for name, weight in weights.items() if weight > 0]
        self.weights = [weights[name] for name in self.names]
        self.total = sum(self.weights)
        self.largest = self.weights.index(max(self.weights))
        # The largest source must be able to give every other one a place in the same block.
        self.slots = max(BLOCK_SLOTS, len(self.names) ** 2)
        self.seed = seed
        self._block = lru_cache(maxsize=8)(self._make_block)

    def before_block(self, block: int) -> list[int]:
        """Sequences of each source in the blocks before `block`."""
        places = block * self.slots
        counts = [places * weight // self.total for weight in self.weights]
        counts[self.largest] = places - sum(c for k, c in enumerate(counts) if k != self.largest)
        return counts

    def _make_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        before, after = np.array(self.before_block(block)), np.array(self.before_block(block + 1))
        layout = np.repeat(np.arange(len(self.names)), after - before)
        order = permute(np.arange(self.slots), self.slots, key_of("mix", self.seed, block))
        source = layout[order]
        number = np.empty(self.slots, dtype=np.int64)
        for k in range(len(self.names)):
            own = source == k
            number[own] = before[k] + np.arange(np.count_nonzero(own))
        return source, number

    def places(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(source number, sequence number within that source) of each global sequence index."""
        source, number = np.empty(len(indices), np.int64), np.empty(len(indices), np.int64)
        blocks = indices // self.slots
        for block in np.unique(blocks):
            here = blocks == block
            sources, numbers = self._block(int(block))
            source[here], number[here] = sources[indices[here] % self.slots], numbers[indices[here] % self.slots]
        return source, number

    def counts_before(self, index: int) -> list[int]:
        """Sequences of each source among the first `index` of the mixed stream."""
        block, rest = divmod(index, self.slots)
        counts = self.before_block(block)
        for k, extra in enumerate(np.bincount(self._block(block)[0][:rest], minlength=len(self.names))):
            counts[k] += int(extra)
        return counts


class TokenBatches:
    """The train split as an endless, ordered list of sequences, and a loader over it for Lightning.

    `batch(step)` is sequences step*B .. (step+1)*B - 1. Iterating starts at `start_step` and never ends.
    Raises `UserError` where a source of the mix has no tokens.
    """

    def __init__(
        self,
        sets: Mapping[str, TokenSet],
        *,
        sequence_length: int,
        batch_sequences: int,
        seed: int,
        mix: Mapping[str, float] | None = None,
    ):
        self.sequence_length, self.batch_sequences, self.seed = sequence_length, batch_sequences, seed
        self.streams = {name: Stream(name, s.tokens, sequence_length) for name, s in sets.items() if s.n_tokens > 1}
        self.mixer = Mixer(self._weights(mix), seed)
        self.start_step = 0

    def _weights(self, mix: Mapping[str, float] | None) -> dict[str, int]:
        if not self.streams:
            raise UserError("the data stage kept no tokens to train on; loosen data.filters or add a source")
        if mix is None:
            return {name: stream.count for name, stream in self.streams.items()}
        empty = [name for name, share in mix.items() if share > 0 and name not in self.streams]
        if empty:
            raise UserError(
                f"train.mix gives a share to '{empty[0]}', which has no train tokens; sources with tokens are "
                f"{', '.join(self.streams)}"
            )
        total = sum(mix.values())
        return {name: max(1, round(share / total * SHARE_UNITS)) for name, share in mix.items() if share > 0}

    def sequences(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and labels [B, T] of any global sequence indices, in the order given."""
        source, number = self.mixer.places(indices)
        inputs = np.empty((len(indices), self.sequence_length), np.int64)
        labels = np.empty_like(inputs)
        for k, name in enumerate(self.mixer.names):
            here = source == k
            if here.any():
                stream = self.streams[name]
                inputs[here], labels[here] = stream.windows(self._window_numbers(stream, number[here]))
        return inputs, labels

    def _window_numbers(self, stream: Stream, numbers: np.ndarray) -> np.ndarray:
        """The n-th sequence of a source is window number permutation(n mod count) of epoch n // count."""
        epochs, places = np.divmod(numbers, stream.count)
        windows = np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            windows[here] = permute(places[here], stream.count, key_of("epoch", self.seed, stream.name, int(epoch)))
        return windows

    def batch(self, step: int) -> Batch:
        indices = np.arange(step * self.batch_sequences, (step + 1) * self.batch_sequences)
        inputs, labels = self.sequences(indices)
        predicted = int(np.count_nonzero(labels != IGNORED_LABEL))
        return Batch(torch.from_numpy(inputs), torch.from_numpy(labels), predicted)

    def epochs(self, sequence_index: int) -> dict[str, float]:
        """How often each source has been seen after that many sequences."""
        counts = self.mixer.counts_before(sequence_index)
        return {name: counts[k] / self.streams[name].count for k, name in enumerate(self.mixer.names)}

    def __len__(self) -> int:
        # Never reached. Lightning needs some length: without one it takes a batch ahead and loses it on resume.
        return 2**40

    def __iter__(self) -> Iterator[Batch]:
        step = self.start_step
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches") as pool:
            ahead = pool.submit(self.batch, step)
            while True:
                ready = ahead.result()
                step += 1
                ahead = pool.submit(self.batch, step)
                yield ready
