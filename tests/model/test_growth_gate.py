"""The gate measures what growth changed, and the walk names the tensor where a broken promise begins."""

import dataclasses

import pytest
import torch

from model.config import ModelConfig
from model.growth import GROWTH
from model.growth.gate import compare, compare_rounded, examine
from model.growth.walk import first_difference

SOURCE = ModelConfig(97, 48, 192, 3, 6, max_position_embeddings=64)
TARGET = dataclasses.replace(
    SOURCE, hidden_size=60, intermediate_size=240, num_hidden_layers=5, partial_rotary_factor=0.4
)
COPIED = dataclasses.replace(SOURCE, hidden_size=96, num_attention_heads=12, intermediate_size=384)
TIED = dataclasses.replace(SOURCE, tie_word_embeddings=True)
GROUPED = dataclasses.replace(SOURCE, num_key_value_heads=2, qk_layernorm=True)


def windows(rows: int = 3, tokens: int = 40) -> torch.Tensor:
    return torch.randint(0, SOURCE.vocab_size, (rows, tokens), generator=torch.Generator().manual_seed(5))


def test_the_gate_measures_what_a_difference_costs(network_of) -> None:
    source = network_of(SOURCE, dtype=torch.float32)
    other = network_of(SOURCE, seed=1, dtype=torch.float32)
    result = compare(source, other, windows())
    with torch.no_grad():
        logits = [network(windows()) for network in (source, other)]
    assert result.max_abs_logit_diff == pytest.approx(float((logits[0] - logits[1]).abs().max()), rel=1e-4)
    assert result.max_rel_logit_diff > 0.1
    assert result.grown_loss != result.source_loss
    count = windows()[:, 1:].numel()
    assert result.source_loss == pytest.approx(
        float(source.loss(windows()[:, :-1], windows()[:, 1:])[0].detach()) / count, rel=1e-5
    )
    with torch.no_grad():
        other.lm_head.bias[0] = float("nan")
    assert not compare(source, other, windows()).max_rel_logit_diff <= 1.0


def test_bf16_errors_are_judged_against_the_sources_own_rounding(network_of, grow) -> None:
    source = network_of(SOURCE, dtype=torch.float32)
    exact = compare_rounded(source, grow(source, TARGET), windows(rows=8))
    assert 0.5 <= exact.ratio <= 1.5
    assert exact.source_error > 0.01  # an absolute tolerance as in fp32 would fail the source itself
    assert compare_rounded(source, grow(source, TARGET, "rescale"), windows()).ratio > 10
    assert compare_rounded(source, grow(source, TARGET, "rescale"), windows()).rms_ratio > 10
    same = compare_rounded(source, source, windows())
    assert (same.ratio, same.rms_ratio) == (1, 1)


def test_small_networks_are_examined_in_fp64_too_and_facts_are_plain_values(network_of, grow, monkeypatch) -> None:
    source = network_of(SOURCE, dtype=torch.float32)
    grown = grow(source, TARGET)
    report = examine(source, grown, windows())
    assert report.fp64 is not None
    assert report.bf16 is not None
    assert report.fp64.max_rel_logit_diff < report.fp32.max_rel_logit_diff <= 1e-5
    facts = report.facts()
    assert set(facts) == {"fp32", "fp64", "bf16"}
    assert facts["bf16"]["rms_ratio"] == report.bf16.rms_ratio
    monkeypatch.setattr("model.growth.gate.SMALL_PARAMETERS", 1000)
    monkeypatch.setattr("model.growth.gate.LARGE_PARAMETERS", 1000)
    facts = examine(source, grown, windows()).facts()
    assert facts["fp64"] is None
    assert facts["bf16"] is None


@pytest.mark.parametrize(
    ("tensor", "place"),
    [
        ("model.embed_tokens.weight", "model.embed_tokens"),
        ("model.layers.2.input_layernorm.weight", "model.layers.2.input_layernorm"),
        ("model.layers.2.self_attn.q_proj.weight", "model.layers.2.self_attn.q_proj or self_attn.k_proj"),
        ("model.layers.2.self_attn.k_proj.weight", "model.layers.2.self_attn.q_proj or self_attn.k_proj"),
        ("model.layers.2.self_attn.v_proj.weight", "model.layers.2.self_attn.v_proj"),
        ("model.layers.0.self_attn.dense.weight", "model.layers.0.self_attn.dense"),
        ("model.layers.3.self_attn.dense.weight", "model.layers.3.self_attn.dense (an inserted block"),
        ("model.layers.2.mlp.fc1.bias", "model.layers.2.mlp.fc1"),
        ("model.layers.2.mlp.fc2.weight", "model.layers.2.mlp.fc2"),
        ("model.layers.1.mlp.fc2.bias", "model.layers.1.mlp.fc2 (an inserted block"),
        ("lm_head.weight", "model.final_layernorm or lm_head"),
        ("model.final_layernorm.bias", "model.final_layernorm or lm_head"),
    ],
)
def test_the_walk_names_the_tensor_that_is_wrong(tensor: str, place: str, network_of, grow) -> None:
    source = network_of(SOURCE, dtype=torch.float32)
    grown, rules = grow(source, TARGET), GROWTH["exact"](SOURCE, TARGET)
    assert first_difference(source, grown, rules, windows()) is None
    with torch.no_grad():
        wrong = grown.state_dict()[tensor]
        wrong += 0.2 * torch.linspace(-1, 1, wrong.numel()).sin().view(wrong.shape)
    parting = first_difference(source, grown, rules, windows())
    assert parting is not None
    assert parting.place.startswith(place), parting
    assert parting.difference > 1e-4


@pytest.mark.parametrize("options", [{}, {"new_units": "copies"}])
@pytest.mark.parametrize(
    ("config", "target"),
    [
        (SOURCE, TARGET),
        (SOURCE, COPIED),
        (GROUPED, dataclasses.replace(GROUPED, hidden_size=72, num_attention_heads=9, num_key_value_heads=3)),
        (TIED, dataclasses.replace(TARGET, tie_word_embeddings=True)),
        (TIED, COPIED),
    ],
)
def test_the_walk_finds_nothing_where_the_promise_is_kept(config, target, options, network_of, grow) -> None:
    source = network_of(config, dtype=torch.float32)
    rules = GROWTH["exact"](config, target, **options)
    assert first_difference(source, grow(source, target, **options), rules, windows()) is None


def test_the_walk_finds_a_value_that_is_not_a_number(network_of, grow) -> None:
    source = network_of(SOURCE, dtype=torch.float32)
    grown = grow(source, TARGET)
    with torch.no_grad():
        grown.model.layers[4].mlp.fc1.weight[3, 2] = float("nan")
    parting = first_difference(source, grown, GROWTH["exact"](SOURCE, TARGET), windows())
    assert parting is not None
    assert parting.place == "model.layers.4.mlp.fc1"
