"""Fresh weights, for a model that grows from nothing and as the control of every growth experiment.

In: the target's shape. Out: rules without sources. Same seed, same weights as `Transformer.initialize`.
"""

from model.config import ModelConfig
from model.growth.operations import Constant, Normal
from model.growth.rules import Operation, Rule, growth_method
from model.initialization import initial_std


@growth_method(claims_exact=False, needs_source=False)
def random(source: ModelConfig | None, target: ModelConfig) -> list[Rule]:
    """Fresh random weights; nothing is taken from the source."""
    return [Rule(name, shape, (), _fresh(name, shape, target)) for name, shape in target.tensor_shapes().items()]


def _fresh(name: str, shape: tuple[int, ...], target: ModelConfig) -> Operation:
    std = initial_std(name, target)
    if std:
        return Normal(shape, std)
    return Constant(shape, 0.0 if name.endswith(".bias") else 1.0, "fresh")
