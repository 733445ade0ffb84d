"""The order of the mixed stream: which source, and which of its sequences, is at any place. A pure function.

In: how many windows each source has, its share in each phase (from the start; from the decay's start on), how often
it may be repeated. Out: source and number of any sequence index. The stream is cut into segments of constant shares:
one begins at the start, one where the decay starts, one wherever a source has reached its cap, whose share then goes
to the others in proportion. Every segment continues each source where the one before left it, so that an epoch
holds every window once whatever the segments are. Within a segment quotas are exact per block of slots.
`StepSizes` says which sequences each optimizer step reads. Imports no torch.
"""

import hashlib
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pipeline.config import Config, TrainConfig
from pipeline.system.errors import UserError

BLOCK_SLOTS = 1024  # sequences over which the shares of the mix hold to within one sequence
FEISTEL_ROUNDS = 6  # four are enough for a pseudo-random permutation (Luby-Rackoff); two more cost nothing
SHARE_UNITS = 2**32  # shares given as floats are rounded to this, so that quotas are exact integers


def effective_weights(config: Config, sizes: Mapping[str, int], key: str = "mix") -> dict[str, int]:
    """Shares as exact integers, of the sources in `sizes` (source -> windows, or tokens) that have one.

    `key`: "mix" for the run, "decay_mix" from the decay's start on (`train.mix` again where it is null). Without a
    mix: in proportion to size times `data.sources.<name>.weight`. Raises `UserError` where a share belongs to a
    source that has no tokens, or nothing has a share.
    """
    if not sizes:
        raise UserError("the data stage kept no tokens to train on; loosen data.filters or add a source")
    mix = getattr(config.train, key)
    if mix is None and key != "mix":
        return effective_weights(config, sizes)
    if mix is not None:
        shares = {name: float(share) for name, share in mix.items() if share > 0}
        empty = [name for name in shares if name not in sizes]
        if empty:
            raise UserError(
                f"train.{key} gives a share to '{empty[0]}', which has no train tokens; sources with tokens are "
                f"{', '.join(sizes)}"
            )
    else:
        weights = source_weights(config)
        if all(weights.get(name, 1.0) == 1.0 for name in sizes):
            return dict(sizes)
        shares = {name: size * weights.get(name, 1.0) for name, size in sizes.items() if weights.get(name, 1.0) > 0}
        if not shares:
            raise UserError(
                f"data.sources.<name>.weight is 0 for every source with tokens ({', '.join(sizes)}); "
                "expected more than 0 for one of them"
            )
    total = sum(shares.values())
    return {name: max(1, round(share / total * SHARE_UNITS)) for name, share in shares.items()}


def source_weights(config: Config) -> dict[str, float]:
    """`data.sources.<name>.weight` of the sources where it is not 1."""
    options = {name: source for name, source in config.data.sources.items() if isinstance(source, Mapping)}
    return {name: float(o["weight"]) for name, o in options.items() if o.get("weight", 1.0) != 1.0}


