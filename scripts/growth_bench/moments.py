"""Adam's moments for a grown network (at most one whole copy of the stream), after GROWTH.md item 12.

In: rules, the source's moments. Out: the grown network's. It gains little (docs/growth), so only the benchmark has it.
"""

from dataclasses import replace
from typing import Any

from model.growth.operations import Centre, Chain, Constant, GrowHeadSize, Pad, Scale
from model.growth.rules import Rule, apply
from scripts.growth_bench.lab import Moments


def grown_moments(rules: list[Rule], source: Moments, seed: int) -> Moments:
    """Where a weight is c times its source, its gradient is 1/c times the old one. New entries, and inserted blocks,
    whose gradients start at zero or anew, start at 0.
    """
    silenced = {_block(rule.target) for rule in rules if isinstance(rule.operation, Constant)}
    moments: Moments = {rule.target: {} for rule in rules}
    for key, power in (("exp_avg", -1), ("exp_avg_sq", -2)):
        state = {name: values[key] for name, values in source.items()}
        turned = [replace(rule, operation=_gradient_rule(rule, power, silenced)) for rule in rules]
        for rule, (name, tensor) in zip(turned, apply(turned, state, seed), strict=True):
            moments[name][key] = tensor
            moments[name]["step"] = source[rule.sources[0] if rule.sources else "lm_head.bias"]["step"]
    return moments


def _gradient_rule(rule: Rule, power: int, silenced: set[str]) -> Any:
    if not isinstance(rule.operation, Chain) or _block(rule.target) in silenced:
        return Constant(rule.shape, 0.0, "no gradient yet")
    steps = []
    for step in rule.operation.steps:
        if isinstance(step, Scale):
            steps.append(Scale(step.factor**power, step.reason))
        elif isinstance(step, Pad | GrowHeadSize):
            steps.append(replace(step, fill="zero"))
        elif not isinstance(step, Centre):
            raise NotImplementedError(f"moments do not pass through: {step.describe()}")
    return Chain(tuple(steps))


def _block(name: str) -> str:
    return ".".join(name.split(".")[:3])
