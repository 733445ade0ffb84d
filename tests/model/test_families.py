"""Every family: functions, gradients and files are those of transformers; growth is exact, and new parts learn."""

import dataclasses
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

import pytest
import torch
import yaml
from family_shapes import VOCABULARY, pairs, shapes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from model import checkpoints
from model.config import ImpossibleShape, ModelConfig
from model.families import FAMILIES
from model.growth import GROWTH
from model.growth.rules import GrowthRefused, nearest
from model.hf import load_network, save_folder
from model.special_tokens import SpecialTokens
from model.transformer import KeyValueCache, Transformer

MANY = settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
families = pytest.mark.parametrize("family", FAMILIES)


def tokens_of(config: ModelConfig, rows: int = 2, tokens: int = 40) -> torch.Tensor:
    return torch.randint(0, config.vocab_size, (rows, tokens), generator=torch.Generator().manual_seed(3))


def apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    ours, theirs = ours.detach().double(), theirs.detach().double()
    return float((ours - theirs).abs().max() / theirs.abs().max())


@families
@given(data=st.data())
@MANY
def test_logits_and_gradients_are_those_of_transformers(
    family: str, data: st.DataObject, network_of: Callable, reference_of: Callable
) -> None:
    config = data.draw(shapes(family))
    network = network_of(config, dtype=torch.float32)
    reference, ids = reference_of(network), tokens_of(config)
    assert apart(network(ids), reference(ids).logits) <= 1e-5
    loss, count = network.loss(ids[:, :-1], ids[:, 1:])
    (loss / count).backward()
    reference(ids, labels=ids).loss.backward()
    theirs = dict(reference.named_parameters())
    ours = dict(network.named_parameters())
    largest = max(float(p.grad.abs().max()) for p in theirs.values() if p.grad is not None)
    for stored, name in config.stored_names().items():
        difference = float((ours[name].grad - theirs[stored].grad).abs().max())
        # a bias of the keys has no influence on attention: its gradient is rounding alone
        assert difference <= 1e-4 * max(float(theirs[stored].grad.abs().max()), 1e-2 * largest), name


@families
@given(data=st.data())
@settings(MANY, max_examples=10)
def test_logits_are_the_same_with_a_cache(family: str, data: st.DataObject, network_of: Callable) -> None:
    network = network_of(data.draw(shapes(family)))
    ids = tokens_of(network.config, rows=1, tokens=20)
    with torch.no_grad():
        whole = network(ids)
        cache = KeyValueCache(network.config, 1, 20, like=network.lm_head.weight)
        pieces = [network.lm_head(network.hidden(piece, cache)) for piece in (ids[:, :13], *ids[:, 13:].split(1, 1))]
    assert apart(torch.cat(pieces, 1), whole) <= 1e-12


@families
@given(data=st.data())
@settings(MANY, max_examples=10)
def test_in_bf16_the_error_is_not_larger_than_that_of_transformers(
    family: str, data: st.DataObject, network_of: Callable, reference_of: Callable
) -> None:
    exact = network_of(data.draw(shapes(family)))
    network = network_of(exact.config, dtype=torch.bfloat16)
    ids = tokens_of(exact.config)
    with torch.no_grad():
        wanted = exact(ids)
        ours, theirs = (
            (logits.double() - wanted).square().mean().sqrt()
            for logits in (network(ids), reference_of(network)(ids).logits)
        )
    assert ours <= 1.5 * theirs


@families
@given(data=st.data())
@settings(MANY, max_examples=60)
def test_exact_growth_keeps_the_function_in_fp64_by_transformers(
    family: str, data: st.DataObject, network_of: Callable, reference_of: Callable, grow: Callable
) -> None:
    source_config, target, units = data.draw(pairs(family))
    source = network_of(source_config)
    grown = grow(source, target, new_units=units)
    ids = tokens_of(source_config)
    with torch.no_grad():
        assert apart(reference_of(grown)(ids).logits, reference_of(source)(ids).logits) <= 1e-12


