"""Optimizers that write one tensor at a time: AdamW with states of 32, 8 or 4 bits, and Muon; rounding to bf16.

In: parameters with gradients. Out: moved parameters. Unlike torch's own they can update a tensor as soon as it has its
gradient (`update_one`, for the step inside the backward pass), keep states in fewer bits, and add fp32 updates to bf16
weights with stochastic rounding. AdamW works through flat slices, so that fp32 temporaries stay small. A true
`found_inf` (a tensor, as torch's fused optimizers read it) leaves everything as it was, and no number is read by the
host.
States in 8 or 4 bits: a value is divided by the largest magnitude of its block and takes the nearest entry of a fixed
codebook. Codebooks: dynamic tree quantization (8-bit optimizers, arXiv 2110.02861), whose entries are denser near 0;
the 4-bit second moment takes 1/16..16/16 without a 0, because a moment rounded to 0 makes the step explode (4-bit
optimizers, arXiv 2309.01507). Letters: M values, S blocks, Q values of a block.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw as torch_adamw

FUSED_DEVICES = ("cuda", "cpu", "mps")  # where torch has AdamW in one pass
SLICE_VALUES = 2**23  # values updated at a time: 32 MiB for each fp32 temporary
LEAST_QUANTIZED_VALUES = 4096  # biases and norms stay fp32: they are few
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # quintic of the Muon write-up (Jordan 2024): steep at 0, about 1 after 5
NEWTON_SCHULZ_STEPS = 5
STACKED_BYTES = 2**28  # matrices of one shape are orthogonalized together, up to this much
LEAST_SECOND_MOMENT = 1e-7  # of the block's largest, instead of 0: see the 4-bit case
BLOCK_VALUES = {8: 256, 4: 128}  # of the two papers: 1.6% and 6% more bytes for the scales


def slices(values: int) -> Iterator[slice]:
    """A flat tensor of so many values, piece by piece."""
    for start in range(0, values, SLICE_VALUES):
        yield slice(start, min(start + SLICE_VALUES, values))


class Updates(Optimizer):
    """What the optimizers here share: groups, the flag `found_inf`, the counting of steps."""

    _step_supports_amp_scaling = True  # MasterWeights then hands over `found_inf`
    found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Moves every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.update_one(group, parameter)

    def update_one(self, group: dict[str, Any], parameter: Tensor) -> None:
        raise NotImplementedError

    def _unless_skipped(self, old: Tensor, new: Tensor) -> Tensor:
        return new if self.found_inf is None else torch.where(self.found_inf.bool(), old, new)

    def _steps(self, state: dict[str, Any], device: torch.device) -> Tensor:
        if "step" not in state:
            state["step"] = torch.zeros((), device=device)
        return state["step"]

    def _count(self, state: dict[str, Any], device: torch.device) -> Tensor:
        steps = self._steps(state, device)
        steps.copy_(self._unless_skipped(steps, steps + 1))
        return steps.clamp_min(1)  # 0 where the very first step is skipped: nothing is divided by it

    def _write(self, parameter: Tensor, new: Tensor, stochastic: bool) -> None:
        """fp32 values into a parameter (or a slice) of any dtype."""
        kept = self._unless_skipped(parameter, stochastic_round(new) if stochastic else new.to(parameter.dtype))
        parameter.copy_(kept)


class SlicedAdamW(Updates):
    """AdamW (arXiv 1711.05101). `bits`: 32, 8 or 4 of each moment; `stochastic`: how bf16 weights are rounded."""

    def __init__(
        self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8,
        bits: int = 32, stochastic: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps})
        self.bits, self.stochastic = bits, stochastic
        self._quantizers: dict[tuple[bool, torch.device], Quantizer] = {}

    def update_one(self, group: dict[str, Any], parameter: Tensor) -> None:
        state, grad = self.state[parameter], parameter.grad
        assert grad is not None
        moments = [self._moment(state, name, parameter) for name in ("exp_avg", "exp_avg_sq")]
        plain = parameter.dtype == grad.dtype == torch.float32 and moments[0].quantizer is None
        if plain and parameter.device.type in FUSED_DEVICES:
            self._update_fused(group, parameter, grad)
            return
        steps = self._count(state, parameter.device)
        stochastic = self.stochastic and parameter.dtype == torch.bfloat16
        weights_M, grads_M = parameter.view(-1), grad.reshape(-1)
        for part in slices(weights_M.numel()):
            old_M, grad_M = weights_M[part], grads_M[part].float()
            first_M, second_M = (moment.read(part) for moment in moments)
            first_M = first_M.lerp(grad_M, 1 - group["betas"][0])
            second_M = second_M * group["betas"][1] + (1 - group["betas"][1]) * grad_M * grad_M
            for moment, value_M in zip(moments, (first_M, second_M), strict=True):
                moment.write(part, value_M, self.found_inf)
            self._write(old_M, _adam_step(old_M.float(), first_M, second_M, steps, group), stochastic)

    def _update_fused(self, group: dict[str, Any], parameter: Tensor, grad: Tensor) -> None:
        """fp32 through and through: torch's one pass over memory instead of ours of ten."""
        state = self.state[parameter]
        torch_adamw(
            [parameter], [grad], [state["exp_avg"]], [state["exp_avg_sq"]], [], [self._steps(state, parameter.device)],
            fused=True, found_inf=self.found_inf, amsgrad=False, maximize=False, lr=group["lr"], eps=group["eps"],
            beta1=group["betas"][0], beta2=group["betas"][1], weight_decay=group["weight_decay"],
        )  # fmt: skip

    def _moment(self, state: dict[str, Any], name: str, parameter: Tensor) -> "Moment":
        bits = self.bits if parameter.numel() >= LEAST_QUANTIZED_VALUES else 32
        if bits == 32:
            return Moment(state, name, parameter, None)
        key = (name == "exp_avg", parameter.device)
        if key not in self._quantizers:
            self._quantizers[key] = Quantizer(bits, *key)
        return Moment(state, name, parameter, self._quantizers[key])


