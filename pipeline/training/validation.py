"""Bits per byte on held-out text: comparable between tokenizers, and what every other number is judged by.

In: a network and the validation sets. Out: nats over all predicted tokens / ln 2 / UTF-8 bytes, per set, with a 95%
interval over its documents. Windows do not overlap and every token but the first is predicted once; the nats are fp32
per token and summed in fp64. An end-of-text has no bytes and is not counted: after the beginning of a long document it
stands where the text does not end. Windows are cut from the stream whatever `train.packing` is. Under
`train.mask_documents` the network masks here too, as it was trained, so a document's beginning is predicted without the
one before it. Letters: B windows, T tokens, D documents.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from model.transformer import Transformer
from pipeline.corpus.text.intervals import interval, ratio_of_sums
from pipeline.corpus.text.shards import TEXTBOOK, TokenSet
from pipeline.system.progress import progress
from pipeline.training.packing import IGNORED_LABEL, Examples, Stream, windows_of

FORWARD_TOKENS = 16_384  # per forward pass: without gradients this fits wherever training does
FORECAST_SECONDS = 1.0  # of a validation after its first piece, which warms up: then it is known how long it takes

Intervals = dict[str, list[float] | None]


@dataclass
class _Set:
    """One validation set and what was measured of its documents; `labels_D`, `bytes_D`: of all of each; `ends_D`: the
    place after each in the stream, None for examples; `ended_D`: whether an end-of-text stands before it."""

    windows: "Stream | Examples"
    labels_D: np.ndarray
    bytes_D: np.ndarray
    ends_D: np.ndarray | None = None
    ended_D: np.ndarray | None = None
    nats_D: np.ndarray = field(init=False)
    predicted_D: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.nats_D, self.predicted_D = np.zeros(len(self.labels_D)), np.zeros(len(self.labels_D))

    @classmethod
    def of(cls, tokens: "TokenSet | Examples", sequence_length: int, end_id: int | None) -> "_Set":
        windows: Any = windows_of(tokens, sequence_length)
        if isinstance(tokens, Examples):
            return cls(windows, *tokens.documents().T)
        lengths_D, ends_D = tokens.index["length"], np.cumsum(tokens.index["length"], dtype=np.int64)
        last_D = np.asarray(tokens.tokens[np.maximum(ends_D - 1, 0)]).astype(np.int64)
        ended_D = (lengths_D > 0) & (last_D == (-1 if end_id is None else end_id))
        labels_D = lengths_D.astype(np.float64) - ended_D
        labels_D[:1] -= 1  # nothing stands before the very first token
        return cls(windows, np.maximum(labels_D, 0), tokens.index["bytes"].astype(np.float64), ends_D, ended_D)

    def take(self, numbers_B: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Inputs, labels and the documents of the labels; an end-of-text is no label."""
        inputs_BT, labels_BT = self.windows.windows(numbers_B)
        if self.ends_D is None or self.ended_D is None:
            return inputs_BT, labels_BT, np.broadcast_to(numbers_B[:, None], labels_BT.shape)
        length = inputs_BT.shape[1]
        places_BT = numbers_B[:, None].astype(np.int64) * length + np.arange(1, length + 1)
        documents_BT = np.minimum(np.searchsorted(self.ends_D, places_BT, side="right"), len(self.ends_D) - 1)
        is_end_BT = self.ended_D[documents_BT] & (places_BT == self.ends_D[documents_BT] - 1)
        return inputs_BT, np.where(is_end_BT, IGNORED_LABEL, labels_BT), documents_BT

    def add(self, documents_BT: np.ndarray, labels_BT: np.ndarray, nats_BT: np.ndarray) -> None:
        counted = labels_BT != IGNORED_LABEL
        count = len(self.labels_D)
        self.nats_D += np.bincount(documents_BT[counted], weights=nats_BT[counted], minlength=count)
        self.predicted_D += np.bincount(documents_BT[counted], minlength=count)

    def measured(self) -> tuple[np.ndarray, np.ndarray]:
        """Bits and bytes of each document that was measured; of a part of one, bytes in proportion to its tokens."""
        seen = self.predicted_D > 0
        bytes_D = self.bytes_D[seen] * self.predicted_D[seen] / self.labels_D[seen]
        return self.nats_D[seen] / math.log(2), bytes_D


