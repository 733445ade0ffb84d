"""The few tensor operations that growth methods are made of; each says in a few words what it does.

In: a source tensor (private to the operation, so steps may work in place). Out: the grown tensor.
"The stream" is the residual stream, of width d in the source and D in the target.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from model.growth.rules import Draw

Fill = Literal["zero", "random", "mean"]


class Step(Protocol):
    """One tensor to one tensor."""

    def describe(self) -> str: ...

    def __call__(self, x: Tensor, draw: Draw) -> Tensor: ...


@dataclass(frozen=True)
class Chain:
    """The steps in order; without steps a plain copy."""

    steps: tuple[Step, ...] = ()

    def describe(self) -> str:
        return ", ".join(step.describe() for step in self.steps) or "copy"

    def __call__(self, sources: list[Tensor], draw: Draw) -> Tensor:
        (x,) = sources
        sources.clear()  # frees what a step replaces: the embedding of a large model is half a gigabyte
        for step in self.steps:
            x = step(x, draw)
        return x


@dataclass(frozen=True)
class Constant:
    """A tensor that takes nothing from the source."""

    shape: tuple[int, ...]
    value: float
    reason: str

    def describe(self) -> str:
        return f"all {self.value:g} ({self.reason})"

    def __call__(self, sources: list[Tensor], draw: Draw) -> Tensor:
        return draw.normal(self.shape, std=0.0).fill_(self.value)


@dataclass(frozen=True)
class Normal:
    """Fresh random values."""

    shape: tuple[int, ...]
    std: float

    def describe(self) -> str:
        return f"random, std {self.std:.4g}"

    def __call__(self, sources: list[Tensor], draw: Draw) -> Tensor:
        return draw.normal(self.shape, std=self.std)


@dataclass(frozen=True)
class Scale:
    """Times a factor."""

    factor: float
    reason: str

    def describe(self) -> str:
        return f"x {self.factor:.6g} ({self.reason})"

    def __call__(self, x: Tensor, draw: Draw) -> Tensor:
        return x.mul_(self.factor)


@dataclass(frozen=True)
class Centre:
    """Minus its mean over the stream."""

    axis: int

    def describe(self) -> str:
        return f"minus mean over axis {self.axis}"

    def __call__(self, x: Tensor, draw: Draw) -> Tensor:
        return x.sub_(x.mean(self.axis, keepdim=True))


@dataclass(frozen=True)
class Tile:
    """Whole copies one after the other."""

    axis: int
    copies: int

    def describe(self) -> str:
        return f"{self.copies} copies along axis {self.axis}"

    def __call__(self, x: Tensor, draw: Draw) -> Tensor:
        return torch.cat([x] * self.copies, self.axis)


@dataclass(frozen=True)
class Share:
    """Copies that sum to the original: each 1/copies of it, plus noise that sums to zero over the copies.

    The copies read equal inputs, so the noise changes nothing now, and lets their gradients part later.
    """

    axis: int
    copies: int
    noise: float

    def describe(self) -> str:
        return f"{self.copies} shares along axis {self.axis} (noise {self.noise:g} of its std, cancelling)"

    def __call__(self, x: Tensor, draw: Draw) -> Tensor:
        noise = draw.normal((self.copies, *x.shape), std=self.noise * draw.std)
        noise.sub_(noise.mean(0, keepdim=True))
        return torch.cat([x / self.copies + part for part in noise], self.axis)


@dataclass(frozen=True)
class Pad:
    """Filled up at the end to a larger size."""

    axis: int
    size: int
    fill: Fill

    def describe(self) -> str:
        return f"axis {self.axis} filled up to {self.size} with {_words(self.fill)}"

    def __call__(self, x: Tensor, draw: Draw) -> Tensor:
        return _pad(x, self.axis, self.size, self.fill, draw)


@dataclass(frozen=True)
class GrowHeads:
    """Heads along an axis: from (groups, heads per group, head size) to a larger such layout.

    A target group has `after[1]` heads; where a source group has more, it is spread over `copies` target groups (the
    queries are dealt out, keys and values repeated: `repeat=True`). New coordinates go behind the old ones of a head,
    new heads behind the old ones of a group, new groups last, so that old rotary coordinates stay where they were.
    """

    axis: int
    before: tuple[int, int, int]
    after: tuple[int, int, int]
    copies: int
    repeat: bool
    new_coordinates: Fill
    new_heads: Fill

    def describe(self) -> str:
        layout = f"axis {self.axis} as groups x heads x size {'x'.join(map(str, self.before))}"
        repeated = f", groups repeated {self.copies} times" if self.copies > 1 and self.repeat else ""
        fills = f"new coordinates {_words(self.new_coordinates)}, new heads {_words(self.new_heads)}"
        return f"{layout} -> {'x'.join(map(str, self.after))}{repeated} ({fills})"

    def __call__(self, x: Tensor, draw: Draw) -> Tensor:
        groups, heads, size = self.after
        x = x.unflatten(self.axis, self.before)
        x = _pad(x, self.axis + 2, size, self.new_coordinates, draw)
        if self.repeat:
            x = x.repeat_interleave(self.copies, self.axis)
        else:
            x = _pad(x, self.axis + 1, self.copies * heads, self.new_heads, draw)
            x = x.flatten(self.axis, self.axis + 1).unflatten(self.axis, (-1, heads))
        return _pad(x, self.axis, groups, self.new_heads, draw).flatten(self.axis, self.axis + 2)


def _pad(x: Tensor, axis: int, size: int, fill: Fill, draw: Draw) -> Tensor:
    if x.shape[axis] == size:
        return x
    old = x.shape[axis]
    grown = x.new_zeros([*x.shape[:axis], size, *x.shape[axis + 1 :]])
    grown.narrow(axis, 0, old).copy_(x)
    rim = grown.narrow(axis, old, size - old)
    if fill == "random":
        rim.copy_(draw.normal(rim.shape))
    elif fill == "mean":
        rim.copy_(x.mean(axis, keepdim=True).expand_as(rim))
    return grown


def _words(fill: Fill) -> str:
    return {"zero": "zeros", "random": "random values of its std", "mean": "its mean"}[fill]
