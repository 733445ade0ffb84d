"""The other growth methods, the maps of blocks, and what all methods share: rules that can be printed and streamed."""

import dataclasses
import inspect

import pytest
import torch
from growth_checks import SOURCE, compare, windows

from model.config import ModelConfig
from model.growth import GROWTH, rules
from model.growth.rules import GrowthRefused, apply, cautions, interleaved, nearest, stacked, stream, tensor_map
from model.hf import open_state, write_safetensors
from model.transformer import Transformer

LARGER = dataclasses.replace(
    SOURCE, hidden_size=60, intermediate_size=240, num_hidden_layers=4, partial_rotary_factor=0.4
)
LAYOUT = dataclasses.replace(SOURCE, num_attention_heads=8, num_key_value_heads=4, head_dim=12, hidden_size=70)


@pytest.mark.parametrize("block_map", [lambda a, b: [s for s, _ in interleaved(a, b)], nearest])
def test_maps_of_blocks_are_monotone_and_cover_every_source_block_also_at_twice_the_depth(block_map) -> None:
    for few in range(1, 25):
        for many in range(few, 2 * few + 3):
            sources = block_map(few, many)
            assert len(sources) == many
            assert sources == sorted(sources)
            assert set(sources) == set(range(few))
    assert block_map(3, 3) == [0, 1, 2]


def test_exactly_one_of_the_blocks_from_a_source_block_stays_itself() -> None:
    for few in range(1, 9):
        for many in range(few, 4 * few + 1):
            assert [source for source, inserted in interleaved(few, many) if not inserted] == list(range(few))
    assert [i for i, (_, inserted) in enumerate(interleaved(24, 32)) if inserted] == [1, 5, 9, 13, 17, 21, 25, 29]


def test_the_nearest_map_keeps_both_ends_and_stacking_repeats_the_list() -> None:
    assert nearest(24, 48)[0] == 0
    assert nearest(24, 48)[-1] == 23
    assert nearest(3, 1) == [0]
    assert stacked(3, 7) == [0, 1, 2, 0, 1, 2, 0]


def test_rescale_puts_each_matrix_in_the_middle_and_wraps_around(network_of, grow) -> None:
    source = network_of(SOURCE)
    grown = grow(source, LARGER, "rescale")
    small, large = source.model.embed_tokens.weight, grown.model.embed_tokens.weight
    assert torch.equal(large[:, 6:54], small)
    assert torch.equal(large[:, :6], small[:, -6:])
    assert torch.equal(large[:, 54:], small[:, :6])
    head, wider = (n.model.layers[0].self_attn.v_proj.weight for n in (source, grown))
    wider = wider.view(6, 10, 60)[:, :, 6:54]
    assert torch.equal(wider[:, :4], head.view(6, 8, 48)[:, :4])  # rotary pairs stay first in their own head
    assert torch.equal(wider[:, 4:], head.view(6, 8, 48)[:, [7, 4, 5, 6, 7, 4]])


def test_rescale_divides_by_fan_in_only_when_asked(network_of, grow) -> None:
    source = network_of(SOURCE)
    plain, divided = (grow(source, LARGER, "rescale", divide_by_fan_in=asked) for asked in (False, True))
    ratios = {"lm_head": 0.8, "model.layers.0.self_attn.dense": 0.8, "model.layers.0.mlp.fc2": 0.8}
    for name, ratio in ratios.items():
        one, other = (network.get_submodule(name).weight for network in (plain, divided))
        assert torch.allclose(other, one * ratio)
    assert torch.equal(plain.model.embed_tokens.weight, divided.model.embed_tokens.weight)


@pytest.mark.parametrize("target", [LARGER, LAYOUT, dataclasses.replace(SOURCE, hidden_size=30, num_hidden_layers=2)])
def test_rescale_takes_any_shape_also_smaller_ones_and_promises_nothing(target: ModelConfig, network_of, grow) -> None:
    source = network_of(dataclasses.replace(SOURCE, num_key_value_heads=2))
    grown = grow(source, target, "rescale")
    assert compare(source, grown, windows(), torch.float64).max_rel_logit_diff > 1e-3
    assert not GROWTH["rescale"].claims_exact(divide_by_fan_in=True)
    same = grow(source, source.config, "rescale")
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), same.parameters(), strict=True))


def test_rescale_refuses_another_vocabulary_and_norms_that_the_source_lacks() -> None:
    with pytest.raises(GrowthRefused, match=r"init.method=rescale.*model.vocab_size differs"):
        GROWTH["rescale"](SOURCE, dataclasses.replace(SOURCE, vocab_size=128))
    with pytest.raises(GrowthRefused, match=r"model.qk_layernorm differs"):
        GROWTH["rescale"](SOURCE, dataclasses.replace(SOURCE, qk_layernorm=True))


