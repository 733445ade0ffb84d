"""Exact growth keeps the function (judged by transformers' own Phi too), lets new units learn, or refuses."""

import dataclasses

import pytest
import torch
from growth_checks import SOURCE, compare, compare_rounded, windows

from model.config import ImpossibleShape, ModelConfig
from model.growth import GROWTH
from model.growth.operations import matching_theta
from model.growth.rules import GrowthRefused, apply


def to(**changes) -> ModelConfig:
    """A target for SOURCE; the rotary factor follows the head size unless it is given."""
    target = dataclasses.replace(SOURCE, **changes)
    if "partial_rotary_factor" in changes:
        return target
    return dataclasses.replace(target, partial_rotary_factor=SOURCE.rotary_dim / target.head_size)


def by(config: ModelConfig, **changes) -> ModelConfig:
    return dataclasses.replace(config, **changes)


GROUPED = by(SOURCE, num_attention_heads=4, head_dim=8, num_key_value_heads=2)
NORMALIZED = by(SOURCE, qk_layernorm=True)
TIED = by(SOURCE, tie_word_embeddings=True)
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
    "another eps of the norms": (SOURCE, to(hidden_size=60, layer_norm_eps=8e-6)),
    "another eps, same width": (SOURCE, to(layer_norm_eps=1e-3)),
    "rotary size doubled, same base": (SOURCE, to(head_dim=12, partial_rotary_factor=8 / 12)),
    "rotary size tripled, wider": (SOURCE, to(hidden_size=120, head_dim=20, partial_rotary_factor=12 / 20)),
    "rotary size 4 to 6 by the base": (
        SOURCE,
        to(head_dim=12, partial_rotary_factor=0.5, rope_theta=matching_theta(SOURCE, 6)),
    ),
    "more groups and more heads in each": (
        GROUPED,
        by(GROUPED, hidden_size=60, num_attention_heads=9, num_key_value_heads=3),
    ),
    "more heads in each group": (GROUPED, by(GROUPED, num_attention_heads=8)),
    "groups split up": (GROUPED, by(GROUPED, num_attention_heads=6, num_key_value_heads=6)),
    "one group to uneven groups": (
        by(GROUPED, num_attention_heads=5, num_key_value_heads=1),
        by(GROUPED, num_attention_heads=10, num_key_value_heads=5, hidden_size=50),
    ),
    "normalized queries and keys": (NORMALIZED, by(NORMALIZED, hidden_size=72, num_attention_heads=9)),
    "normalized, larger heads, another eps": (
        NORMALIZED,
        by(NORMALIZED, hidden_size=66, partial_rotary_factor=4 / 11 + 1e-9, layer_norm_eps=1e-4, num_hidden_layers=4),
    ),
    "normalized, larger rotary size": (NORMALIZED, by(NORMALIZED, hidden_size=96)),
    "tied": (TIED, to(hidden_size=60, intermediate_size=240, num_hidden_layers=4, tie_word_embeddings=True)),
    "tied, whole copies and pads": (TIED, to(hidden_size=132, num_attention_heads=11, tie_word_embeddings=True)),
    "tied, three whole copies, another eps": (
        TIED,
        to(hidden_size=144, num_attention_heads=9, head_dim=16, layer_norm_eps=1e-3, tie_word_embeddings=True),
    ),
    "tied to untied": (TIED, to(hidden_size=60, intermediate_size=240, num_hidden_layers=4)),
    "tied to untied, twice the width": (TIED, to(hidden_size=96, num_attention_heads=12)),
    "tied to untied, same width": (TIED, to(num_hidden_layers=4)),
    "tied, normalized": (
        by(NORMALIZED, tie_word_embeddings=True),
        by(NORMALIZED, hidden_size=72, num_attention_heads=9, tie_word_embeddings=True),
    ),
}
SMALL_ANGLES = "by the base"  # transformers keeps rotary frequencies in fp32, and another base rounds them differently


def assert_same_function(source, grown, reference_of, limit: float = 1e-11) -> None:
    result = compare(source, grown, windows(), torch.float64)
    assert result.max_rel_logit_diff <= limit
    assert result.grown_loss == pytest.approx(result.source_loss, abs=limit)
    with torch.no_grad():
        before, after = reference_of(source)(windows()).logits, reference_of(grown)(windows()).logits
    assert (after - before).abs().max() <= limit * before.abs().max()


@pytest.mark.parametrize("new_units", ["random", "copies"])
@pytest.mark.parametrize("name", PAIRS)
def test_exact_growth_keeps_the_function_in_fp64_also_by_transformers_own_phi(
    name: str, new_units: str, network_of, reference_of, grow
) -> None:
    source_config, target = PAIRS[name]
    source = network_of(source_config)
    grown = grow(source, target, new_units=new_units)
    assert_same_function(source, grown, reference_of, 1e-5 if SMALL_ANGLES in name else 1e-11)
    assert sum(p.numel() for p in grown.parameters()) == target.parameters


