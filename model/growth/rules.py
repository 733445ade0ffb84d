"""What a growth method is, and the one engine that applies any of them.

In: two shapes; then the source's tensors. Out: a list of rules, which can be printed before anything is read; then the
grown tensors, in pieces small enough that a model larger than memory can be grown. A rule says how one target tensor
comes from source tensors. Randomness depends on the seed and the target's name only, so neither the order nor the dtype
of the arithmetic changes what is drawn.
"""

import functools
import inspect
import itertools
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from model.config import ModelConfig
from model.transformer import tensor_generator

PIECE_ELEMENTS = 1 << 24  # of a source tensor, 64 MiB in fp32: the embedding of phi-1.5 goes through in 7 pieces
TESTED_RATIO = 4.0  # parameters; above it papers find no gain or a loss


class GrowthRefused(ValueError):
    """The method cannot do what is asked (for `exact`: not without changing the function); the message names why."""


class Draw:
    """Normal noise for one target tensor, scaled to its source: drawn in fp32, so fp64 growth has the same noise."""

    def __init__(self, seed: int, name: str, source: Tensor | None, dtype: torch.dtype) -> None:
        self._source, self._dtype = source, dtype
        self._generator = tensor_generator(seed, name)

    @functools.cached_property
    def std(self) -> float:
        """Standard deviation of the source tensor; 0 without one. Read in pieces, and only if something is drawn."""
        if self._source is None:
            return 0.0
        total = torch.zeros(2, dtype=torch.float64)
        for start, end in row_pieces(self._source.shape):
            part = self._source[start:end].float()
            total += torch.stack([part.sum(dtype=torch.float64), part.square().sum(dtype=torch.float64)])
        mean, square = (total / self._source.numel()).tolist()
        return max(0.0, square - mean**2) ** 0.5

    def normal(self, shape: Sequence[int], std: float | None = None) -> Tensor:
        """N(0, std^2); `std=None` takes that of the source tensor."""
        noise = torch.randn(tuple(shape), generator=self._generator)
        return noise.to(self._dtype).mul_(self.std if std is None else std)

    def constant(self, shape: Sequence[int], value: float) -> Tensor:
        """No noise at all, in the dtype of the arithmetic."""
        return torch.full(tuple(shape), value, dtype=self._dtype)


class Operation(Protocol):
    """Makes one target tensor from its sources, which are the operation's own copies and may be overwritten."""

    @property
    def by_rows(self) -> bool:
        """Whether rows of the result come from the same rows of the sources, so that pieces can be grown one by one."""
        ...

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


def stream(
    rules: Sequence[Rule], source_state: Mapping[str, Tensor], seed: int, dtype: torch.dtype = torch.float32
) -> Iterator[tuple[str, Tensor]]:
    """Yields (target name, rows in `dtype`) in the order of the rules, large tensors in several pieces of rows.

    The arithmetic runs in `dtype`: fp32, or fp64 where the exactness itself is to be seen. `hf.save_folder` takes the
    pieces as they come, so private memory stays at a few of the largest blocks' tensors, whatever the model's size.
    """
    for rule in rules:
        sources = [source_state[name].detach() for name in rule.sources]
        draw = Draw(seed, rule.target, sources[0] if sources else None, dtype)
        by_rows = bool(sources) and rule.operation.by_rows
        rows = 0
        for start, end in row_pieces(sources[0].shape) if by_rows else [(0, None)]:
            piece = rule.operation([x[start:end].to("cpu", dtype, copy=True) for x in sources], draw)
            rows += piece.shape[0]
            yield rule.target, piece
        if (rows, *piece.shape[1:]) != rule.shape:
            raise AssertionError(f"the rule makes {(rows, *piece.shape[1:])}: {rule.describe()}")


def apply(
    rules: Sequence[Rule], source_state: Mapping[str, Tensor], seed: int, dtype: torch.dtype = torch.float32
) -> Iterator[tuple[str, Tensor]]:
    """As `stream`, but yields every tensor whole: for networks that are grown in memory."""
    pieces = stream(rules, source_state, seed, dtype)
    for name, group in itertools.groupby(pieces, key=lambda item: item[0]):
        rows = [piece for _, piece in group]
        yield name, rows[0] if len(rows) == 1 else torch.cat(rows)


