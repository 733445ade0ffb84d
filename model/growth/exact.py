"""Exact growth: the larger network computes the same function as the smaller one, to the last bits of the arithmetic.

In: two Phi shapes. Out: rules. The stream of width d becomes H = s * [h, ..., h (k copies), zeros], k = D // d, with
s = sqrt(D / (k d)) so that LayerNorm sees the same variance and keeps its eps; for its mean to stay 0 with zero pads,
all that writes into the stream is centred first (LayerNorm ignores the mean). New units have one random and one zero
factor, never two zeros: they change nothing at first and still get gradients. Inserted blocks write zeros.
Related: LEMON (arXiv 2310.07999), HyperCloning (arXiv 2409.12903). New here: any width ratio >= 1 by centring, changed
head size at the same rotary size, and depth, in one step.
"""

import math
from dataclasses import dataclass

from model.config import ModelConfig
from model.growth.operations import Centre, Chain, Constant, Fill, GrowHeads, Pad, Scale, Share, Step, Tile
from model.growth.rules import GrowthRefused, Operation, Rule, growth_method

SILENCED = ("self_attn.dense.weight", "self_attn.dense.bias", "mlp.fc2.weight", "mlp.fc2.bias")


@growth_method(claims_exact=True)
def exact(source: ModelConfig, target: ModelConfig, copy_noise: float = 0.5) -> list[Rule]:
    """Same function, larger network: wider, deeper, more or larger heads, wider MLP, in any combination.

    `copy_noise`: where the stream holds two or more whole copies (width x2 and more), how far their readers differ, as
    a share of the weights' standard deviation; it cancels exactly now and lets the copies part in training. 0 leaves
    equal copies, which never part.
    """
    refuse_inexact(source, target)
    grow = _Grow(source, target, copy_noise)
    rules = []
    for name, shape in target.tensor_shapes().items():
        origin, inserted = _origin(name, source.num_hidden_layers, target.num_hidden_layers)
        if inserted and name.endswith(SILENCED):
            rules.append(Rule(name, shape, (), Constant(shape, 0.0, "inserted block starts as the identity")))
        else:
            rules.append(Rule(name, shape, (origin,), grow.operation(name)))
    return rules


