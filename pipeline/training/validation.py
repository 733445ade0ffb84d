"""Bits per byte on held-out text: comparable between tokenizers, and what every other number is judged by.

In: a network and the validation sets. Out: nats over all predicted tokens / ln 2 / UTF-8 bytes, per set. Windows do
not overlap and every token but the first is predicted once, in fp32 sums per batch of windows and fp64 over all.
Windows are cut from the stream whatever `train.packing` is; under `train.mask_documents` the network masks here too,
as it was trained, so a document's beginning is predicted without the one before it.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch

from model.transformer import Transformer
from pipeline.corpus.shards import TEXTBOOK, TokenSet
from pipeline.training.examples import Examples
from pipeline.training.packing import windows_of

FORWARD_TOKENS = 16_384  # per forward pass: without gradients this fits wherever training does


class Validation:
    """All validation sets of a run. `predicted_tokens`: over all sets, for forecasting its cost."""

    def __init__(self, sets: Mapping[str, TokenSet | Examples], sequence_length: int):
        self.sets = {name: s for name, s in sets.items() if s.n_tokens > 1 and s.n_bytes > 0}
        self.sequence_length = sequence_length
        self.predicted_tokens = sum(s.n_tokens - 1 for s in self.sets.values())
        self.seconds = 0.0
        self.share = 1.0

    @torch.no_grad()
    def run(
        self,
        network: Transformer,
        should_stop: Callable[[], object] = lambda: None,
        limit_seconds: float = math.inf,
    ) -> dict[str, float] | None:
        """`{set: bits per byte}`, or None where `should_stop` became true in between.

        After `limit_seconds` it ends with what it has, at least one piece of every set; `share` says how much of the
        text that was. The sets take turns and their pieces are spread over the text.
        """
        started, network_device = time.monotonic(), network.lm_head.weight.device
        nats, predicted = dict.fromkeys(self.sets, 0.0), dict.fromkeys(self.sets, 0)
        for turn, name, inputs, labels in self._pieces():
            if should_stop():
                return None
            if turn > 0 and time.monotonic() - started > limit_seconds:
                break
            loss_sum, count = network.loss(inputs.to(network_device), labels.to(network_device))
            nats[name] += float(loss_sum)
            predicted[name] += int(count)
        self.seconds = time.monotonic() - started
        self.share = sum(predicted.values()) / max(1, self.predicted_tokens)
        return {name: self._bits_per_byte(name, nats[name], predicted[name]) for name in self.sets}

    def overall(self, bits_per_byte: Mapping[str, float]) -> float | None:
        """Over the general sets (all but the textbook one, which is picked by score), by bytes."""
        general = {name: s.n_bytes for name, s in self.sets.items() if name != TEXTBOOK and name in bits_per_byte}
        total = sum(general.values())
        return sum(bits_per_byte[name] * n for name, n in general.items()) / total if total else None

    def metrics(self, bits_per_byte: Mapping[str, float]) -> dict[str, float]:
        """Under their names everywhere."""
        named = {f"val/{name}/bits_per_byte": value for name, value in bits_per_byte.items()}
        overall = self.overall(bits_per_byte)
        return named if overall is None else {**named, "val/bits_per_byte": overall}

    def _pieces(self) -> Iterator[tuple[int, str, torch.Tensor, torch.Tensor]]:
        """(turn, set, input_ids [B, T], labels [B, T]) until every window of every set was there once."""
        windows = max(1, FORWARD_TOKENS // self.sequence_length)
        streams = {name: windows_of(s, self.sequence_length) for name, s in self.sets.items()}
        pieces = {name: math.ceil(stream.count / windows) for name, stream in streams.items()}
        for turn in range(max(pieces.values(), default=0)):
            for name, stream in streams.items():
                if turn < pieces[name]:
                    inputs, labels = stream.windows(np.arange(turn, stream.count, pieces[name]))
                    yield turn, name, torch.from_numpy(inputs), torch.from_numpy(labels)

    def _bits_per_byte(self, name: str, nats: float, predicted: int) -> float:
        """Of part of a set: its bytes are taken in proportion to its tokens."""
        token_set = self.sets[name]
        return nats / math.log(2) / (token_set.n_bytes * predicted / (token_set.n_tokens - 1))