class Validation:
    """All validation sets of a run. `predicted_tokens`: over all sets, for forecasting its cost; `end_id`: what ends a
    document, which is not counted."""

    def __init__(self, sets: "Mapping[str, TokenSet | Examples]", sequence_length: int, end_id: int | None = None):
        self.sets = {name: s for name, s in sets.items() if s.n_tokens > 1 and s.n_bytes > 0}
        self.sequence_length, self.end_id = sequence_length, end_id
        self.predicted_tokens = sum(s.n_tokens - 1 for s in self.sets.values())
        self.seconds = 0.0
        self.share = 1.0
        self.intervals: Intervals = {}
        self.overall_interval: list[float] | None = None

    @torch.no_grad()
    def run(
        self,
        network: Transformer,
        should_stop: Callable[[], object] = lambda: None,
        limit_seconds: float = math.inf,
        check_seconds: Callable[[float], None] = lambda seconds: None,
    ) -> dict[str, float] | None:
        """`{set: bits per byte}`, or None where `should_stop` became true in between; `intervals` then are its
        intervals over documents.

        After `limit_seconds` it ends with what it has, at least one piece of every set; `share` says how much of the
        text that was. The sets take turns and their pieces are spread over the text. `check_seconds` is told how long
        all of it takes at least, before each piece; it may raise.
        """
        started, network_device = time.monotonic(), network.lm_head.weight.device
        sets = {name: _Set.of(s, self.sequence_length, self.end_id) for name, s in self.sets.items()}
        windows = sum(s.windows.count for s in sets.values())
        clock = _Clock(windows)
        # In turns over the sets, so that a limit that ends it early leaves a part of each.
        with progress("validation", windows, "windows") as bar:
            for turn, name, numbers_B in self._pieces(sets):
                if should_stop():
                    return None
                if turn > 0 and time.monotonic() - started > limit_seconds:
                    break
                check_seconds(clock.least_seconds())
                inputs_BT, labels_BT, documents_BT = sets[name].take(numbers_B)
                inputs, labels = (torch.from_numpy(each).to(network_device) for each in (inputs_BT, labels_BT))
                sets[name].add(documents_BT, labels_BT, _token_nats(network, inputs, labels).double().cpu().numpy())
                clock.done(len(numbers_B))
                bar.advance(len(numbers_B))
        self.seconds = time.monotonic() - started
        predicted = sum(float(s.predicted_D.sum()) for s in sets.values())
        self.share = predicted / max(1.0, sum(float(s.labels_D.sum()) for s in sets.values()))
        found = {name: each for name, s in sets.items() if (each := _over([s])) is not None}
        overall = _over([s for name, s in sets.items() if name != TEXTBOOK])
        self.intervals = {name: each[1] for name, each in found.items()}
        self.overall_interval = overall and overall[1]
        return {name: each[0] for name, each in found.items()}

    def documents(self) -> dict[str, int]:
        """How many documents, or examples, each set has."""
        return {name: s.count if isinstance(s, Examples) else s.n_documents for name, s in self.sets.items()}

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

    def _pieces(self, sets: "Mapping[str, _Set]") -> Iterator[tuple[int, str, np.ndarray]]:
        """(turn, set, windows [B]) until every window of every set was there once."""
        windows = max(1, FORWARD_TOKENS // self.sequence_length)
        pieces = {name: math.ceil(s.windows.count / windows) for name, s in sets.items()}
        for turn in range(max(pieces.values(), default=0)):
            for name, s in sets.items():
                if turn < pieces[name]:
                    yield turn, name, np.arange(turn, s.windows.count, pieces[name])


def _token_nats(network: Transformer, inputs_BT: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
    """The network's, in halves of the windows where memory runs out, as beside the states of an optimizer it may."""
    try:
        return network.token_nats(inputs_BT, labels_BT)
    except torch.OutOfMemoryError:
        if len(inputs_BT) == 1:
            raise
    # Here the exception is gone, whose frames hold the tensors.
    half = len(inputs_BT) // 2
    halves = zip(inputs_BT.split(half), labels_BT.split(half), strict=True)
    return torch.cat([_token_nats(network, inputs, labels) for inputs, labels in halves])


class _Clock:
    """How long all windows take, from those that are done."""

    def __init__(self, windows: int):
        self.left, self.first, self.windows = windows, 0.0, 0
        self.started = time.monotonic()

    def done(self, windows: int) -> None:
        if self.first:
            self.windows += windows
        self.left -= windows
        self.first = self.first or time.monotonic() - self.started

    def least_seconds(self) -> float:
        seconds = time.monotonic() - self.started
        since = seconds - self.first
        known = self.windows > 0 and since > FORECAST_SECONDS
        return seconds + (since * self.left / self.windows if known else 0.0)


def _over(sets: Iterable[_Set]) -> tuple[float, list[float] | None] | None:
    """Bits per byte and its interval over all documents of some sets; None where nothing was measured."""
    both = [s.measured() for s in sets]
    bits, sizes = (np.concatenate([np.zeros(0), *(each[i] for each in both)]).tolist() for i in (0, 1))
    if not sum(sizes):
        return None
    value, error = ratio_of_sums(bits, sizes)
    return value, interval(value, error, len(bits))