def _adam_step(old: Tensor, first: Tensor, second: Tensor, steps: Tensor, group: dict[str, Any]) -> Tensor:
    beta1, beta2 = group["betas"]
    size = group["lr"] / (1 - beta1**steps)
    scale = (second / (1 - beta2**steps)).sqrt_().add_(group["eps"])
    return old * (1 - group["lr"] * group["weight_decay"]) - size * first / scale


class Moment:
    """One moment of one parameter, in an optimizer's state under `name` (fp32) or `name`_codes and `name`_scales."""

    def __init__(self, state: dict[str, Any], name: str, parameter: Tensor, quantizer: "Quantizer | None") -> None:
        self.quantizer = quantizer
        count, device = parameter.numel(), parameter.device
        if quantizer is None:
            if name not in state:
                state[name] = torch.zeros(parameter.shape, device=device)
            self.values_M = state[name].view(-1)
            return
        codes, scales = f"{name}_codes", f"{name}_scales"
        if codes not in state:  # every code with scale 0 is 0
            state[codes] = torch.zeros(-(-count * quantizer.bits // 8), dtype=torch.uint8, device=device)
            state[scales] = torch.zeros(-(-count // quantizer.block), device=device)
        self.codes, self.scales_S = state[codes], state[scales]

    def read(self, part: slice) -> Tensor:
        """fp32 values of a slice whose start is a multiple of the block."""
        if self.quantizer is None:
            return self.values_M[part]
        codes, scales = _slices(part, self.quantizer)
        return self.quantizer.dequantize(self.codes[codes], self.scales_S[scales], part.stop - part.start)

    def write(self, part: slice, new_M: Tensor, skip: Tensor | None) -> None:
        if self.quantizer is None:
            _put(self.values_M[part], new_M, skip)
            return
        new_codes, new_scales_S = self.quantizer.quantize(new_M)
        codes, scales = _slices(part, self.quantizer)
        _put(self.codes[codes], new_codes, skip)
        _put(self.scales_S[scales], new_scales_S, skip)


def _slices(part: slice, quantizer: "Quantizer") -> tuple[slice, slice]:
    per_byte, block = 8 // quantizer.bits, quantizer.block
    codes = slice(part.start // per_byte, -(-part.stop // per_byte))
    return codes, slice(part.start // block, -(-part.stop // block))


def _put(target: Tensor, new: Tensor, skip: Tensor | None) -> None:
    target.copy_(new if skip is None else torch.where(skip.bool(), target, new))


def stochastic_round(values: Tensor) -> Tensor:
    """fp32 to bf16, up or down with the probability that makes the mean exact (arXiv 2010.06192).

    The 16 bits that bf16 drops are raised by 16 random bits first. The noise is the device's default generator's.
    """
    bits = values.contiguous().view(torch.int32)
    noise = torch.randint(0, 2**16, bits.shape, dtype=torch.int32, device=values.device)
    rounded = ((bits + noise) & -(2**16)).view(torch.float32)
    return torch.where(torch.isfinite(values), rounded, values).to(torch.bfloat16)


@torch.no_grad()
def add_stochastically(total: Tensor, value: Tensor) -> None:
    """total += value for bf16 tensors of one shape, rounded stochastically; temporaries of a slice only."""
    total_M, value_M = total.view(-1), value.reshape(-1)
    for part in slices(total_M.numel()):
        total_M[part] = stochastic_round(total_M[part].float() + value_M[part].float())


class Muon(SlicedAdamW):
    """Muon (Jordan 2024) for the groups marked `matrices`, AdamW for the rest, at one learning rate.

    A matrix moves by the orthogonalized momentum times 0.2 sqrt(its longer side), which has the size of an AdamW step
    (arXiv 2502.16982), so rate and decay carry over. The momentum (Nesterov) is kept in the parameter's dtype.
    """

    def __init__(self, groups: list[dict[str, Any]], momentum: float, **adamw: Any) -> None:
        super().__init__(groups, **adamw)
        self.momentum = momentum

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            present = [parameter for parameter in group["params"] if parameter.grad is not None]
            if group.get("matrices"):
                for stack in _stacks(present):
                    self._update_matrices(group, stack)
            else:
                for parameter in present:
                    super().update_one(group, parameter)

    def update_one(self, group: dict[str, Any], parameter: Tensor) -> None:
        if group.get("matrices"):
            self._update_matrices(group, [parameter])
        else:
            super().update_one(group, parameter)

    def _update_matrices(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        """`parameters` have one shape."""
        directions = []
        for parameter in parameters:
            state, grad = self.state[parameter], parameter.grad
            assert grad is not None
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(parameter)
            new = state["momentum"].float().lerp(grad.float(), 1 - self.momentum)
            _put(state["momentum"], new.to(parameter.dtype), self.found_inf)
            directions.append(grad.float().lerp(new, self.momentum))
        size = group["lr"] * 0.2 * max(parameters[0].shape) ** 0.5
        stochastic = self.stochastic and parameters[0].dtype == torch.bfloat16
        for parameter, direction in zip(parameters, orthogonalize(torch.stack(directions)), strict=True):
            shrunk = parameter.float() * (1 - group["lr"] * group["weight_decay"])
            self._write(parameter, shrunk - size * direction.float(), stochastic)


def orthogonalize(matrices: Tensor) -> Tensor:
    """Stacked matrices with all singular values moved towards 1 (about 0.7 to 1.2), bf16 on a GPU, else fp32."""
    x = matrices.to(torch.bfloat16) if matrices.device.type == "cuda" else matrices.float()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True, dtype=torch.float32) + 1e-7).to(x.dtype)
    a, b, c = NEWTON_SCHULZ
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _stacks(parameters: list[Tensor]) -> list[list[Tensor]]:
    """Parameters of one shape together, in bounded batches: fewer launches and larger products."""
    by_shape: dict[torch.Size, list[Tensor]] = {}
    for parameter in parameters:
        by_shape.setdefault(parameter.shape, []).append(parameter)
    stacks = []
    for shape, same in by_shape.items():
        size = max(1, STACKED_BYTES // (4 * shape.numel()))
        stacks += [same[start : start + size] for start in range(0, len(same), size)]
    return stacks


def codebook(bits: int, signed: bool) -> list[float]:
    """The 2**bits values a code stands for, ascending, in -1..1 (signed) or 0..1."""
    if bits == 4 and not signed:
        return [(code + 1) / 16 for code in range(16)]
    values = [0.0 if signed else LEAST_SECOND_MOMENT, 1.0]
    for decade in range(bits - 1):
        count = 2 ** (decade + (not signed))
        middles = [(0.1 + 0.9 * (i + 0.5) / count) * 10.0 ** (decade - bits + 2) for i in range(count)]
        values += middles + ([-middle for middle in middles] if signed else [])
    return sorted(values)


class Quantizer:
    """Values to codes and back, with one codebook on one device."""

    def __init__(self, bits: int, signed: bool, device: torch.device) -> None:
        book = codebook(bits, signed)
        self.bits, self.block = bits, BLOCK_VALUES[bits]
        self.book = torch.tensor(book, device=device)
        self.borders = torch.tensor([(a + b) / 2 for a, b in pairwise(book)], device=device)

    def quantize(self, values_M: Tensor) -> tuple[Tensor, Tensor]:
        """(codes, scales_S) of a flat fp32 tensor; its last block may be short. Codes: uint8, two a byte in 4 bits."""
        count = values_M.numel()
        if count % self.block:
            values_M = torch.nn.functional.pad(values_M, (0, -count % self.block))
        values_SQ = values_M.view(-1, self.block)
        scales_S = values_SQ.abs().amax(1)
        normal_SQ = values_SQ / scales_S.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
        codes_M = torch.bucketize(normal_SQ.flatten(), self.borders, out_int32=True).to(torch.uint8)
        if self.bits == 8:
            return codes_M[:count], scales_S
        codes_M = codes_M[: count + count % 2]
        return codes_M[::2] | codes_M[1::2] << 4, scales_S

    def dequantize(self, codes: Tensor, scales_S: Tensor, count: int) -> Tensor:
        """The flat fp32 values of `quantize`, `count` of them."""
        if self.bits == 4:
            codes = torch.stack((codes & 15, codes >> 4), 1).flatten()
        values_M = self.book[codes[:count].int()]
        if count % self.block:
            return values_M * scales_S.repeat_interleave(self.block, output_size=len(scales_S) * self.block)[:count]
        return (values_M.view(-1, self.block) * scales_S[:, None]).flatten()
