"""Which steps are not taken: those whose loss or gradient is not finite, and spikes.

In: loss and gradient norm of each step, as tensors on the device. Out: a verdict on the device, so that the host never
waits for it. A spike is a loss far above the highest of the last steps. How far is measured robustly, because losses of
small batches have long tails: an unusual document raises the loss by a nat and the norm to eight times the usual, and
clipping handles both (docs/training). A norm alone is a spike only where it is many times the usual.
The rule looks at nothing but the losses and norms of the run itself, which a checkpoint keeps: a resumed or replayed
run skips the same steps. OLMo-core's skip-step optimizer compares with mean and standard deviation instead.
"""

from collections import deque
from collections.abc import Iterator

import torch
from torch import Tensor

from pipeline.system.errors import Failure
from pipeline.training.decisions import Decisions

WINDOW_STEPS = 128
LEAST_STEPS = 32  # before that nothing is a spike
HIGHEST = 8  # of the window: a spike lies above the eighth highest, so that up to seven earlier ones hide none
LARGEST_CHANGES, LARGEST_SIGMAS = 16, 1.53  # that many of 128 changes of normal noise are larger than so many sigmas
LEAST_SIGMA_2 = (0.02, 0.04)  # nats; and of the norm's logarithm: what hardly varies spikes by no rounding error
TAIL_2 = (1.25, 6.0)  # in 40,000 steps of 49 tiny runs losses lay up to 5.7 sigmas above the eighth highest, norms 24
LEAST_NORM = 1e-30  # a norm of zero has no logarithm
MAX_SKIPPED_IN_A_ROW = 10
FINE, NOT_FINITE, SPIKE = 0, 1, 2
REASONS = {NOT_FINITE: "the loss or the gradient norm is not finite", SPIKE: "a spike of the loss or the gradient norm"}


class Spikes:
    """The losses and gradient norms of the last `WINDOW_STEPS` steps. `sigmas` 0: nothing is a spike."""

    def __init__(self, sigmas: float, device: torch.device):
        self.sigmas = sigmas
        self.seen_2W = torch.full((2, WINDOW_STEPS), torch.nan, device=device)
        self._least_2 = torch.tensor(LEAST_SIGMA_2, device=device)
        self._tail_2 = torch.tensor(TAIL_2, device=device)

    @torch.no_grad()
    def judge(self, step: int, loss: Tensor, norm: Tensor) -> Tensor:
        """FINE, NOT_FINITE or SPIKE for the 0-based `step`, as a tensor. What is finite is remembered, spikes
        too: a change that lasts is no spike for long, and a few spikes hide no other."""
        new_2 = torch.stack([loss.float(), norm.float()])
        finite = torch.isfinite(new_2).all()
        verdict = torch.where(finite, FINE, NOT_FINITE)
        if self.sigmas:
            verdict = torch.where(finite & (new_2 > self.limits(step)).any(), SPIKE, verdict)
        self.seen_2W[:, step % WINDOW_STEPS] = torch.where(finite, new_2, torch.nan)
        return verdict

    def limits(self, step: int) -> Tensor:
        """The highest loss and norm at `step` that are no spikes; infinite while too few steps are known."""
        values_2W = torch.stack([self.seen_2W[0], self.seen_2W[1].clamp(min=LEAST_NORM).log()])
        known_2W = torch.isfinite(values_2W)
        count_2 = known_2W.sum(dim=1)
        high_2 = _largest(values_2W, HIGHEST * count_2 // WINDOW_STEPS)
        # From step to step, so that the fall of the loss is no part of its noise. The newest and the oldest are not
        # neighbours, though they lie side by side.
        changes_2W = (values_2W - values_2W.roll(1, dims=1)).abs()
        changes_2W[:, step % WINDOW_STEPS] = torch.nan
        noise_2 = changes_2W.nanmedian(dim=1).values * 1.4826
        tail_2 = _largest(changes_2W, LARGEST_CHANGES * count_2 // WINDOW_STEPS) / LARGEST_SIGMAS
        sigma_2 = torch.maximum(torch.maximum(noise_2, tail_2) / 2**0.5, self._least_2)
        limit_2 = high_2 + self.sigmas * self._tail_2 * sigma_2
        limit_2 = torch.stack([limit_2[0], limit_2[1].exp()])
        return torch.where(count_2 >= LEAST_STEPS, limit_2, torch.inf)

    def state(self) -> Tensor:
        return self.seen_2W.cpu().clone()

    def load(self, state: Tensor) -> None:
        self.seen_2W.copy_(state)


def _largest(values_2W: Tensor, place_2: Tensor) -> Tensor:
    """Of each row the value that is `place`-th from the top, the highest being the first; NaN are left out."""
    ordered_2W = values_2W.nan_to_num(nan=-torch.inf).sort(dim=1, descending=True).values
    return ordered_2W.gather(1, (place_2 - 1).clamp(min=0)[:, None])[:, 0]


class Diverged(Failure):
    """Too many steps in a row were skipped."""


def begin_copy(verdict: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """The verdict on the host, and on a card the event after which it is there. Reading a card's tensor would wait for
    all that is queued, the newest step too."""
    if verdict.device.type != "cuda":
        return verdict, None
    arrived = torch.cuda.Event()
    on_host = torch.empty((), dtype=verdict.dtype, pin_memory=True).copy_(verdict, non_blocking=True)
    arrived.record()
    return on_host, arrived


class SkippedSteps:
    """Counts and records the steps that were not taken. A verdict is put here when its step is queued and read when it
    has arrived, at the latest when the next step is queued behind it: the device always has a step to compute, and
    the clock is never ahead of it by more than one."""

    def __init__(self, decisions: Decisions):
        self.decisions = decisions
        self.count = 0
        self._in_a_row = 0
        self._unread: deque[tuple[int, Tensor, torch.cuda.Event | None]] = deque()

    def put(self, step: int, verdict: Tensor) -> None:
        self._unread.append((step, *begin_copy(verdict)))

    def read(self, wait: bool = False) -> Iterator[str]:
        """Looks at the verdicts that have arrived, each once, or at all (`wait`). Lines for the console where steps
        were skipped; raises `Diverged` where too many were."""
        while self._unread:
            step, verdict, arrived = self._unread[0]
            if arrived is not None and (wait or len(self._unread) > 1):
                arrived.synchronize()
            elif arrived is not None and not arrived.query():
                return
            self._unread.popleft()
            if line := self._judged(step, int(verdict)):
                yield line

    def _judged(self, step: int, found: int) -> str | None:
        if found == FINE:
            self._in_a_row = 0
            return None
        self.count += 1
        self._in_a_row += 1
        line = None
        if all(record["step"] != step for record in self.decisions.of_kind("skip")):  # else skipped again after a kill
            self.decisions.add("skip", step, reason=REASONS[found])
            line = f"  step {step:,} is skipped: {REASONS[found]}"
        if self._in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise Diverged(
                f"{MAX_SKIPPED_IN_A_ROW} steps in a row up to step {step} were skipped ({REASONS[found]}); the last "
                "checkpoint is from before. Lower train.learning_rate or train.clip_norm, or set "
                "train.precision=32-true"
            )
        return line