def random_pair(generator: torch.Generator) -> tuple[ModelConfig, ModelConfig]:
    def pick(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    head, groups, per_group, stride = 2 * pick(2, 5), pick(1, 3), pick(1, 3), pick(1, 2)
    source = ModelConfig(97, pick(20, 50), pick(20, 90), pick(1, 4), groups * per_group, groups, head)
    source.partial_rotary_factor = 4 / head + 1e-9
    larger, groups, per_group = head + 4 * (stride - 1) + pick(0, 6), groups + pick(0, 2), per_group + pick(0, 2)
    width, blocks = source.hidden_size + pick(0, 130), source.num_hidden_layers + pick(0, 4)
    target = ModelConfig(97, width, source.intermediate_size + pick(0, 90), blocks, groups * per_group, groups, larger)
    target.partial_rotary_factor = 4 * stride / larger + 1e-9
    target.layer_norm_eps = 10.0 ** -pick(3, 6)
    return source, target


def test_twelve_random_shape_pairs_half_of_them_trained_keep_the_function_by_transformers_own_phi(
    network_of, reference_of, grow, train
) -> None:
    generator = torch.Generator().manual_seed(11)
    for seed in range(12):
        source_config, target = random_pair(generator)
        source = network_of(source_config, seed=seed)
        if seed % 2:
            source = train(source.initialize(seed), 30)
        units = "copies" if seed % 3 == 0 else "random"
        assert_same_function(source, grow(source, target, seed=seed, new_units=units), reference_of)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("name", ["ratios of phi-1.5 to phi-2", "x2.75, 11 heads of 12, 13 blocks"])
def test_in_fp32_and_bf16_growth_adds_no_more_than_rounding(name: str, trained: bool, network_of, grow, train) -> None:
    source_config, target = PAIRS[name]
    source = network_of(source_config, dtype=torch.float32)
    if trained:
        source = train(source.initialize(0), 60)
    grown = grow(source, target)
    assert compare(source, grown, windows()).max_rel_logit_diff <= 1e-5
    rounding = compare_rounded(source, grown, windows(rows=12))
    assert rounding.ratio <= 1.5
    assert rounding.rms_ratio <= 1.2
    assert rounding.loss_diff <= 1e-3


@pytest.mark.parametrize("name", PAIRS)
def test_after_two_steps_every_tensor_and_every_new_unit_has_a_gradient(name: str, network_of, grow) -> None:
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


@pytest.mark.parametrize("source", [SOURCE, TIED])
@pytest.mark.parametrize("new_units", ["random", "copies"])
def test_after_forty_steps_no_two_units_are_equal(source: ModelConfig, new_units: str, network_of, grow, train) -> None:
    target = by(PAIRS["three whole copies"][1], num_hidden_layers=4, tie_word_embeddings=source.tie_word_embeddings)
    grown = train(grow(network_of(source, dtype=torch.float32), target, new_units=new_units), 40, rate=1e-3)
    for name, parameter in grown.named_parameters():
        if parameter.ndim == 2:
            for rows in (parameter.detach(), parameter.detach().T):
                apart = torch.cdist(rows, rows).fill_diagonal_(1.0)
                assert apart.min() > 1e-3 * rows.norm(dim=1).mean(), name


def test_copies_without_noise_never_part(network_of, grow, train) -> None:
    target = to(intermediate_size=384)
    grown = grow(network_of(SOURCE, dtype=torch.float32), target, new_units="copies", copy_noise=0.0)
    weight = train(grown, 5, rate=1e-3).model.layers[0].mlp.fc1.weight
    assert torch.allclose(weight[:192], weight[192:], atol=1e-5)


def test_new_units_have_one_random_and_one_zero_factor(network_of, grow) -> None:
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
        (to(hidden_size=36), ["model.hidden_size would shrink from 48 to 36", "init.method=rescale"]),
        (to(num_hidden_layers=2), ["model.num_hidden_layers would shrink from 3 to 2"]),
        (to(intermediate_size=100), ["model.intermediate_size"]),
        (to(num_attention_heads=4, head_dim=8), ["model.num_attention_heads would", "model.num_key_value_heads"]),
        (to(hidden_size=60, num_attention_heads=15), ["model.head_dim would shrink from 8 to 4"]),
        (to(vocab_size=128), ["model.vocab_size differs (source 97, target 128)"]),
        (to(rope_theta=500.0), ["model.rope_theta differs", "init.options.exact=false"]),
        (to(qk_layernorm=True), ["model.qk_layernorm differs"]),
        (to(partial_rotary_factor=0.25), ["rotary size would shrink (source 4, target 2)", "factor=0.5"]),
        (to(partial_rotary_factor=0.75), ["4 coordinates of each head do not rotate", "heads of at least 10"]),
        (
            to(head_dim=12, partial_rotary_factor=0.5),
            ["source 4, target 6", f"rope_theta={10000**1.5!r}", "multiple of 4"],
        ),
        (to(num_hidden_layers=1, vocab_size=3), ["model.num_hidden_layers would shrink", "model.vocab_size differs"]),
    ],
)
def test_what_cannot_be_exact_is_refused_by_name(target: ModelConfig, words: list[str]) -> None:
    with pytest.raises(GrowthRefused) as refusal:
        GROWTH["exact"](SOURCE, target)
    assert all(word in str(refusal.value) for word in [*words, "init.method=random"]), str(refusal.value)


