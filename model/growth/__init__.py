"""Growth: weights for a larger network from those of a smaller one. A new method: one file, one line in the table."""

from model.growth.methods import continue_, exact, random, stack
from model.growth.rescale import rescale
from model.growth.rules import GrowthMethod

GROWTH: dict[str, GrowthMethod] = {
    "exact": exact,
    "rescale": rescale,
    "stack": stack,
    "random": random,
    "continue": continue_,
}
