"""The few tensor operations that growth methods are made of; each says in a few words what it does.

In: a source tensor (private to the operation, so steps may work in place). Out: the grown tensor.
"The stream" is the residual stream, of width d in the source and D in the target. In the operations on heads an axis
holds heads one after the other (rows of q, k, v and their biases, columns of dense); a head's coordinates are its
rotary pairs (i, i + R/2), i < R/2, then those that pass through; R is the rotary size.
"""

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from model.config import ModelConfig
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


@dataclass(frozen=True)
class CentreHeads:
    """Minus its mean over the coordinates of each head."""

    axis: int
    size: int

    def describe(self) -> str:
        return f"minus mean over each head of {self.size}"

    def __call__(self, x: Tensor, draw: Draw) -> Tensor:
        x = x.unflatten(self.axis, (-1, self.size))
        return x.sub_(x.mean(self.axis + 1, keepdim=True)).flatten(self.axis, self.axis + 1)


@dataclass(frozen=True)
class GrowHeadSize:
    """Old coordinates go to `places` in each larger head; the others are filled, if random with std `std`."""

    axis: int
    size: int
    places: tuple[int, ...]
    fill: Fill
    std: float | None = None

    def describe(self) -> str:
        moved = "" if self.places == tuple(range(len(self.places))) else f", old ones at {_ranges(self.places)}"
        words = in_words(self.fill) if self.std is None else f"random values, std {self.std:g}"
        return f"heads of {len(self.places)} along axis {self.axis} filled up to {self.size} with {words}{moved}"

    def __call__(self, x: Tensor, draw: Draw) -> Tensor:
        x = x.unflatten(self.axis, (-1, len(self.places)))
        axis = self.axis + 1
        grown = x.new_empty([*x.shape[:axis], self.size, *x.shape[axis + 1 :]])
        new = torch.tensor(sorted(set(range(self.size)) - set(self.places)), dtype=torch.long)
        if self.fill == "random":
            rim = draw.normal([*x.shape[:axis], len(new), *x.shape[axis + 1 :]], self.std)
            grown.index_copy_(axis, new, rim)
        elif self.fill == "mean":
            grown.copy_(x.mean(axis, keepdim=True).expand_as(grown))
        else:
            grown.zero_()
        return grown.index_copy_(axis, torch.tensor(self.places), x).flatten(self.axis, axis)


@dataclass(frozen=True)
class GrowHeadCount:
    """From (groups, heads in each) to a larger such layout: the target's heads hold those of the source, or are new.

    Where a target group holds fewer heads than a source group, that one is spread over several: queries are dealt out,
    keys and values (`keys=True`, one head a group) repeated. New heads lie behind the old ones of a group, new groups
    last. `new`: zeros, random, a copy of an old head, or a share of it (columns of dense, when the head is copied).
    """

    axis: int
    size: int
    before: tuple[int, int]
    after: tuple[int, int]
    keys: bool
    new: Literal["zero", "random", "copy", "share"]
    noise: float = 0.0

    def describe(self) -> str:
        kind = "key-value heads" if self.keys else "heads"
        words = {"copy": "copies", "share": f"shares of the copied ones (noise {self.noise:g}, cancelling)"}
        layout = f"{self.before[0]}x{self.before[1]} -> {self.after[0]}x{self.after[1]}"
        return f"{kind} along axis {self.axis} {layout}, new ones {words.get(self.new) or in_words(self.new)}"  # type: ignore[arg-type]

    def __call__(self, x: Tensor, draw: Draw) -> Tensor:
        found = head_origins(self.before, self.after, self.keys)
        origins = torch.tensor([origin for origin, _ in found])
        x = x.unflatten(self.axis, (-1, self.size))
        if self.new == "share":
            return share(x, self.axis, origins, self.noise, draw).flatten(self.axis, self.axis + 1)
        grown = x.index_select(self.axis, origins)
        if self.new != "copy":
            new = torch.tensor([place for place, (_, is_new) in enumerate(found) if is_new], dtype=torch.long)
            rim = grown.index_select(self.axis, new)
            fill(rim, self.new, draw)
            grown.index_copy_(self.axis, new, rim)
        return grown.flatten(self.axis, self.axis + 1)


