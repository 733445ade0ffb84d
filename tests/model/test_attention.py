"""One test over all attention kernels and dtypes, against plain attention in fp64."""

import pytest
import torch

from model.attention import ATTENTION, causal_attention, choose

# Tolerances are relative to the largest entry: about 4 roundings of the dtype (fp64 also has summation order).
TOLERANCE = {torch.float64: 1e-14, torch.float32: 2e-6, torch.bfloat16: 2e-2}


def plain_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    repeat, tokens = q.shape[1] // k.shape[1], q.shape[2]
    k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
    scores = scores.masked_fill(torch.ones(tokens, tokens).triu(1).bool(), float("-inf"))
    return scores.softmax(-1) @ v


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("tokens", "groups"), [(1, 4), (5, 4), (128, 2), (129, 4), (300, 1)])
@pytest.mark.parametrize("kernel", ATTENTION)
def test_kernels_agree_with_plain_fp64_attention(kernel: str, tokens: int, groups: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(tokens)
    shapes = [(2, 4, tokens, 10), (2, groups, tokens, 10), (2, groups, tokens, 10), (2, 4, tokens, 10)]
    *inputs, upstream = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    results = []
    for function, kind in ((lambda *x: causal_attention(*x, kernel=kernel), dtype), (plain_attention, torch.float64)):
        leaves = [x.to(kind).requires_grad_() for x in inputs]
        out = function(*leaves)
        assert out.dtype == kind
        results.append([out.detach(), *torch.autograd.grad(out, leaves, upstream.to(kind))])
    for got, expected in zip(*results, strict=True):
        # The floor is for gradients that are exactly zero (one token: the softmax is constant).
        assert (got - expected).abs().max() <= TOLERANCE[dtype] * expected.abs().max().clamp_min(1.0)


def test_the_explicit_kernel_serves_short_texts_on_a_cpu_only() -> None:
    assert choose(torch.device("cpu"), 512) == "explicit"
    assert choose(torch.device("cpu"), 2048) == "sdpa"
    assert choose(torch.device("cuda"), 256) == "sdpa"
