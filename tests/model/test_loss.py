"""Chunked cross entropy against the full logits: value, gradients, ignored labels, and what it allocates."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from model.loss import chunked_cross_entropy, token_cross_entropy

N, D, V = 70, 24, 300


def inputs(dtype: torch.dtype, scale: float = 1.0) -> tuple[list[torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(N, D), (V, D), (V,)]
    tensors = [(scale * torch.randn(shape, generator=generator)).to(dtype).requires_grad_() for shape in shapes]
    labels = torch.randint(0, V, (N,), generator=generator)
    labels[::7] = -100
    return tensors, labels


# bf16: logits are rounded to bf16 on both sides; gradients are rounded once more per chunk.
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-6), (torch.bfloat16, 1e-2)]
)
@pytest.mark.parametrize("chunk", [1, 16, 70, 1000])
def test_loss_and_gradients_are_those_of_the_full_logits(chunk: int, dtype: torch.dtype, tolerance: float) -> None:
    (h, weight, bias), labels = inputs(dtype)
    loss_sum, count = chunked_cross_entropy(h, weight, bias, labels, chunk)
    got = torch.autograd.grad(loss_sum / count, (h, weight, bias))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    expected = F.cross_entropy(F.linear(h, weight, bias).to(wide), labels)
    wanted = torch.autograd.grad(expected, (h, weight, bias))
    assert loss_sum.dtype == wide
    assert count.dtype == torch.int64
    assert count == 60
    torch.testing.assert_close(loss_sum / count, expected, rtol=min(tolerance, 1e-5), atol=0)
    for ours, theirs in zip(got, wanted, strict=True):
        assert ours.dtype == dtype
        assert (ours - theirs).norm() <= tolerance * theirs.norm()


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-6), (torch.bfloat16, 1e-2)]
)
def test_z_loss_is_in_the_gradient_and_not_in_the_loss(dtype: torch.dtype, tolerance: float) -> None:
    (h, weight, bias), labels = inputs(dtype)
    loss_sum, count = chunked_cross_entropy(h, weight, bias, labels, 16, z_loss=0.1)
    got = torch.autograd.grad(loss_sum / count, (h, weight, bias))
    logits = F.linear(h, weight, bias).double()
    log_z = logits.logsumexp(-1)[labels >= 0]
    plain = F.cross_entropy(logits, labels)
    wanted = torch.autograd.grad(plain + 0.1 * log_z.square().mean(), (h, weight, bias))
    torch.testing.assert_close((loss_sum / count).double(), plain, rtol=max(1e-6, tolerance / 100), atol=0)
    for ours, theirs in zip(got, wanted, strict=True):
        assert (ours - theirs).norm() <= tolerance * theirs.norm()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_losses_of_single_labels_add_up_to_the_sum(dtype: torch.dtype) -> None:
    tensors, labels = inputs(dtype)
    h, weight, bias = (t.detach() for t in tensors)
    losses_N = token_cross_entropy(h, weight, bias, labels)
    logits = F.linear(h, weight, bias).double()
    expected = F.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(losses_N.double(), expected, rtol=1e-5 if dtype != torch.float64 else 1e-12, atol=0)
    assert (losses_N[labels == -100] == 0).all()
    loss_sum, _ = chunked_cross_entropy(h, weight, bias, labels)
    torch.testing.assert_close(losses_N.sum(), loss_sum, rtol=1e-6, atol=0)


def test_a_label_with_vanishing_probability_has_its_true_loss() -> None:
    (h, weight, bias), labels = inputs(torch.float32, scale=12.0)  # losses of hundreds of nats: exp underflows
    loss_sum, _ = chunked_cross_entropy(h, weight, bias, labels, 16)
    expected = F.cross_entropy(F.linear(h, weight, bias), labels, reduction="sum")
    assert expected > 100 * 60
    torch.testing.assert_close(loss_sum, expected)


def test_rows_without_labels_get_no_gradient_and_only_such_rows_give_zero() -> None:
    (h, weight, bias), labels = inputs(torch.float32)
    loss_sum, _ = chunked_cross_entropy(h, weight, bias, labels, 16)
    (gradient,) = torch.autograd.grad(loss_sum, h)
    assert not gradient[::7].any()
    assert gradient[1].any()
    loss_sum, count = chunked_cross_entropy(h, weight, bias, torch.full((N,), -100), 16)
    assert loss_sum == 0
    assert count == 0


class LargestAllocation(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.elements = 0
        self.products = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = function(*args, **(kwargs or {}))
        self.products += "mm" in str(function)
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


def test_nothing_of_the_size_of_the_full_logits_is_ever_allocated() -> None:
    (h, weight, bias), labels = inputs(torch.float32)
    with LargestAllocation() as seen:
        chunked_cross_entropy(h, weight, bias, labels, 16)[0].backward()
    assert seen.elements == max(16 * V, V * D) < N * V


def test_without_gradients_only_the_logits_are_computed() -> None:
    (h, weight, bias), labels = inputs(torch.float32)
    with torch.no_grad(), LargestAllocation() as seen:
        chunked_cross_entropy(h, weight, bias, labels, 35)
    assert seen.products == 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_head_without_a_bias_is_one_whose_bias_is_zero(dtype: torch.dtype) -> None:
    (h, weight, _), labels = inputs(dtype)
    zeros = torch.zeros(V, dtype=dtype)
    pairs = []
    for bias in (None, zeros):
        loss_sum, count = chunked_cross_entropy(h, weight, bias, labels, 16)
        pairs.append((loss_sum, *torch.autograd.grad(loss_sum / count, (h, weight))))
    for without, with_zeros in zip(*pairs, strict=True):
        assert torch.equal(without, with_zeros)
