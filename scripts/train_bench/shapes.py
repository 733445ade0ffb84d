"""The two shapes every arm trains, and the windows it trains on: the same for all."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

VOCAB_SIZE, ROTARY_SHARE = 8192, 0.5
POOL_STEPS = 16  # the windows of so many steps, over and over: no arm waits for text
LEARNING_RATE, WEIGHT_DECAY, CLIP_NORM = 1e-3, 0.1, 1.0


@dataclass(frozen=True)
class Shape:
    """A Phi-shaped decoder (untied head, biases, MLP of 4 x hidden) and a step of `windows` x `tokens`."""

    layers: int
    hidden: int
    heads: int
    windows: int
    tokens: int
    vocab_size: int = VOCAB_SIZE

    @property
    def step_tokens(self) -> int:
        return self.windows * self.tokens


SHAPES = {
    "S": Shape(layers=4, hidden=192, heads=3, windows=8, tokens=256),  # 4.9M parameters
    "M": Shape(layers=8, hidden=384, heads=6, windows=4, tokens=512),  # 20.5M
    "W": Shape(layers=2, hidden=1024, heads=16, windows=2, tokens=1024, vocab_size=1024),  # 27M, wide
    "toy": Shape(layers=2, hidden=64, heads=2, windows=1, tokens=64, vocab_size=512),  # a step of milliseconds
}


def pool(shape: Shape) -> Tensor:
    """Windows of `tokens` + 1 ids [POOL_STEPS * windows, T + 1]: frequent tokens come often, as in text."""
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(POOL_STEPS * shape.windows, shape.tokens + 1, generator=generator)
    return (shape.vocab_size**uniform - 1).long().clamp_(0, shape.vocab_size - 1)


def batches(shape: Shape) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and labels [B, T] of one step after another, without end."""
    steps = pool(shape).split(shape.windows)
    while True:
        for window in steps:
            yield window[:, :-1].contiguous(), window[:, 1:].contiguous()