def block_sources(source_blocks: int, target_blocks: int) -> list[tuple[int, bool]]:
    """For each target block: its source block, and whether it is inserted (the second and later ones of a source)."""
    sources = [index * source_blocks // target_blocks for index in range(target_blocks)]
    return [(source, index > 0 and sources[index - 1] == source) for index, source in enumerate(sources)]


def refuse_inexact(source: ModelConfig, target: ModelConfig) -> None:
    """Raises `GrowthRefused` that names everything that cannot keep the function."""
    reasons = _shrinking(source, target) + _changed(source, target) + _heads(source, target)
    if reasons:
        raise GrowthRefused(
            "init.method=exact cannot keep the function: " + "; ".join(reasons) + ". Change these keys of the target "
            "(or of init.source), or start fresh with init.method=random."
        )


def _shrinking(source: ModelConfig, target: ModelConfig) -> list[str]:
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    pairs = [(name, getattr(source, name), getattr(target, name)) for name in sizes]
    pairs.append(("num_key_value_heads", source.kv_heads, target.kv_heads))
    pairs.append(("head_dim", source.head_size, target.head_size))
    return [f"model.{name} would shrink from {old} to {new}" for name, old, new in pairs if new < old]


def _changed(source: ModelConfig, target: ModelConfig) -> list[str]:
    reasons = [
        f"model.{name} differs (source {getattr(source, name)}, target {getattr(target, name)})"
        for name in ("vocab_size", "layer_norm_eps", "rope_theta", "qk_layernorm")
        if getattr(source, name) != getattr(target, name)
    ]
    if source.rotary_dim != target.rotary_dim:
        reasons.append(
            f"the rotary size differs (source {source.rotary_dim}, target {target.rotary_dim}); "
            f"write model.partial_rotary_factor={source.rotary_dim / target.head_size:g}"
        )
    return reasons


def _heads(source: ModelConfig, target: ModelConfig) -> list[str]:
    reasons = []
    if source.qk_layernorm and source.head_size != target.head_size:
        reasons.append(
            f"model.qk_layernorm normalizes over the head, whose size would change from {source.head_size} to "
            f"{target.head_size}"
        )
    needed = source.kv_heads * _copies(source, target)
    if needed > target.kv_heads >= source.kv_heads:
        reasons.append(
            f"{_per_group(source)} attention heads share a key-value head in the source and {_per_group(target)} in "
            f"the target, which needs model.num_key_value_heads of at least {needed}, not {target.kv_heads}"
        )
    return reasons


def _per_group(config: ModelConfig) -> int:
    return config.num_attention_heads // config.kv_heads


def _copies(source: ModelConfig, target: ModelConfig) -> int:
    """Over how many target groups the heads of one source group are spread."""
    return math.ceil(_per_group(source) / _per_group(target))


def _origin(name: str, source_blocks: int, target_blocks: int) -> tuple[str, bool]:
    """The source tensor's name, and whether it lies in an inserted block."""
    if not name.startswith("model.layers."):
        return name, False
    _, _, index, rest = name.split(".", 3)
    block, inserted = block_sources(source_blocks, target_blocks)[int(index)]
    return f"model.layers.{block}.{rest}", inserted


@dataclass(frozen=True)
class _Grow:
    """The operation for each kind of tensor. Linear weights are (out, in)."""

    source: ModelConfig
    target: ModelConfig
    noise: float

    def operation(self, name: str) -> Operation:
        module, kind = name.split(".")[-2:]
        bias = kind == "bias"
        if module == "embed_tokens":
            return Chain(self._writer(axis=1))
        if module in ("input_layernorm", "final_layernorm"):
            return Chain(self._norm(bias))
        if module in ("q_proj", "k_proj", "v_proj"):
            return Chain(self._projection(module, bias))
        if module == "dense":
            return Chain(self._writer(axis=0) + (() if bias else self._heads(1, "q_proj", "zero", "zero")))
        if module == "fc1":
            return Chain((() if bias else self._reader()) + self._neurons(0, bias))
        if module == "fc2":
            return Chain(self._writer(axis=0) + (() if bias else self._neurons(1, True)))
        if module == "lm_head":
            return Chain(() if bias else self._reader())
        return Chain()  # q_layernorm, k_layernorm: the head size is unchanged

    @property
    def _whole_copies(self) -> int:
        return self.target.hidden_size // self.source.hidden_size

    @property
    def _pads(self) -> bool:
        return self.target.hidden_size % self.source.hidden_size > 0

    @property
    def _scale(self) -> float:
        return math.sqrt(self.target.hidden_size / (self._whole_copies * self.source.hidden_size))

    def _writer(self, axis: int) -> tuple[Step, ...]:
        """What is added to the stream: the stream's coordinates lie along `axis`."""
        steps: tuple[Step, ...] = ()
        if self._pads:
            steps += (Centre(axis), Scale(self._scale, "same variance with pads"))
        if self._whole_copies > 1:
            steps += (Tile(axis, self._whole_copies),)
        return steps + ((Pad(axis, self.target.hidden_size, "zero"),) if self._pads else ())

    def _reader(self) -> tuple[Step, ...]:
        """What multiplies the normalized stream, along axis 1. Pads are 0 at first, so their columns are free."""
        steps: tuple[Step, ...] = ()
        if self._whole_copies > 1:
            steps += (Share(1, self._whole_copies, self.noise),)
        return steps + ((Pad(1, self.target.hidden_size, "random"),) if self._pads else ())

    def _norm(self, bias: bool) -> tuple[Step, ...]:
        steps: tuple[Step, ...] = ()
        if self._pads and not bias:
            steps += (Scale(1 / self._scale, "undoes the stream's scale"),)
        if self._whole_copies > 1:
            steps += (Tile(0, self._whole_copies),)
        # The pads' gain is free; the mean of the others gives the new coordinates a usual scale once they wake up.
        return steps + ((Pad(0, self.target.hidden_size, "zero" if bias else "mean"),) if self._pads else ())

    def _projection(self, module: str, bias: bool) -> tuple[Step, ...]:
        steps: tuple[Step, ...] = () if bias else self._reader()
        if module == "q_proj" and self.source.head_size != self.target.head_size:
            factor = math.sqrt(self.target.head_size / self.source.head_size)
            steps += (Scale(factor, "scores are divided by the root of the head size"),)
        if bias:
            return steps + self._heads(0, module, "zero", "zero")
        # New coordinates: random queries meet zero keys, random values meet zero columns of dense.
        return steps + self._heads(0, module, "zero" if module == "k_proj" else "random", "random")

    def _heads(self, axis: int, module: str, new_coordinates: Fill, new_heads: Fill) -> tuple[Step, ...]:
        source, target = self.source, self.target
        queries = module == "q_proj"
        before = (source.kv_heads, _per_group(source) if queries else 1, source.head_size)
        after = (target.kv_heads, _per_group(target) if queries else 1, target.head_size)
        if before == after:
            return ()
        step = GrowHeads(axis, before, after, _copies(source, target), not queries, new_coordinates, new_heads)
        return (step,)

    def _neurons(self, axis: int, zero: bool) -> tuple[Step, ...]:
        if self.source.intermediate_size == self.target.intermediate_size:
            return ()
        return (Pad(axis, self.target.intermediate_size, "zero" if zero else "random"),)
