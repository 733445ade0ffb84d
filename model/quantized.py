"""Block-wise quantized tensors for optimizer states: 8 or 4 bits a value and one fp32 scale a block.

In: fp32 values. Out: codes (uint8; two 4-bit codes share a byte) and scales. A value is divided by the largest
magnitude of its block and takes the nearest entry of a fixed codebook. Codebooks: dynamic tree quantization (8-bit
optimizers, arXiv 2110.02861), whose entries are denser near 0; the 4-bit second moment takes 1/16..16/16 without a 0,
because a moment rounded to 0 makes the step explode (4-bit optimizers, arXiv 2309.01507).
Letters: M values, S blocks, Q values of a block.
"""

from itertools import pairwise

import torch
from torch import Tensor

LEAST_SECOND_MOMENT = 1e-7  # of the block's largest, instead of 0: see the 4-bit case
BLOCK_VALUES = {8: 256, 4: 128}  # of the two papers: 1.6% and 6% more bytes for the scales


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

    def quantize(self, values_M: Tensor) -> tuple[Tensor, Tensor]:
        """(codes, scales_S) of a flat fp32 tensor; its last block may be short. Codes: uint8, two a byte in 4 bits."""
        count = values_M.numel()
        if count % self.block:
            values_M = torch.nn.functional.pad(values_M, (0, -count % self.block))
        values_SQ = values_M.view(-1, self.block)
        scales_S = values_SQ.abs().amax(1)
        normal_SQ = values_SQ / scales_S.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
        codes_M = torch.bucketize(normal_SQ.flatten(), self.borders, out_int32=True).to(torch.uint8)
        if self.bits == 8:
            return codes_M[:count], scales_S
        codes_M = codes_M[: count + count % 2]
        return codes_M[::2] | codes_M[1::2] << 4, scales_S

    def dequantize(self, codes: Tensor, scales_S: Tensor, count: int) -> Tensor:
        """The flat fp32 values of `quantize`, `count` of them."""
        if self.bits == 4:
            codes = torch.stack((codes & 15, codes >> 4), 1).flatten()
        values_M = self.book[codes[:count].int()]
        if count % self.block:
            return values_M * scales_S.repeat_interleave(self.block, output_size=len(scales_S) * self.block)[:count]
        return (values_M.view(-1, self.block) * scales_S[:, None]).flatten()
