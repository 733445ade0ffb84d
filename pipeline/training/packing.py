"""Windows of one source: a stream cut every `sequence_length` tokens, or whole documents packed by best fit.

In: a token set (flat tokens and an index of its documents), or the examples of a tuning. Out: input ids and labels of
any window, by its number. `Stream`, `BestFit` and `Examples` answer the same questions, so that batches, order,
validation and resume are the same for all three.

`Stream`: window i predicts tokens i*T+1 .. (i+1)*T, so that an epoch predicts every token but the very first once.

`BestFit`: best-fit decreasing after "Fewer Truncations Improve Language Modeling" (Ding et al. 2024,
arXiv 2404.10830). A window has T + 1 places: T inputs, and labels one place further on. A document of up to T + 1
tokens is never cut. A longer one is cut every T tokens; each later piece begins with the last token of the one
before, as context that is not predicted again. So, per epoch: every token that is not its document's first is
predicted exactly once, from the token before it in its own document; a document's first token is predicted once,
from the end-of-text before it, where its document is not the first of its window, and never otherwise. Under
`train.mask_documents` that end-of-text sees its own document only; the label is kept, because a model that is asked to
begin a text from nothing needs it.
Lengths are small integers, so that all documents of one length, and all windows with one remaining capacity, are
handled at once: the work in Python grows with the number of different lengths, not of documents. What differs from
the paper: ties go to the oldest window, and inside a window documents stand in the order of the corpus.
Letters: B windows, T tokens, P pieces.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.corpus.text.shards import TokenSet

STREAM, BEST_FIT = "stream", "best_fit"
IGNORED_LABEL = -100


def windows_of(
    tokens: "TokenSet | Examples", sequence_length: int, packing: str = STREAM, min_score: float | None = None
) -> "Stream | BestFit | Examples":
    """The windows of a source under `train.packing`; with `min_score`, of its documents with that score or more.
    Examples are windows already."""
    if isinstance(tokens, Examples):
        return tokens
    index = tokens.index if min_score is None else tokens.index[tokens.index["score"] >= min_score]
    if packing == BEST_FIT:
        return BestFit(tokens.name, tokens.tokens, index, sequence_length)
    flat = tokens.tokens if min_score is None else Selection(tokens.tokens, index)
    return Stream(tokens.name, flat, sequence_length)


class Selection:
    """The tokens of some documents as one flat array, end to end; 16 bytes of memory per document, nothing copied."""

    def __init__(self, tokens: np.ndarray, index: np.ndarray) -> None:
        self.tokens = tokens
        self.end = np.cumsum(index["length"], dtype=np.int64)
        # What is added to a place of the selection to find it in the whole.
        self.shift = index["offset"].astype(np.int64) - (self.end - index["length"])

    def __len__(self) -> int:
        return int(self.end[-1]) if len(self.end) else 0

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        return self.tokens[self.whole(places)]

    def whole(self, places: np.ndarray) -> np.ndarray:
        """Where places of the selection lie in all tokens."""
        return places + self.shift[np.searchsorted(self.end, places, side="right")]


@dataclass(frozen=True)
class Stream:
    """The windows of one source as one long text. `count` windows per epoch, the last one may be shorter."""

    name: str
    tokens: "np.ndarray | Selection"
    sequence_length: int

    @property
    def count(self) -> int:
        return -(-(len(self.tokens) - 1) // self.sequence_length)

    @property
    def predicted(self) -> int:
        """Labels of one epoch that are not -100."""
        return len(self.tokens) - 1

    def windows(self, numbers_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and labels of the given windows; what lies past the end is padding with label -100."""
        starts_B1 = numbers_B[:, None].astype(np.int64) * self.sequence_length
        places = starts_B1 + np.arange(self.sequence_length + 1)
        last = len(self.tokens) - 1
        ids = self.tokens[np.minimum(places, last)].astype(np.int64)
        labels_BT = np.where(places[:, 1:] <= last, ids[:, 1:], IGNORED_LABEL)
        return ids[:, :-1], labels_BT

    def places(self, number: int) -> np.ndarray:
        """Where the tokens of one window lie in the source's token set, without padding: at most T + 1 places."""
        first = number * self.sequence_length
        places = np.arange(first, min(first + self.sequence_length + 1, len(self.tokens)))
        return self.tokens.whole(places) if isinstance(self.tokens, Selection) else places