def test_stack_repeats_live_blocks_and_grows_widths_exactly(network_of, grow) -> None:
    source = network_of(SOURCE)
    stacked_twice = grow(source, dataclasses.replace(SOURCE, num_hidden_layers=6), "stack")
    for low, high in zip(stacked_twice.model.layers[:3], stacked_twice.model.layers[3:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(low.parameters(), high.parameters(), strict=True))
    assert compare(source, stacked_twice, windows(), torch.float64).max_rel_logit_diff > 1e-3
    wider = dataclasses.replace(LARGER, num_hidden_layers=3)
    assert compare(source, grow(source, wider, "stack"), windows(), torch.float64).max_rel_logit_diff <= 1e-11
    with pytest.raises(GrowthRefused, match=r"init.method=stack cannot.*model.hidden_size would shrink"):
        GROWTH["stack"](SOURCE, dataclasses.replace(SOURCE, hidden_size=36, head_dim=8))


@pytest.mark.parametrize("method", ["stack", "rescale", "random", "continue"])
@pytest.mark.parametrize("tied", [True, False])
def test_every_method_takes_a_tied_source_and_reads_its_one_matrix(method: str, tied: bool, network_of, grow) -> None:
    source = network_of(dataclasses.replace(SOURCE, tie_word_embeddings=True))
    target = dataclasses.replace(SOURCE if method == "continue" else LARGER, tie_word_embeddings=tied)
    if method == "continue" and not tied:
        with pytest.raises(GrowthRefused, match=r"tie_word_embeddings True -> False"):
            grow(source, target, method)
        return
    needs = source.config if GROWTH[method].needs_source else None
    made = {rule.target: rule for rule in GROWTH[method](needs, target)}
    assert list(made) == list(target.tensor_shapes())
    if needs and not tied:
        assert made["lm_head.weight"].sources == ("model.embed_tokens.weight",)
    if needs:
        assert torch.isfinite(grow(source, target, method)(windows())).all()


def test_random_growth_is_a_fresh_initialization_and_needs_no_source() -> None:
    grown = dict(apply(GROWTH["random"](None, SOURCE), {}, seed=3))
    expected = Transformer(SOURCE).initialize(3).state_dict()
    assert all(torch.equal(grown[name], expected[name]) for name in expected)
    with pytest.raises(GrowthRefused, match=r"init.source"):
        GROWTH["exact"](None, SOURCE)


def test_continue_copies_every_bit_and_refuses_another_shape(network_of, grow) -> None:
    source = network_of(SOURCE, dtype=torch.float32)
    grown = grow(source, dataclasses.replace(SOURCE, max_position_embeddings=128), "continue")
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), grown.parameters(), strict=True))
    with pytest.raises(GrowthRefused, match=r"hidden_size 48 -> 96.*init.method=exact"):
        GROWTH["continue"](SOURCE, dataclasses.replace(SOURCE, hidden_size=96))


@pytest.mark.parametrize("name", GROWTH)
def test_every_method_covers_every_tensor_and_can_be_printed(name: str) -> None:
    method = GROWTH[name]
    target = SOURCE if name == "continue" else LARGER
    made = method(SOURCE, target)
    assert {rule.target: rule.shape for rule in made} == target.tensor_shapes()
    assert all(rule.target in rule.describe() and len(rule.describe()) > len(rule.target) + 10 for rule in made)
    assert method.__doc__
    assert list(method.options) == list(inspect.signature(method).parameters)[2:]
    assert method.claims_exact() == (name in ("exact", "continue"))


def test_the_tensor_map_says_name_from_to_and_rule_of_every_tensor() -> None:
    lines = tensor_map(GROWTH["exact"](SOURCE, LARGER), SOURCE)
    assert lines[0].split() == ["name", "from", "to", "rule"]
    assert len(lines) == 1 + len(LARGER.tensor_shapes())
    (line,) = [line for line in lines if line.startswith("model.layers.2.mlp.fc1.weight ")]
    assert line.split()[:4] == ["model.layers.2.mlp.fc1.weight", "model.layers.1.mlp.fc1.weight", "192x48", "240x60"]
    assert "filled up to 240 with random values" in line
    (silent,) = [line for line in lines if line.startswith("model.layers.1.mlp.fc2.bias ")]
    assert "identity" in silent
    assert " - " in silent
    assert len(tensor_map(GROWTH["random"](None, SOURCE), None)) == 1 + len(SOURCE.tensor_shapes())


def test_growth_above_four_times_is_cautioned() -> None:
    assert not cautions(SOURCE, LARGER)
    (line,) = cautions(SOURCE, dataclasses.replace(SOURCE, hidden_size=240, intermediate_size=960))
    assert "times the source's parameters" in line


@pytest.mark.parametrize("name", ["exact", "rescale", "stack"])
def test_streaming_in_pieces_of_rows_makes_the_same_weights_and_the_same_file(
    name: str, tmp_path, network_of, monkeypatch
) -> None:
    monkeypatch.setattr(rules, "PIECE_ELEMENTS", 1000)  # of rows of 48: the embedding goes through in 5 pieces
    source = network_of(SOURCE, dtype=torch.float32).state_dict()
    made = GROWTH[name](SOURCE, LARGER)
    pieces = list(stream(made, source, seed=4))
    assert len([piece for target, piece in pieces if target == "lm_head.weight"]) == 5
    whole = dict(apply(made, source, seed=4))
    write_safetensors(tmp_path / "model.safetensors", iter(pieces), LARGER.tensor_shapes(), "float32")
    read = open_state(tmp_path)
    assert all(torch.equal(read[target], whole[target]) for target in whole)


def test_a_rule_that_makes_too_few_rows_is_an_error_and_no_file_is_left(tmp_path, network_of) -> None:
    source = network_of(SOURCE, dtype=torch.float32).state_dict()
    pieces = list(stream(GROWTH["exact"](SOURCE, LARGER), source, seed=4))
    short = [(target, piece[:-1] if target == "lm_head.weight" else piece) for target, piece in pieces]
    with pytest.raises(ValueError, match=r"'lm_head.weight' ended after 96 of 97 rows"):
        write_safetensors(tmp_path / "model.safetensors", iter(short), LARGER.tensor_shapes(), "float32")
    assert not (tmp_path / "model.safetensors").exists()
