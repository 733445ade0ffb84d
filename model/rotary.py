"""Rotary position embedding on the first coordinates of each head (arXiv 2104.09864; partial, as in Phi).

In: queries or keys. Out: the same, rotated by position. The tables are made in fp32 and never stored in the module, so
that neither a cast of the network to bf16 nor a build on the meta device can spoil them; transformers does the same.
Letters: B batch, H heads, T tokens, K head size, R half of the rotary size.
"""

from typing import Any

import torch
from torch import Tensor

from model import cpu_kernels
from model.config import ModelConfig


def rotary_tables(config: ModelConfig, start: int, end: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Tables cos_TR, sin_TR for the positions start..end-1, computed in fp32, in the device and dtype of `like`."""
    device, dtype = like.device, like.dtype
    exponent_R = torch.arange(0, config.rotary_dim, 2, dtype=torch.float32, device=device) / config.rotary_dim
    frequencies_R = 1.0 / (config.rope_theta**exponent_R)
    positions_T = torch.arange(start, end, dtype=torch.float32, device=device)
    angles_TR = positions_T[:, None] * frequencies_R
    return angles_TR.cos().to(dtype), angles_TR.sin().to(dtype)


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
