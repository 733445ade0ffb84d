"""A run that goes on on another card: what is kept of each, and what the move decides.

In: the device of this life and what checkpoint and ledger say of earlier ones. Out: a `card` record in decisions.jsonl
before anything follows from it, and each card's hours, speed, micro-batch and price. The text and the learning rate
do not depend on the card: a batch is a function of (seed, step), the rate of the step and the decisions. The sums of a
step do (kernels, micro-batch, precision), so a run is bit-identical only as far as it stays on one kind of card.
"""

from typing import Any

from pipeline.config import BudgetConfig
from pipeline.storage.ledger import Ledger
from pipeline.training.decisions import Decisions
from pipeline.training.devices import Machine, find_card
from pipeline.training.measured import Measured


def price_per_hour(budget: BudgetConfig, machine: Machine) -> float | None:
    """`budget.gpu_hour_price`, else what configs/gpus.yaml says of the card, None where neither is known."""
    if budget.gpu_hour_price is not None or machine.device.type != "cuda":
        return budget.gpu_hour_price
    card = find_card(machine.name)
    return card["price_per_hour"] if card else None


def begin_life(
    decisions: Decisions, ledger: Ledger, machine: Machine, measured: Measured, budget: BudgetConfig, **life: Any
) -> str | None:
    """Records this life (`life`: step, windows a pass) and, where the newest state is another card's, the move. Returns
    what to say about the move."""
    step, windows = life["step"], life["windows"]
    before = decisions.of_kind("life")[-1:] or [{}]
    price = price_per_hour(budget, machine)
    ledger.card = {"micro_batch": windows, **({} if price is None else {"price_per_hour": price})}
    decisions.add(
        "life",
        step,
        life=ledger.life,
        device=machine.name,
        precision=machine.precision,
        reason=machine.reason,
        micro_batch=windows,
        threads=machine.threads.now(),
    )
    if measured.moved_from is None:
        return None
    decisions.add(
        "card",
        step,
        before={key: before[0].get(key) for key in ("device", "precision", "micro_batch")},
        step_seconds_before=measured.speeds.get(measured.moved_from),
        step_seconds_expected=measured.inherited_step,
    )
    seconds = f", {measured.inherited_step:.3g} s a step expected" if measured.inherited_step else ""
    return f"another card: {machine.name} after {measured.moved_from}{seconds}; from here on equal up to rounding"
