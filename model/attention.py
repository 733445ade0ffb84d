"""Causal attention, several kernels behind one function and one test over all of them; the rotary embedding.

In: queries, keys, values. Out: the heads' outputs. `sdpa` is torch's fused kernel (flash on a GPU). `explicit`
is bmm + softmax + bmm over blocks of queries with a hand-written backward: on a CPU at short lengths it is 2-3 times
faster than SDPA (measured with bf16 on a Zen 5 core: 7.0 against 20.6 ms forward and backward at 8x3x256x64).
`flex` is torch's compiled flex_attention for masked documents on a GPU: it leaves out the blocks that the mask
empties (written without a GPU at hand: its speed is not measured).
The rotary embedding turns the first coordinates of each head (arXiv 2104.09864; partial, as in Phi). Its tables are
made in fp32 and never stored in the module, so that neither a cast of the network to bf16 nor a build on the meta
device can spoil them; transformers does the same.
Letters: B batch, H query heads, G key-value heads (H is a multiple of G), T tokens, S cached tokens, K head size, R
half of the rotary size, N = B x H, Q a block of queries, P the tokens up to the end of that block.
"""

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model import cpu_kernels
from model.config import ModelConfig

QUERY_BLOCK = 128  # queries per block: the upper half of the score matrix is mostly never computed
EXPLICIT_MAX_TOKENS = 512  # above it the saved probabilities (T x T per head) cost more than they gain


