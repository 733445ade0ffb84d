"""The planner: arithmetic that anyone can check, memory from traces, and advice that ranks as it says."""

import json
from pathlib import Path

import pytest

from pipeline import config as configs
from pipeline import plan
from pipeline.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
LLAMA_2_7B, LLAMA_2_70B, PHI_2 = 6.74e9, 68.98e9, 2.78e9
H100 = {"memory_gb": 80, "bf16_dense_tflops": 989, "price_per_hour": 2.7}


def test_the_talks_own_table_by_arithmetic():
    assert plan.weight_bytes(LLAMA_2_7B, 16) / 1e9 == pytest.approx(14, abs=1)
    assert plan.state_bytes(LLAMA_2_7B) / 1e9 > 70  # at batch size 1, before any activation
    assert plan.weight_bytes(LLAMA_2_70B, 16) / 1e9 == pytest.approx(138, abs=1)
    assert plan.weight_bytes(LLAMA_2_70B, 4) == plan.weight_bytes(LLAMA_2_70B, 16) / 4
    assert 40 < plan.state_bytes(PHI_2) / 1e9 < 50  # "about 50 GB at batch size 1": these states and activations
    seconds = plan.training_seconds(1.4e12, 17.9e9, 989e12, mfu=0.45)
    assert seconds / 3600 / 24 / 365 == pytest.approx(1.8, abs=0.1)


@pytest.fixture(scope="module")
def tiny() -> dict:
    return plan.make_plan(configs.load(ROOT / "configs" / "tiny-source.yaml", ["budget.max_tokens=1_000_000"]), "l4")


def test_a_plan_says_memory_by_kind_what_fits_where_and_what_it_costs(tiny):
    assert json.loads(json.dumps(tiny))["parameters"] == 2_910_784
    memory = tiny["memory"]
    assert memory["fits"]
    assert memory["micro_batch"] == 8  # all windows of a step
    assert sum(memory["by_kind_gib"].values()) == pytest.approx(memory["traced_gib"], abs=0.03)
    assert set(tiny["savers"]) == set(plan.CARD_GIB)
    assert tiny["savers"][16]["activation_checkpointing"] == "none"
    hours = tiny["hours"]
    assert hours["tokens"] == [1_000_000, 1_000_000]
    slow, fast = hours["tokens_per_second"]
    assert hours["gpu_hours"] == [round(1e6 / fast / 3600, 3), round(1e6 / slow / 3600, 3)]
    text = plan.show(tiny)
    assert "1M tokens" in text
    assert "DOES NOT FIT" not in text


def test_advice_is_sorted_and_starved_sizes_are_named():
    config = configs.load(ROOT / "configs" / "phi2.yaml", ["budget.max_gpu_hours=24"])
    choices = plan.advice(config, H100)
    losses = [sum(c["expected_loss"]) for c in choices]
    assert losses == sorted(losses)
    by_name = {c["choice"]: c for c in choices}
    assert by_name["this size"]["starved"]
    assert not by_name["0.25 of the size"]["starved"]
    assert by_name["0.25 of the size"]["parameters"] == pytest.approx(0.25 * 2.78e9, rel=0.25)
    hopeless = plan.advice(configs.load(ROOT / "configs" / "phi2.yaml", ["budget.max_gpu_hours=0.01"]), H100)
    assert all(c["starved"] for c in hopeless)
    assert "do not pretrain" in "\n".join(plan._advice_lines(hopeless))


def test_growth_is_advised_by_the_measured_table_with_its_spread(tmp_path):
    table = tmp_path / "schedule.json"
    rows = [
        {"choice": "a", "source_share": 0.2, "per_seed": [0.1, 0.3]},
        {"choice": "a", "source_share": 0.5, "per_seed": [0.2]},
        {"choice": "b", "source_share": 0.9, "per_seed": [0.19]},
    ]
    table.write_text(json.dumps({"rows": rows, "choices": {"a": "A", "b": "B"}, "target_parameters": 1000}))
    found = plan.growth_advice(table)
    assert found is not None
    assert (found["choice"], found["source_share"], found["gain_nats"], found["runs"]) == (
        "a",
        [0.2, 0.5],
        [0.1, 0.3],
        3,
    )
    assert plan.growth_advice(tmp_path / "none.json") is None
    assert plan.growth_advice() is not None


def test_a_card_that_is_not_in_the_table_is_one_clear_error():
    with pytest.raises(UserError, match=r"--card is 'h101'.*h100-80"):
        plan._card("h101")
