"""Growth: exact growth keeps the function (judged by transformers' own Phi too), lets new units learn, or refuses."""

import dataclasses
import inspect

import pytest
import torch

from model.config import ImpossibleShape, ModelConfig
from model.growth import GROWTH
from model.growth.exact import block_sources
from model.growth.gate import compare
from model.growth.rules import GrowthRefused, apply
from model.transformer import Transformer

SOURCE = ModelConfig(97, 48, 192, 3, 6, max_position_embeddings=64)  # head size 8, rotary size 4


def to(**changes: object) -> ModelConfig:
    """A target for SOURCE; the rotary factor follows the head size unless it is given."""
    target = dataclasses.replace(SOURCE, **changes)
    return dataclasses.replace(target, partial_rotary_factor=SOURCE.rotary_dim / target.head_size)


GROUPED = dataclasses.replace(SOURCE, num_attention_heads=4, head_dim=8, num_key_value_heads=2)
NORMALIZED = dataclasses.replace(SOURCE, qk_layernorm=True)
PAIRS = {
    "ratios of phi-1.5 to phi-2": (SOURCE, to(hidden_size=60, intermediate_size=240, num_hidden_layers=4)),
    "nothing but width": (SOURCE, to(hidden_size=53, head_dim=8)),
    "nothing but depth": (SOURCE, to(num_hidden_layers=7)),
    "twice the width, twice the heads": (SOURCE, to(hidden_size=96, intermediate_size=384, num_attention_heads=12)),
    "x2.75, 11 heads of 12, 13 blocks": (
        SOURCE,
        to(hidden_size=132, intermediate_size=500, num_hidden_layers=13, num_attention_heads=11),
    ),
    "three whole copies": (SOURCE, to(hidden_size=144, num_attention_heads=9, head_dim=16, intermediate_size=193)),
    "larger heads only": (SOURCE, to(head_dim=20)),
    "more heads only": (SOURCE, to(num_attention_heads=8, head_dim=8)),
    "longer context": (SOURCE, to(hidden_size=60, head_dim=10, max_position_embeddings=128)),
    "more groups and more heads in each": (
        GROUPED,
        dataclasses.replace(GROUPED, hidden_size=60, num_attention_heads=9, num_key_value_heads=3),
    ),
    "more heads in each group": (GROUPED, dataclasses.replace(GROUPED, num_attention_heads=8)),
    "groups split up": (GROUPED, dataclasses.replace(GROUPED, num_attention_heads=6, num_key_value_heads=6)),
    "one group to uneven groups": (
        dataclasses.replace(GROUPED, num_attention_heads=5, num_key_value_heads=1),
        dataclasses.replace(GROUPED, num_attention_heads=10, num_key_value_heads=5, hidden_size=50),
    ),
    "normalized queries and keys": (
        NORMALIZED,
        dataclasses.replace(NORMALIZED, hidden_size=72, num_attention_heads=9, num_hidden_layers=5),
    ),
}


def grow(source: Transformer, target: ModelConfig, method: str = "exact", seed: int = 0, **options) -> Transformer:
    dtype = source.lm_head.weight.dtype
    rules = GROWTH[method](source.config, target, **options)
    grown = Transformer(target).to(dtype)
    grown.load_state_dict(dict(apply(rules, source.state_dict(), seed, dtype)))
    return grown


