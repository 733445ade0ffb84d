"""Stopping at the best validation: a corpus learnt by heart decays early, ends early and exports its best."""

import pytest
import torch
from test_pretrain import Small, small, small_inputs  # noqa: F401 - fixtures

from model.hf import load_network
from pipeline.artifacts import read_manifest
from pipeline.training import best
from pipeline.training.budget import Budget, Plan, Verdict
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.decisions import Decisions

BY_HEART = ("train.learning_rate=1.0e-2", "train.stop_after_worse=2", "train.max_epochs=60", "train.precision=32-true")


def test_a_corpus_learnt_by_heart_ends_early_and_exports_its_best(small: Small) -> None:  # noqa: F811
    small.mix = BY_HEART[:3]
    manifest = small.run_here("budget.max_tokens=400_000", "train.validate_every_share=0.02", *BY_HEART)
    rows = {row["step"]: row for row in small.rows()}
    bits = {step: row["val/bits_per_byte"] for step, row in rows.items() if step and "val/bits_per_byte" in row}
    assert manifest["stopped_by"] == "validation"
    assert manifest["steps"] < 400_000 // 512
    exported = manifest["exported_step"]
    assert exported == min(bits, key=bits.__getitem__)
    assert manifest["val_bits_per_byte"] == bits[exported]
    records = Decisions(small.folder / "decisions.jsonl")
    decay = records.decays()[0]
    assert decay["reason"] == "validation"
    assert decay["step"] < 0.7 * 400_000 // 512
    assert rows[manifest["steps"] - 1]["train/lr"] < rows[decay["step"]]["train/lr"]
    assert manifest["annealed"] == (exported == manifest["steps"])
    again = small.run_here("budget.max_tokens=800_000", *BY_HEART)
    assert again == manifest, "more of the same text would not help"
    assert read_manifest(small.folder) == manifest
    state = Checkpoints(small.folder / "checkpoints", 2, records).at(exported)
    assert state is not None
    weights = load_network(small.folder / "model").state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in state.weights.items())
    assert exported < manifest["steps"], "this corpus no longer shows the case"


@pytest.mark.parametrize(("patience", "decays_at", "ends_at"), [(1, 40, 50), (2, 50, 70)])
def test_the_decay_starts_and_ends_after_that_many_in_a_row(patience: int, decays_at: int, ends_at: int) -> None:
    budget = Budget(Plan(None, 1000, 0.3, max_tokens=1000), lambda: 0.0, Decisions(None))
    budget.begin(0)
    bits = {10: 3.0, 20: 2.5, 30: 2.0, 40: 2.1, 50: 2.2, 60: 2.3, 70: 2.4}
    found = {}
    for step, value in bits.items():
        better = best.record(budget.decisions, step, value)
        assert better == (step <= 30)
        found[step] = Verdict.GO_ON if better else best.verdict(budget, step, patience)
        if found[step] == Verdict.FINISH:
            break
    assert [s for s, v in found.items() if v == Verdict.DECAY] == [decays_at]
    assert max(found) == ends_at
    assert budget.end_step(ends_at) == ends_at
    assert budget.stopped_by(ends_at) == "validation"
    assert budget.decisions.decays()[0]["end_step"] == decays_at + round(decays_at * 0.3 / 0.7)