@dataclass(frozen=True)
class Documents:
    """Which document each token of a window belongs to; made once per forward pass, used by every block.

    `number_BT` (int32) never falls along a window; a token sees the tokens before it with the same number. Masks are
    made on the device of the numbers when a kernel first asks, and no number is ever read by the host.
    """

    number_BT: Tensor

    @classmethod
    def ended_by(cls, end_id: int, input_ids_BT: Tensor) -> "Documents":
        """How many end tokens lie before each token: an end token is the last of its own document."""
        ends_BT = (input_ids_BT == end_id).int()
        return cls(ends_BT.cumsum(1, dtype=torch.int32) - ends_BT)

    @cached_property
    def seen_B1TT(self) -> Tensor:
        """True where the query (row) sees the key (column)."""
        same_BTT = self.number_BT[:, :, None] == self.number_BT[:, None, :]
        return same_BTT.tril()[:, None]

    def bias_B1QP(self, start: int, end: int, dtype: torch.dtype) -> Tensor:
        """0 where the queries start..end-1 see the keys 0..end-1, else -inf."""
        return self._biases(dtype)[start // QUERY_BLOCK][:, :, : end - start]

    def _biases(self, dtype: torch.dtype) -> list[Tensor]:
        if dtype not in self._made:
            tokens = self.number_BT.shape[1]
            hidden_B1TT = ~self.seen_B1TT
            self._made[dtype] = [
                torch.zeros((), dtype=dtype, device=hidden_B1TT.device)
                .expand(hidden_B1TT.shape[0], 1, end - start, end)
                .masked_fill(hidden_B1TT[:, :, start:end, :end], float("-inf"))
                for start, end in _query_blocks(tokens)
            ]
        return self._made[dtype]

    @cached_property
    def _made(self) -> dict[torch.dtype, list[Tensor]]:
        return {}

    @cached_property
    def flex_mask(self) -> Any:
        """flex_attention's BlockMask."""
        number_BT = self.number_BT

        def sees(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return (q >= k) & (number_BT[b, q] == number_BT[b, k])

        B, T = number_BT.shape
        return _block_mask_function(number_BT.device.type == "cuda")(sees, B, None, T, T, device=number_BT.device)


def causal_attention(
    q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, kernel: str = "auto", documents: Documents | None = None
) -> Tensor:
    """softmax(q k' / sqrt(K), causal) v as o_BHTK. `kernel`: "auto" or a name in `ATTENTION`.

    With `documents` a token sees only its own document's tokens.
    """
    name = kernel
    if kernel == "auto":
        name = choose(q_BHTK.device, q_BHTK.shape[2], documents is not None, q_BHTK.dtype, q_BHTK.shape[3])
    return ATTENTION[name](q_BHTK, k_BGTK, v_BGTK, documents)


def choose(
    device: torch.device,
    tokens: int,
    masked: bool = False,
    dtype: torch.dtype = torch.bfloat16,
    head_size: int = 64,
) -> str:
    """Name of the kernel that is fastest for this device and length, as far as it is measured."""
    if device.type == "cpu":
        return "explicit" if tokens <= EXPLICIT_MAX_TOKENS else "sdpa"
    return "flex" if masked and device.type == "cuda" and flex_works(dtype, head_size) else "sdpa"


def decode_attention(q_BH1K: Tensor, k_BGSK: Tensor, v_BGSK: Tensor) -> Tensor:
    """One new query per head over all S cached keys and values: nothing to mask."""
    return F.scaled_dot_product_attention(q_BH1K, k_BGSK, v_BGSK, enable_gqa=q_BH1K.shape[1] != k_BGSK.shape[1])


def sdpa(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, documents: Documents | None = None) -> Tensor:
    """torch's scaled_dot_product_attention. With documents the mask is B x T x T booleans, and nothing is left out."""
    grouped = q_BHTK.shape[1] != k_BGTK.shape[1]
    if documents is not None:
        return F.scaled_dot_product_attention(q_BHTK, k_BGTK, v_BGTK, attn_mask=documents.seen_B1TT, enable_gqa=grouped)
    return F.scaled_dot_product_attention(q_BHTK, k_BGTK, v_BGTK, is_causal=True, enable_gqa=grouped)


def explicit(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, documents: Documents | None = None) -> Tensor:
    """bmm and softmax over blocks of queries.

    Scores are rounded to the input dtype before the softmax (which itself sums in fp32): with bf16 inputs that is one
    rounding more than SDPA makes. The test holds both kernels to the same stated tolerance.
    """
    repeat = q_BHTK.shape[1] // k_BGTK.shape[1]
    if repeat > 1:
        k_BGTK, v_BGTK = k_BGTK.repeat_interleave(repeat, 1), v_BGTK.repeat_interleave(repeat, 1)
    return _Explicit.apply(q_BHTK, k_BGTK, v_BGTK, documents)  # type: ignore[no-any-return]


def flex(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, documents: Documents | None = None) -> Tensor:
    """torch's flex_attention: compiled on CUDA; elsewhere as torch writes it out, forward only (tests compare that).

    Without documents it is SDPA, whose causal kernel nothing here beats.
    """
    if documents is None:
        return sdpa(q_BHTK, k_BGTK, v_BGTK)
    grouped = q_BHTK.shape[1] != k_BGTK.shape[1]
    function = _flex_function(compiled=q_BHTK.device.type == "cuda")
    return function(q_BHTK, k_BGTK, v_BGTK, block_mask=documents.flex_mask, enable_gqa=grouped)


@cache
def flex_works(dtype: torch.dtype, head_size: int) -> bool:
    """Whether a small flex_attention compiles and runs forward and backward here; says so once where it does not."""
    try:
        q_BHTK = torch.randn(1, 1, 128, head_size, device="cuda", dtype=dtype, requires_grad=True)
        documents = Documents(torch.zeros(1, 128, device="cuda", dtype=torch.int32))
        with torch.enable_grad():  # the first to ask may be a validation
            flex(q_BHTK, q_BHTK, q_BHTK, documents).sum().backward()
    except Exception as error:  # a missing compiler, Triton or kernel: torch raises a class of its own for each
        reason = " ".join(str(error).split())[:200]
        warnings.warn(f"flex_attention does not run here, SDPA with a mask is used instead: {reason}", stacklevel=2)
        return False
    return True


@cache
def _block_mask_function(compiled: bool) -> Callable[..., Any]:
    """torch's create_block_mask; as it comes it makes B x T x T integers before it looks at blocks."""
    from torch.nn.attention.flex_attention import create_block_mask

    return torch.compile(create_block_mask) if compiled else create_block_mask


@cache
def _flex_function(compiled: bool) -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention) if compiled else flex_attention  # type: ignore[return-value]


Kernel = Callable[[Tensor, Tensor, Tensor, Documents | None], Tensor]
ATTENTION: dict[str, Kernel] = {"sdpa": sdpa, "explicit": explicit, "flex": flex}


class _Explicit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, documents: Documents | None) -> Tensor:
        B, H, T, K = q_BHTK.shape
        q_NTK = (q_BHTK * K**-0.5).reshape(B * H, T, K)
        k_NTK, v_NTK = k_BHTK.reshape(B * H, T, K), v_BHTK.reshape(B * H, T, K)
        mask_QQ = torch.full((min(T, QUERY_BLOCK),) * 2, float("-inf"), dtype=q_NTK.dtype, device=q_NTK.device).triu(1)
        # Tokens before heads in memory: the output projection then reads it without another copy.
        o_BHTK = torch.empty(B, T, H, K, dtype=q_NTK.dtype, device=q_NTK.device).transpose(1, 2)
        ctx.fused = fused = documents is None and cpu_kernels.usable(q_NTK)
        blocks = []
        for start, end in _query_blocks(T):
            scores_NQP = torch.bmm(q_NTK[:, start:end], k_NTK[:, :end].transpose(1, 2))
            if documents is not None:
                scores_NQP.view(B, H, end - start, end).add_(documents.bias_B1QP(start, end, q_NTK.dtype))
            elif not fused:  # the fused softmax knows the causal mask itself
                scores_NQP[:, :, start:] += mask_QQ[: end - start, : end - start]
            softmax = cpu_kernels.causal_softmax_(scores_NQP, start) if fused else torch.softmax(scores_NQP, -1)
            blocks.append(softmax)
            o_BHTK[:, :, start:end] = torch.bmm(blocks[-1], v_NTK[:, :end]).view(B, H, end - start, K)
        ctx.save_for_backward(q_NTK, k_NTK, v_NTK, *blocks)
        return o_BHTK

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        # What the mask hides has probability 0, and so does its gradient: the mask is not needed again.
        q_NTK, k_NTK, v_NTK, *blocks = ctx.saved_tensors
        B, H, T, K = grads[0].shape
        do_NTK = grads[0].reshape(B * H, T, K)
        dq_NTK, dk_NTK, dv_NTK = torch.empty_like(q_NTK), torch.zeros_like(k_NTK), torch.zeros_like(v_NTK)
        for (start, end), p_NQP in zip(_query_blocks(T), blocks, strict=True):
            do_NQK = do_NTK[:, start:end]
            dv_NTK[:, :end] += torch.bmm(p_NQP.transpose(1, 2), do_NQK)
            dp_NQP = torch.bmm(do_NQK, v_NTK[:, :end].transpose(1, 2))
            if ctx.fused:
                ds_NQP = cpu_kernels.causal_softmax_backward_(dp_NQP, p_NQP, start)
            else:
                ds_NQP = torch.ops.aten._softmax_backward_data(dp_NQP, p_NQP, -1, p_NQP.dtype)
            dq_NTK[:, start:end] = torch.bmm(ds_NQP, k_NTK[:, :end])
            dk_NTK[:, :end] += torch.bmm(ds_NQP.transpose(1, 2), q_NTK[:, start:end])
        dq_NTK *= K**-0.5
        return dq_NTK.view(B, H, T, K), dk_NTK.view(B, H, T, K), dv_NTK.view(B, H, T, K), None


