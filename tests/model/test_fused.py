"""The passes of optimizer and loss as a card runs them: launches, bytes, and results against the functions as written.

The bars are those of a 2.78B model (docs/training): bytes a parameter or a logit, launches a slice or 16k tokens.
"""

import shutil

import pytest
import torch
from kernel_counts import PRODUCTS, Launches, compiled
from torch._subclasses.fake_tensor import FakeTensorMode

from model import fused
from model.config import ModelConfig
from model.loss import GPU_CHUNK_TOKENS, chunked_cross_entropy, nats_
from model.optim import OPTIMIZERS, MasterWeights
from model.transformer import Transformer
from model.updates import SUM_ROW, Quantizer, adamw_rows, add_rows, slices

CPU, BF16 = torch.device("cpu"), torch.bfloat16
ROWS = 64
NATS_LAUNCHES = 6  # of one chunk's pass over its logits
needs_cpp = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")


def sum_rows() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.full((ROWS, SUM_ROW), 1.0, dtype=BF16), torch.full((ROWS, SUM_ROW), 2.0**-8, dtype=BF16)


def adamw_arguments(bits: int, stochastic: bool = True):
    generator = torch.Generator().manual_seed(0)
    quantizers = (None, None) if bits == 32 else (Quantizer(bits, True, CPU), Quantizer(bits, False, CPU))
    width = SUM_ROW if bits == 32 else quantizers[0].block
    weights, grads, first, second = (torch.randn(ROWS, width, generator=generator) for _ in range(4))
    values = (first, second.square())
    moments = [[v] if q is None else list(q.quantize(v)) for v, q in zip(values, quantizers, strict=True)]
    scalars = tuple(torch.tensor(x) for x in (3.0, 1e-3, 0.9999, 0.0))
    return weights.to(BF16), grads.to(BF16), tuple(moments), quantizers, scalars, (0.9, 0.95), 1e-8, stochastic


def test_a_stochastic_sum_is_one_kernel_of_6_bytes_a_parameter() -> None:
    launches, count = compiled(add_rows, *sum_rows())
    assert launches == 2  # the kernel, and one number that draws its seed
    assert count <= 6.1 * ROWS * SUM_ROW


@pytest.mark.parametrize(("bits", "most_launches", "most_bytes"), [(32, 2, 23), (8, 2, 11), (4, 8, 40)])
def test_an_adamw_step_is_a_few_kernels_a_slice(bits: int, most_launches: int, most_bytes: int) -> None:
    arguments = adamw_arguments(bits)
    launches, count = compiled(adamw_rows, *arguments)
    books = 4 * 4 * 256  # the codebooks, read once
    assert launches <= most_launches
    assert count - books <= most_bytes * arguments[0].numel()


def test_the_pass_over_logits_is_a_few_kernels_of_12_bytes_a_logit() -> None:
    logits = torch.zeros(256, 4096, dtype=BF16)
    launches, count = compiled(nats_, logits, torch.zeros(256, dtype=torch.int64), True, True, 0.0)
    assert launches <= NATS_LAUNCHES
    assert count <= 12 * logits.numel()


def test_head_and_loss_of_16k_tokens_take_120_launches_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, width, vocabulary = 16384, 64, 512
    one_product = lambda total, left, right: total.addmm_(torch.empty(left.shape), torch.empty(right.shape))  # noqa: E731
    monkeypatch.setattr("model.loss.add_product_", one_product)  # as a card does it
    with FakeTensorMode(), Launches({"nats_": NATS_LAUNCHES}) as seen, fused.watched(seen.fused):
        h_ND, weight_VD, bias_V = (
            torch.empty(shape, dtype=BF16, requires_grad=True)
            for shape in ((tokens, width), (vocabulary, width), (vocabulary,))
        )
        labels_N = torch.zeros(tokens, dtype=torch.int64)
        chunked_cross_entropy(h_ND, weight_VD, bias_V, labels_N, GPU_CHUNK_TOKENS)[0].backward()
    assert sum(seen.launches.values()) <= 120
    assert sum(seen.launches[name] for name in PRODUCTS) == 3 * tokens // GPU_CHUNK_TOKENS  # logits, both gradients


def test_an_8_bit_step_of_a_network_launches_its_slices_and_little_else() -> None:
    """Biases and norms go together: how many there are hardly counts."""
    with FakeTensorMode():
        network = Transformer(ModelConfig(512, 64, 256, 16, 4))
        make = lambda groups: OPTIMIZERS["adamw8bit"](groups, learning_rate=1e-3, sliced=True)  # noqa: E731
        weights = MasterWeights(network, make, "bf16-sr")
        for parameter in network.parameters():
            parameter.grad = torch.empty_like(parameter)
        weights.step(None)  # makes the states
        for parameter in network.parameters():
            parameter.grad = torch.empty_like(parameter)
        with Launches({"adamw_rows": 2}) as seen, fused.watched(seen.fused):
            weights.optimizer.step()
    large = [p for p in network.parameters() if p.numel() >= 4096]
    of_slices = 2 * sum(len(list(slices(p.numel()))) for p in large)
    assert seen.launches["adamw_rows"] == of_slices == 2 * (16 * 6 + 2)
    assert sum(seen.launches.values()) - of_slices <= 60  # 16 blocks have 128 small tensors


@needs_cpp
def test_compiled_results_are_those_of_the_functions_as_written() -> None:
    """One compilation, for any number of rows."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()  # of other tests in this process; a reset keeps them
    for rows in (ROWS, ROWS // 2):
        torch.manual_seed(0)
        total, value = sum_rows()
        with torch.no_grad():
            for _ in range(64):
                add_rows.run_compiled(total[:rows], value[:rows])
        assert total[:rows].float().mean() == pytest.approx(1.25, abs=0.01)
        for compiled_too in (True, False):
            weights, grads, moments, *rest = adamw_arguments(8, stochastic=False)
            run = adamw_rows.run_compiled if compiled_too else adamw_rows.function
            state = [t[:rows] for moment in moments for t in moment]
            with torch.no_grad():
                run(weights[:rows], grads[:rows], (state[:2], state[2:]), *rest)
            if compiled_too:
                got = weights, *state
        for ours, written in zip(got, (weights, *state), strict=True):
            same = (ours.float() - written.float()).abs() <= 2**-7 * written.float().abs().clamp_min(1e-3)
            assert same.float().mean() > 0.999  # a code on a border may go either way
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2


@needs_cpp
@pytest.mark.parametrize("bias", [True, False])
def test_the_compiled_pass_over_logits_gives_loss_and_gradient(bias: bool) -> None:
    torch._dynamo.reset()
    logits = 3 * torch.randn(40, 300, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(40)
    labels[::7] = -100
    ours, written = logits.clone(), logits.clone()
    with torch.no_grad():
        got, wanted = (
            nats_.run_compiled(ours, labels, True, bias, 1e-3),
            nats_.function(written, labels, True, bias, 1e-3),
        )
    torch.testing.assert_close(ours, written)
    torch.testing.assert_close(got, wanted)
