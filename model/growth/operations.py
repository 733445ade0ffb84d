"""The few tensor operations that growth methods are made of; each says in a few words what it does.

In: a source tensor (private to the operation, so steps may work in place). Out: the grown tensor.
"The stream" is the residual stream, of width d in the source and D in the target. Operations on heads: heads.py.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from model.growth.rules import Draw

Fill = Literal["zero", "random", "mean"]


class Step(Protocol):
    """One tensor to one tensor. `axis` is the one it changes or sums over; None: every element for itself."""

    @property
    def axis(self) -> int | None: ...

    def describe(self) -> str: ...

    def __call__(self, x: Tensor, draw: Draw) -> Tensor: ...


@dataclass(frozen=True)
class Chain:
    """The steps in order; without steps a plain copy."""

    steps: tuple[Step, ...] = ()

    @property
    def by_rows(self) -> bool:
        return all(step.axis != 0 for step in self.steps)

    def describe(self) -> str:
        return ", ".join(step.describe() for step in self.steps) or "copy"

    def __call__(self, sources: list[Tensor], draw: Draw) -> Tensor:
        (x,) = sources
        sources.clear()  # frees what a step replaces
        for step in self.steps:
            x = step(x, draw)
        return x


@dataclass(frozen=True)
class Constant:
    """A tensor that takes nothing from the source."""

    shape: tuple[int, ...]
    value: float
    reason: str
    by_rows = False

    def describe(self) -> str:
        return f"all {self.value:g} ({self.reason})"

    def __call__(self, sources: list[Tensor], draw: Draw) -> Tensor:
        return draw.constant(self.shape, self.value)


@dataclass(frozen=True)
class Normal:
    """Fresh random values."""

    shape: tuple[int, ...]
    std: float
    by_rows = False

    def describe(self) -> str:
        return f"random, std {self.std:.4g}"

    def __call__(self, sources: list[Tensor], draw: Draw) -> Tensor:
        return draw.normal(self.shape, std=self.std)


@dataclass(frozen=True)
class Scale:
    """Times a factor."""

    factor: float
    reason: str
    axis = None

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
class Repeat:
    """From the first again until the axis has `size`: for a whole multiple, copies one after the other."""

    axis: int
    size: int

    def describe(self) -> str:
        return f"axis {self.axis} repeated up to {self.size}"

    def __call__(self, x: Tensor, draw: Draw) -> Tensor:
        return x.index_select(self.axis, torch.arange(self.size) % x.shape[self.axis])


@dataclass(frozen=True)
class Share:
    """The counterpart of `Repeat` for what reads the copies: shares that sum to the original.

    The copies are equal, so the noise between their shares changes nothing now, and lets their gradients part later.
    """

    axis: int
    size: int
    noise: float

    def describe(self) -> str:
        return f"axis {self.axis} shared among copies up to {self.size} (noise {self.noise:g} std, cancelling)"

    def __call__(self, x: Tensor, draw: Draw) -> Tensor:
        return share(x, self.axis, torch.arange(self.size) % x.shape[self.axis], self.noise, draw)


@dataclass(frozen=True)
class Pad:
    """Filled up at the end to a larger size."""

    axis: int
    size: int
    fill: Fill

    def describe(self) -> str:
        return f"axis {self.axis} filled up to {self.size} with {in_words(self.fill)}"

    def __call__(self, x: Tensor, draw: Draw) -> Tensor:
        old = x.shape[self.axis]
        grown = x.new_empty([*x.shape[: self.axis], self.size, *x.shape[self.axis + 1 :]])
        grown.narrow(self.axis, 0, old).copy_(x)
        rim = grown.narrow(self.axis, old, self.size - old)
        if self.fill == "mean":
            rim.copy_(x.mean(self.axis, keepdim=True).expand_as(rim))
        else:
            fill(rim, self.fill, draw)
        return grown


@dataclass(frozen=True)
class Wrap:
    """In the middle of a larger axis, the rim continued from the other end; a smaller axis keeps the middle."""

    axis: int
    size: int

    def describe(self) -> str:
        return f"axis {self.axis} centred in {self.size}, rim wrapped around"

    def __call__(self, x: Tensor, draw: Draw) -> Tensor:
        return x.index_select(self.axis, torch.tensor(wrapped(x.shape[self.axis], self.size)))


def wrapped(old: int, new: int) -> list[int]:
    """For each of `new` places the one of `old` that `Wrap` puts there."""
    offset = (new - old) // 2
    return [(place - offset) % old for place in range(new)]


def share(x: Tensor, axis: int, origins: Tensor, noise_share: float, draw: Draw) -> Tensor:
    """x at `origins` along `axis`, each divided by how often it is taken, plus noise that sums to 0 over the copies.

    The noise of each of k copies has std `noise_share` * std / sqrt(k): the weights' usual size at k times the inputs,
    so that in bf16 the sum over the copies is not rounded more coarsely than the original.
    """
    column = [-1 if dimension == axis else 1 for dimension in range(x.ndim)]
    counts = torch.bincount(origins, minlength=x.shape[axis]).clamp(min=1).to(x.dtype).view(column)
    grown = (x / counts).index_select(axis, origins)
    noise = draw.normal(grown.shape, std=noise_share * draw.std).div_(counts.sqrt().index_select(axis, origins))
    mean = torch.zeros_like(x).index_add_(axis, origins, noise).div_(counts)
    return grown.add_(noise.sub_(mean.index_select(axis, origins)))  # in this order a single copy gets exactly 0


def fill(new: Tensor, kind: Fill, draw: Draw) -> None:
    """Writes zeros or random values of the source's std into a part of a tensor."""
    new.copy_(draw.normal(new.shape)) if kind == "random" else new.zero_()


def in_words(fill: Fill) -> str:
    return {"zero": "zeros", "random": "random values of its std", "mean": "its mean"}[fill]