def spread(before: tuple[int, int], after: tuple[int, int]) -> int:
    """Over how many target groups the heads of one source group are dealt out."""
    return math.ceil(before[1] / after[1])


def head_origins(before: tuple[int, int], after: tuple[int, int], keys: bool) -> list[tuple[int, bool]]:
    """For each target head (each group's key-value head, if `keys`): a source head, and whether it is new.

    A new head's source head is one that it could copy without changing the function: of a group with the same keys.
    """
    (groups, heads), (new_groups, new_heads) = before, after
    parts = spread(before, after)
    origins = []
    for target_group in range(new_groups):
        new_group = target_group >= groups * parts
        group, part = ((target_group - groups * parts) % groups, 0) if new_group else divmod(target_group, parts)
        if keys:
            origins.append((group, new_group))
            continue
        for place in range(part * new_heads, (part + 1) * new_heads):
            origins.append((group * heads + place % heads, new_group or place >= heads))
    return origins


def coordinate_places(source: ModelConfig, target: ModelConfig) -> tuple[int, ...]:
    """Where each coordinate of a source head goes in a target head of queries or keys.

    Rotary pairs keep their angles: with the same base and an m times larger rotary size old pair j is new pair m * j,
    with the base that `matching_theta` gives the old pairs stay first.
    """
    old, new = source.rotary_dim // 2, target.rotary_dim // 2
    stride = new // old if target.rope_theta == source.rope_theta and new % old == 0 else 1
    pairs = [stride * pair for pair in range(old)]
    passing = range(source.head_size - source.rotary_dim)
    return tuple(pairs + [new + pair for pair in pairs] + [target.rotary_dim + place for place in passing])


def matching_theta(source: ModelConfig, rotary_dim: int) -> float:
    """The base with which a rotary embedding of `rotary_dim` begins with the source's frequencies."""
    return source.rope_theta ** (rotary_dim / source.rotary_dim)


@dataclass(frozen=True)
class WrapHeads:
    """Heads (and groups of them) centred among more, the rim wrapped around; inside each head the rotary pairs stay
    first and wrap among themselves, and so do the coordinates that pass through."""

    axis: int
    before: tuple[int, int, int, int]
    """Groups, heads in each, head size, rotary size."""
    after: tuple[int, int, int, int]

    def describe(self) -> str:
        before, after = ("x".join(map(str, layout[:3])) for layout in (self.before, self.after))
        return f"heads along axis {self.axis} {before} -> {after}, centred and wrapped around, pairs apart"

    def __call__(self, x: Tensor, draw: Draw) -> Tensor:
        groups, heads, size, rotary = self.before
        coordinates = _wrapped_coordinates(size, rotary, *self.after[2:])
        index = [
            (group * heads + head) * size + coordinate
            for group in wrapped(groups, self.after[0])
            for head in wrapped(heads, self.after[1])
            for coordinate in coordinates
        ]
        return x.index_select(self.axis, torch.tensor(index))


def _wrapped_coordinates(size: int, rotary: int, new_size: int, new_rotary: int) -> list[int]:
    pairs = [pair % (rotary // 2) for pair in range(new_rotary // 2)]
    passing = range(rotary, size) or range(size)  # a head that rotates as a whole has nothing else to continue
    rest = [passing[place] for place in wrapped(len(passing), new_size - new_rotary)]
    return pairs + [rotary // 2 + pair for pair in pairs] + rest


def _ranges(places: tuple[int, ...]) -> str:
    """0 1 2 5 6 as 0-2 5-6."""
    starts = [place for index, place in enumerate(places) if index == 0 or places[index - 1] != place - 1]
    ends = [place for index, place in enumerate(places) if index + 1 == len(places) or places[index + 1] != place + 1]
    return " ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))
