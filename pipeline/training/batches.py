"""Batches as a pure function of (seed, sequence index): nothing is stored, any position is computed directly.

In: token sets of the train split, `train.mix`, `decay_mix`, `decay_min_score`, `max_epochs`, `packing`, and the
step at which the decay starts, once that is decided. Out: windows of `sequence_length` tokens with their labels, on
the device before the step that takes them.
A source is cut into windows (packing.py). The order of an epoch is a keyed permutation of the window numbers. The
source of the n-th sequence follows from the shares (mixing.py). So resuming needs one integer, and a change of the
batch size does not disturb the order.
Letters: B sequences, T tokens.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.config import Config
from pipeline.corpus.text.shards import TokenSet
from pipeline.system.errors import UserError
from pipeline.training.mixing import Order, StepSizes, caps_of, effective_weights, key_of, permute
from pipeline.training.packing import IGNORED_LABEL, BestFit, Examples, Stream, windows_of

MOST_STEPS = 2**40  # never reached
BEST = " (best)"  # of a source's name: its documents of `train.decay_min_score` or more, read in the decay


class Batch(NamedTuple):
    """`input_ids_BT`, `labels_BT` (int64; -100 = not predicted), how many labels are predicted, and the hash of what
    is read, for the record."""

    input_ids_BT: Tensor
    labels_BT: Tensor
    predicted: int
    sha256: bytes = b""


Copied = tuple[Batch, Any]  # a CUDA event: the copy is done; None: nothing is copied


class Copies:
    """Copies batches to a CUDA device through pinned memory, on its own stream, while the step before computes; neither
    the host nor that step waits for it. A CPU computes where the batch is; to other devices Lightning moves it. What
    this gains has not been measured."""

    def __init__(self, device: torch.device):
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def begin(self, batch: Batch) -> Copied:
        """Starts the copy; called in the thread that made the batch, so that the pinning does not hold up a step."""
        if self.stream is None:
            return batch, None
        with torch.cuda.stream(self.stream):
            inputs, labels = (
                tensor.pin_memory().to(self.stream.device, non_blocking=True)
                for tensor in (batch.input_ids_BT, batch.labels_BT)
            )
            return batch._replace(input_ids_BT=inputs, labels_BT=labels), self.stream.record_event()

    def finish(self, copied: Copied) -> Batch:
        """The batch, for the thread that trains: what it launches from here on waits on the card for the copy."""
        batch, event = copied
        if event is not None:
            computing = torch.cuda.current_stream(batch.input_ids_BT.device)
            computing.wait_event(event)
            for tensor in (batch.input_ids_BT, batch.labels_BT):
                tensor.record_stream(computing)  # its memory is the copying stream's: not to be reused too early
        return batch


class TokenBatches:
    """The train split as an ordered list of sequences, and a loader over it for Lightning.

    `batch(step)` is the sequences that `sizes` gives the step. Iterating starts at `start_step`, and on a CUDA `device`
    each batch is copied there before its step. It ends only where `train.max_epochs` ends the text, with `IndexError`,
    and the budget is planned to stop earlier.
    Raises `UserError` where a source of a mix has no tokens.
    """

    def __init__(self, sets: Mapping[str, TokenSet | Examples], config: Config, device: torch.device | None = None):
        train = config.train
        self.sequence_length, self.seed = train.sequence_length, config.seed
        self.sizes = StepSizes(train)
        filled = {name: s for name, s in sets.items() if s.n_tokens > 1}
        self.tokens = {name: s.n_tokens for name, s in filled.items()}
        self.streams = {name: windows_of(s, train.sequence_length, train.packing) for name, s in filled.items()}
        counts = {name: stream.count for name, stream in self.streams.items()}
        self.packing = train.packing
        self.weights = effective_weights(config, counts)
        self.decay_weights = None if train.decay_mix is None else effective_weights(config, counts, "decay_mix")
        if train.decay_min_score is not None:
            scored = {name: s for name, s in filled.items() if isinstance(s, TokenSet)}
            self.decay_weights = self._add_best(config, scored, train.decay_min_score)
        self.caps = caps_of(train.max_epochs, counts)
        self._orders = lru_cache(maxsize=4)(self._make_order)
        self.order = self.order_from(None)
        self.start_step = 0
        self.copies = Copies(device or torch.device("cpu"))

    def _add_best(self, config: Config, sets: Mapping[str, TokenSet], min_score: float) -> dict[str, int]:
        """Adds the streams of well scored documents; returns their shares in the decay."""
        train = config.train
        best = {n: windows_of(s, train.sequence_length, train.packing, min_score) for n, s in sets.items()}
        counts = {name: stream.count for name, stream in best.items() if stream.count > 0}
        if not counts:
            raise UserError(
                f"no train document has a score of train.decay_min_score={min_score:g} or more; lower it, or set it "
                "to null"
            )
        self.streams |= {name + BEST: replace(best[name], name=name + BEST) for name in counts}
        for name in counts:
            index = sets[name].index
            self.tokens[name + BEST] = int(index["length"][index["score"] >= min_score].sum(dtype=np.int64))
        return {name + BEST: weight for name, weight in effective_weights(config, counts, "decay_mix").items()}

    def decay_from(self, step: int | None) -> None:
        """From here on the order is the one for a decay that starts at `step` (None: not decided)."""
        self.order = self.order_from(step)

    def order_from(self, decay_step: int | None) -> Order:
        """The order of a run whose decay starts there; one and the same object where nothing depends on it."""
        return self._orders(None if self.decay_weights is None else decay_step)

    def _make_order(self, decay_step: int | None) -> Order:
        phases: list[tuple[int, Mapping[str, int]]] = [(0, self.weights)]
        if decay_step is not None and self.decay_weights is not None:
            phases.append((self.sizes.first_sequence(decay_step), self.decay_weights))
        return Order(phases, self.caps, self.seed)

    def sequences(self, indices: np.ndarray, order: Order | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and labels [B, T] of any global sequence indices, in the order given."""
        order = order or self.order
        source, number = order.places(indices)
        inputs = np.empty((len(indices), self.sequence_length), np.int64)
        labels = np.empty_like(inputs)
        for k, name in enumerate(order.names):
            here = source == k
            if here.any():
                stream = self.streams[name]
                inputs[here], labels[here] = stream.windows(self.window_numbers(stream, number[here]))
        return inputs, labels

    def window_numbers(self, stream: Stream | BestFit | Examples, numbers: np.ndarray) -> np.ndarray:
        """The n-th sequence of a source is window number permutation(n mod count) of epoch n // count."""
        epochs, places = np.divmod(numbers, stream.count)
        windows = np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            windows[here] = permute(places[here], stream.count, key_of("epoch", self.seed, stream.name, int(epoch)))
        return windows

    def indices(self, step: int) -> np.ndarray:
        """The sequences of the step that comes after `step` steps."""
        return np.arange(self.sizes.first_sequence(step), self.sizes.first_sequence(step + 1))

    def batch(self, step: int, order: Order | None = None) -> Batch:
        indices = self.indices(step)
        inputs, labels = self.sequences(indices, order)
        predicted = int(np.count_nonzero(labels != IGNORED_LABEL))
        sha256 = hashlib.sha256(inputs.astype("<u4").tobytes()).digest()
        return Batch(torch.from_numpy(inputs), torch.from_numpy(labels), predicted, sha256)

    def epochs(self, sequence_index: int) -> dict[str, float]:
        """How often each source has been seen after that many sequences."""
        return {name: n / self.streams[name].count for name, n in self.order.counts_before(sequence_index).items()}

    def shares(self, first: int, end: int) -> dict[str, float]:
        """What each source really gave of the sequences `first` .. `end` - 1; empty where there are none."""
        before, after = self.order.counts_before(first), self.order.counts_before(end)
        return {name: (after[name] - before[name]) / (end - first) for name in after} if end > first else {}

    def padding_share(self) -> float:
        """Share of the labels of one epoch of every source in use that predict nothing."""
        used = [self.streams[name] for name in {**self.weights, **(self.decay_weights or {})}]
        return 1 - sum(s.predicted for s in used) / sum(s.count * self.sequence_length for s in used)

    def steps_available(self, decay_step: int | None) -> int | None:
        """Whole steps until `train.max_epochs` ends the text, with a decay from that step; None = no end."""
        total = self.order_from(decay_step).total
        return None if total is None else self.sizes.whole_steps(total)

    def most_steps(self, decay_start: Callable[[int], int]) -> int | None:
        """The longest run that `train.max_epochs` allows; None = no end. `decay_start`: of a run of that many steps.

        A longer run has a later and longer decay, which leaves less for the decay's sources and needs more of them:
        what fits is found by halving.
        """
        if not self.caps:
            return None
        if self.decay_weights is None:
            return self.steps_available(None)

        def fits(steps: int) -> bool:
            available = self.steps_available(decay_start(steps))
            return available is None or available >= steps

        if fits(MOST_STEPS):
            return None
        least, most = 0, MOST_STEPS
        while most - least > 1:
            middle = (least + most) // 2
            least, most = (middle, most) if fits(middle) else (least, middle)
        return least

    def describe(self, steps: int | None, decay_step: int | None, at_most: bool) -> str:
        """One line for a person: tokens, share, repetition of every source. `steps`: of the whole run, if known."""
        counts = {name: stream.count for name, stream in self.streams.items()}
        whole = {name: count for name, count in counts.items() if not name.endswith(BEST)}
        planned = None if steps is None else self.order_from(decay_step).counts_before(self.sizes.first_sequence(steps))
        parts = []
        for name, tokens in self.tokens.items():
            share = _share(self.weights, name)
            part = f"{name} {tokens:,} tokens, {100 * share:.1f}% of the mix"
            if self.decay_weights is not None:
                part += f" ({100 * _share(self.decay_weights, name):.1f}% in the decay)"
            ratio = share / _share(whole, name) if name in whole else 1.0
            part += f", sampled {ratio:.2f}x" if abs(ratio - 1) > 0.005 else ""
            if planned is not None:
                part += f", {'at most ' if at_most else ''}{planned.get(name, 0) / counts[name]:.2f} epochs"
            parts.append(part)
        return "  sources: " + "; ".join(parts)

    def __len__(self) -> int:
        # Never reached. Lightning needs some length: without one it takes a batch ahead and loses it on resume.
        return MOST_STEPS

    def __iter__(self) -> Iterator[Batch]:
        # One batch ahead: the thread makes and copies it while the step before computes.
        step, order = self.start_step, self.order
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches") as pool:
            ahead = pool.submit(self._begin, step, order)
            while True:
                if order is not self.order:  # the decay was decided after this one was begun
                    order = self.order
                    ahead = pool.submit(self._begin, step, order)
                ready = ahead.result()
                step += 1
                ahead = pool.submit(self._begin, step, order)
                yield self.copies.finish(ready)

    def _begin(self, step: int, order: Order) -> Copied:
        return self.copies.begin(self.batch(step, order))


def _share(weights: Mapping[str, int], name: str) -> float:
    return weights.get(name, 0) / sum(weights.values())
