"""The network: the function is transformers' Phi; recomputing changes nothing; generation is the forward pass."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F

from model.config import ModelConfig
from model.transformer import Transformer

SHAPES = {
    "plain": ModelConfig(97, 64, 160, 3, 8),
    "rotary 0.4": ModelConfig(61, 80, 320, 2, 8, partial_rotary_factor=0.4, rope_theta=500.0),
    "all rotary, one head": ModelConfig(50, 24, 40, 2, 1, partial_rotary_factor=1.0, layer_norm_eps=1e-6),
    "normalized": ModelConfig(97, 48, 100, 2, 4, qk_layernorm=True),
    "grouped": ModelConfig(97, 64, 160, 2, 8, num_key_value_heads=2),
    "one group, normalized": ModelConfig(97, 48, 96, 2, 4, num_key_value_heads=1, qk_layernorm=True),
    "free head size": ModelConfig(97, 60, 100, 2, 4, num_key_value_heads=2, head_dim=24),
    "tied": ModelConfig(97, 64, 160, 2, 8, tie_word_embeddings=True),
}


def token_ids(config: ModelConfig, rows: int = 2, tokens: int = 37, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, config.vocab_size, (rows, tokens), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kernel", ["explicit", "sdpa"])
@pytest.mark.parametrize("name", SHAPES)
def test_logits_are_those_of_transformers_phi(name: str, kernel: str, network_of, reference_of) -> None:
    network = network_of(SHAPES[name])
    network.attention_kernel = kernel
    ids = token_ids(network.config)
    with torch.no_grad():
        ours, theirs = network(ids), reference_of(network)(ids).logits
    assert (ours - theirs).abs().max() <= 1e-10 * theirs.abs().max()


@pytest.mark.parametrize("name", ["plain", "one group, normalized"])
def test_state_dict_loads_both_ways(name: str, network_of, reference_of) -> None:
    network = network_of(SHAPES[name])
    reference = reference_of(network)
    Transformer(network.config).double().load_state_dict(reference.state_dict())
    assert list(reference.state_dict())
    assert set(reference.state_dict()) == set(network.config.tensor_shapes())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 4e-2)])
def test_lower_precisions_agree_with_fp64_to_their_rounding(dtype: torch.dtype, tolerance: float, network_of) -> None:
    # bf16: 8 bits of mantissa through 3 blocks; transformers' own error on this model is of the same size.
    exact, low = network_of(SHAPES["plain"]), network_of(SHAPES["plain"], dtype=dtype)
    ids = token_ids(exact.config)
    with torch.no_grad():
        expected, got = exact(ids), low(ids)
    assert got.dtype == dtype
    assert (got - expected).abs().max() <= tolerance * expected.abs().max()


def test_activation_checkpointing_changes_neither_loss_nor_gradients(network_of) -> None:
    network = network_of(SHAPES["grouped"], dtype=torch.float32)
    ids, labels = token_ids(network.config), token_ids(network.config, seed=2)
    results = []
    for mode in ("none", "selective", "full"):
        network.zero_grad()
        network.activation_checkpointing = mode
        loss_sum, _ = network.loss(ids, labels)
        loss_sum.backward()
        results.append([loss_sum.detach(), *(p.grad.clone() for p in network.parameters())])
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*results, strict=True))


def test_a_tied_head_is_one_matrix_that_learns_from_both_uses(network_of) -> None:
    network = network_of(SHAPES["tied"], dtype=torch.float32)
    assert set(network.state_dict()) == set(network.config.tensor_shapes())
    assert sum(p.numel() for p in network.parameters()) == network.config.parameters
    assert network.lm_head.weight is network.model.embed_tokens.weight
    ids, labels = token_ids(network.config), token_ids(network.config, seed=2)
    network.loss(ids, labels)[0].backward()
    rows = network.model.embed_tokens.weight.grad.any(-1)
    assert rows.all()  # also those of tokens that the input does not hold
    copied = copy.deepcopy(network).to(torch.float64)
    assert copied.lm_head.weight is copied.model.embed_tokens.weight is not network.lm_head.weight
    assert copied.lm_head.weight.dtype == copied.lm_head.bias.dtype == torch.float64
    assert copied.config.non_embedding_parameters == copied.config.parameters  # the one matrix is multiplied with


def test_an_unknown_checkpointing_mode_is_refused_with_the_known_ones(network_of) -> None:
    network = network_of(SHAPES["plain"])
    network.activation_checkpointing = "some"
    with pytest.raises(ValueError, match=r"none, selective, full"):
        network(token_ids(network.config))


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6), (torch.bfloat16, 2e-2)]
)
def test_loss_and_gradients_are_those_of_the_full_logits_and_minus_100_is_left_out(
    dtype: torch.dtype, tolerance: float, network_of
) -> None:
    network = network_of(SHAPES["plain"], dtype=dtype)
    ids, labels = token_ids(network.config), token_ids(network.config, seed=2)
    labels[0, :9] = labels[1, -1] = -100
    loss_sum, count = network.loss(ids, labels, chunk_tokens=16)
    loss_sum.backward()
    gradients = [p.grad.clone() for p in network.parameters()]
    network.zero_grad()
    expected = F.cross_entropy(network(ids).flatten(0, 1).to(loss_sum.dtype), labels.flatten(), reduction="sum")
    expected.backward()
    assert count == labels.numel() - 10
    assert loss_sum.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(loss_sum, expected, rtol=tolerance, atol=0)
    for got, parameter in zip(gradients, network.parameters(), strict=True):
        assert (got - parameter.grad).norm() <= tolerance * parameter.grad.norm().clamp_min(1e-3)


def test_the_future_does_not_reach_the_past(network_of) -> None:
    network = network_of(SHAPES["grouped"])
    ids = token_ids(network.config, rows=1)
    changed = ids.clone()
    changed[0, 20:] = (ids[0, 20:] + 1) % network.config.vocab_size
    with torch.no_grad():
        torch.testing.assert_close(network(ids)[:, :20], network(changed)[:, :20], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kernel", ["explicit", "sdpa"])
@pytest.mark.parametrize("name", ["rotary 0.4", "one group, normalized", "all rotary, one head"])
def test_masked_documents_have_the_logits_that_each_has_alone(name: str, kernel: str, network_of) -> None:
    # Positions go on through the window: rotary scores depend on differences of positions only.
    network = network_of(SHAPES[name])
    network.attention_kernel, network.document_end_id = kernel, 0
    ids = token_ids(network.config, tokens=140) % 49 + 1
    ends = (3, 4, 40, 139)
    ids[:, ends] = 0
    with torch.no_grad():
        together = network(ids)
        starts = (0, *(end + 1 for end in ends))
        alone = [network(ids[:, start : end + 1]) for start, end in zip(starts, ends, strict=False)]
        network.document_end_id = None
        unmasked = network(ids)
    expected = torch.cat(alone, 1)
    # The angles are fp32 products of the position: at 140 tokens their error is about 140 x 6e-8.
    assert (together - expected).abs().max() <= 2e-5 * expected.abs().max()
    assert (unmasked - expected).abs().max() > 1e-3 * expected.abs().max()


def test_activation_checkpointing_under_a_document_mask_changes_neither_loss_nor_gradients(network_of) -> None:
    network = network_of(SHAPES["grouped"], dtype=torch.float32)
    network.document_end_id = 5
    ids, labels = token_ids(network.config, tokens=150), token_ids(network.config, tokens=150, seed=2)
    assert (ids == 5).any()
    results = []
    for mode in ("none", "selective", "full"):
        network.zero_grad()
        network.activation_checkpointing = mode
        loss_sum, _ = network.loss(ids, labels)
        loss_sum.backward()
        results.append([loss_sum.detach(), *(p.grad.clone() for p in network.parameters())])
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*results, strict=True))


def test_a_document_mask_leaves_generation_alone(network_of) -> None:
    network = network_of(SHAPES["plain"])
    prompt = torch.tensor([1, 2, 5, 3])
    written = list(network.generate(prompt, 8, temperature=0))
    network.document_end_id = 5
    assert list(network.generate(prompt, 8, temperature=0)) == written


def test_initialization_is_the_same_for_the_same_seed_and_follows_its_rule() -> None:
    config = ModelConfig(500, 64, 256, 8, 4)
    first, again, other = (Transformer(config).initialize(seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])
    assert not torch.equal(first["model.layers.0.mlp.fc1.weight"], first["model.layers.1.mlp.fc1.weight"])
    assert first["lm_head.weight"].std() == pytest.approx(0.02, rel=0.02)
    for name in ("self_attn.dense", "mlp.fc2"):
        assert first[f"model.layers.3.{name}.weight"].std() == pytest.approx(0.02 / 4, rel=0.05)
        assert not first[f"model.layers.3.{name}.bias"].any()
    assert (first["model.final_layernorm.weight"] == 1).all()


@pytest.mark.parametrize("name", ["plain", "one group, normalized", "free head size", "tied"])
def test_generation_with_a_cache_writes_what_the_full_forward_pass_prefers(name: str, network_of) -> None:
    network = network_of(SHAPES[name])
    ids = token_ids(network.config, rows=1, tokens=5)
    written = list(network.generate(ids[0], max_new_tokens=12, temperature=0))
    with torch.no_grad():
        for _ in range(12):
            ids = torch.cat([ids, network(ids)[:, -1:].argmax(-1)], 1)
    assert written == ids[0, 5:].tolist()


def test_generation_stops_at_the_end_of_text_and_at_the_end_of_the_context(network_of) -> None:
    network = network_of(ModelConfig(97, 32, 64, 2, 2, max_position_embeddings=16))
    prompt = token_ids(network.config, rows=1, tokens=10)[0]
    written = list(network.generate(prompt, max_new_tokens=100, temperature=0))
    assert len(written) == 6
    assert list(network.generate(prompt, 100, temperature=0, eos_token_id=written[2])) == list(
        itertools.takewhile(lambda token: token != written[2], written)
    )
    with pytest.raises(ValueError, match=r"model.max_position_embeddings=16"):
        next(network.generate(torch.zeros(16, dtype=torch.long), 1))


def test_sampling_is_repeatable_keeps_to_top_k_and_leaves_gradients_on(network_of) -> None:
    network = network_of(SHAPES["plain"], dtype=torch.float32)
    prompt = token_ids(network.config, rows=1, tokens=4)[0]
    runs = [list(network.generate(prompt, 20, generator=torch.Generator().manual_seed(3))) for _ in range(2)]
    assert runs[0] == runs[1]
    assert len(set(runs[0])) > 3
    greedy = list(network.generate(prompt, 20, temperature=0))
    assert list(network.generate(prompt, 20, top_k=1)) == greedy
    next(network.generate(prompt, 20))
    assert torch.is_grad_enabled()


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch.compile looks at it, and warns itself
@pytest.mark.parametrize("mode", ["none", "selective", "full"])
def test_compiled_blocks_with_recomputation_agree_with_plain_ones(mode: str, network_of) -> None:
    results = []
    for compiled in (False, True):
        network = network_of(SHAPES["plain"], dtype=torch.float32)
        network.activation_checkpointing = mode
        ids, labels = token_ids(network.config), token_ids(network.config, seed=2)
        if compiled:
            torch._dynamo.reset()
            # The CPU's code generator needs a C++ compiler; what is tested is the graph, which "aot_eager" runs too.
            for block in network.model.layers:
                block.compile(dynamic=False, backend="aot_eager", fullgraph=True)
        loss_sum, _ = network.loss(ids, labels)
        loss_sum.backward()
        results.append([loss_sum.detach(), *(p.grad.clone() for p in network.parameters())])
    for got, expected in zip(*results, strict=True):
        assert (got - expected).norm() <= 1e-5 * expected.norm().clamp_min(1e-3)
