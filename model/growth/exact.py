"""Exact growth: the larger network computes the same function as the smaller one, to the last bits of the arithmetic.

In: two Phi shapes. Out: rules. Widths by `Expansion`; depth by inserted blocks that write zeros.
"""

import dataclasses
from typing import Literal

from model.config import ModelConfig
from model.growth import limits
from model.growth.blocks import interleaved, origin
from model.growth.expansion import Expansion, NewUnits
from model.growth.operations import Constant
from model.growth.rules import Rule, growth_method

SILENCED = ("self_attn.dense.weight", "self_attn.dense.bias", "mlp.fc2.weight", "mlp.fc2.bias")


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
    reasons = limits.impossible(source, target)
    inexact = limits.changed_angles(source, target) + limits.newly_tied(source, target)
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
    in_silence = dataclasses.replace(expansion, new_units="random")
    rules = []
    for name, shape in target.tensor_shapes().items():
        silent = not live and name.startswith(tuple(inserted))
        if silent and name.endswith(SILENCED):
            rules.append(Rule(name, shape, (), Constant(shape, 0.0, "inserted block starts as the identity")))
            continue
        operation = (in_silence if silent else expansion).operation(name)
        rules.append(Rule(name, shape, (origin(name, [block for block, _ in blocks], source),), operation))
    return rules
