"""The memory trace: against arithmetic, against deeper traces, and the figures promised for Phi-2."""

from dataclasses import replace
from math import prod
from pathlib import Path

import pytest

from model.config import ModelConfig
from model.estimate import Plan, TrainSettings, needed_bytes, trace_steps
from model.loss import chunked_cross_entropy
from pipeline import config as configs
from pipeline.training.memory import train_settings

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SMALL, DEEP = ModelConfig(1000, 256, 1024, 2, 4), ModelConfig(1000, 256, 1024, 6, 4)
GIB = 2**30


@pytest.mark.parametrize(
    ("precision", "optimizer", "weights", "states"),
    [
        ("32-true", "adamw", 4, 8),
        ("bf16-mixed", "adamw", 2, 12),  # the masters are counted as the optimizer's
        ("bf16-true", "adamw", 2, 4),
        ("bf16-sr", "adamw", 2, 8),
        ("bf16-sr", "adamw8bit", 2, 2.04),
        ("bf16-sr", "adamw4bit", 2, 1.1),
    ],
)
def test_weights_and_states_take_the_bytes_that_arithmetic_says(precision, optimizer, weights, states) -> None:
    found = Plan(SMALL, TrainSettings(64, precision, optimizer, accumulate=True)).estimate(2)
    assert found.by_kind["weights"] == pytest.approx(weights * SMALL.parameters, rel=0.01)
    assert found.by_kind["optimizer"] == pytest.approx(states * SMALL.parameters, rel=0.05)


@pytest.mark.parametrize(("checkpointing", "windows"), [("none", 1), ("none", 5), ("selective", 5), ("full", 5)])
def test_two_and_three_blocks_tell_the_peak_of_six(checkpointing: str, windows: int) -> None:
    settings = TrainSettings(512, "32-true", "adamw", checkpointing, accumulate=True)
    found = Plan(DEEP, settings).estimate(windows)
    exact = max(sum(kinds.values()) for kinds in trace_steps(DEEP, settings, (windows,))[0].values())
    assert found.traced_bytes == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-sr"])
def test_loading_and_saving_take_no_second_copy_of_the_model(precision: str) -> None:
    trace = trace_steps(SMALL, TrainSettings(64, precision, "adamw", accumulate=True), (1,))[0]
    values = {"32-true": 4, "bf16-mixed": 6, "bf16-sr": 2}[precision] * SMALL.parameters
    assert sum(trace["loading"].values()) == pytest.approx(values, rel=0.01)
    held = trace["optimizer"]["weights"] + trace["optimizer"]["optimizer"]
    largest = 4 * max(prod(shape) for shape in SMALL.tensor_shapes().values())
    assert held < sum(trace["saving"].values()) <= held + 2 * largest
    assert trace["saving"]["workspace"] < 10_000


def test_each_policy_keeps_the_bytes_it_says() -> None:
    kept = {}
    for policy in ("none", "selective", "full"):
        settings = TrainSettings(256, "bf16-true", "adamw", policy)
        two, four = (
            trace_steps(replace(SMALL, num_hidden_layers=n), settings, (1,))[0]["loss"]["activations"] for n in (2, 4)
        )
        kept[policy] = (four - two) / 2 / 256 / 2 / SMALL.hidden_size  # per block and token, in bf16 values of width D
    assert kept["none"] == pytest.approx(15, abs=0.1)
    assert kept["none"] - kept["selective"] == pytest.approx(4, abs=0.1)
    assert kept["full"] == pytest.approx(1, abs=0.1)


def test_a_peak_fits_with_what_no_trace_sees_or_not_at_all() -> None:
    found = Plan(SMALL, TrainSettings(64)).estimate(1)
    assert found.fits is None
    assert Plan(SMALL, TrainSettings(64)).estimate(1, found.needed_bytes).fits
    assert not Plan(SMALL, TrainSettings(64)).estimate(1, found.needed_bytes - 1).fits
    assert found.needed_bytes == needed_bytes(found.traced_bytes) > found.traced_bytes


MINIMUM = [
    "train.optimizer=adamw4bit",
    "train.optimizer_in_backward=true",
    "train.clip_norm=0",
    "train.micro_batch=0",
    "train.global_batch_tokens=4096",
]


@pytest.mark.parametrize(
    ("name", "overrides", "windows", "most_gib"),
    [("phi2-24gb", [], 1, 17), ("phi2-24gb", MINIMUM, 2, 12), ("phi2", [], 8, 55)],
)
def test_phi2_stays_under_its_promised_peak(name: str, overrides: list[str], windows: int, most_gib: float) -> None:
    config = configs.load(CONFIGS / f"{name}.yaml", overrides)
    assert config.model.parameters == 2_779_683_840
    found = Plan(config.model, train_settings(config.train, config.train.precision)).estimate(windows)
    assert found.traced_bytes <= most_gib * GIB


def test_the_loss_of_16k_tokens_and_phi2s_vocabulary_stays_under_1_gib() -> None:
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from model import fused
    from model.estimate import _Storages
    from model.loss import GPU_CHUNK_TOKENS

    with FakeTensorMode(), _Storages() as storages, fused.watched(storages.fused):
        h_ND = torch.empty(16384, 2560, dtype=torch.bfloat16, requires_grad=True)
        weight_VD = torch.empty(51200, 2560, dtype=torch.bfloat16, requires_grad=True)
        bias_V = torch.empty(51200, dtype=torch.bfloat16, requires_grad=True)
        labels_N = torch.zeros(16384, dtype=torch.int64)
        storages.begin("loss", "loss")
        chunked_cross_entropy(h_ND, weight_VD, bias_V, labels_N, GPU_CHUNK_TOKENS)[0].backward()
    assert 0.5 * GIB < storages.peaks["loss"]["loss"] <= 1.0 * GIB
