"""Stopping at the best validation: a corpus learnt by heart decays early, ends early and exports its best."""

import pytest
import torch
from test_pretrain import Small, small, small_inputs  # noqa: F401 - fixtures

from model.hf import load_network
from pipeline.training.budget import Budget, Limits, Verdict
from pipeline.training.cap import Cap
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.decisions import Decisions
from pipeline.training.validation import Validation


def test_a_run_that_gets_worse_ends_early_and_exports_its_best(
    small: Small,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The small corpus holds its own held-out text: what a corpus learnt by heart shows is put in here.
    results = iter([3.0, 2.2, 2.0, *(2.1 + n / 100 for n in range(50))])
    monkeypatch.setattr(Validation, "run", lambda self, *_: dict.fromkeys(self.sets, next(results)))
    small.mix = ("train.stop_after_worse=2",)
    often = ("train.validate_every_share=0.1", "train.precision=32-true", *small.mix)
    manifest = small.run_here("budget.max_tokens=51_200", *often)
    records = Decisions(small.folder / "decisions.jsonl")
    exported, decay = 20, records.decays()[0]
    assert (decay["step"], decay["reason"]) == (40, "validation")  # worse at 30 and 40
    assert (manifest["steps"], manifest["stopped_by"]) == (57, "validation")  # 0.3 of all steps decay
    assert (manifest["exported_step"], manifest["val_bits_per_byte"]) == (exported, 2.0)
    assert not manifest["annealed"]
    assert small.rows()[-1]["train/lr"] < 0.1 * 2.0e-3
    state = Checkpoints(small.folder / "checkpoints", 2, records).at(exported)
    assert state is not None
    weights = load_network(small.folder / "model").state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in state.weights.items())
    again = small.run_here("budget.max_tokens=102_400", *often)
    assert again == manifest, "more of the same text would not help"


@pytest.mark.parametrize(("patience", "decays_at", "ends_at"), [(1, 40, 50), (2, 50, 70)])
def test_the_decay_starts_and_ends_after_that_many_in_a_row(patience: int, decays_at: int, ends_at: int) -> None:
    budget = Budget(Limits(Cap(None), 1000, 0.3, max_tokens=1000), lambda: 0.0, Decisions(None))
    budget.begin(0)
    bits = {10: 3.0, 20: 2.5, 30: 2.0, 40: 2.1, 50: 2.2, 60: 2.3, 70: 2.4}
    found = {}
    for step, value in bits.items():
        better = budget.decisions.record_validation(step, value)
        assert better == (step <= 30)
        found[step] = Verdict.CONTINUE if better else budget.verdict_of_validations(step, patience)
        if found[step] == Verdict.FINISH:
            break
    assert [s for s, v in found.items() if v == Verdict.DECAY] == [decays_at]
    assert max(found) == ends_at
    assert budget.end_step(ends_at) == ends_at
    assert budget.stopped_by(ends_at) == "validation"
    assert budget.decisions.decays()[0]["end_step"] == decays_at + round(decays_at * 0.3 / 0.7)
