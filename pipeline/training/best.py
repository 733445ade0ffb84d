"""Stopping at the best validation, for a corpus so small that a model learns it by heart.

In: `train.stop_after_worse` = n, and a validation each time `train.validate_every_share` of the budget is used. After n
validations in a row above the best the decay starts early; after n more in the decay the run ends. Every new best is
kept as a checkpoint, and the best of all is what is exported (early stopping with patience; Prechelt 1998, "Early
stopping - but when?"). All of it follows from `validated` records in decisions.jsonl, so a killed run goes on the same.
"""

from pipeline.training.budget import Budget, Verdict
from pipeline.training.checkpoint import Checkpoints, State
from pipeline.training.decisions import Decisions


def record(decisions: Decisions, step: int, bits_per_byte: float) -> bool:
    """Puts a validation on record; whether it is the best so far."""
    best = min(decisions.validations().values(), default=float("inf"))
    decisions.add("validated", step, bits_per_byte=round(bits_per_byte, 6))
    return bits_per_byte < best


def verdict(budget: Budget, step: int, patience: int) -> Verdict:
    """After a validation at `step`: go on, or start or end the decay."""
    validations = {s: bits for s, bits in budget.decisions.validations().items() if s <= step}
    best = min(validations, key=validations.__getitem__)
    decay = budget.first_decay()
    since = decay["step"] if decay and decay["step"] <= step else -1
    worse = [s for s in validations if s > max(best, since)]
    return budget.worse(step) if len(worse) >= patience else Verdict.GO_ON


def best_state(checkpoints: Checkpoints, step: int) -> State | None:
    """The state to export instead of the one after the last `step`: the best validated one that was kept, or None."""
    validations, kept = checkpoints.decisions.validations(), set(checkpoints.steps())
    for best in sorted(validations, key=validations.__getitem__):
        if best == step:
            return None
        if best in kept and (state := checkpoints.at(best)) is not None:
            return state
    return None
