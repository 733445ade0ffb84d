"""Cross entropy of a linear head, in chunks of tokens, so that the full logits never exist.

In: hidden states, the head's weight and bias, labels. Out: the summed loss in fp32 and the number of labels counted.
The gradients are computed chunk by chunk during the forward pass, while the chunk's probabilities are at hand, and
only scaled in the backward pass (the idea of Liger's fused linear cross entropy, arXiv 2410.10989, in plain torch).
Torch 2.13's own linear_cross_entropy rounds the loss to bf16 for bf16 inputs; here all sums are fp32.
Letters: N tokens, C tokens of a chunk, D hidden, V vocabulary.
"""

import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from model import cpu_kernels
from model.fused import fused

GPU_CHUNK_TOKENS = 2048  # 0.2 GiB at a vocabulary of 51k; the head's gradient, 8 bytes a value, is summed once a chunk
CPU_CHUNK_TOKENS = 256  # in bf16 the chunk stays in the caches
CPU_CHUNK_VALUES = 2**23  # in fp32 larger products gain more than the caches: 32 MiB, 13% of the loss (Zen 3, V = 8192)
SUMMED_VALUES = 2**25  # of the head's gradient added at a time: 64 MiB in bf16
IGNORE_INDEX = -100  # labels with this value count neither in the loss nor in n


