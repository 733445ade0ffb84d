"""Bits per byte on held-out text: comparable between tokenizers, and what every other number is judged by.

In: a network and the validation sets. Out: nats over all predicted tokens / ln 2 / UTF-8 bytes, per set. Windows do
not overlap and every token but the first is predicted once, in fp32 sums per window batch and fp64 over all.
"""

import math
import time
from collections.abc import Callable, Mapping

import numpy as np
import torch

from model.transformer import Transformer
from pipeline.corpus.shards import TEXTBOOK, TokenSet
from pipeline.training.batches import Stream

FORWARD_TOKENS = 16_384  # per forward pass: without gradients this fits wherever training does


class Validation:
    """All validation sets of a run. `predicted_tokens`: over all sets, for forecasting its cost."""

    def __init__(self, sets: Mapping[str, TokenSet], sequence_length: int):
        self.sets = {name: s for name, s in sets.items() if s.n_tokens > 1 and s.n_bytes > 0}
        self.sequence_length = sequence_length
        self.predicted_tokens = sum(s.n_tokens - 1 for s in self.sets.values())
        self.seconds = 0.0

    def run(self, network: Transformer, should_stop: Callable[[], object] = lambda: None) -> dict[str, float] | None:
        """`{set: bits per byte}`, or None where `should_stop` became true in between."""
        started = time.monotonic()
        result: dict[str, float] = {}
        for name, token_set in self.sets.items():
            nats = self._nats(network, token_set, should_stop)
            if nats is None:
                return None
            result[name] = nats / math.log(2) / token_set.n_bytes
        self.seconds = time.monotonic() - started
        return result

    def overall(self, bits_per_byte: Mapping[str, float]) -> float | None:
        """Over the general sets (all but the textbook one, whose documents are in them already), by bytes."""
        general = {name: s.n_bytes for name, s in self.sets.items() if name != TEXTBOOK and name in bits_per_byte}
        total = sum(general.values())
        return sum(bits_per_byte[name] * n for name, n in general.items()) / total if total else None

    def metrics(self, bits_per_byte: Mapping[str, float]) -> dict[str, float]:
        """Under their names everywhere."""
        named = {f"val/{name}/bits_per_byte": value for name, value in bits_per_byte.items()}
        overall = self.overall(bits_per_byte)
        return named if overall is None else {**named, "val/bits_per_byte": overall}

    @torch.no_grad()
    def _nats(self, network: Transformer, token_set: TokenSet, should_stop: Callable[[], object]) -> float | None:
        stream = Stream(token_set.name, token_set.tokens, self.sequence_length)
        device = network.lm_head.weight.device
        windows = max(1, FORWARD_TOKENS // self.sequence_length)
        sums = []
        for first in range(0, stream.count, windows):
            if should_stop():
                return None
            inputs, labels = stream.windows(np.arange(first, min(first + windows, stream.count)))
            loss_sum, _ = network.loss(torch.from_numpy(inputs).to(device), torch.from_numpy(labels).to(device))
            sums.append(loss_sum)
        return float(torch.stack(sums).cpu().double().sum())
