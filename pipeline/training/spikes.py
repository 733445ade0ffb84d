"""Which steps are not taken: those whose loss or gradient is not finite, and spikes.

In: loss and gradient norm of each step, as tensors on the device. Out: a verdict on the device, so that the host never
waits for it. A spike lies more than `sigmas` standard deviations above the mean of the last steps, as in OLMo-core's
skip-step optimizer. The rule looks at nothing but the losses and norms of the run itself, which a checkpoint keeps: a
run that goes on, or is replayed, skips the same steps.
"""

import torch
from torch import Tensor

WINDOW_STEPS = 128
LEAST_STEPS = 64  # before that nothing is a spike
LEAST_SIGMA = 1e-3  # of the mean: losses that hardly vary spike by no rounding error
FINE, NOT_FINITE, SPIKE = 0, 1, 2
REASONS = {NOT_FINITE: "the loss or the gradient norm is not finite", SPIKE: "a spike of the loss or the gradient norm"}


class Spikes:
    """The losses and gradient norms of the last `WINDOW_STEPS` steps. `sigmas` 0: nothing is a spike."""

    def __init__(self, sigmas: float, device: torch.device):
        self.sigmas = sigmas
        self.seen_2W = torch.full((2, WINDOW_STEPS), torch.nan, device=device)

    @torch.no_grad()
    def judge(self, step: int, loss: Tensor, norm: Tensor) -> Tensor:
        """FINE, NOT_FINITE or SPIKE for the 0-based `step`, as a tensor; what is finite is remembered, spikes too:
        a change that lasts is no spike for long."""
        new_2 = torch.stack([loss.float(), norm.float()])
        finite = torch.isfinite(new_2).all()
        verdict = torch.where(finite, FINE, NOT_FINITE)
        if self.sigmas:
            known_2W = torch.isfinite(self.seen_2W)
            count_2 = known_2W.sum(dim=1)
            seen_2W = torch.where(known_2W, self.seen_2W, 0.0)
            mean_2 = seen_2W.sum(dim=1) / count_2.clamp(min=1)
            deviations_2W = torch.where(known_2W, seen_2W - mean_2[:, None], 0.0)
            sigma_2 = (deviations_2W.square().sum(dim=1) / count_2.clamp(min=1)).sqrt()
            sigma_2 = torch.maximum(sigma_2, LEAST_SIGMA * mean_2.abs())
            high = ((new_2 > mean_2 + self.sigmas * sigma_2) & (count_2 >= LEAST_STEPS)).any()
            verdict = torch.where(finite & high, SPIKE, verdict)
        self.seen_2W[:, step % WINDOW_STEPS] = torch.where(finite, new_2, torch.nan)
        return verdict

    def state(self) -> Tensor:
        return self.seen_2W.cpu().clone()

    def load(self, state: Tensor) -> None:
        self.seen_2W.copy_(state)
