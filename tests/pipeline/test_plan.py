"""The planner: arithmetic that anyone can check, memory from traces, and advice that ranks as it says."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from model import checkpoints
from model.estimate import Plan
from pipeline import config as configs
from pipeline import plan
from pipeline.config import Config
from pipeline.corpus.text.source import BYTES_PER_TOKEN
from pipeline.init import tensor_map
from pipeline.planner import advice, costs, data_cost, growth, savers
from pipeline.planner.answer import advise
from pipeline.planner.cards import card_of
from pipeline.planner.measure import measure
from pipeline.planner.roofline import roofline
from pipeline.run_stage import describe
from pipeline.system.errors import UserError
from pipeline.training.devices import gpu_table
from pipeline.training.memory import train_settings

ROOT = Path(__file__).resolve().parents[2]
LIMITS = ["budget.max_tokens=1_000_000", "budget.max_gpu_hours=1"]
H100 = {"memory_gb": 80, "bf16_dense_tflops": 989, "price_per_hour": 2.7}


def test_the_cost_of_validation_is_told_in_tokens_of_training_before_anything_is_measured():
    config = configs.load(ROOT / "configs" / "tiny-source.yaml", [*LIMITS, "train.validate_every_share=0.25"])
    assert costs.validation_cost(config, 30_000) == (
        "5 validations of 30,000 tokens cost as much as training on 50,000 tokens", None
    )  # fmt: skip
    words, warning = costs.validation_cost(config, 694_000)
    assert words.endswith("1,156,667 tokens")
    assert warning is not None
    assert "116% of budget.max_tokens; lower data.validation.max_bytes" in warning


@pytest.fixture(scope="module")
def tiny() -> dict:
    return plan.make_plan(configs.load(ROOT / "configs" / "tiny-source.yaml", LIMITS), "l4")


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
    lost = sum(tiny["overhead"]["seconds"].values())
    assert hours["gpu_hours"] == pytest.approx([(1e6 / fast + lost) / 3600, (1e6 / slow + lost) / 3600], abs=2e-3)
    shown = plan.show(tiny, full=True)
    assert "1M tokens" in shown
    assert "DOES NOT FIT" not in shown
    assert f"{memory['needed_gib']:g} GiB of the card's 22.35" in shown  # 24 GB


def test_a_range_whose_ends_print_alike_is_one_figure(tiny):
    rows = [
        {
            "choice": name,
            "parameters": 10,
            "tokens": None,
            "starved": False,
            "basis": "",
            "expected_loss": ends,
            "terms": None,
        }
        for name, ends in (("a", [2.231, 2.234]), ("b", [2.29, 2.3]), ("c", None))
    ]
    shown = plan.show({**tiny, "advice": rows}, full=True)
    assert [line.strip() for line in shown.splitlines() if line.endswith(" (10) [1]")] == [
        "2.23          a (10) [1]", "2.29 to 2.30  b (10) [1]", "unknown       c (10) [1]",
    ]  # fmt: skip


def test_what_does_not_fit_is_named_at_the_micro_batch_that_was_asked_for():
    config = configs.load(ROOT / "configs" / "tiny-source.yaml", [*LIMITS, "train.micro_batch=8"])
    own = Plan(config.model, train_settings(config.train, "bf16-mixed"))
    at_eight, at_one = own.estimate(8).needed_bytes, own.estimate(1).needed_bytes
    found = plan._memory(config, own, {"memory_gb": (at_eight + at_one) / 2e9})
    assert not found["fits"]
    assert (found["micro_batch"], found["needed_gib"]) == (8, round(at_eight / plan.GIB, 2))
    assert found["needed_gib"] > found["card_gib"]


def test_a_plan_says_what_is_lost_how_often_text_repeats_what_disk_and_every_card_costs(tiny):
    lost = tiny["overhead"]
    assert set(lost["seconds"]) == {"start", "compile", "evaluation", "saving"}
    assert lost["share"] == pytest.approx(sum(lost["share_by_kind"].values()), abs=1e-3)
    assert tiny["disk_gb"]["checkpoints"] == pytest.approx(4 * 2_910_784 * 12 / 1e9, abs=0.005)
    assert {row["card"] for row in tiny["cards"]} >= {"h100-80", "rtx-4090"}
    by_card = {row["card"]: row for row in tiny["cards"]}
    assert by_card["h100-80"]["tokens_per_second"][0] > by_card["l4"]["tokens_per_second"][1]
    for section in ("memory", "hours", "overhead", "disk_gb"):
        assert tiny[section]["basis"]
    assert all(choice["basis"] for choice in tiny["advice"])


def test_text_is_counted_from_limits_or_said_to_be_unknown(root):
    config = configs.load(ROOT / "configs" / "phi2.yaml")
    known = costs.text_of(config)
    assert known["sources"]["fineweb_edu"] == {"tokens": 4_000_000_000, "from": costs.LIMIT}
    assert costs.unique_tokens(known) == 8_000_000_000
    assert costs.epochs_of(config, known, 4e9) == {"fineweb_edu": 0.5, "python_edu": 0.5, "cosmopedia_v2": 0.5}
    unlimited = configs.load(ROOT / "configs" / "phi2.yaml", ["data.sources.python_edu.limit_tokens=null"])
    unknown = costs.text_of(unlimited)
    assert costs.unique_tokens(unknown) is None
    assert set(costs.epochs_of(unlimited, unknown, 4e9).values()) == {None}


def test_saving_too_often_is_seen_in_what_is_lost():
    often, seldom = (
        costs.overhead(configs.load(ROOT / "configs" / "phi2.yaml", [f"train.checkpoint_every_seconds={s}"]), H100, 0)
        for s in (60, 7200)  # a save takes 84 s at the assumed speed
    )
    assert often["share_by_kind"]["saving"] > 0.05 > seldom["share_by_kind"]["saving"]


@pytest.mark.slow
def test_measured_steps_stand_beside_the_forecast():
    found = measure(configs.load(ROOT / "configs" / "tiny-source.yaml"))
    assert found["tokens_per_second"] > 0
    assert found["peak_memory_bytes"] > 4 * 2_910_784
    assert 0.3 < found["forecast_over_measured"] < 3


def test_a_step_that_this_machine_cannot_hold_is_one_clear_error():
    with pytest.raises(UserError, match=r"--measure: .* GB"):
        measure(configs.load(ROOT / "configs" / "phi2.yaml", ["train.device=cpu", "model.num_hidden_layers=2000"]))


def test_lost_hours_are_taken_off_what_a_cap_buys_and_never_exceed_it():
    day = configs.load(ROOT / "configs" / "day.yaml", ["budget.max_gpu_hours=2"])
    lost, bought = costs.overhead(day, H100, 10**6), costs.hours(day, H100, 10**6)
    slow = bought["tokens_per_second"][0]
    assert bought["tokens"][0] == pytest.approx(slow * (2 * 3600 - sum(lost["seconds"].values())), rel=1e-3)
    assert not lost["nothing_left"]
    short = configs.load(ROOT / "configs" / "phi2.yaml", ["budget.max_gpu_hours=0.05"])
    lost, bought = costs.overhead(short, H100, 10**6), costs.hours(short, H100, 10**6)
    assert bought["tokens"] == [0, 0]
    assert lost["nothing_left"]
    assert lost["share"] == 1.0
    ranked = advice.advice(short, bought, H100)
    assert not any(c["expected_loss"] for c in ranked if c["kind"] == "fresh")
    assert advice.verdict(short, ranked)["pretrain"] is False


def test_no_loss_is_expected_outside_the_range_of_the_fit():
    assert advice.expected_loss(4e6, 1e6) is None  # the formula says 10.5 nats, guessing among 2,048 tokens 7.6
    assert advice.expected_loss(2.7e9, 1e6) is None
    assert advice.expected_loss(1e9, 11e12) == advice.expected_loss(1e9, advice.FIT_FLOPS[1] / 6e9)
    tiny = configs.load(ROOT / "configs" / "tiny.yaml")
    ranked = advice.advice(tiny, costs.hours(tiny, H100), H100)
    fresh = [c for c in ranked if c["kind"] in ("fresh", "grown")]
    assert [c["expected_loss"] for c in fresh] == [None] * len(fresh)
    assert "44M to 16B parameters" in fresh[0]["basis"]


def test_advice_is_sorted_and_starved_sizes_are_named():
    config = configs.load(ROOT / "configs" / "phi2.yaml", ["budget.max_gpu_hours=24"])
    choices = advice.advice(config, costs.hours(config, H100), H100)
    losses = [sum(c["expected_loss"]) for c in choices if c["expected_loss"]]
    assert losses == sorted(losses)
    by_name = {c["choice"]: c for c in choices}
    assert by_name["this size, fresh weights"]["starved"]
    assert not by_name["0.25 of the size, fresh weights"]["starved"]
    assert by_name["0.25 of the size, fresh weights"]["parameters"] == pytest.approx(0.25 * 2.78e9, rel=0.25)
    assert {c["kind"] for c in choices} == {"fresh", "grown", "continued", "lora"}


def test_a_public_model_no_larger_and_better_is_named_and_so_is_the_best_to_train():
    found = advice.verdict(
        config := configs.load(ROOT / "configs" / "day.yaml"),
        advice.advice(config, costs.hours(config, H100), H100, 10**10),
    )
    assert found["pretrain"] is False
    assert "LoRA on Qwen/Qwen3-0.6B-Base is no larger" in found["why"]
    assert found["best_trained"].endswith("fresh weights")
    small = configs.load(ROOT / "configs" / "tiny.yaml", ["budget.max_gpu_hours=1"])
    assert (
        advice.verdict(small, advice.advice(small, costs.hours(small, H100), H100))["pretrain"] is True
    )  # nothing public is as small


@pytest.mark.parametrize("source", ["microsoft/phi-1_5", None])
def test_too_few_hours_end_in_the_advice_not_to_pretrain(source):
    words = ["budget.max_gpu_hours=0.01", f"init.source={source or 'null'}"]
    config = configs.load(ROOT / "configs" / "phi2.yaml", words)
    hopeless = advice.advice(config, costs.hours(config, H100), H100)
    assert all(c["starved"] for c in hopeless if c["kind"] == "fresh")
    found = advice.verdict(config, hopeless)
    assert found["pretrain"] is False
    assert "do not pretrain" in found["why"]


def test_a_card_too_small_for_a_public_model_is_not_told_to_adapt_it():
    config = configs.load(ROOT / "configs" / "phi2.yaml", ["budget.max_gpu_hours=24"])
    for gigabytes, models in ((80, 9), (8, 6), (3, 0)):
        card = {**H100, "memory_gb": gigabytes}
        found = [c for c in advice.advice(config, costs.hours(config, card), card) if c["kind"] == "lora"]
        assert len(found) == models


def test_smaller_sizes_count_the_embedding_and_keep_the_kind_of_shape():
    shape = checkpoints.known()["Qwen/Qwen3-0.6B-Base"].shape  # a quarter of it is the embedding
    assert advice._shrunk(shape, 1.0) == shape
    for share in (0.5, 0.25, 0.1):
        smaller = advice._shrunk(shape, share).validate()
        assert smaller.parameters == pytest.approx(share * shape.parameters, rel=0.15)
        assert (smaller.head_size, smaller.family) == (128, "qwen3")


@pytest.mark.parametrize(
    ("name", "checkpoint"),
    [
        ("domain-24gb", "Qwen/Qwen3-1.7B-Base"), ("domain-smol", "HuggingFaceTB/SmolLM2-135M"),
        ("smol-360m", "HuggingFaceTB/SmolLM2-360M"),
    ],
)  # fmt: skip
def test_recipes_have_the_shape_of_a_known_checkpoint_and_the_memory_that_their_header_says(name, checkpoint):
    path = ROOT / "configs" / f"{name}.yaml"
    config, known = configs.load(path), checkpoints.known()[checkpoint].shape
    assert config.model.tensor_shapes() == known.tensor_shapes()
    rotary = [(m.rope_theta, m.rope_scaling, m.eps, m.max_position_embeddings) for m in (config.model, known)]
    assert rotary[0] == rotary[1]
    card, gib, windows = re.search(r"#   (\S+) +([\d.]+) GiB at micro-batch (\d+)", path.read_text()).groups()
    found = Plan(config.model, train_settings(config.train, config.train.precision)).estimate(int(windows))
    assert int(windows) == config.train.micro_batch
    assert found.needed_bytes / plan.GIB == pytest.approx(float(gib), abs=0.2)
    assert found.needed_bytes < card_of(card)[1]["memory_gb"] * 1e9


SMALL_SMOL = {"name": "plan", "init": {"method": "exact", "source": "HuggingFaceTB/SmolLM2-135M"},
              "budget": {"max_gpu_hours": 12}}  # fmt: skip


def smol(**change) -> Config:
    shape = checkpoints.known()["HuggingFaceTB/SmolLM2-360M"].shape
    return configs.from_values({**SMALL_SMOL, "model": {**dataclasses.asdict(shape), **change}}, where="test")


def test_a_plan_knows_a_source_that_is_not_downloaded(root):
    config = smol()
    found = plan.make_plan(config, "l4")
    assert found["source"] == {
        "name": "HuggingFaceTB/SmolLM2-135M", "parameters": 134_515_008, "tokens": 2e12, "license": "Apache-2.0",
    }  # fmt: skip
    kinds = {choice["kind"]: choice["terms"] for choice in found["advice"]}
    assert kinds["grown"] == kinds["continued"] == "Apache-2.0"
    assert all(choice["terms"] for choice in found["advice"] if choice["kind"] == "lora")
    shown = plan.show(found, full=True)
    assert "SmolLM2-135M: 134,515,008 parameters, Apache-2.0, trained on 2T tokens" in shown
    assert "meta-llama/Llama-3.2-1B (1.24B, Llama 3.2 Community License, gated)" in shown
    assert "model.layers.31.mlp.gate_proj.weight" in "\n".join(tensor_map(config))


@pytest.mark.parametrize(
    ("change", "source", "words"),
    [
        ({"vocab_size": 49_153}, "HuggingFaceTB/SmolLM2-135M@main", "model.vocab_size differs"),
        ({"num_hidden_layers": 28}, "HuggingFaceTB/SmolLM2-135M-Instruct", "model.num_hidden_layers would shrink"),
        ({}, "Qwen/Qwen3-0.6B", "model.family=qwen3"),
        ({}, "google/gemma-3-270m", r"init.source is 'google/gemma-3-270m'.*family 'gemma'"),
        ({}, "Qwen/Qwen3.5-0.8B-Base", r"family 'qwen3_5'.*choose such a source"),
        ({}, "Qwen/Qwen3-30B-A3B", "family 'qwen3_moe'"),
    ],
)
def test_what_cannot_grow_is_refused_by_a_plan_and_a_dry_run_before_anything_is_fetched(root, change, source, words):
    config = smol(**change)
    config.init.source = source
    for refuses in (lambda: plan.make_plan(config, "l4"), lambda: describe(config, "init")):
        with pytest.raises(UserError, match=words):
            refuses()


def test_a_dry_run_fetches_no_model_of_a_later_stage(root, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("fetched"))
    config = smol()
    config.evaluate.model = "HuggingFaceTB/SmolLM2-360M"
    (stage,) = describe(config, "evaluate")["stages"]
    assert stage["why"].endswith("which is fetched when the stage runs")
    config.evaluate.model = "google/gemma-3-270m"
    with pytest.raises(UserError, match=r"evaluate\.model is 'google/gemma-3-270m'.*'gemma'"):
        describe(config, "evaluate")


def test_repeated_text_is_worth_less_than_fresh_and_never_more_than_it_can_be():
    assert advice.worth_of(1e9, None) == advice.worth_of(1e9, 1e9) == 1e9
    assert 3.5e9 < advice.worth_of(4e9, 1e9) < 4e9  # four epochs are nearly free
    assert advice.worth_of(1e12, 1e9) == pytest.approx((1 + advice.REPEATS) * 1e9)


def measured(lead: float, interval: list[float] | None = None) -> dict:
    return {"mean": lead, "interval": interval or [lead - 0.01, lead + 0.01]}


@pytest.fixture
def ladder(monkeypatch) -> dict:
    """A made-up ladder: the small shape wins at 1 token per parameter, growth at 10, fresh weights at 100."""
    leads = {1.0: (0.3, 0.2), 10.0: (0.1, 0.2), 100.0: (-0.3, -0.1)}
    points = [
        {"tokens_per_parameter": at, "seeds": 3,
         "gains": {"small over scratch": measured(small), "grown over scratch": measured(grown),
                   "grown over small": measured(grown - small)}}
        for at, (small, grown) in leads.items()
    ]  # fmt: skip
    found = {"family": "phi", "source": "phi", "source_parameters": 600_000, "target_parameters": 1_000_000,
             "points": points, "crossings": [], "unit": "nats"}  # fmt: skip
    monkeypatch.setattr(growth, "ladders", lambda: (found,))
    return found


@pytest.mark.parametrize(("tokens", "choice"), [(1, "small"), (2, "small"), (10, "grown"), (90, "scratch")])
def test_the_way_to_start_is_the_best_arm_of_the_ladder(ladder, tokens, choice):
    found = growth.answer(1_000_000, [tokens, tokens], 600_000, is_free=False)
    assert found["choice"] == choice
    assert found["inside"]
    assert "beyond what was measured" not in found["sentence"]
    assert growth.ANSWERS[choice] in found["sentence"]


def test_a_gain_between_two_budgets_is_read_off_the_logarithm_and_past_an_end_it_is_the_end(ladder):
    assert growth.gain(ladder, "small over scratch", 10**0.5)["mean"] == pytest.approx(0.2)
    assert growth.gain(ladder, "small over scratch", 1e-3)["mean"] == pytest.approx(0.3)
    assert growth.gain(ladder, "small over scratch", 1e5)["mean"] == pytest.approx(-0.3)


@pytest.mark.parametrize(("parameters", "tokens"), [(1_000_000, [0.1, 1]), (1_000_000, [50, 200]), (5_000_000, [5, 5])])
def test_outside_the_measured_range_the_answer_says_so(ladder, parameters, tokens):
    found = growth.answer(parameters, tokens, None, is_free=False)
    assert not found["inside"]
    assert "are beyond what was measured" in found["sentence"]
    assert "1 to 100.0 tokens per parameter" in found["sentence"].replace("1.0 to", "1 to")


def test_growth_whose_lead_spans_zero_is_not_advised(ladder):
    assert growth.answer(1_000_000, [10, 10], 600_000, is_free=False)["choice"] == "grown"
    ladder["points"][1]["gains"]["grown over small"] = measured(0.1, [-0.05, 0.25])
    found = growth.answer(1_000_000, [10, 10], 600_000, is_free=False)
    assert found["choice"] == "small"
    assert "-0.10 nats (-0.25 to 0.05) against growth, not told apart" in found["sentence"]


def test_a_base_that_others_trained_is_continued_and_its_growth_is_said_to_be_unmeasured(ladder):
    found = growth.answer(1_000_000, [10, 10], 600_000, is_free=True)
    assert found["choice"] == "continue"
    assert "was not measured against it" in found["sentence"]


def test_a_report_says_what_the_same_flops_would_have_given_without_growth(ladder):
    said = growth.without_growth(1_000_000, 10, 600_000)
    assert "this size from scratch 0.20 nats worse (0.19 to 0.21)" in said
    assert "never grown, 0.10 nats worse" in said
    assert "at 1M parameters and 10 tokens per parameter, 3 seeds (here 10)" in said
    near = growth.without_growth(1_000_000, 0.5, 600_000)
    assert "1 tokens per parameter, 3 seeds (here 0.5)" in near
    assert "never grown, 0.10 nats better (0.09 to 0.11)" in near
    for parameters, tokens in ((1_000_000, 0.2), (1_000_000, 500), (5_000_000, 10)):
        assert growth.without_growth(parameters, tokens, 600_000) == growth.NOT_MEASURED


def test_a_size_that_was_measured_at_one_budget_is_for_reports_alone(ladder, monkeypatch):
    one = {**ladder, "target_parameters": 5_000_000, "source_parameters": 3_000_000, "points": ladder["points"][:1]}
    monkeypatch.setattr(growth, "ladders", lambda: (ladder, one))
    assert "at 1M parameters, 1.0 to 100.0" in growth.answer(5_000_000, [1, 1], None, is_free=False)["basis"]
    assert "at 5M parameters and 1 tokens per parameter" in growth.without_growth(5_000_000, 1.5, 3_000_000)


def test_the_shipped_ladder_answers_for_every_config_that_grows():
    for name in ("tiny", "day", "phi2", "smol-360m"):
        config = configs.load(ROOT / "configs" / f"{name}.yaml")
        bought = costs.hours(config, H100)
        found = plan._way(config, bought)
        assert found is not None
        assert found["choice"] in growth.ANSWERS
        assert "beyond what was measured" in found["sentence"] or found["inside"]


@pytest.mark.parametrize(
    ("word", "name", "gigabytes"),
    [
        ("rtx-4090", "rtx-4090", 24), ("4090", "rtx-4090", 24), ("rtx4090", "rtx-4090", 24),
        ("NVIDIA GeForce RTX 4060 Ti", "rtx-4060-ti", 16), ("4060", "rtx-4060", 8), ("a100", "a100-40", 40),
        ("h100", "h100-80", 80), ("A10", "a10", 24), ("A6000", "rtx-a6000", 48), ("v100", "v100-16", 16),
        ("mi300x", "mi300x", 192), ("pro 6000", "rtx-pro-6000", 96), ("24gb", "24gb (a10g)", 24),
        ("10 GB", "10gb (rtx-3060)", 10), ("16gb", "16gb (rtx-4060-ti)", 16),
    ],
)  # fmt: skip
def test_a_card_is_found_by_near_names_and_by_size(word, name, gigabytes):
    found, card = card_of(word)
    assert (found, card["memory_gb"]) == (name, gigabytes)


@pytest.mark.parametrize("word", ["h101", "", "gb", "0gb", "5000gb", "rtx"])
def test_a_card_that_is_not_in_the_table_is_one_clear_error(word):
    with pytest.raises(UserError, match=r"--card is .*expected .*24gb"):
        card_of(word)


def test_every_card_has_a_forecast_and_those_without_bf16_train_in_fp32():
    config = configs.load(ROOT / "configs" / "tiny-source.yaml", LIMITS)
    for name, card in gpu_table().items():
        assert roofline(config, name, card, 8)["tokens_per_second"][0] > 0
        precision = savers.own_settings(config, card).precision
        assert precision == ("32-true" if name.startswith(("t4", "v100")) else "bf16-mixed")


def test_the_pages_show_what_a_plan_prints():
    config = configs.load(ROOT / "configs" / "domain-24gb.yaml")
    lines = plan.show(plan.make_plan(config, "4090", full=False)).splitlines()
    assert "\n".join(lines[:3]) in (ROOT / "README.md").read_text()
    assert "\n".join(lines) in (ROOT / "docs" / "plan" / "README.md").read_text()


def test_a_plan_is_five_lines(tiny):
    lines = plan.show(tiny).splitlines()
    assert [line.split()[0] for line in lines] == ["memory", "buys", "costs", "advice", "better"]
    assert lines[0].endswith(f"fits: {tiny['memory']['needed_gib']:g} GiB needed of 22.35 on l4, at micro-batch 8 "
                             "(tiny-source, 2.91M parameters)")  # fmt: skip
    assert "1M tokens" in lines[1]
    assert "USD" in lines[2]
    assert lines[3].startswith(tuple(f"advice  {way}: " for way in growth.ANSWERS.values()))
    assert "beyond what was measured" in lines[3]
    assert len(plan.show(tiny, full=True).splitlines()) > 40


def test_what_does_not_fit_names_settings_that_do():
    small = [*LIMITS, "train.global_batch_tokens=131072"]
    config = configs.load(ROOT / "configs" / "tiny-source.yaml", [*small, "train.micro_batch=512"])
    lines = plan.show(plan.make_plan(config, "2gb", full=False)).splitlines()
    assert len(lines) == 5
    assert "DOES NOT FIT" in lines[0]
    words = lines[4].partition(":")[0].split()[1:]  # the overrides of the last line, typed as they stand
    again = configs.load(ROOT / "configs" / "tiny-source.yaml", [*small, *words])
    assert plan.make_plan(again, "2gb", full=False)["memory"]["fits"], words


def test_a_plan_for_this_machines_processor_counts_its_memory_and_no_money():
    config = configs.load(ROOT / "configs" / "tiny-source.yaml", LIMITS)
    found = plan.make_plan(config, "cpu", full=False)
    assert found["card"] == "cpu"
    assert found["overhead"]["seconds"]["compile"] == 0
    lines = plan.show(found).splitlines()
    assert "USD" not in lines[2]
    assert "a GPU: --card" in lines[4]


def test_own_text_is_counted_from_its_files(root):
    (root / "notes").mkdir()
    (root / "notes" / "a.md").write_text("x" * 4000)
    source = {"type": "text", "path": str(root / "notes"), "license": "own"}
    config = smol()
    config.data.sources = {"notes": source}
    assert costs.text_of(config)["sources"]["notes"] == {"tokens": 1000, "from": costs.FILES}
    config.init.method = "continue"
    values = {"overhead": {}, "text": {**costs.text_of(config), "epochs": {}}}
    assert advise(config, values).startswith("1k tokens of your own text are little")


def test_the_cost_of_a_data_stage_follows_the_published_rates_and_grows_with_the_text():
    rows = json.loads((ROOT / "docs/results/data/bench_scale.json").read_text(encoding="utf-8"))["rows"]
    measured = {row["name"]: row["value"] for row in rows}
    for step, (shard_gb, shard_document, _, lead_document) in data_cost.RATES.items():
        name = "data" if step == "data" else f"data-{step.replace(' ', '-')}"
        if step not in ("start", "score"):  # hashes before the first step; not scored there
            assert shard_gb == pytest.approx(measured[f"{name}, working: processor time"], abs=0.06)
            for who, value in (("working", shard_document), ("leading", lead_document)):
                in_small = measured[f"{name}, {who}: processor time, 160,000 documents"]
                assert value == pytest.approx(in_small, rel=0.15, abs=0.06)
    few, many = (data_cost.hours_by_step(n * 1e9, n * 250_000, 16) for n in (100, 1000))
    assert sum(many.values()) == pytest.approx(10 * sum(few.values()))
    assert data_cost.hours_by_step(1e12, 2.5e8, 512)["data"] == many["data"]  # one process does that alone
    assert data_cost.hours_by_step(1e12, 2.5e8, 512)["rules"] < many["rules"] / 7
    assert data_cost.data_cost(None) is None


def test_a_full_plan_has_hours_and_disk_of_the_data_stage():
    config = configs.load(ROOT / "configs" / "tiny-source.yaml", LIMITS)
    config.data.sources = {"web": {"type": "jsonl", "path": "x.jsonl", "limit_tokens": 250_000_000}}
    found = plan.make_plan(config, "l4", full=False)
    stage = found["data_stage"]
    assert stage["bytes"] == pytest.approx(250e6 * BYTES_PER_TOKEN)
    assert stage["hours"]["16"] > stage["hours"]["512"] > 0
    assert stage["disk_gb"] > 3 * stage["bytes"] / 1e9
    assert "on 512 cores for the data stage" in plan.show(found, full=True)