def caps_of(max_epochs: float | Mapping[str, float] | None, sizes: Mapping[str, int]) -> dict[str, int]:
    """Sequences that each capped source may give at most; a source without a cap is left out."""
    if max_epochs is None:
        return {}
    epochs = max_epochs if isinstance(max_epochs, Mapping) else dict.fromkeys(sizes, max_epochs)
    # The addition is for products such as 0.29 x 100, which floats put just below the integer.
    return {name: math.floor(epochs[name] * size + 1e-6) for name, size in sizes.items() if name in epochs}


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
    """Which source, and which of its sequences, is at a place of a stream of constant shares.

    Over the first b blocks source k has floor(b * slots * share_k) places, and the largest source what is left:
    quotas are met at every block's end, also by a source too small for one place per block. `key`: of the orders
    of the blocks.
    """

    def __init__(self, weights: Mapping[str, int], *key: int):
        self.names = [name for name, weight in weights.items() if weight > 0]
        self.weights = [weights[name] for name in self.names]
        self.total = sum(self.weights)
        self.largest = self.weights.index(max(self.weights))
        # The largest source must be able to give every other one a place in the same block.
        self.slots = max(BLOCK_SLOTS, len(self.names) ** 2)
        self.key = key
        self._block = lru_cache(maxsize=8)(self._make_block)

    def before_block(self, block: int) -> list[int]:
        """Sequences of each source in the blocks before `block`."""
        places = block * self.slots
        counts = [places * weight // self.total for weight in self.weights]
        counts[self.largest] = places - sum(c for k, c in enumerate(counts) if k != self.largest)
        return counts

    def _make_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        # As many places as the block adds to each source's quota, source by source; then shuffled by the block's key.
        before, after = np.array(self.before_block(block)), np.array(self.before_block(block + 1))
        layout = np.repeat(np.arange(len(self.names)), after - before)
        order = permute(np.arange(self.slots), self.slots, key_of("mix", *self.key, block))
        source = layout[order]
        number = np.empty(self.slots, dtype=np.int64)
        for k in range(len(self.names)):
            own = source == k
            number[own] = before[k] + np.arange(np.count_nonzero(own))
        return source, number

    def places(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(source number, sequence number within that source) of each sequence index of this stream."""
        source, number = np.empty(len(indices), np.int64), np.empty(len(indices), np.int64)
        blocks = indices // self.slots
        for block in np.unique(blocks):
            here = blocks == block
            sources, numbers = self._block(int(block))
            source[here], number[here] = sources[indices[here] % self.slots], numbers[indices[here] % self.slots]
        return source, number

    def counts_before(self, index: int) -> list[int]:
        """Sequences of each source among the first `index` of this stream."""
        block, rest = divmod(index, self.slots)
        counts = self.before_block(block)
        for k, extra in enumerate(np.bincount(self._block(block)[0][:rest], minlength=len(self.names))):
            counts[k] += int(extra)
        return counts

    def length_until(self, left: Mapping[str, int]) -> float:
        """Sequences until the first source has given what it has left (at least 1); infinite where none is limited."""
        limits = {k: left[name] for k, name in enumerate(self.names) if name in left}
        if not limits:
            return math.inf
        # The block in which the first source gives its last sequence; inside it the place is looked up.
        block = min(self._blocks_until(k, limit) for k, limit in limits.items()) - 1
        source, number = self._block(block)
        ends = [np.flatnonzero((source == k) & (number == limit - 1)) for k, limit in limits.items()]
        return block * self.slots + int(min(end[0] for end in ends if len(end))) + 1

    def _blocks_until(self, k: int, limit: int) -> int:
        """The least number of blocks that hold `limit` sequences of source k."""
        places = self.slots * self.weights[k]
        most = -(-limit * self.total // places)
        if k != self.largest:
            return most
        # The largest source has its floor and what the others' floors leave, less than one sequence each.
        least = max(0, limit - len(self.names)) * self.total // places
        while least < most:
            middle = (least + most) // 2
            if self.before_block(middle)[k] >= limit:
                most = middle
            else:
                least = middle + 1
        return most


@dataclass(frozen=True)
class Segment:
    """A stretch of constant shares from sequence `start` on; `before`: what each source gave until then."""

    start: int
    mixer: Mixer
    before: dict[str, int]


class Order:
    """The whole stream. `names`: the sources by number; `total`: its length, None = endless.

    `phases`: (first sequence, source -> weight) in ascending order, the first at 0; `caps`: see `caps_of`.
    """

    def __init__(self, phases: Sequence[tuple[int, Mapping[str, int]]], caps: Mapping[str, int], seed: int):
        self.names = list(dict.fromkeys(name for _, weights in phases for name in weights))
        self.segments: list[Segment] = []
        self.total: int | None = None
        at, given = 0, dict.fromkeys(self.names, 0)
        for (_, weights), end in zip(phases, [*(start for start, _ in phases[1:]), math.inf], strict=True):
            # A segment ends with its phase, or where its first source has given all that it may; what is left of the
            # phase is then a segment without that source.
            while at < end:
                left = {name: caps[name] - given[name] for name in weights if name in caps}
                rest = {name: weight for name, weight in weights.items() if weight > 0 and left.get(name, 1) > 0}
                if not rest:
                    self.total = at  # a stream that ends in one phase has no further one
                    return
                # The start is a part of the key, so that no two segments shuffle alike; the first one has none, as
                # in a run without segments.
                mixer = Mixer(rest, seed, at) if at else Mixer(rest, seed)
                self.segments.append(Segment(at, mixer, dict(given)))
                until = min(end, at + mixer.length_until(left))
                if until == math.inf:
                    return
                for name, count in zip(mixer.names, mixer.counts_before(int(until) - at), strict=True):
                    given[name] += count
                at = int(until)

    def places(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(source number, sequence number within that source) of each global index; `IndexError` past the end."""
        if len(indices) and self.total is not None and int(indices.max()) >= self.total:
            raise IndexError(
                f"sequence {int(indices.max()):,} of a stream that train.max_epochs ends at {self.total:,}"
            )
        source, number = np.empty(len(indices), np.int64), np.empty(len(indices), np.int64)
        segments = np.searchsorted([segment.start for segment in self.segments], indices, side="right") - 1
        for at in np.unique(segments):
            segment, here = self.segments[at], segments == at
            own, numbers = segment.mixer.places(indices[here] - segment.start)
            before = np.array([segment.before[name] for name in segment.mixer.names])
            source[here] = np.array([self.names.index(name) for name in segment.mixer.names])[own]
            number[here] = before[own] + numbers
        return source, number

    def counts_before(self, index: int) -> dict[str, int]:
        """Sequences of each source among the first `index`."""
        if self.total is not None:
            index = min(index, self.total)
        segment = next((s for s in reversed(self.segments) if s.start <= index), None)
        if segment is None:
            return dict.fromkeys(self.names, 0)
        counts = dict(segment.before)
        for name, count in zip(segment.mixer.names, segment.mixer.counts_before(index - segment.start), strict=True):
            counts[name] += count
        return counts


class StepSizes:
    """How many sequences each optimizer step reads: constant, or growing at the start (`train.batch_warmup_tokens`).

    Early gradients agree from text to text, so small steps learn as much from a token and come more often (McCandlish
    et al. 2018, arXiv 1812.06162). A step's size depends on the sequences before it alone: it grows linearly in them
    from `batch_start_tokens` to `global_batch_tokens`, in multiples of `batch_start_tokens`. So a step number says
    where in the text a run stands, as it does without a warm-up, and nothing more is stored.
    `full`: sequences of a step after the warm-up; `least`: of the first step, which divides those of all others.
    """

    def __init__(self, train: TrainConfig):
        self.sequence_length = train.sequence_length
        self.full = self.least = train.global_batch_tokens // train.sequence_length
        self._firsts = [0]  # of the steps of the warm-up and of the first full one: the sequences before them
        if train.batch_warmup_tokens:
            assert train.batch_start_tokens is not None
            self.least = train.batch_start_tokens // train.sequence_length
            self._grow(train.batch_warmup_tokens / train.sequence_length)

    def _grow(self, warmup_sequences: float) -> None:
        more = self.full // self.least - 1
        while (at := self._firsts[-1]) < warmup_sequences:
            self._firsts.append(at + self.least * (1 + min(more, int(more * at / warmup_sequences))))

    def first_sequence(self, step: int) -> int:
        """The index of the first sequence that the step reads: the sequences of all steps before it."""
        last = len(self._firsts) - 1
        return self._firsts[min(step, last)] + max(0, step - last) * self.full

    def sequences(self, step: int) -> int:
        """How many the step reads."""
        return self.first_sequence(step + 1) - self.first_sequence(step)

    def tokens(self, steps: int) -> int:
        """What the first `steps` steps read, padding included."""
        return self.first_sequence(steps) * self.sequence_length

    def whole_steps(self, sequences: int) -> int:
        """The most steps that need no more than that many sequences."""
        last = len(self._firsts) - 1
        if sequences < self._firsts[last]:
            return bisect_right(self._firsts, sequences) - 1
        return last + (sequences - self._firsts[last]) // self.full