def row_pieces(shape: Sequence[int]) -> list[tuple[int, int]]:
    """Ranges of rows of about `PIECE_ELEMENTS` elements. Part of what is drawn: a new size means new noise."""
    columns = max(1, torch.Size(shape[1:]).numel())
    step = max(1, PIECE_ELEMENTS // columns)
    return [(start, min(start + step, shape[0])) for start in range(0, shape[0], step)]


class GrowthMethod:
    """A named function (source, target, **options) -> rules, with what the pipeline must know about it.

    Calling it checks both shapes and the options first. `inspect.signature` and the docstring are the function's own.
    """

    def __init__(
        self, function: Callable[..., list[Rule]], claims_exact: bool | Callable[..., bool], needs_source: bool
    ) -> None:
        functools.update_wrapper(self, function)
        self.function, self.needs_source = function, needs_source
        self._claims_exact = claims_exact

    def __call__(self, source: ModelConfig | None, target: ModelConfig, **options: Any) -> list[Rule]:
        """The rules that make `target`'s tensors, in `target.tensor_shapes()` order. Raises `GrowthRefused`."""
        if source is None and self.needs_source:
            raise GrowthRefused("this method starts from a smaller model; set init.source, or init.method=random.")
        if source is not None:
            source.validate()
        self._check(options)
        rules = {rule.target: rule for rule in self.function(source, target.validate(), **options)}
        return [rules[name] for name in target.tensor_shapes()]

    def claims_exact(self, **options: Any) -> bool:
        """Whether the method, with these options, promises the source's function; the gate then holds it to that."""
        if isinstance(self._claims_exact, bool):
            return self._claims_exact
        return self._claims_exact(**{**self.options, **options})

    @property
    def options(self) -> dict[str, Any]:
        """Option names and their defaults."""
        parameters = list(inspect.signature(self.function).parameters.values())[2:]
        return {parameter.name: parameter.default for parameter in parameters}

    def _check(self, options: Mapping[str, Any]) -> None:
        hints = typing.get_type_hints(self.function)
        for name, value in options.items():
            if name not in self.options:
                raise GrowthRefused(f"init.options.{name} is unknown here; known: {', '.join(self.options) or 'none'}.")
            if (choices := typing.get_args(hints[name])) and value not in choices:
                raise GrowthRefused(f"init.options.{name} is {value!r}; it must be one of: {', '.join(choices)}.")
            if hints[name] is bool and not isinstance(value, bool):
                raise GrowthRefused(f"init.options.{name} is {value!r}; it must be true or false.")
            if hints[name] is float and not (isinstance(value, int | float) and value >= 0):
                raise GrowthRefused(f"init.options.{name} is {value!r}; it must be a number, 0 or more.")


def growth_method(
    claims_exact: bool | Callable[..., bool], needs_source: bool = True
) -> Callable[[Callable[..., list[Rule]]], GrowthMethod]:
    """Marks a function as a growth method; `claims_exact` (of its options, where it depends on them) binds the gate."""
    return lambda function: GrowthMethod(function, claims_exact, needs_source)


def cautions(source: ModelConfig, target: ModelConfig) -> list[str]:
    """What to tell the user before growing: allowed, but outside of what was found to pay."""
    ratio = target.parameters / source.parameters
    if ratio <= TESTED_RATIO:
        return []
    return [
        f"the target has {ratio:.1f} times the source's parameters; growth paid most reliably around x2, and above "
        f"x{TESTED_RATIO:g} a fresh start may be as good: a model in between, grown twice, is the safer way."
    ]


def tensor_map(rules: Sequence[Rule], source: ModelConfig | None) -> list[str]:
    """The whole map as aligned lines, a header first: target tensor, what it comes from, its new shape, the rule."""
    shapes = source.tensor_shapes() if source else {}
    rows = [("name", "from", "to", "rule")]
    for rule in rules:
        origin = " + ".join(f"{name} {_by(shapes[name])}" for name in rule.sources) or "-"
        rows.append((rule.target, origin, _by(rule.shape), rule.operation.describe()))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]) for row in rows]


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


# Which source block each target block comes from: three maps, one source index per target block.


def interleaved(source_blocks: int, target_blocks: int) -> list[tuple[int, bool]]:
    """For each target block: its source block, and whether it is inserted (the second and later ones of a source).

    floor(i * source / target): monotone, every source block is used, and its first use is the one that stays itself.
    """
    sources = [index * source_blocks // target_blocks for index in range(target_blocks)]
    return [(source, index > 0 and sources[index - 1] == source) for index, source in enumerate(sources)]


def nearest(source_blocks: int, target_blocks: int) -> list[int]:
    """Ends on ends, the rest at the nearest relative depth: monotone, and it covers every source block where it grows.

    Gopher's scaling (arXiv 2112.11446), which the Phi talk cites, is read as round(i * source / target); for a doubled
    even depth that runs past the last block, so both ends are fixed here.
    """
    last = max(1, target_blocks - 1)
    return [(2 * index * (source_blocks - 1) + last) // (2 * last) for index in range(target_blocks)]


def stacked(source_blocks: int, target_blocks: int) -> list[int]:
    """The whole list again and again: 0 1 2 0 1 2 (G_stack); a rest takes the first blocks."""
    return [index % source_blocks for index in range(target_blocks)]


def origin(name: str, blocks: Sequence[int], source: ModelConfig) -> str:
    """The source tensor that the target tensor `name` comes from, where target block i comes from block `blocks[i]`."""
    if name == "lm_head.weight" and source.tie_word_embeddings:
        return "model.embed_tokens.weight"
    if not name.startswith("model.layers."):
        return name
    _, _, index, rest = name.split(".", 3)
    return f"model.layers.{blocks[int(index)]}.{rest}"


def block_origins(rules: Sequence[Rule]) -> list[tuple[int, bool]]:
    """For each target block that comes from a source block: which, and whether it adds nothing yet (is silent)."""
    sources = {rule.target: rule.sources for rule in rules}
    origins = []
    while queries := sources.get(f"model.layers.{len(origins)}.self_attn.q_proj.weight"):
        last = (f"model.layers.{len(origins)}.{name}.weight" for name in ("mlp_output_layernorm", "mlp.fc2"))
        silent = any(name in sources and not sources[name] for name in last)
        origins.append((int(queries[0].split(".")[2]), silent))
    return origins