def test_the_advice_in_a_refusal_works(network_of, grow) -> None:
    source, refused = network_of(SOURCE), to(head_dim=12, partial_rotary_factor=0.5)
    with pytest.raises(GrowthRefused) as refusal:
        GROWTH["exact"](SOURCE, refused)
    theta = float(str(refusal.value).split("model.rope_theta=")[1].split(",")[0])
    mended = by(refused, rope_theta=theta)
    assert compare(source, grow(source, mended), windows(), torch.float64).max_rel_logit_diff <= 1e-5
    lifted = compare(source, grow(source, refused, exact=False), windows(), torch.float64)
    assert 1e-5 < lifted.max_rel_logit_diff < 1


def test_live_copied_blocks_need_exact_false_which_gives_up_the_promise(network_of, grow) -> None:
    exact, target = GROWTH["exact"], to(num_hidden_layers=5)
    with pytest.raises(GrowthRefused, match=r"new_blocks=copy adds live blocks.*init.options.exact=false"):
        exact(SOURCE, target, new_blocks="copy")
    source = network_of(SOURCE)
    grown = grow(source, target, new_blocks="copy", exact=False)
    assert compare(source, grown, windows(), torch.float64).max_rel_logit_diff > 1e-3
    assert torch.equal(grown.model.layers[1].mlp.fc2.weight, source.model.layers[0].mlp.fc2.weight)
    assert exact.claims_exact()
    assert exact.claims_exact(new_units="copies")
    assert not exact.claims_exact(new_blocks="copy", exact=False)


def test_groups_and_activations_are_refused_by_name() -> None:
    with pytest.raises(GrowthRefused, match=r"model.num_key_value_heads of at least 4, not 3"):
        GROWTH["exact"](GROUPED, by(GROUPED, num_attention_heads=6 - 3, num_key_value_heads=3))
    with pytest.raises(ImpossibleShape, match=r"model.hidden_act"):
        GROWTH["exact"](SOURCE, by(SOURCE, hidden_act="relu"))


def test_two_matrices_cannot_become_one_and_with_exact_false_the_embedding_is_taken(network_of, grow) -> None:
    tied = to(hidden_size=60, tie_word_embeddings=True)
    words = r"model.tie_word_embeddings is true.*two matrices.*init.options.exact=false"
    with pytest.raises(GrowthRefused, match=words):
        GROWTH["exact"](SOURCE, tied)
    with pytest.raises(GrowthRefused, match=r"stack cannot do this: model.tie_word_embeddings"):
        GROWTH["stack"](SOURCE, tied)
    source = network_of(SOURCE)
    grown = grow(source, tied, exact=False)
    assert compare(source, grown, windows(), torch.float64).max_rel_logit_diff > 1e-2
    with torch.no_grad():  # the function that it keeps is the source's with its embedding as the head
        source.lm_head.weight.copy_(source.model.embed_tokens.weight)
    assert compare(source, grown, windows(), torch.float64).max_rel_logit_diff <= 1e-11


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"new_blocks": "zero"}, r"init.options.new_blocks is 'zero'; it must be one of: identity, copy"),
        ({"new_units": 3}, r"init.options.new_units is 3; it must be one of: random, copies"),
        ({"exact": "no"}, r"init.options.exact is 'no'; it must be true or false"),
        ({"copy_noise": -1.0}, r"init.options.copy_noise is -1.0; it must be a number, 0 or more"),
        ({"noise": 1}, r"init.options.noise is unknown here; known: new_blocks, new_units, copy_noise, exact"),
    ],
)
def test_wrong_options_are_refused_by_name(options: dict[str, object], words: str) -> None:
    with pytest.raises(GrowthRefused, match=words):
        GROWTH["exact"](SOURCE, SOURCE, **options)
