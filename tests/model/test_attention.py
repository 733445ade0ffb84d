"""One test over all attention kernels and dtypes, against plain attention in fp64."""

import pytest
import torch

from model import attention
from model.attention import ATTENTION, Documents, causal_attention, choose, flex_works

# Tolerances are relative to the largest entry: about 4 roundings of the dtype (fp64 also has summation order).
TOLERANCE = {torch.float64: 1e-14, torch.float32: 2e-6, torch.bfloat16: 2e-2}


def plain_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, document: torch.Tensor | None = None
) -> torch.Tensor:
    repeat, tokens = q.shape[1] // k.shape[1], q.shape[2]
    k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
    hidden = torch.ones(tokens, tokens).triu(1).bool()
    if document is not None:
        hidden = hidden | (document[:, None, :, None] != document[:, None, None, :])
    scores = scores.masked_fill(hidden, float("-inf"))
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


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("tokens", "groups"), [(1, 4), (5, 4), (128, 2), (129, 4), (300, 1)])
@pytest.mark.parametrize("kernel", ["explicit", "sdpa"])
def test_kernels_agree_with_plain_attention_inside_documents(
    kernel: str, tokens: int, groups: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(tokens)
    shapes = [(2, 4, tokens, 10), (2, groups, tokens, 10), (2, groups, tokens, 10), (2, 4, tokens, 10)]
    *inputs, upstream = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    documents = Documents.ended_by(0, torch.randint(0, 12, (2, tokens), generator=generator))

    def masked(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return causal_attention(q, k, v, kernel, documents)

    def plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return plain_attention(q, k, v, documents.number_BT)

    results = []
    for function, kind in ((masked, dtype), (plain, torch.float64)):
        leaves = [x.to(kind).requires_grad_() for x in inputs]
        out = function(*leaves)
        assert out.dtype == kind
        results.append([out.detach(), *torch.autograd.grad(out, leaves, upstream.to(kind))])
    for got, expected in zip(*results, strict=True):
        assert (got - expected).abs().max() <= TOLERANCE[dtype] * expected.abs().max().clamp_min(1.0)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_the_mask_for_flex_attention_hides_the_same_tokens() -> None:
    # Compiled and backward it needs a GPU; what is compared here is the mask, through torch's written-out form.
    q, k, v = torch.randn(3, 2, 4, 150, 16, generator=torch.Generator().manual_seed(0))
    documents = Documents.ended_by(0, torch.randint(0, 12, (2, 150), generator=torch.Generator().manual_seed(1)))
    expected = plain_attention(q, k, v, documents.number_BT)
    assert (causal_attention(q, k, v, "flex", documents) - expected).abs().max() <= 2e-6 * expected.abs().max()


@pytest.mark.filterwarnings("default")  # of torch's compiler, about itself
def test_block_masks_of_all_batches_are_one_compiled_graph(monkeypatch) -> None:
    from torch._dynamo.testing import CompileCounterWithBackend
    from torch.nn.attention.flex_attention import create_block_mask

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(create_block_mask, backend=counter)
    for seed in range(3):
        ids = torch.randint(0, 60, (2, 256), generator=torch.Generator().manual_seed(seed))
        monkeypatch.setattr(attention, "_block_mask_function", lambda on_card: create_block_mask)
        expected = Documents.ended_by(0, ids).flex_mask
        monkeypatch.setattr(attention, "_block_mask_function", lambda on_card: compiled)
        assert torch.equal(Documents.ended_by(0, ids).flex_mask.to_dense(), expected.to_dense())
    assert counter.frame_count == 1
    torch._dynamo.reset()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kernel", ["sdpa", "flex"])
def test_masked_kernels_on_a_gpu_agree_with_plain_attention(kernel: str) -> None:
    generator = torch.Generator().manual_seed(0)
    *inputs, upstream = (torch.randn(2, 4, 512, 64, generator=generator).bfloat16() for _ in range(4))
    ids = torch.randint(0, 100, (2, 512), generator=generator)
    if kernel == "flex":
        with torch.no_grad():
            assert flex_works(torch.bfloat16, 64)
    results = []
    for device, kind in (("cuda", torch.bfloat16), ("cpu", torch.float64)):
        documents = Documents.ended_by(0, ids.to(device))
        leaves = [x.to(device, kind).requires_grad_() for x in inputs]
        if device == "cuda":
            out = causal_attention(*leaves, kernel, documents)
        else:
            out = plain_attention(*leaves, documents.number_BT)
        gradients = torch.autograd.grad(out, leaves, upstream.to(device, kind))
        results.append([x.detach().cpu().double() for x in (out, *gradients)])
    for got, expected in zip(*results, strict=True):
        assert (got - expected).abs().max() <= TOLERANCE[torch.bfloat16] * expected.abs().max()


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without CUDA")
def test_where_flex_attention_does_not_run_it_is_said_once_and_sdpa_is_chosen() -> None:
    flex_works.cache_clear()
    with pytest.warns(UserWarning, match="SDPA with a mask is used instead"):
        assert choose(torch.device("cuda"), 256, masked=True) == "sdpa"
    assert choose(torch.device("cuda"), 256, masked=True) == "sdpa"


def test_an_end_token_is_the_last_of_its_own_document() -> None:
    documents = Documents.ended_by(9, torch.tensor([[1, 9, 2, 3, 9, 9, 4], [9, 1, 1, 1, 1, 1, 9]]))
    assert documents.number_BT.tolist() == [[0, 0, 1, 1, 1, 2, 3], [0, 1, 1, 1, 1, 1, 1]]


def test_the_explicit_kernel_serves_short_texts_on_a_cpu_only() -> None:
    assert choose(torch.device("cpu"), 512) == "explicit"
    assert choose(torch.device("cpu"), 512, masked=True) == "explicit"
    assert choose(torch.device("cpu"), 2048) == "sdpa"
    assert choose(torch.device("cuda"), 256) == "sdpa"
