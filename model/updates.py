"""Optimizers that write one tensor at a time: AdamW with states of 32, 8 or 4 bits, and Muon; rounding to bf16.

In: parameters with gradients. Out: moved parameters. Unlike torch's own they can update a tensor as soon as it has its
gradient (`update`, for the step inside the backward pass), keep states in fewer bits, and add fp32 updates to bf16
weights with stochastic rounding. AdamW works through slices of rows, so that fp32 temporaries stay small; on CUDA each
slice is a few kernels (model/fused.py). A true `found_inf` (a tensor, as torch's fused optimizers read it) leaves
everything as it was, and no number is read by the host.
States in 8 or 4 bits: a value is divided by the largest magnitude of its block and takes the nearest entry of a fixed
codebook. Codebooks: dynamic tree quantization (8-bit optimizers, arXiv 2110.02861), whose entries are denser near 0;
the 4-bit second moment takes 1/16..16/16 without a 0, because a moment rounded to 0 makes the step explode (4-bit
optimizers, arXiv 2309.01507). Letters: M values, S rows (a block of a moment each), Q values of a row.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.optim import Optimizer
from torch.optim.adamw import adamw as torch_adamw

from model.fused import fused

FUSED_DEVICES = ("cuda", "cpu", "mps")  # where torch has AdamW in one pass
SLICE_VALUES = 2**23  # values updated at a time: 32 MiB for each fp32 temporary
LEAST_QUANTIZED_VALUES = 4096  # biases and norms stay fp32: they are few
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # quintic of the Muon write-up (Jordan 2024): steep at 0, about 1 after 5
NEWTON_SCHULZ_STEPS = 5
STACKED_BYTES = 2**28  # matrices of one shape are orthogonalized together, up to this much
SUM_ROW = 16  # values of a row where there are no blocks: the compiler then knows that it can load them 16 at a time
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
            self.update(group, [parameter for parameter in group["params"] if parameter.grad is not None])

    def update(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        """Moves these parameters of a group, which all have a gradient."""
        raise NotImplementedError

    def _steps(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "step" not in state:
            state["step"] = torch.zeros((), device=parameter.device)
        return state["step"]

    def _count(self, parameters: list[Tensor]) -> None:
        """One more step of each, unless it is skipped."""
        steps = [self._steps(parameter) for parameter in parameters]
        one = torch.ones_like(steps[0]) if self.found_inf is None else 1 - self.found_inf
        torch._foreach_add_(steps, [one] * len(steps))  # pyright: ignore


class SlicedAdamW(Updates):
    """AdamW (arXiv 1711.05101). `bits`: 32, 8 or 4 of each moment; `stochastic`: how bf16 weights are rounded.

    Small tensors, and all of them where everything is fp32, go through torch's fused AdamW together; the others one by
    one, in rows of a moment's block.
    """

    def __init__(
        self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8,
        bits: int = 32, stochastic: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps})
        self.bits, self.stochastic = bits, stochastic
        self._quantizers: dict[tuple[bool, torch.device], Quantizer] = {}

    def update(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        together = [parameter for parameter in parameters if self._suits_torch(parameter)]
        by_rows = [parameter for parameter in parameters if not self._suits_torch(parameter)]
        if together:
            self._update_together(group, together)
        if by_rows:
            self._count(by_rows)
            # Written by the device: a tensor made from a number of the host's would be copied, and waited for.
            zero = torch.zeros((), device=by_rows[0].device)
            rate, kept = zero + group["lr"], zero + (1 - group["lr"] * group["weight_decay"])
            for parameter in by_rows:
                self._update_rows(group, parameter, rate, kept)

    def _suits_torch(self, parameter: Tensor) -> bool:
        small = parameter.numel() < LEAST_QUANTIZED_VALUES
        fp32 = self.bits == 32 and parameter.dtype == torch.float32
        return (small or fp32) and parameter.device.type in FUSED_DEVICES

    def _update_together(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        """torch's one pass over memory for many tensors. bf16 ones are widened for it."""
        weights = [parameter.view(-1) for parameter in parameters]
        grads = [parameter.grad.reshape(-1) for parameter in parameters]  # type: ignore[union-attr]
        moments = [[self._moment(p, name).parts[0] for p in parameters] for name in ("exp_avg", "exp_avg_sq")]
        wide = weights[0].dtype != torch.float32
        wide_M = torch.cat(weights).float() if wide else None
        torch_adamw(
            _pieces(wide_M, weights), _pieces(torch.cat(grads).float() if wide else None, grads),
            moments[0], moments[1], [], [self._steps(parameter) for parameter in parameters],
            fused=True, found_inf=self.found_inf, amsgrad=False, maximize=False, lr=group["lr"], eps=group["eps"],
            beta1=group["betas"][0], beta2=group["betas"][1], weight_decay=group["weight_decay"],
        )  # fmt: skip
        if wide_M is not None:  # a skipped step left bf16 values there, which either rounding keeps
            new_M = stochastic_round(wide_M) if self.stochastic else wide_M.to(weights[0].dtype)
            torch._foreach_copy_(weights, _pieces(new_M, weights))  # pyright: ignore

    def _update_rows(self, group: dict[str, Any], parameter: Tensor, rate: Tensor, kept: Tensor) -> None:
        assert parameter.grad is not None
        first, second = (self._moment(parameter, name) for name in ("exp_avg", "exp_avg_sq"))
        flat = [parameter.view(-1), parameter.grad.reshape(-1), *first.parts, *second.parts]
        widths = [first.width, first.width, *first.widths, *second.widths]
        stochastic = self.stochastic and parameter.dtype == torch.bfloat16
        scalars = self._steps(parameter), rate, kept, self.found_inf
        for weights_SQ, grads_SQ, *moments in rows(flat, widths):
            halves = moments[: len(moments) // 2], moments[len(moments) // 2 :]
            adamw_rows(
                weights_SQ, grads_SQ, halves, (first.quantizer, second.quantizer), scalars, group["betas"],
                group["eps"], stochastic,
            )  # fmt: skip

    def _moment(self, parameter: Tensor, name: str) -> "Moment":
        bits = self.bits if parameter.numel() >= LEAST_QUANTIZED_VALUES else 32
        if bits == 32:
            return Moment(self.state[parameter], name, parameter, None)
        key = (name == "exp_avg", parameter.device)
        if key not in self._quantizers:
            self._quantizers[key] = Quantizer(bits, *key)
        return Moment(self.state[parameter], name, parameter, self._quantizers[key])


class Moment:
    """One moment of one parameter, in an optimizer's state under `name` (fp32) or `name`_codes and `name`_scales.

    `parts`: those flat tensors; `widths`: how many of their entries belong to a row of `width` values.
    """

    def __init__(self, state: dict[str, Any], name: str, parameter: Tensor, quantizer: "Quantizer | None") -> None:
        self.quantizer = quantizer
        count, device = parameter.numel(), parameter.device
        if quantizer is None:
            if name not in state:
                state[name] = torch.zeros(parameter.shape, device=device)
            self.width, self.widths, self.parts = SUM_ROW, (SUM_ROW,), (state[name].view(-1),)
            return
        codes, scales = f"{name}_codes", f"{name}_scales"
        if codes not in state:  # every code with scale 0 is 0
            state[codes] = torch.zeros(-(-count * quantizer.bits // 8), dtype=torch.uint8, device=device)
            state[scales] = torch.zeros(-(-count // quantizer.block), device=device)
        self.width = quantizer.block
        self.widths, self.parts = (quantizer.block * quantizer.bits // 8, 1), (state[codes], state[scales])


def rows(flat: list[Tensor], widths: list[int]) -> Iterator[list[Tensor]]:
    """The same rows of flat tensors, a slice at a time: row i of each begins at i x its width.

    What is left over at the end comes as a row that is filled up with zeros, and goes back when the next is asked for.
    """
    width = widths[0]
    count = flat[0].numel() // width
    for part in slices(count * width):
        first, last = part.start // width, part.stop // width
        yield [tensor[first * w : last * w].view(-1, w) for tensor, w in zip(flat, widths, strict=True)]
    if flat[0].numel() % width:
        rest = [tensor[count * w :] for tensor, w in zip(flat, widths, strict=True)]
        filled = [functional.pad(tensor, (0, w - tensor.numel())) for tensor, w in zip(rest, widths, strict=True)]
        yield [tensor.view(1, -1) for tensor in filled]
        for tensor, full in zip(rest, filled, strict=True):
            tensor.copy_(full[: tensor.numel()])


@fused
def adamw_rows(
    weights_SQ: Tensor, grads_SQ: Tensor, moments: tuple[list[Tensor], list[Tensor]],
    quantizers: tuple["Quantizer | None", "Quantizer | None"], scalars: tuple[Tensor, Tensor, Tensor, Tensor | None],
    betas: tuple[float, float], eps: float, stochastic: bool,
) -> None:  # fmt: skip
    """AdamW of some rows, in place. A moment is its values, or its codes and scales with their quantizer. `scalars`:
    steps with this one, the learning rate, what the decay keeps of a weight, whether the step is skipped."""
    steps, rate, kept, skip = scalars
    steps = steps.clamp_min(1)  # 0 where the very first step is skipped: nothing is divided by it
    grads_SQ = grads_SQ.float()
    old = [
        moment[0] if quantizer is None else quantizer.dequantize(*moment)
        for moment, quantizer in zip(moments, quantizers, strict=True)
    ]
    first_SQ = old[0].lerp(grads_SQ, 1 - betas[0])
    second_SQ = old[1] * betas[1] + (1 - betas[1]) * grads_SQ * grads_SQ
    for moment, quantizer, new_SQ in zip(moments, quantizers, (first_SQ, second_SQ), strict=True):
        for target, new in zip(moment, (new_SQ,) if quantizer is None else quantizer.quantize(new_SQ), strict=True):
            _put(target, new, skip)
    size = (1 - betas[0] ** steps).reciprocal() * rate
    scale_SQ = (second_SQ / (1 - betas[1] ** steps)).sqrt() + eps
    new_SQ = weights_SQ.float() * kept - size * first_SQ / scale_SQ
    _put(weights_SQ, stochastic_round(new_SQ) if stochastic else new_SQ.to(weights_SQ.dtype), skip)


def _pieces(flat_M: Tensor | None, like: list[Tensor]) -> list[Tensor]:
    """A flat tensor cut as the tensors of a list are, or the list where there is none."""
    return like if flat_M is None else list(flat_M.split([tensor.numel() for tensor in like]))


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
    for pair in rows([total.view(-1), value.reshape(-1)], [SUM_ROW, SUM_ROW]):
        add_rows(*pair)


@fused
def add_rows(total_SQ: Tensor, value_SQ: Tensor) -> None:
    """`add_stochastically` of some rows."""
    total_SQ.copy_(stochastic_round(total_SQ.float() + value_SQ.float()))


class Muon(SlicedAdamW):
    """Muon (Jordan 2024) for the groups marked `matrices`, AdamW for the rest, at one learning rate.

    A matrix moves by the orthogonalized momentum times 0.2 sqrt(its longer side), which has the size of an AdamW step
    (arXiv 2502.16982), so rate and decay carry over. The momentum (Nesterov) is kept in the parameter's dtype.
    """

    def __init__(self, groups: list[dict[str, Any]], momentum: float, **adamw: Any) -> None:
        super().__init__(groups, **adamw)
        self.momentum = momentum

    def update(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        if not group.get("matrices"):
            super().update(group, parameters)
            return
        for stack in _stacks(parameters):
            self._update_matrices(group, stack)

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
            moved = shrunk - size * direction.float()
            _put(parameter, stochastic_round(moved) if stochastic else moved.to(parameter.dtype), self.found_inf)


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

    def quantize(self, values_SQ: Tensor) -> tuple[Tensor, Tensor]:
        """(codes_SC, scales_S1) of fp32 rows of a block each. Codes: uint8, two a byte in 4 bits."""
        scales_S1 = values_SQ.abs().amax(1, keepdim=True)
        normal_SQ = values_SQ / scales_S1.clamp_min(torch.finfo(torch.float32).tiny)
        codes_SQ = torch.bucketize(normal_SQ, self.borders, out_int32=True).to(torch.uint8)
        if self.bits == 8:
            return codes_SQ, scales_S1
        return codes_SQ[:, ::2] | codes_SQ[:, 1::2] << 4, scales_S1

    def dequantize(self, codes_SC: Tensor, scales_S1: Tensor) -> Tensor:
        """The fp32 rows of `quantize`."""
        if self.bits == 4:
            shifts = torch.arange(0, 8, 4, dtype=torch.uint8, device=codes_SC.device)
            codes_SC = (codes_SC[:, :, None] >> shifts & 15).flatten(1)
        return self.book[codes_SC.int()] * scales_S1
