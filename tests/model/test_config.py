"""The shape: arithmetic that agrees with the built network, refusals that name the key, config.json both ways."""

import dataclasses

import pytest
import torch
from transformers import PhiConfig

from model.config import ImpossibleShape, ModelConfig
from model.transformer import Transformer

SMALL = ModelConfig(97, 64, 160, 3, 8)
SHAPES = {
    "phi-1.5": ModelConfig(51200, 2048, 8192, 24, 32),
    "phi-2": ModelConfig(51200, 2560, 10240, 32, 32, partial_rotary_factor=0.4),
    "grouped, normalized": ModelConfig(97, 64, 160, 3, 8, num_key_value_heads=2, qk_layernorm=True),
    "free head size": ModelConfig(97, 60, 100, 2, 4, num_key_value_heads=1, head_dim=24),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_by_arithmetic_are_those_of_the_built_network(name: str) -> None:
    config = SHAPES[name]
    with torch.device("meta"):
        network = Transformer(config)
    assert {key: tuple(value.shape) for key, value in network.state_dict().items()} == config.tensor_shapes()
    assert sum(p.numel() for p in network.parameters()) == config.parameters


def test_phi_2_has_its_published_size_and_flops() -> None:
    assert SHAPES["phi-2"].parameters == 2_779_683_840
    assert len(SHAPES["phi-2"].tensor_shapes()) == 453
    assert SHAPES["phi-2"].flops_per_token(2048) == pytest.approx(17.9e9, rel=1e-3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_attention_heads": 7}, ["model.hidden_size=64", "model.num_attention_heads=7", "model.head_dim"]),
        ({"num_key_value_heads": 3}, ["model.num_key_value_heads=3", "model.num_attention_heads=8"]),
        ({"partial_rotary_factor": 0.4}, ["rotary size is 3", "must be even"]),
        ({"partial_rotary_factor": 0.1}, ["rotary size is 0"]),
        ({"partial_rotary_factor": 1.5}, ["rotary size is 12", "write model.partial_rotary_factor=1.0"]),
        ({"head_dim": 88, "partial_rotary_factor": 30 / 88}, ["truncates it to 29", "write model.partial_"]),
        ({"hidden_size": -64}, ["model.hidden_size is -64"]),
        ({"num_hidden_layers": 0}, ["model.num_hidden_layers is 0"]),
        ({"hidden_act": "relu"}, ["model.hidden_act is 'relu'", "gelu_new"]),
        ({"qk_layernorm": True, "head_dim": 16}, ["model.qk_layernorm", "model.head_dim"]),
    ],
)
def test_impossible_shapes_are_refused_in_a_sentence_that_names_the_key(change: dict, words: list[str]) -> None:
    with pytest.raises(ImpossibleShape) as refusal:
        dataclasses.replace(SMALL, **change).validate()
    assert all(word in str(refusal.value) for word in words), str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_the_factor_that_a_refusal_proposes_is_accepted() -> None:
    truncated = 0
    for head_dim in range(2, 257):
        for rotary in range(2, head_dim + 1, 2):
            config = dataclasses.replace(SMALL, head_dim=head_dim, partial_rotary_factor=rotary / head_dim)
            if config.rotary_dim == rotary:
                continue
            truncated += 1
            with pytest.raises(ImpossibleShape) as refusal:
                config.validate()
            proposed = float(str(refusal.value).rsplit("=", 1)[1].rstrip("."))
            assert dataclasses.replace(config, partial_rotary_factor=proposed).validate().rotary_dim == rotary
    assert truncated == 539


@pytest.mark.parametrize("name", SHAPES)
def test_config_json_comes_back_as_the_same_shape_also_through_transformers(name: str) -> None:
    config = SHAPES[name]
    content = config.to_hf(bos_token_id=0, eos_token_id=0, dtype="bfloat16")
    theirs = PhiConfig.from_dict(content)
    assert theirs.rope_parameters["partial_rotary_factor"] == config.partial_rotary_factor
    expected = dataclasses.replace(config, num_key_value_heads=config.kv_heads)
    assert ModelConfig.from_hf(content) == expected
    assert ModelConfig.from_hf(theirs.to_dict()) == expected


def test_old_style_phi_files_with_flat_rotary_fields_are_read() -> None:
    old = {"model_type": "phi", "hidden_size": 2560, "num_hidden_layers": 32, "intermediate_size": 10240}
    old |= {"partial_rotary_factor": 0.4, "rope_theta": 10000.0, "rope_scaling": None, "resid_pdrop": 0.1}
    assert ModelConfig.from_hf(old).parameters == 2_779_683_840


def test_the_older_of_two_forms_of_rotary_settings_decides_as_in_transformers() -> None:
    both = SMALL.to_hf() | {"rope_theta": 700.0, "rope_scaling": {"rope_type": "default", "rope_theta": 500.0}}
    assert PhiConfig.from_dict(dict(both)).rope_parameters["rope_theta"] == 500.0
    assert ModelConfig.from_hf(both).rope_theta == 500.0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "gemma3"}, ["'gemma3'", "microsoft/phi-1_5"]),
        ({"hidden_act": "silu"}, ["'silu'"]),
        ({"rope_parameters": {"rope_type": "linear"}}, ["'linear'"]),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, ["'linear'"]),  # beside to_hf's rope_parameters
    ],
)
def test_other_families_and_functions_are_refused_by_name(change: dict, words: list[str]) -> None:
    with pytest.raises(ImpossibleShape) as refusal:
        ModelConfig.from_hf(SMALL.to_hf() | change)
    assert all(word in str(refusal.value) for word in words)
