"""The compiled CPU passes against torch in fp64: one bf16 or a few fp32 roundings apart, NaN kept; torch's without."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from model import cpu_kernels
from model.config import ModelConfig
from model.transformer import Transformer

# Of a result, relative: one to bf16 with room for fp32 sums; a few of fp32, that of the exponent's difference included.
ROUNDING = {torch.bfloat16: 2.0**-8, torch.float32: 1e-5}
DTYPES = list(ROUNDING)
needs_kernels = pytest.mark.skipif(cpu_kernels.available() is None, reason=f"{cpu_kernels.why_not()}")
GENERATOR = torch.Generator().manual_seed(5)


def values(*shape: int, scale: float = 1.0, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return (scale * torch.randn(shape, generator=GENERATOR)).to(dtype)


def assert_rounded(got: torch.Tensor, expected: torch.Tensor, floor: float = 1e-6) -> None:
    assert ((got.double() - expected).abs() <= ROUNDING[got.dtype] * expected.abs() + floor).all()


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocabulary", [7, 300, 8192])
@pytest.mark.parametrize(("scale", "with_bias"), [(1.0, True), (30.0, False)])
def test_cross_entropy_and_its_gradient(vocabulary: int, scale: float, dtype: torch.dtype, with_bias: bool) -> None:
    logits, labels = values(13, vocabulary, scale=scale, dtype=dtype), torch.arange(13) % vocabulary
    labels[::5] = -100
    bias = values(vocabulary, dtype=dtype) if with_bias else None
    wide = (logits.double() + (0 if bias is None else bias.double())).requires_grad_()
    expected = F.cross_entropy(wide, labels, reduction="none", ignore_index=-100)
    (gradient,) = torch.autograd.grad(expected.sum(), wide)
    untouched = logits.clone()
    torch.testing.assert_close(
        cpu_kernels.cross_entropy_(untouched, bias, labels, grad=False).double(), expected, atol=2e-5, rtol=2e-6
    )
    assert torch.equal(untouched, logits)
    loss = cpu_kernels.cross_entropy_(logits, bias, labels, grad=True)
    torch.testing.assert_close(loss.double(), expected, atol=2e-5, rtol=2e-6)
    assert_rounded(logits, gradient, floor=1e-6 if dtype == torch.bfloat16 else 2e-7)
    sums = torch.ones(vocabulary)
    cpu_kernels.add_column_sums_(sums, logits)
    torch.testing.assert_close(sums.double(), 1 + logits.double().sum(0), atol=1e-5, rtol=1e-5)


@needs_kernels
def test_gelu_and_its_gradient_over_all_bf16_numbers_of_use() -> None:
    every = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    x = every[every.abs() < 1e31]  # below -1e31 it ends at -1e-6 and not at 0
    wide = x.double().requires_grad_()
    expected = F.gelu(wide, approximate="tanh")
    (gradient,) = torch.autograd.grad(expected.sum(), wide)
    x.requires_grad_()
    got = cpu_kernels.gelu(x)
    assert_rounded(got, expected.detach())
    assert_rounded(torch.autograd.grad(got.sum(), x)[0], gradient)


@needs_kernels
def test_gelu_and_its_gradient_in_fp32() -> None:
    x = torch.cat([torch.linspace(-20, 20, 100_001), torch.tensor([-1e30, -1e4, -88.0, 0.0, 1e-30, 1e4, 1e31])])
    wide = x.double().requires_grad_()
    expected = F.gelu(wide, approximate="tanh")
    (gradient,) = torch.autograd.grad(expected.sum(), wide)
    x.requires_grad_()
    got = cpu_kernels.gelu(x)
    assert_rounded(got, expected.detach(), floor=1e-7)
    assert_rounded(torch.autograd.grad(got.sum(), x)[0], gradient, floor=1e-6)


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("queries", "start"), [(1, 0), (5, 0), (40, 24)])
def test_causal_softmax_and_its_gradient(queries: int, start: int, dtype: torch.dtype) -> None:
    keys = start + queries
    scores, upstream = values(3, queries, keys, scale=4.0, dtype=dtype), values(3, queries, keys, dtype=dtype)
    hidden = torch.ones(queries, keys).triu(start + 1).bool()
    expected = scores.double().masked_fill(hidden, float("-inf")).softmax(-1)
    p = cpu_kernels.causal_softmax_(scores, start)
    assert_rounded(p, expected)
    assert not p[:, hidden].any()
    d = upstream.double()
    ds = p.double() * (d - (d * p.double()).sum(-1, keepdim=True))
    assert_rounded(cpu_kernels.causal_softmax_backward_(upstream, p, start), ds, floor=2e-6)


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_stays_visible(dtype: torch.dtype) -> None:
    for bad in (float("nan"), float("inf")):
        logits, scores, x = values(2, 64, dtype=dtype), values(1, 4, 4, dtype=dtype), values(64, dtype=dtype)
        logits[1, 3] = scores[0, 3, 1] = x[9] = bad
        loss = cpu_kernels.cross_entropy_(logits, None, torch.tensor([1, 2]), grad=True)
        assert loss.isfinite().tolist() == [True, False]
        assert cpu_kernels.causal_softmax_(scores, 0)[0, 3].isnan().any()
        assert not cpu_kernels.gelu(x)[9].isfinite()


@needs_kernels
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("dtype", "loss_error", "gradient_error"), [(torch.bfloat16, 2e-3, 2e-2), (torch.float32, 1e-6, 5e-6)]
)
def test_a_whole_step_is_as_near_to_fp64_as_torchs_own_operations_are(
    threads: int, dtype: torch.dtype, loss_error: float, gradient_error: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ModelConfig(512, 64, 256, 2, 4, partial_rotary_factor=0.5, max_position_embeddings=160)
    ids = torch.randint(0, 512, (3, 161), generator=GENERATOR)
    before = torch.get_num_threads()

    def step(dtype: torch.dtype) -> tuple[float, torch.Tensor]:
        network = Transformer(config).initialize(1).to(dtype)
        loss_sum, count = network.loss(ids[:, :-1], ids[:, 1:])
        (loss_sum / count).backward()
        return float(loss_sum.detach() / count), torch.cat([p.grad.flatten().double() for p in network.parameters()])

    try:
        torch.set_num_threads(threads)
        loss, gradient = step(dtype)
        exact_loss, exact = step(torch.float64)
        monkeypatch.setattr(cpu_kernels, "usable", lambda x: False)
        own_loss, own = step(dtype)
    finally:
        torch.set_num_threads(before)
    assert loss == pytest.approx(exact_loss, abs=loss_error)
    assert loss == pytest.approx(own_loss, abs=loss_error)
    error, own_error = (gradient - exact).norm() / exact.norm(), (own - exact).norm() / exact.norm()
    assert error < 1.1 * own_error
    assert error < gradient_error


@needs_kernels
def test_a_label_past_the_vocabulary_is_an_error() -> None:
    with pytest.raises(IndexError, match="label 64 of a vocabulary of 64"):
        cpu_kernels.cross_entropy_(values(2, 64), None, torch.tensor([1, 64]), grad=True)


def test_a_compiler_that_fails_is_named_and_torch_used(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o755)
    caches = (cpu_kernels.available, cpu_kernels.why_not, cpu_kernels._load, cpu_kernels._library)
    for function in caches:
        function.cache_clear()
    monkeypatch.setenv("CC", str(broken))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert not cpu_kernels.usable(values(2))
    assert cpu_kernels.why_not()
    assert not list(tmp_path.glob("hornbook/*.so"))
    for function in caches:
        function.cache_clear()


def test_other_tensors_are_left_to_torch() -> None:
    assert not cpu_kernels.usable(torch.zeros(2, dtype=torch.float64))
    with FakeTensorMode():
        assert not cpu_kernels.usable(torch.zeros(2, dtype=torch.bfloat16))
        assert not cpu_kernels.usable(torch.zeros(2))


def test_without_a_compiler_torchs_own_operations_are_used_and_the_reason_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for function in (cpu_kernels.available, cpu_kernels.why_not):
        function.cache_clear()
    monkeypatch.setenv("CC", "no-such-compiler")
    assert not cpu_kernels.usable(values(2))
    assert cpu_kernels.why_not()
    for function in (cpu_kernels.available, cpu_kernels.why_not):
        function.cache_clear()


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1.0, 40.0])
def test_swiglu_and_its_gradients(dtype: torch.dtype, scale: float) -> None:
    gate, x, dy = values(5, 77, scale=scale, dtype=dtype), values(5, 77, dtype=dtype), values(5, 77, dtype=dtype)
    wide = [gate.double().requires_grad_(), x.double().requires_grad_()]
    expected = F.silu(wide[0]) * wide[1]
    gradients = torch.autograd.grad(expected, wide, dy.double())
    given = [gate.requires_grad_(), x.requires_grad_()]
    got = cpu_kernels.swiglu(*given)
    assert_rounded(got, expected.detach())
    for mine, theirs in zip(torch.autograd.grad(got, given, dy), gradients, strict=True):
        assert_rounded(mine, theirs, floor=1e-5)


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [7, 64, 576])
def test_rms_norm_and_its_gradients(dtype: torch.dtype, size: int) -> None:
    x, weight, dy = (values(*shape, size, dtype=dtype) for shape in ((3, 31), (), (3, 31)))
    wide = [x.double().requires_grad_(), weight.double().requires_grad_()]
    expected = F.rms_norm(wide[0], (size,), wide[1], 1e-5)
    gradients = torch.autograd.grad(expected, wide, dy.double())
    given = [x.requires_grad_(), weight.requires_grad_()]
    got = cpu_kernels.rms_norm(*given, 1e-5)
    assert_rounded(got, expected.detach())
    for mine, theirs in zip(torch.autograd.grad(got, given, dy), gradients, strict=True):
        assert_rounded(mine, theirs, floor=1e-2 if dtype == torch.bfloat16 else 1e-5)
    again = torch.autograd.grad(cpu_kernels.rms_norm(*given, 1e-5), given, dy)
    assert torch.equal(again[1], torch.autograd.grad(cpu_kernels.rms_norm(*given, 1e-5), given, dy)[1])
