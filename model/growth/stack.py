"""Stacking: the whole list of blocks again and again, as in G_stack (arXiv 2405.15319), all copies live.

In: two Phi shapes. Out: rules. The paper keeps the width; here widths may grow too, by the same algebra as in `exact`,
so that depth is the only thing that changes the function. A rest of blocks is taken from the bottom of the list.
"""

from model.config import ModelConfig
from model.growth import limits
from model.growth.blocks import origin, stacked
from model.growth.expansion import Expansion, NewUnits
from model.growth.rules import Rule, growth_method


@growth_method(claims_exact=False)
def stack(
    source: ModelConfig, target: ModelConfig, new_units: NewUnits = "random", copy_noise: float = 0.5
) -> list[Rule]:
    """The list of blocks repeated (0 1 2 0 1 2), widths grown exactly: not the same function once blocks are added.

    `new_units` and `copy_noise` as in `exact`.
    """
    reasons = (
        limits.impossible(source, target) + limits.changed_angles(source, target) + limits.newly_tied(source, target)
    )
    limits.refuse("stack", reasons)
    blocks = stacked(source.num_hidden_layers, target.num_hidden_layers)
    expansion = Expansion(source, target, new_units, copy_noise)
    return [
        Rule(name, shape, (origin(name, blocks, source),), expansion.operation(name))
        for name, shape in target.tensor_shapes().items()
    ]
