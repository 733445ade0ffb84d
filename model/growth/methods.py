"""The growth methods that are short: `exact`, `stack`, `random` and `continue`. `rescale` has a file of its own.

In: two shapes of one family. Out: rules. `exact`: the larger network computes the same function, to the last bits of
the arithmetic; widths by `Expansion`, depth by inserted blocks that write zeros. `stack`: the list of blocks again and
again, as in G_stack (arXiv 2405.15319), all copies live; the paper keeps the width, here widths may grow too, by the
algebra of `exact`, so that depth alone changes the function. `random`: the same weights as `Transformer.initialize`
with this seed, for a model that grows from nothing and as the control of every experiment. `continue`: plain copies;
differences that no tensor sees (context length, initializer range) are fine.
"""

import dataclasses
from typing import Literal

from model.config import ModelConfig
from model.growth import limits
from model.growth.expansion import Expansion, NewUnits
from model.growth.operations import Chain, Constant, Normal
from model.growth.rules import GrowthRefused, Operation, Rule, growth_method, interleaved, origin, stacked
from model.transformer import initial_std

SILENCED = ("self_attn.dense.weight", "self_attn.dense.bias", "mlp.fc2.weight", "mlp.fc2.bias")
SILENCED_BY_NORM = ("attention_output_layernorm.weight", "mlp_output_layernorm.weight")


@growth_method(claims_exact=lambda exact, **_: exact)
def exact(
    source: ModelConfig,
    target: ModelConfig,
    new_blocks: Literal["identity", "copy"] = "identity",
    new_units: NewUnits = "random",
    copy_noise: float = 0.5,
    exact: bool = True,
) -> list[Rule]:
    """Same function, larger network: wider, deeper, more or larger heads, wider MLP, in any combination.

    `new_blocks`: `identity` copies the block below and silences it (its two output projections are 0), `copy` leaves it
    live, which changes the function. `new_units`: MLP neurons and heads start `random` with zero outgoing weights, or
    as `copies` that share the outgoing weights (in silent blocks always random: shares of zero are equal, and equal
    copies never part). `copy_noise`: how far the shares of k copies differ, in standard deviations of the weights over
    sqrt(k); it cancels exactly now and lets the copies part in training.
    `exact=false` lifts the promise: live copied blocks, changed rotary angles and a head that gives way to the
    embedding (tied from untied) are then done and measured, not refused. Sizes that shrink, another vocabulary and
    heads that do not fit are refused in either case.
    """
    reasons = limits.impossible(source, target) + limits.unnormalizable(source, target, new_units)
    inexact = limits.changed_angles(source, target) + limits.newly_tied(source, target)
    inexact += limits.moved_blocks(source, target, interleaved_sources(source, target))
    if new_blocks == "copy" and target.num_hidden_layers > source.num_hidden_layers:
        inexact.append("init.options.new_blocks=copy adds live blocks, which change the function")
    way_out = ", or take init.options.exact=false, which does it and measures the change" if inexact else ""
    if limits.shrinking(source, target):
        way_out = ", or take init.method=rescale, which promises nothing and can also shrink"
    limits.refuse("exact", reasons + (inexact if exact else []), way_out)
    return _rules(source, target, new_blocks == "copy", Expansion(source, target, new_units, copy_noise))


def _rules(source: ModelConfig, target: ModelConfig, live: bool, expansion: Expansion) -> list[Rule]:
    blocks = interleaved(source.num_hidden_layers, target.num_hidden_layers)
    inserted = {f"model.layers.{index}." for index, (_, is_inserted) in enumerate(blocks) if is_inserted}
    in_silence = dataclasses.replace(expansion, new_units="random", silent=target.block == "post")
    rules, origins = [], interleaved_sources(source, target)
    for name, shape in target.tensor_shapes().items():
        silent = not live and name.startswith(tuple(inserted))
        # With a norm on what a block adds, its gains are what is zero: at an input of 0 an RMSNorm has a slope of
        # gain / sqrt(eps), and one step of the optimizer on zero projections would move the logits by a third.
        if silent and name.endswith(SILENCED_BY_NORM if target.block == "post" else SILENCED):
            rules.append(Rule(name, shape, (), Constant(shape, 0.0, "inserted block starts as the identity")))
            continue
        operation = (in_silence if silent else expansion).operation(name)
        rules.append(Rule(name, shape, (origin(name, origins, source),), operation))
    return rules


def interleaved_sources(source: ModelConfig, target: ModelConfig) -> list[int]:
    """The source block of each target block."""
    return [block for block, _ in interleaved(source.num_hidden_layers, target.num_hidden_layers)]


@growth_method(claims_exact=False)
def stack(
    source: ModelConfig, target: ModelConfig, new_units: NewUnits = "random", copy_noise: float = 0.5
) -> list[Rule]:
    """The list of blocks repeated (0 1 2 0 1 2), widths grown exactly: not the same function once blocks are added.

    `new_units` and `copy_noise` as in `exact`.
    """
    blocks = stacked(source.num_hidden_layers, target.num_hidden_layers)
    reasons = limits.impossible(source, target) + limits.unnormalizable(source, target, new_units)
    reasons += limits.changed_angles(source, target) + limits.newly_tied(source, target)
    limits.refuse("stack", reasons + limits.moved_blocks(source, target, blocks))
    expansion = Expansion(source, target, new_units, copy_noise)
    return [
        Rule(name, shape, (origin(name, blocks, source),), expansion.operation(name))
        for name, shape in target.tensor_shapes().items()
    ]


@growth_method(claims_exact=True)
def continue_(source: ModelConfig, target: ModelConfig) -> list[Rule]:
    """Same shape, same weights: the training of the source continues."""
    if differences := _differences(source, target):
        raise GrowthRefused(
            f"init.method=continue keeps the shape, but the target differs: {'; '.join(differences)}. "
            f"Make them equal, or grow with init.method=exact."
        )
    return [Rule(name, shape, (name,), Chain()) for name, shape in target.tensor_shapes().items()]


def _differences(source: ModelConfig, target: ModelConfig) -> list[str]:
    names = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "kv_heads"]
    names += ["head_size", "rotary_dim", "rope_theta", "layer_norm_eps", "qk_layernorm", "tie_word_embeddings"]
    names += ["family", "attention_bias", "mlp_bias", "rope_scaling"]
    names += ["rotating"] if source.num_hidden_layers == target.num_hidden_layers else []
    pairs = [(name, getattr(source, name), getattr(target, name)) for name in names]
    return [f"{name} {old} -> {new}" for name, old, new in pairs if old != new]


@growth_method(claims_exact=False, needs_source=False)
def random(source: ModelConfig | None, target: ModelConfig) -> list[Rule]:
    """Fresh random weights; nothing is taken from the source."""
    return [Rule(name, shape, (), _fresh(name, shape, target)) for name, shape in target.tensor_shapes().items()]


def _fresh(name: str, shape: tuple[int, ...], target: ModelConfig) -> Operation:
    std = initial_std(name, target)
    if std:
        return Normal(shape, std)
    return Constant(shape, 0.0 if name.endswith(".bias") else 1.0, "fresh")
