"""A run that goes on on another card: same text, same rates, hours and speed kept apart, the move on record."""

import pytest
import torch
from test_pretrain import Small, _record_inputs, small, small_inputs  # noqa: F401 - fixtures

from pipeline.pages import html
from pipeline.storage.ledger import cards
from pipeline.training import devices
from pipeline.training.budget import Measured
from pipeline.training.checkpoint import random_state, restore_random_state
from pipeline.training.decisions import Decisions
from pipeline.training.devices import price_per_hour


def test_a_run_goes_on_on_another_card_with_the_next_window_and_both_cards_in_the_ledger(
    small: Small,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    read = _record_inputs(monkeypatch)
    first = small.run_here("budget.max_tokens=20_480", "budget.gpu_hour_price=2.0", "train.precision=32-true")
    old = small.rows()
    assert [card["lives"] for card in first["cards"]] == [1]
    capsys.readouterr()
    monkeypatch.setattr(devices, "cpu_name", lambda: "Another Processor")
    monkeypatch.setattr(devices, "measure_gemm", lambda dtype: 0.5 * (first["mfu_peak"]["flops"] or 0.0))
    read.clear()
    other = ("budget.gpu_hour_price=5.0", "train.precision=bf16-mixed", "train.micro_batch=4")
    longer = small.run_here("budget.max_tokens=40_960", *other)
    assert "another card: Another Processor" in capsys.readouterr().out

    assert (longer["steps"], longer["annealed"]) == (80, True)
    batches = small.batches("budget.max_tokens=40_960")
    expected = [ids for step in range(28, 80) for ids in batches.batch(step).input_ids_BT.split(4)]
    assert [torch.equal(a, b) for a, b in zip(read, expected, strict=True)] == [True] * 104
    rows = small.rows()
    assert [row["step"] for row in rows] == list(range(81))
    assert rows[29]["train/loss"] == pytest.approx(old[29]["train/loss"], abs=0.02)  # rounding alone

    here, there = longer["cards"]
    assert (here["micro_batch"], there["micro_batch"]) == (8, 4)
    assert (here["price_per_hour"], there["price_per_hour"]) == (2.0, 5.0)
    assert there["device"].startswith("Another Processor")
    assert there["cost"] == pytest.approx(5.0 * there["gpu_hours"], abs=1e-4)
    assert here["tokens_per_second"] > 0 < there["tokens_per_second"]
    assert here["gpu_hours"] + there["gpu_hours"] == pytest.approx(longer["gpu_hours"], abs=2e-4)
    decisions = Decisions(small.folder / "decisions.jsonl")
    (move,) = decisions.of_kind("card")
    assert (move["step"], move["before"]["precision"], move["before"]["micro_batch"]) == (28, "32-true", 8)
    assert move["step_seconds_expected"] == pytest.approx(2 * move["step_seconds_before"])  # half the peak
    page = html.render("devices.html", pretrain=longer)
    assert "Another Processor" in page
    assert f"{longer['forecast']['memory']['predicted_bytes'] / 1e9:.2f} GB" in page
    assert cards(small.folder / "ledger.jsonl", "pretrain", small.folder.name)[1]["lives"] == 1


def test_a_card_that_was_there_before_is_known_by_its_own_speed_and_a_new_one_by_its_peak() -> None:
    def life(device: str, peak: float, state: dict | None, seconds: float) -> Measured:
        measured = Measured(device=device, peak_flops=peak)
        if state:
            measured.load_state_dict(state)
        for _ in range(5 if seconds else 0):
            measured.step(seconds)
        measured.event("validation", 6.0)
        return measured

    fast = life("fast", 4e12, None, 1.0)
    slow = life("slow", 1e12, fast.state_dict(), 0.0)
    assert (slow.moved_from, slow.step_seconds()) == ("fast", 4.0)
    assert not slow.measured["checkpoint"]
    slow = life("slow", 1e12, fast.state_dict(), 5.0)
    again = life("fast", 4e12, slow.state_dict(), 0.0)
    assert (again.moved_from, again.step_seconds()) == ("slow", 1.0)
    third = life("slow", 1e12, again.state_dict(), 0.0)
    assert third.step_seconds() == 5.0
    unknown = life("unknown", 0.0, fast.state_dict(), 0.0)
    assert unknown.step_seconds() == 1.0


def test_the_price_is_the_configs_or_the_tables(small: Small) -> None:  # noqa: F811
    budget = small.config().budget
    machine = devices.Machine(torch.device("cuda"), "NVIDIA L4", "32-true", "", None, "", devices.Threads("cuda"))
    assert price_per_hour(budget, machine) == devices.gpu_table()["l4"]["price_per_hour"]
    budget.gpu_hour_price = 9.0
    assert price_per_hour(budget, machine) == 9.0


def test_random_states_of_more_cards_than_there_are_do_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    restored = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [])
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, index: restored.append((int(state[0]), index)))
    restore_random_state({**random_state(), "cuda": [torch.tensor([n]) for n in range(8)]})
    assert restored == [(0, 0), (1, 1)]
