"""Growth: weights for a larger network from those of a smaller one. One method a file, one line in the table."""

from model.growth.continue_ import continue_
from model.growth.exact import exact
from model.growth.random import random
from model.growth.rescale import rescale
from model.growth.rules import GrowthMethod
from model.growth.stack import stack

GROWTH: dict[str, GrowthMethod] = {
    "exact": exact,
    "rescale": rescale,
    "stack": stack,
    "random": random,
    "continue": continue_,
}
