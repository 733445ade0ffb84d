"""Cross entropy of a linear head, in chunks of tokens, so that the full logits never exist.

In: hidden states, the head's weight and bias, labels. Out: the summed loss in fp32 and the number of labels counted.
The gradients are computed chunk by chunk during the forward pass, while the chunk's probabilities are at hand, and
only scaled in the backward pass (the idea of Liger's fused linear cross entropy, arXiv 2410.10989, in plain torch).
Torch 2.13's own linear_cross_entropy rounds the loss to bf16 for bf16 inputs; here all sums are fp32.
Letters: N tokens, C tokens of a chunk, D hidden, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from model import cpu_kernels

GPU_CHUNK_TOKENS = 512  # 0.2 GiB at a vocabulary of 51k, and products large enough for the card
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
    left on the device so that nothing waits for it. Peak extra memory is about chunk_tokens x V x 8 bytes, and V x D
    in fp32 for the weight's gradient. `chunk_tokens=None` takes what suits the device. Differentiable once.

    The gradient is that of the sum plus `z_loss` * log(Z)^2 per label, Z the softmax's denominator, which keeps the
    logits small (PaLM, arXiv 2204.02311); the returned sum is the cross entropy alone, comparable between runs.
    """
    if bias_V is None:
        bias_V = h_ND.new_zeros(weight_VD.shape[0])
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
    if bias_V is None:
        bias_V = h_ND.new_zeros(weight_VD.shape[0])
    on_cpu, fused = h_ND.device.type == "cpu", cpu_kernels.usable(h_ND)
    chunk = _cpu_chunk(h_ND.dtype, weight_VD.shape[0]) if on_cpu else GPU_CHUNK_TOKENS
    losses = []
    for start in range(0, h_ND.shape[0], chunk):
        part = slice(start, start + chunk)
        logits_CV = torch.addmm(bias_V, h_ND[part], weight_VD.t())
        if fused:
            losses.append(cpu_kernels.cross_entropy_(logits_CV, None, labels_N[part], False, 0.0))
        else:
            wide_CV = logits_CV if logits_CV.dtype == torch.float64 else logits_CV.float()
            loss_C = functional.cross_entropy(wide_CV, labels_N[part], reduction="none", ignore_index=IGNORE_INDEX)
            losses.append(loss_C)
    return torch.cat(losses) if losses else h_ND.new_zeros(0)


def _cpu_chunk(dtype: torch.dtype, vocab_size: int) -> int:
    return CPU_CHUNK_TOKENS if dtype == torch.bfloat16 else max(CPU_CHUNK_TOKENS, CPU_CHUNK_VALUES // vocab_size)


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, h_ND: Tensor, weight_VD: Tensor, bias_V: Tensor, labels_N: Tensor, chunk: int, grad: bool, z_loss:
        float,
    ) -> Tensor:  # fmt: skip
        fused, given_N = cpu_kernels.usable(h_ND), labels_N
        valid_N, labels_N = labels_N != IGNORE_INDEX, labels_N.clamp_min(0)
        wide = torch.float64 if h_ND.dtype == torch.float64 else torch.float32
        loss_sum = torch.zeros((), dtype=wide, device=h_ND.device)
        gradients = _Gradients(h_ND, weight_VD, bias_V, wide) if grad and any(ctx.needs_input_grad[:3]) else None
        for start in range(0, h_ND.shape[0], chunk):
            part = slice(start, start + chunk)
            if fused and h_ND.dtype == torch.float32:
                # torch writes the bias into the whole chunk first; the pass over the logits adds it on its way
                logits_CV, bias = torch.mm(h_ND[part], weight_VD.t()), bias_V
            else:  # in bf16 the sum is rounded once, with the bias in it
                logits_CV, bias = torch.addmm(bias_V, h_ND[part], weight_VD.t()), None
            if fused:
                loss_C = cpu_kernels.cross_entropy_(logits_CV, bias, given_N[part], gradients is not None, z_loss)
                loss_sum += loss_C.sum()
                if gradients is not None:
                    gradients.add(part, logits_CV)
                continue
            p_CV = torch.softmax(logits_CV, -1, dtype=wide)
            labels_C1 = labels_N[part, None]
            # log of the sum of exponentials from the largest term, which no underflow can reach (p_max >= 1/V)
            log_z_C = logits_CV.amax(-1).to(wide) - p_CV.amax(-1).log()
            loss_C = log_z_C - logits_CV.gather(1, labels_C1).squeeze(1).to(wide)
            loss_sum += torch.where(valid_N[part], loss_C, 0).sum()
            if gradients is not None:
                del logits_CV
                if z_loss:
                    p_CV.mul_(1 + 2 * z_loss * log_z_C[:, None])
                p_CV.scatter_add_(1, labels_C1, p_CV.new_full(labels_C1.shape, -1.0))
                p_CV.mul_(valid_N[part, None])
                gradients.add(part, p_CV)
        # Not save_for_backward: the backward pass scales them in place, and a copy of them would be the peak.
        ctx.gradients = None if gradients is None else (gradients.h_ND, gradients.weight_VD, gradients.bias_V)
        ctx.dtypes = (h_ND.dtype, weight_VD.dtype, bias_V.dtype)
        return loss_sum

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the loss was differentiated twice; its gradients are scaled in place and used up.")
        scaled, ctx.gradients = ctx.gradients, None
        h_ND, weight_VD, bias_V = (
            gradient.mul_(grads[0]).to(dtype) for gradient, dtype in zip(scaled, ctx.dtypes, strict=True)
        )
        return h_ND, weight_VD, bias_V, None, None, None, None


class _Gradients:
    """Sums of the three gradients over chunks: in fp32 where chunks add up (weight, bias)."""

    def __init__(self, h_ND: Tensor, weight_VD: Tensor, bias_V: Tensor, wide: torch.dtype) -> None:
        self.inputs_ND, self.head_VD = h_ND, weight_VD
        self.h_ND = torch.empty_like(h_ND)
        self.weight_VD = torch.zeros(weight_VD.shape, dtype=wide, device=weight_VD.device)
        self.bias_V = torch.zeros(bias_V.shape, dtype=wide, device=bias_V.device)

    def add(self, part: slice, d_CV: Tensor) -> None:
        if cpu_kernels.usable(d_CV):
            cpu_kernels.add_column_sums_(self.bias_V, d_CV)
        else:
            self.bias_V += d_CV.sum(0)
        d_CV = d_CV.to(self.head_VD.dtype)  # the matrix products run in the network's dtype
        torch.mm(d_CV, self.head_VD, out=self.h_ND[part])
        if d_CV.dtype == self.weight_VD.dtype:
            self.weight_VD.addmm_(d_CV.t(), self.inputs_ND[part])
        else:
            for rows in _slices(self.weight_VD):
                self.weight_VD[rows] += torch.mm(d_CV[:, rows].t(), self.inputs_ND[part])


def _slices(weight_VD: Tensor) -> list[slice]:
    """Rows of the head whose product is added at a time: all of a small one; a product of all of Phi-2's is 250 MiB."""
    rows = max(1, SUMMED_VALUES // weight_VD.shape[1])
    return [slice(start, start + rows) for start in range(0, weight_VD.shape[0], rows)]
