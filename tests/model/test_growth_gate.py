"""The gate measures what growth changed, and the walk names the tensor where a broken promise begins."""

import dataclasses
import weakref

import pytest
import torch
from growth_checks import SOURCE, compare, compare_rounded, first_difference, windows

from model.config import ModelConfig
from model.growth import GROWTH
from model.growth.gate import MAX_FLOPS, MIN_TOKENS, StoredNetwork, affordable, cost, examine, mean_loss
from model.hf import open_state, save_folder
from model.transformer import Block

TARGET = dataclasses.replace(
    SOURCE, hidden_size=60, intermediate_size=240, num_hidden_layers=5, partial_rotary_factor=0.4
)
COPIED = dataclasses.replace(SOURCE, hidden_size=96, num_attention_heads=12, intermediate_size=384)
TIED = dataclasses.replace(SOURCE, tie_word_embeddings=True)
GROUPED = dataclasses.replace(SOURCE, num_key_value_heads=2, qk_layernorm=True)


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


def test_networks_from_their_files_are_measured_as_in_memory(network_of, grow, tmp_path) -> None:
    source = network_of(SOURCE, dtype=torch.float32)
    grown = grow(source, TARGET)
    files = []
    for name, network in (("source", source), ("grown", grown)):
        save_folder(tmp_path / name, network.state_dict(), network.config, None, "")
        files.append(StoredNetwork(network.config, open_state(tmp_path / name)))
    heard: list[float] = []
    report = examine(*files, windows(), heard.append)
    assert report == examine(source, grown, windows())
    assert sum(heard) == pytest.approx(cost(source, grown, *windows().shape), rel=0.15)  # one head is run twice
    assert mean_loss(files[1], windows()) == pytest.approx(report.fp32.grown_loss, rel=1e-6)
    assert first_difference(*files, GROWTH["exact"](SOURCE, TARGET), windows()) is None


def test_vocabularies_and_windows_in_pieces_give_the_same_facts(network_of, grow, monkeypatch) -> None:
    source = network_of(SOURCE, dtype=torch.float32)
    grown = grow(source, TARGET, "rescale")
    whole = examine(source, grown, windows()).facts()
    monkeypatch.setattr("model.growth.gate.LOGITS", 7 * SOURCE.vocab_size)  # 40 tokens: the last piece has 5
    monkeypatch.setattr("model.growth.gate.HEAD_ELEMENTS", 10 * SOURCE.hidden_size)
    pieces = examine(source, grown, windows()).facts()
    for kind, facts in whole.items():
        assert pieces[kind] == pytest.approx(facts, rel=1e-2 if kind == "bf16" else 1e-5)


def test_the_gate_takes_the_head_that_lies_in_the_file_whatever_the_config_says(network_of) -> None:
    """What `hf` makes of such a folder is its own affair: with the same rule in both, a fault in it would not show."""
    network = network_of(SOURCE, dtype=torch.float32)
    called_tied = StoredNetwork(TIED, network.state_dict())
    assert compare(network, called_tied, windows()).max_abs_logit_diff == 0
    tied = network_of(TIED, dtype=torch.float32)
    state = dict(tied.state_dict())
    alone = {**state, "lm_head.weight": state.pop("model.embed_tokens.weight")}
    del alone["model.embed_tokens.weight"]
    assert compare(tied, StoredNetwork(TIED, alone), windows()).max_abs_logit_diff == 0


PHI_1_5 = ModelConfig(51200, 2048, 8192, 24, 32)
PHI_2 = ModelConfig(51200, 2560, 10240, 32, 32, partial_rotary_factor=0.4)


@pytest.mark.parametrize(
    ("source", "target", "rows", "tokens", "expected"),
    [
        (SOURCE, TARGET, 32, 64, (32, 64)),
        (PHI_1_5, PHI_2, 32, 256, (2, 126)),
        (PHI_1_5, PHI_2, 32, 2048, (2, 112)),
        (PHI_1_5, PHI_2, 32, 20, (12, 20)),
        (PHI_1_5, PHI_2, 1, 2048, (1, 224)),
        (None, PHI_2, 32, 2048, (2, 167)),
        (PHI_2, ModelConfig(256000, 16384, 65536, 100, 128), 32, 2048, (2, 16)),
    ],
)
def test_windows_are_as_many_as_the_cost_limit_allows_and_at_least_two(source, target, rows, tokens, expected) -> None:
    pair = [StoredNetwork(config, {}) if config else None for config in (source, target)]
    ids = affordable(*pair, torch.zeros(rows, tokens, dtype=torch.long))
    assert ids.shape[0] == expected[0]
    assert ids.shape[1] == pytest.approx(expected[1], abs=2)
    if ids.shape[1] > MIN_TOKENS:
        assert cost(*pair, *ids.shape) <= MAX_FLOPS


def test_memory_holds_one_block_at_a_time(network_of, monkeypatch) -> None:
    alive, seen = weakref.WeakSet(), []

    class Counted(Block):
        def __init__(self, config: ModelConfig, rotates: bool) -> None:
            super().__init__(config, rotates)
            alive.add(self)
            seen.append(len(alive))

    monkeypatch.setattr("model.growth.gate.Block", Counted)
    networks = [network_of(config, dtype=torch.float32) for config in (SOURCE, TARGET)]
    compare(*networks, windows())
    assert seen == [1] * (SOURCE.num_hidden_layers + TARGET.num_hidden_layers)


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