def chunked_cross_entropy(
    h_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, labels_N: Tensor, chunk_tokens: int | None = None,
    z_loss: float = 0.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Sum of -log softmax(h W' + b)[label] over the labels that are not -100.

    Returns (loss_sum, n), both 0-dimensional: loss_sum in fp32 (fp64 for fp64 inputs) and differentiable, n in int64,
    left on the device so that nothing waits for it. Peak extra memory is the logits of a chunk (a few fp32 copies of
    them where their passes are not fused), and V x D in fp32 for the weight's gradient. `chunk_tokens=None` takes what
    suits the device. Differentiable once.

    The gradient is that of the sum plus `z_loss` * log(Z)^2 per label, Z the softmax's denominator, which keeps the
    logits small (PaLM, arXiv 2204.02311); the returned sum is the cross entropy alone, comparable between runs.
    """
    if chunk_tokens is None:
        chunk_tokens = _cpu_chunk(h_ND.dtype, weight_VD.shape[0]) if h_ND.device.type == "cpu" else GPU_CHUNK_TOKENS
    loss_sum = _ChunkedCrossEntropy.apply(
        h_ND, weight_VD, bias_V, labels_N, chunk_tokens, torch.is_grad_enabled(), z_loss
    )
    return loss_sum, (labels_N != IGNORE_INDEX).sum()  # type: ignore[return-value]


@torch.no_grad()
def token_cross_entropy(h_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, labels_N: Tensor) -> Tensor:
    """The loss of each label in nats, fp32 (fp64 for fp64 inputs), 0 where the label is -100: without gradients, in
    chunks like the sum."""
    on_cpu, kernels = h_ND.device.type == "cpu", cpu_kernels.usable(h_ND)
    chunk = _cpu_chunk(h_ND.dtype, weight_VD.shape[0]) if on_cpu else GPU_CHUNK_TOKENS
    losses = []
    for start in range(0, h_ND.shape[0], chunk):
        part = slice(start, start + chunk)
        logits_CV = functional.linear(h_ND[part], weight_VD, bias_V)
        if kernels:
            losses.append(cpu_kernels.cross_entropy_(logits_CV, None, labels_N[part], False, 0.0))
        else:
            losses.append(nats_(logits_CV, labels_N[part], False, False, 0.0)[0])
    return torch.cat(losses) if losses else h_ND.new_zeros(0)


def _cpu_chunk(dtype: torch.dtype, vocab_size: int) -> int:
    return CPU_CHUNK_TOKENS if dtype == torch.bfloat16 else max(CPU_CHUNK_TOKENS, CPU_CHUNK_VALUES // vocab_size)


@fused
def nats_(
    logits_CV: Tensor, labels_C: Tensor, grad: bool, bias: bool, z_loss: float
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Nats of each label, 0 where it is -100. With `grad` the logits become the gradient, that of nats + `z_loss` *
    log(Z)^2, and with `bias` its sum over the tokens is returned as well."""
    wide_CV = logits_CV if logits_CV.dtype == torch.float64 else logits_CV.float()
    labels_C1 = labels_C[:, None]
    at_C1, counted_C1 = labels_C1.clamp_min(0), labels_C1 != IGNORE_INDEX
    log_p_CV = wide_CV.log_softmax(1)
    nats_C1 = -log_p_CV.gather(1, at_C1) * counted_C1
    if not grad:
        return nats_C1.squeeze(1), None
    scale_C1 = counted_C1
    if z_loss:
        scale_C1 = counted_C1 * (1 + 2 * z_loss * (wide_CV.gather(1, at_C1) - log_p_CV.gather(1, at_C1)))
    d_CV = log_p_CV.exp_().mul_(scale_C1)
    # Compared rather than scattered, so that it joins the pass. A label that is not counted equals no token.
    d_CV.add_(torch.arange(logits_CV.shape[1], device=logits_CV.device) == labels_C1, alpha=-1)
    logits_CV.copy_(d_CV)
    return nats_C1.squeeze(1), logits_CV.sum(0, dtype=d_CV.dtype) if bias else None


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, h_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, labels_N: Tensor, chunk: int, grad: bool,
        z_loss: float,
    ) -> Tensor:  # fmt: skip
        kernels = cpu_kernels.usable(h_ND)
        wide = torch.float64 if h_ND.dtype == torch.float64 else torch.float32
        loss_sum = torch.zeros((), dtype=wide, device=h_ND.device)
        gradients = _Gradients(h_ND, weight_VD, bias_V, wide) if grad and any(ctx.needs_input_grad[:3]) else None
        for start in range(0, h_ND.shape[0], chunk):
            part = slice(start, start + chunk)
            if kernels and h_ND.dtype == torch.float32:
                # torch writes the bias into the whole chunk first; the pass over the logits adds it on its way
                logits_CV, bias = torch.mm(h_ND[part], weight_VD.t()), bias_V
            else:  # in bf16 the sum is rounded once, with the bias in it
                logits_CV, bias = functional.linear(h_ND[part], weight_VD, bias_V), None
            if kernels:
                nats_C = cpu_kernels.cross_entropy_(logits_CV, bias, labels_N[part], gradients is not None, z_loss)
                d_sum_V = None
            else:
                with_bias = bias_V is not None
                nats_C, d_sum_V = nats_(logits_CV, labels_N[part], gradients is not None, with_bias, z_loss)
            loss_sum += nats_C.sum()
            if gradients is not None:
                gradients.add(part, logits_CV, d_sum_V)
            del logits_CV  # before the next chunk's are made
        # Not save_for_backward: the backward pass scales them in place, and a copy of them would be the peak.
        ctx.gradients = None if gradients is None else (gradients.h_ND, gradients.weight_VD, gradients.bias_V)
        ctx.dtypes = (h_ND.dtype, weight_VD.dtype, None if bias_V is None else bias_V.dtype)
        return loss_sum

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the loss was differentiated twice; its gradients are scaled in place and used up.")
        scaled, ctx.gradients = ctx.gradients, None
        h_ND, weight_VD, bias_V = (
            None if gradient is None else gradient.mul_(grads[0]).to(dtype)
            for gradient, dtype in zip(scaled, ctx.dtypes, strict=True)
        )
        return h_ND, weight_VD, bias_V, None, None, None, None


class _Gradients:
    """Sums of the three gradients over chunks: in fp32 where chunks add up (weight, bias)."""

    def __init__(self, h_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, wide: torch.dtype) -> None:
        self.inputs_ND, self.head_VD = h_ND, weight_VD
        self.h_ND = torch.empty_like(h_ND)
        self.weight_VD = torch.zeros(weight_VD.shape, dtype=wide, device=weight_VD.device)
        self.bias_V = None if bias_V is None else torch.zeros(bias_V.shape, dtype=wide, device=bias_V.device)

    def add(self, part: slice, d_CV: Tensor, d_sum_V: Tensor | None) -> None:
        """`d_CV` in the network's dtype, in which the products run; `d_sum_V`: its sum where it is known."""
        if self.bias_V is not None and d_sum_V is not None:
            self.bias_V += d_sum_V
        elif self.bias_V is not None:
            cpu_kernels.add_column_sums_(self.bias_V, d_CV)
        torch.mm(d_CV, self.head_VD, out=self.h_ND[part])
        add_product_(self.weight_VD, d_CV.t(), self.inputs_ND[part])


def add_product_(sum_VD: Tensor, left_VC: Tensor, right_CD: Tensor) -> None:
    """sum += left right, for a sum in fp32 of bf16 factors too: in one pass over it where the device can."""
    if left_VC.dtype == sum_VD.dtype:
        sum_VD.addmm_(left_VC, right_CD)
    elif sum_VD.device.type == "cuda" and adds_wide_products():
        torch.addmm(sum_VD, left_VC, right_CD, out_dtype=sum_VD.dtype, out=sum_VD)
    else:
        for rows in _slices(sum_VD):
            sum_VD[rows].add_(torch.mm(left_VC[rows], right_CD))


@cache
def adds_wide_products() -> bool:
    """Whether this torch adds a bf16 product to an fp32 sum on CUDA without rounding it between; tried, as some
    versions take the keyword and refuse an fp32 sum. Says so once where it does not."""
    ones = torch.ones(16, 16, device="cuda")
    try:
        torch.addmm(ones, ones.bfloat16(), ones.bfloat16(), out_dtype=torch.float32, out=ones)
    except (RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        warnings.warn(f"the head's gradient takes more passes here, and one more rounding: {reason}", stacklevel=3)
        return False
    return True


def _slices(weight_VD: Tensor) -> list[slice]:
    """Rows of the head whose product is added at a time: all of a small one; a product of all of Phi-2's is 250 MiB."""
    rows = max(1, SUMMED_VALUES // weight_VD.shape[1])
    return [slice(start, start + rows) for start in range(0, weight_VD.shape[0], rows)]
