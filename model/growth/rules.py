"""What a growth method is, and the one writer that applies any of them.

In: two shapes; then the source's tensors. Out: a list of rules, which can be printed before anything is read; then the
grown tensors, one at a time. A rule says how one target tensor comes from source tensors. Randomness depends on the
seed and the target's name only, so neither the order nor the dtype of the arithmetic changes what is drawn.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from model.config import ModelConfig
from model.initialization import tensor_generator


class GrowthRefused(ValueError):
    """The method cannot do what is asked (for `exact`: not without changing the function); the message names why."""


class Draw:
    """Normal noise for one target tensor, scaled to its source: drawn in fp32, so fp64 growth has the same noise."""

    def __init__(self, seed: int, name: str, std: float, dtype: torch.dtype) -> None:
        self.std, self._dtype = std, dtype
        self._generator = tensor_generator(seed, name)

    def normal(self, shape: Sequence[int], std: float | None = None) -> Tensor:
        """N(0, std^2); `std=None` takes that of the source tensor."""
        noise = torch.randn(tuple(shape), generator=self._generator)
        return noise.to(self._dtype).mul_(self.std if std is None else std)


class Operation(Protocol):
    """Makes one target tensor from its sources, which are the operation's own copies and may be overwritten."""

    def describe(self) -> str: ...

    def __call__(self, sources: list[Tensor], draw: Draw) -> Tensor: ...


@dataclass(frozen=True)
class Rule:
    """One target tensor: its name and shape, the source tensors it is made from, and how."""

    target: str
    shape: tuple[int, ...]
    sources: tuple[str, ...]
    operation: Operation

    def describe(self) -> str:
        """One line: name, shape, sources, operation."""
        origin = " + ".join(self.sources) or "nothing"
        return f"{self.target} {list(self.shape)} <- {origin}: {self.operation.describe()}"


def apply(
    rules: Sequence[Rule], source_state: Mapping[str, Tensor], seed: int, dtype: torch.dtype = torch.float32
) -> Iterator[tuple[str, Tensor]]:
    """Yields (target name, tensor in `dtype`) in the order of the rules; one source tensor is in memory at a time.

    The arithmetic runs in `dtype`: fp32, or fp64 where the exactness itself is to be seen.
    """
    for rule in rules:
        sources = [source_state[name].detach().to("cpu", dtype, copy=True) for name in rule.sources]
        std = float(sources[0].std(correction=0)) if sources else 0.0
        tensor = rule.operation(sources, Draw(seed, rule.target, std, dtype))
        if tuple(tensor.shape) != rule.shape:
            raise AssertionError(f"the rule makes {tuple(tensor.shape)}: {rule.describe()}")
        del sources
        yield rule.target, tensor


class GrowthMethod:
    """A named function (source, target, **options) -> rules, with what the pipeline must know about it.

    Calling it checks both shapes first. `inspect.signature` and the docstring are the function's own.
    """

    def __init__(self, function: Callable[..., list[Rule]], claims_exact: bool, needs_source: bool) -> None:
        functools.update_wrapper(self, function)
        self.function, self.claims_exact, self.needs_source = function, claims_exact, needs_source

    def __call__(self, source: ModelConfig | None, target: ModelConfig, **options: Any) -> list[Rule]:
        """The rules that make `target`'s tensors, in `target.tensor_shapes()` order. Raises `GrowthRefused`."""
        if source is None and self.needs_source:
            raise GrowthRefused("this method starts from a smaller model; set init.source, or init.method=random.")
        if source is not None:
            source.validate()
        rules = {rule.target: rule for rule in self.function(source, target.validate(), **options)}
        return [rules[name] for name in target.tensor_shapes()]

    @property
    def options(self) -> dict[str, Any]:
        """Option names and their defaults."""
        parameters = list(inspect.signature(self.function).parameters.values())[2:]
        return {parameter.name: parameter.default for parameter in parameters}


def growth_method(claims_exact: bool, needs_source: bool = True) -> Callable[[Callable[..., list[Rule]]], GrowthMethod]:
    """Marks a function as a growth method; `claims_exact` makes the gate hold it to its tolerance."""
    return lambda function: GrowthMethod(function, claims_exact, needs_source)