@dataclass
class BestFit:
    """The windows of one source as packed documents; about 13 bytes of memory per piece of a document.

    Window w holds the pieces `first[w]` .. `first[w + 1] - 1` of `start` (place in `tokens`), `length` and
    `continues` (the first token is context), in this order.
    """

    name: str
    tokens: np.ndarray
    index: np.ndarray = field(repr=False)
    sequence_length: int
    count: int = 0
    predicted: int = 0

    def __post_init__(self) -> None:
        start, length, continues = cut(self.index, self.sequence_length)
        window, self.count = best_fit(length, self.sequence_length + 1)
        order = np.argsort(window, kind="stable")
        self.start, self.length, self.continues = start[order], length[order], continues[order]
        self.first = np.zeros(self.count + 1, np.int64)
        np.cumsum(np.bincount(window, minlength=self.count), out=self.first[1:])
        # A window's first place has no label, nor has a place that only repeats a token as context.
        leading = self.continues[self.first[:-1]]
        repeated = int(np.count_nonzero(self.continues)) - int(np.count_nonzero(leading))
        self.predicted = int(self.length.sum(dtype=np.int64)) - self.count - repeated

    def windows(self, numbers_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and labels of the given windows. Padding repeats the window's last token, with label -100."""
        places = self.sequence_length + 1
        pieces_B = self.first[numbers_B + 1] - self.first[numbers_B]
        row_P = np.repeat(np.arange(len(numbers_B)), pieces_B)
        piece_P = _ranges(self.first[numbers_B], pieces_B)
        length_P = self.length[piece_P].astype(np.int64)
        filled_B = np.bincount(row_P, length_P, minlength=len(numbers_B)).astype(np.int64)
        # Where each piece begins: after the pieces before it, counted from the start of its row.
        offset_P = np.cumsum(length_P) - length_P - np.repeat(np.cumsum(filled_B) - filled_B, pieces_B)
        target = _ranges(row_P * places + offset_P, length_P)
        ids = np.zeros(len(numbers_B) * places, np.int64)
        ids[target] = self.tokens[_ranges(self.start[piece_P].astype(np.int64), length_P)]
        ids = ids.reshape(-1, places)
        beyond = np.arange(places) >= filled_B[:, None]
        ids = np.where(beyond, np.take_along_axis(ids, filled_B[:, None] - 1, 1), ids)
        labels = np.where(beyond, IGNORED_LABEL, ids)
        context = self.continues[piece_P]
        labels[row_P[context], offset_P[context]] = IGNORED_LABEL
        return ids[:, :-1], labels[:, 1:]

    def places(self, number: int) -> np.ndarray:
        """Where the tokens of one window lie in the source's token set, without padding: at most T + 1 places."""
        pieces = slice(self.first[number], self.first[number + 1])
        return _ranges(self.start[pieces].astype(np.int64), self.length[pieces].astype(np.int64))


@dataclass(frozen=True)
class Examples:
    """Examples as windows: a prompt that is read and a completion that is learnt, one example a row.

    `inputs_NT`, `labels_NT`: int32; a label of -100 predicts nothing (prompt, padding). `n_bytes`: of the text that is
    learnt, for bits per byte."""

    name: str
    inputs_NT: np.ndarray
    labels_NT: np.ndarray
    n_bytes: int

    @classmethod
    def of(cls, name: str, rows: Sequence[tuple[list[int], list[bool]]], length: int, n_bytes: int) -> "Examples":
        """From (ids, learnt) rows; a longer one keeps its end, a shorter one is padded with label -100."""
        inputs = np.zeros((len(rows), length), np.int32)
        labels = np.full((len(rows), length), IGNORED_LABEL, np.int32)
        for row, (ids, learnt) in enumerate(rows):
            kept, marks = np.array(ids[-(length + 1) :]), np.array(learnt[-(length + 1) :])
            inputs[row, : len(kept) - 1] = kept[:-1]
            labels[row, : len(kept) - 1] = np.where(marks[1:], kept[1:], IGNORED_LABEL)
        return cls(name, inputs, labels, n_bytes)

    @property
    def count(self) -> int:
        return len(self.inputs_NT)

    @property
    def predicted(self) -> int:
        return int(np.count_nonzero(self.labels_NT != IGNORED_LABEL))

    @property
    def n_tokens(self) -> int:
        return self.predicted + 1

    def documents(self) -> np.ndarray:
        """[N, 2]: labels and bytes of each example; the bytes are shared out by labels."""
        labels = np.count_nonzero(self.labels_NT != IGNORED_LABEL, axis=1)
        return np.stack([labels, self.n_bytes * labels / max(1, labels.sum())], axis=1)

    def windows(self, numbers_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.inputs_NT[numbers_B].astype(np.int64), self.labels_NT[numbers_B].astype(np.int64)


def cut(index: np.ndarray, sequence_length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pieces of all documents, in order: start (uint64), length up to T + 1 (uint32), whether it continues a
    document and so repeats the last token before it. Empty documents have none."""
    length = index["length"].astype(np.int64)
    pieces = np.maximum(-(-(length - 1) // sequence_length), 1) * (length > 0)
    document = np.repeat(np.arange(len(index)), pieces)
    skipped = (np.arange(len(document)) - np.repeat(np.cumsum(pieces) - pieces, pieces)) * sequence_length
    start = index["offset"][document] + skipped.astype(np.uint64)
    return start, np.minimum(length[document] - skipped, sequence_length + 1).astype(np.uint32), skipped > 0


def best_fit(length_P: np.ndarray, capacity: int) -> tuple[np.ndarray, int]:
    """(window of each piece (uint32), number of windows) by best-fit decreasing; lengths are 1 to `capacity`.

    Longest first, each piece into the fullest window that still takes it. A window that has just taken a piece is
    the fullest one that could take another of this length, so windows are filled one after the other, and all
    windows with the same room left can be filled in one assignment.
    """
    order = np.argsort(length_P, kind="stable")[::-1]
    # Back to ascending piece numbers inside one length, so that the result reads like the corpus.
    per_length = np.bincount(length_P, minlength=capacity + 1)
    window_P, made = np.empty(len(length_P), np.uint32), 0
    room: dict[int, list[np.ndarray]] = {}  # places left -> windows, oldest first
    at = 0
    for length in range(capacity, 0, -1):
        n = int(per_length[length])
        if n == 0:
            continue
        pieces, at = order[at : at + n][::-1], at + n
        done = 0
        # Windows already begun first, the fullest of them first: that is the best fit. New ones take what is left.
        for left in sorted(r for r in room if r >= length):
            windows = np.concatenate(room.pop(left))
            each = left // length
            used = min(len(windows), -(-(n - done) // each))
            window_P[pieces[done : done + used * each]] = np.repeat(windows[:used], each)[: n - done]
            _put_back(room, windows[:used], left, length, min(used * each, n - done), each)
            done += min(used * each, n - done)
            if used < len(windows):
                room.setdefault(left, []).insert(0, windows[used:])
            if done == n:
                break
        if done < n:
            each = capacity // length
            windows = np.arange(made, made - (-(n - done) // each), dtype=np.uint32)
            made += len(windows)
            window_P[pieces[done:]] = np.repeat(windows, each)[: n - done]
            _put_back(room, windows, capacity, length, n - done, each)
    return window_P, made


def _put_back(
    room: dict[int, list[np.ndarray]], windows: np.ndarray, left: int, length: int, n: int, each: int
) -> None:
    """Files windows that took `n` pieces, `each` per window but the last, under the room that they have now."""
    full, rest = divmod(n, each)
    if full:
        room.setdefault(left - each * length, []).append(windows[:full])
    if rest:
        room.setdefault(left - rest * length, []).append(windows[full : full + 1])


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """start, start + 1, ... for every (start, length), one after the other."""
    ends = np.cumsum(lengths)
    return np.arange(int(ends[-1]) if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)
