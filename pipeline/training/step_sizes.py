"""How many sequences each optimizer step reads: constant, or growing at the start (`train.batch_warmup_tokens`).

In: the `train` section. Out: the first sequence of any step, and how many whole steps any number of sequences gives.
Early gradients agree from text to text, so small steps learn as much from a token and come more often (McCandlish et
al. 2018, arXiv 1812.06162). A step's size depends on the sequences before it alone: the n-th step grows linearly in
them from `batch_start_tokens` to `global_batch_tokens`, in multiples of `batch_start_tokens`. So a step number says
where in the text a run stands, as it does without a warm-up, and nothing more is stored. Plain Python, no torch.
"""

from bisect import bisect_right

from pipeline.config import TrainConfig


class StepSizes:
    """`full`: sequences of a step after the warm-up; `least`: of the first step, which divides those of all others."""

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