def windows(rows: int = 3, tokens: int = 40) -> torch.Tensor:
    return torch.randint(0, SOURCE.vocab_size, (rows, tokens), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("name", PAIRS)
def test_exact_growth_keeps_the_function_in_fp64_also_by_transformers_own_phi(name: str, network_of, phi_of) -> None:
    source_config, target = PAIRS[name]
    source = network_of(source_config)
    grown = grow(source, target)
    result = compare(source, grown, windows(), torch.float64)
    assert result.max_rel_logit_diff <= 1e-11
    assert result.grown_loss == pytest.approx(result.source_loss, abs=1e-11)
    with torch.no_grad():
        before, after = phi_of(source)(windows()).logits, phi_of(grown)(windows()).logits
    assert (after - before).abs().max() <= 1e-11 * before.abs().max()
    assert sum(p.numel() for p in grown.parameters()) == target.parameters


@pytest.mark.parametrize("name", ["ratios of phi-1.5 to phi-2", "x2.75, 11 heads of 12, 13 blocks"])
def test_exact_growth_keeps_the_function_in_fp32(name: str, network_of) -> None:
    source_config, target = PAIRS[name]
    source = network_of(source_config, dtype=torch.float32)
    assert compare(source, grow(source, target), windows()).max_rel_logit_diff <= 1e-5


def test_random_shape_pairs_keep_the_function(network_of) -> None:
    generator = torch.Generator().manual_seed(11)

    def pick(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    for seed in range(8):
        head, groups, per_group = 2 * pick(2, 5), pick(1, 3), pick(1, 3)
        shape = ModelConfig(97, pick(20, 50), pick(20, 90), pick(1, 4), groups * per_group, groups, head)
        shape.partial_rotary_factor = 4 / head
        head, groups, per_group = head + pick(0, 6), groups + pick(0, 2), per_group + pick(0, 2)
        width, blocks = shape.hidden_size + pick(0, 130), shape.num_hidden_layers + pick(0, 4)
        target = ModelConfig(97, width, shape.intermediate_size + pick(0, 90), blocks, groups * per_group, groups, head)
        target.partial_rotary_factor = 4 / head + 1e-9
        source = network_of(shape, seed=seed)
        result = compare(source, grow(source, target, seed=seed), windows(), torch.float64)
        assert result.max_rel_logit_diff <= 1e-11, (shape, target)


@pytest.mark.parametrize("name", PAIRS)
def test_after_two_steps_every_tensor_and_every_new_unit_has_a_gradient(name: str, network_of) -> None:
    source_config, target = PAIRS[name]
    grown = grow(network_of(source_config), target)
    optimizer = torch.optim.SGD(grown.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        loss_sum, count = grown.loss(windows(rows=6)[:, :-1], windows(rows=6)[:, 1:])
        (loss_sum / count).backward()
        optimizer.step()
    for tensor_name, parameter in grown.named_parameters():
        if tensor_name.endswith("k_proj.bias"):
            continue  # a constant added to all keys cancels in the softmax (but for what rotates): nearly no gradient
        seen = parameter.grad.abs() > 0
        used = windows(rows=6).unique() if "embed" in tensor_name else slice(None)
        assert seen[used].any(-1).all(), tensor_name
        assert seen.any(0).all(), tensor_name


def test_after_forty_steps_no_two_units_are_equal(network_of) -> None:
    grown = grow(network_of(SOURCE, dtype=torch.float32), PAIRS["three whole copies"][1])
    optimizer = torch.optim.AdamW(grown.parameters(), lr=1e-3)
    for _ in range(40):
        optimizer.zero_grad()
        grown.loss(windows()[:, :-1], windows()[:, 1:])[0].backward()
        optimizer.step()
    for name, parameter in grown.named_parameters():
        if parameter.ndim == 2:
            for rows in (parameter.detach(), parameter.detach().T):
                rows = torch.nn.functional.normalize(rows, dim=1)
                similar = (rows @ rows.T).fill_diagonal_(0).abs().max()
                assert similar < 0.9999, name


def test_new_units_have_one_random_and_one_zero_factor(network_of) -> None:
    state = grow(network_of(SOURCE), PAIRS["ratios of phi-1.5 to phi-2"][1]).state_dict()
    heads = {n: state[f"model.layers.0.self_attn.{n}_proj.weight"].view(6, 10, 60) for n in "qkv"}
    assert heads["q"][:, 8:].all()
    assert heads["v"][:, 8:].all()
    assert not heads["k"][:, 8:].any()
    assert not state["model.layers.0.self_attn.dense.weight"].view(60, 6, 10)[:, :, 8:].any()
    assert state["model.layers.0.mlp.fc1.weight"][192:].all()
    assert not state["model.layers.0.mlp.fc2.weight"][:, 192:].any()
    assert not state["model.embed_tokens.weight"][:, 48:].any()
    assert state["lm_head.weight"][:, 48:].all()
    assert not state["model.layers.1.self_attn.dense.bias"].any()
    assert not state["model.layers.1.mlp.fc2.bias"].any()


def test_growth_does_not_depend_on_the_order_of_the_rules_but_on_the_seed(network_of) -> None:
    source, target = network_of(SOURCE, dtype=torch.float32), PAIRS["twice the width, twice the heads"][1]
    rules, state = GROWTH["exact"](source.config, target), source.state_dict()
    kept = {name: tensor.clone() for name, tensor in state.items()}
    first, other = dict(apply(rules, state, 0)), dict(apply(rules[::-1], state, 0))
    reseeded = dict(apply(rules, state, 1))
    assert all(torch.equal(first[name], other[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], reseeded["lm_head.weight"])
    assert all(torch.equal(kept[name], state[name]) for name in kept)  # the source is not touched
    doubled = dict(apply(rules, state, 0, torch.float64))
    assert all(torch.allclose(first[name].double(), doubled[name], atol=1e-6) for name in first)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (to(hidden_size=36), ["model.hidden_size would shrink from 48 to 36"]),
        (to(num_hidden_layers=2), ["model.num_hidden_layers would shrink from 3 to 2"]),
        (to(intermediate_size=100), ["model.intermediate_size"]),
        (to(num_attention_heads=4, head_dim=8), ["model.num_attention_heads would", "model.num_key_value_heads"]),
        (to(hidden_size=60, num_attention_heads=15), ["model.head_dim would shrink from 8 to 4"]),
        (to(vocab_size=128), ["model.vocab_size differs (source 97, target 128)"]),
        (to(layer_norm_eps=1e-6), ["model.layer_norm_eps differs"]),
        (to(rope_theta=500.0), ["model.rope_theta differs"]),
        (to(qk_layernorm=True), ["model.qk_layernorm differs"]),
        (dataclasses.replace(SOURCE, hidden_size=96), ["rotary size differs (source 4, target 8)", "factor=0.25"]),
        (to(num_hidden_layers=1, vocab_size=3), ["model.num_hidden_layers would shrink", "model.vocab_size differs"]),
    ],
)
def test_what_cannot_be_exact_is_refused_by_name(target: ModelConfig, words: list[str]) -> None:
    with pytest.raises(GrowthRefused) as refusal:
        GROWTH["exact"](SOURCE, target)
    assert all(word in str(refusal.value) for word in [*words, "init.method=random"]), str(refusal.value)


def test_changed_norms_groups_activations_and_ties_are_refused_by_name() -> None:
    with pytest.raises(GrowthRefused, match=r"model.qk_layernorm normalizes over the head"):
        GROWTH["exact"](NORMALIZED, dataclasses.replace(NORMALIZED, hidden_size=96, partial_rotary_factor=0.25))
    with pytest.raises(GrowthRefused, match=r"model.num_key_value_heads of at least 4, not 3"):
        GROWTH["exact"](GROUPED, dataclasses.replace(GROUPED, num_attention_heads=6 - 3, num_key_value_heads=3))
    with pytest.raises(ImpossibleShape, match=r"model.hidden_act"):
        GROWTH["exact"](SOURCE, dataclasses.replace(SOURCE, hidden_act="relu"))
    with pytest.raises(ImpossibleShape, match=r"model.tie_word_embeddings"):
        GROWTH["exact"](SOURCE, dataclasses.replace(SOURCE, tie_word_embeddings=True))


def test_blocks_are_interleaved_in_order_and_every_source_block_is_kept_once() -> None:
    for few in range(1, 9):
        for many in range(few, 4 * few + 1):
            blocks = block_sources(few, many)
            assert [source for source, inserted in blocks if not inserted] == list(range(few))
            assert [source for source, _ in blocks] == sorted(source for source, _ in blocks)
    assert [i for i, (_, inserted) in enumerate(block_sources(24, 32)) if inserted] == [1, 5, 9, 13, 17, 21, 25, 29]


def test_random_growth_is_a_fresh_initialization_and_needs_no_source() -> None:
    grown = dict(apply(GROWTH["random"](None, SOURCE), {}, seed=3))
    expected = Transformer(SOURCE).initialize(3).state_dict()
    assert all(torch.equal(grown[name], expected[name]) for name in expected)
    with pytest.raises(GrowthRefused, match=r"init.source"):
        GROWTH["exact"](None, SOURCE)


def test_continue_copies_every_bit_and_refuses_another_shape(network_of) -> None:
    source = network_of(SOURCE, dtype=torch.float32)
    grown = grow(source, dataclasses.replace(SOURCE, max_position_embeddings=128), "continue")
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), grown.parameters(), strict=True))
    with pytest.raises(GrowthRefused, match=r"hidden_size 48 -> 96.*init.method=exact"):
        GROWTH["continue"](SOURCE, dataclasses.replace(SOURCE, hidden_size=96))


@pytest.mark.parametrize("name", GROWTH)
def test_every_method_covers_every_tensor_and_can_be_printed(name: str) -> None:
    method = GROWTH[name]
    target = SOURCE if name == "continue" else PAIRS["x2.75, 11 heads of 12, 13 blocks"][1]
    rules = method(SOURCE, target)
    assert {rule.target: rule.shape for rule in rules} == target.tensor_shapes()
    assert all(rule.target in rule.describe() and len(rule.describe()) > len(rule.target) + 10 for rule in rules)
    assert method.__doc__
    assert list(method.options) == list(inspect.signature(method).parameters)[2:]


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