@families
@given(data=st.data())
@settings(MANY, max_examples=8)
def test_every_method_makes_the_target_and_keeps_what_it_promises(
    family: str, data: st.DataObject, network_of: Callable, grow: Callable
) -> None:
    source_config, target, units = data.draw(pairs(family))
    source, ids = network_of(source_config), tokens_of(source_config)
    same = grow(source, source_config, method="continue")
    with torch.no_grad():
        assert torch.equal(same(ids), source(ids))
        assert grow(source, target, method="random")(ids).isfinite().all()
        for method, options in (
            ("rescale", {}),
            ("rescale", {"divide_by_fan_in": True}),
            ("stack", {"new_units": units}),
        ):
            blocks = [index % source_config.num_hidden_layers for index in range(target.num_hidden_layers)]
            if method == "rescale":
                blocks = nearest(source_config.num_hidden_layers, target.num_hidden_layers)
            flags = [int(source_config.rotating[block]) for block in blocks]
            kept = dataclasses.replace(target, no_rope_layers=flags if target.kin.rotary_blocks else None)
            if source_config.tie_word_embeddings or not target.tie_word_embeddings:
                assert grow(source, kept, method=method, **options)(ids).isfinite().all()


LEARNING = {
    "phi": ({"qk_layernorm": True, "partial_rotary_factor": 0.5}, {"hidden_size": 72, "num_attention_heads": 6}),
    "llama": (
        {"attention_bias": True, "mlp_bias": True},
        {"hidden_size": 72, "num_attention_heads": 6, "head_dim": 24},
    ),
    "qwen2": ({}, {"hidden_size": 70, "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 24}),
    "qwen3": ({"head_dim": 12}, {"hidden_size": 70, "num_attention_heads": 6, "num_key_value_heads": 3}),
    "olmo2": ({}, {"hidden_size": 70}),
    "smollm3": ({"no_rope_layers": [1, 0]}, {"hidden_size": 70, "no_rope_layers": [1, 1, 0, 0]}),
}


@pytest.mark.parametrize("tied", [False, True])
@families
def test_every_new_row_and_column_has_changed_after_50_steps(
    family: str, tied: bool, network_of: Callable, grow: Callable, train: Callable
) -> None:
    change, growth = LEARNING[family]
    source_config = ModelConfig(
        VOCABULARY, 48, 80, 2, 4, 2, family=family, tie_word_embeddings=tied, **({"head_dim": 12} | change)
    )
    if source_config.qk_layernorm:
        source_config.head_dim = None
    target = dataclasses.replace(source_config, intermediate_size=110, num_hidden_layers=4, **growth)
    grown = grow(network_of(source_config), target.validate()).float()
    before = {name: parameter.detach().clone() for name, parameter in grown.named_parameters()}
    train(grown, steps=50, rate=1e-3)
    for name, parameter in grown.named_parameters():
        changed = parameter.detach() != before[name]
        if name.endswith("k_proj.bias") and not source_config.qk_layernorm:
            continue  # attention does not depend on it
        for axis in range(changed.ndim):
            others = [other for other in range(changed.ndim) if other != axis]
            assert bool((changed.any(others[0]) if others else changed).all()), (name, axis)


def test_an_inserted_block_of_olmo2_moves_the_logits_by_little_in_its_first_step(
    network_of: Callable, grow: Callable
) -> None:
    # Zero projections before a norm would move them by a third: its slope at 0 is gain / sqrt(eps).
    config = ModelConfig(VOCABULARY, 48, 80, 2, 4, family="olmo2")
    source, ids = network_of(config, dtype=torch.float32), tokens_of(config)
    grown = grow(source, dataclasses.replace(config, num_hidden_layers=4))
    new = [parameter for block in (1, 3) for parameter in grown.model.layers[block].parameters()]
    loss, count = grown.loss(ids[:, :-1], ids[:, 1:])
    (loss / count).backward()
    with torch.no_grad():
        before = grown(ids)
        for parameter in new:
            parameter -= 1e-4 * parameter.grad.sign()
        assert 0 < apart(grown(ids), before) <= 1e-3


REFUSED: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("qwen3", {}, {"head_dim": 16}, "model.head_dim"),
    ("olmo2", {}, {"num_attention_heads": 5, "num_key_value_heads": 5}, "init.options.new_units=copies"),
    ("olmo2", {}, {"head_dim": 24}, "model.head_dim"),
    ("llama", {}, {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "model.rope_scaling"),
    ("llama", {}, {"family": "qwen2"}, "model.family"),
    ("llama", {}, {"mlp_bias": True}, "model.mlp_bias"),
    ("llama", {}, {"vocab_size": 98}, "model.vocab_size"),
    ("smollm3", {"no_rope_layers": [1, 0]}, {"num_hidden_layers": 4}, "model.no_rope_layers=[1,1,0,0]"),
    ("phi", {"partial_rotary_factor": 0.5}, {"family": "llama", "partial_rotary_factor": 1.0}, "model.family=phi"),
]


@pytest.mark.parametrize(("family", "change", "growth", "key"), REFUSED)
def test_what_cannot_be_exact_is_refused_by_the_key_to_change(
    family: str, change: dict, growth: dict, key: str
) -> None:
    source = ModelConfig(VOCABULARY, 48, 80, 2, 4, 4, 12, family=family, **change)
    blank = {name: None for name in ("hidden_act", "layer_norm_eps") if "family" in growth}
    target = dataclasses.replace(source, **({"no_rope_layers": None} | blank | growth))
    with pytest.raises(GrowthRefused) as refusal:
        GROWTH["exact"](source, target)
    assert key in str(refusal.value)


TABLE = yaml.safe_load(checkpoints.TABLE.read_text())


@pytest.mark.parametrize("name", TABLE["known"])
def test_published_checkpoints_have_their_number_of_parameters(name: str) -> None:
    parameters, config = TABLE["known"][name]["parameters"], checkpoints.known()[name].shape
    assert config.parameters == parameters
    assert (
        ModelConfig.from_hf(config.to_hf()).identity()
        == dataclasses.replace(
            config, num_key_value_heads=config.kv_heads, no_rope_layers=config.to_hf().get("no_rope_layers")
        ).identity()
    )
    with torch.device("meta"):
        assert sum(p.numel() for p in Transformer(config).parameters()) == parameters


def test_the_table_of_checkpoints_has_every_family_and_every_checkpoint_that_messages_name() -> None:
    assert {checkpoint.shape.family for checkpoint in checkpoints.known().values()} == set(FAMILIES)
    named = [name for kin in FAMILIES.values() for name in kin.known.split(", ")]
    assert all(checkpoints.find(name) for name in named)
    for pattern, family in TABLE["refused"].items():
        assert family not in FAMILIES
        assert not any(
            fnmatchcase(name, pattern) for row in TABLE["known"].items() for name in (row[0], *row[1].get("also", []))
        )


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"model_type": "qwen3_moe"}, "'qwen3_moe'"),
        ({"model_type": "qwen3_5"}, "'qwen3_5'"),
        ({"use_sliding_window": True}, "sliding_window"),
        ({"sliding_window": 4096}, "sliding_window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "'yarn'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
        ({"hidden_act": "gelu"}, "'gelu'"),
        ({"num_attention_heads": 7}, "num_attention_heads"),
    ],
)
def test_what_no_network_here_computes_is_refused_by_name(change: dict, word: str) -> None:
    content = ModelConfig(VOCABULARY, 48, 80, 2, 4, family="llama").to_hf()
    with pytest.raises(ImpossibleShape) as refusal:
        ModelConfig.from_hf(content | change)
    assert word in str(refusal.value)


@families
@given(data=st.data())
@settings(MANY, max_examples=6)
def test_an_export_reloads_bit_equal_as_the_familys_class(
    family: str, data: st.DataObject, network_of: Callable, tmp_path_factory: pytest.TempPathFactory
) -> None:
    network = network_of(data.draw(shapes(family)), dtype=torch.float32)
    folder = tmp_path_factory.mktemp(family)
    save_folder(folder, network.state_dict(), network.config, None, SpecialTokens())
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    assert type(theirs).__name__ == network.config.kin.architecture
    state, ours = theirs.state_dict(), network.state_dict()
    assert set(network.config.stored_names()) | {"lm_head.weight"} == set(state)
    assert all(torch.equal(state[stored], ours[name]) for stored, name in network.config.stored_names().items())
    again = load_network(folder)
    assert all(torch.equal(again.state_dict()[name], value) for name, value in ours.items())
    theirs.save_pretrained(folder / "theirs")
    assert ours.keys() == load_network(folder / "theirs").state_dict().keys()