def _query_blocks(tokens: int) -> list[tuple[int, int]]:
    return [(start, min(start + QUERY_BLOCK, tokens)) for start in range(0, tokens, QUERY_BLOCK)]


def rotary_tables(config: ModelConfig, start: int, end: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Tables cos_TR, sin_TR for the positions start..end-1, computed in fp32, in the device and dtype of `like`."""
    device, dtype = like.device, like.dtype
    exponent_R = torch.arange(0, config.rotary_dim, 2, dtype=torch.float32, device=device) / config.rotary_dim
    frequencies_R = _scaled(1.0 / (config.rope_theta**exponent_R), config.rope_scaling)
    positions_T = torch.arange(start, end, dtype=torch.float32, device=device)
    angles_TR = positions_T[:, None] * frequencies_R
    return angles_TR.cos().to(dtype), angles_TR.sin().to(dtype)


def _scaled(frequencies_R: Tensor, scaling: Mapping[str, Any] | None) -> Tensor:
    """Frequencies for contexts longer than those first trained on. `linear` divides all of them (arXiv 2306.15595);
    `llama3` those whose wave is long against the old context, with a ramp between (Llama 3.1, arXiv 2407.21783)."""
    if scaling is None:
        return frequencies_R
    slow_R = frequencies_R / scaling["factor"]
    if scaling["rope_type"] == "linear":
        return slow_R
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    waves_R = scaling["original_max_position_embeddings"] * frequencies_R / (2 * math.pi)  # in the old context
    share_R = ((waves_R - low) / (high - low)).clamp(0, 1)
    return (1 - share_R) * slow_R + share_R * frequencies_R


def rotate(x_BHTK: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
    """Rotates coordinate pairs (i, i + R), i < R; the coordinates from 2R on pass through. Contiguous result."""
    return _Rotate.apply(x_BHTK, cos_TR, sin_TR)  # type: ignore[no-any-return]


class _Rotate(torch.autograd.Function):
    """By hand because autograd through slices and cat keeps and fills several tensors of the input's size."""

    @staticmethod
    def forward(ctx: Any, x_BHTK: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
        ctx.save_for_backward(cos_TR, sin_TR)
        return _rotated(x_BHTK, cos_TR, sin_TR, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos_TR, sin_TR = ctx.saved_tensors
        return _rotated(grads[0], cos_TR, sin_TR, -1), None, None  # the transpose of a rotation turns back


def _rotated(x_BHTK: Tensor, cos_TR: Tensor, sin_TR: Tensor, sign: int) -> Tensor:
    if cpu_kernels.usable(x_BHTK):
        return cpu_kernels.rotate(x_BHTK, cos_TR, sin_TR, sign)
    half, sin_TR = cos_TR.shape[-1], sign * sin_TR
    y_BHTK = x_BHTK.clone(memory_format=torch.contiguous_format)
    first, second = x_BHTK[..., :half], x_BHTK[..., half : 2 * half]
    y_BHTK[..., :half] = torch.addcmul(first * cos_TR, second, sin_TR, value=-1)
    y_BHTK[..., half : 2 * half] = torch.addcmul(second * cos_TR, first, sin_TR)
    return y_BHTK
