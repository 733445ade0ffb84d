"""The learning rate across width: with the rule a few steps move what a layer computes by the same at every width."""

import pytest
import torch

from model.config import ModelConfig
from model.optim import OPTIMIZERS, MasterWeights, rate_scales
from model.transformer import Transformer

BASE, WIDE, STEPS, RATE = 64, 256, 3, 1e-3
LAYERS = ("model.layers.0.mlp.fc1", "model.layers.1.mlp.fc1", "model.layers.1.mlp.fc2", "lm_head")


def moved(width: int, optimizer: str, base_width: int | None) -> dict[str, float]:
    """Layer -> how far a few steps moved its outputs, root mean square, on the text that they learned.

    Matrices start at 1 / sqrt(inputs), as the rule supposes, and the embedding alike at every width.
    """
    network = Transformer(ModelConfig(128, width, 4 * width, 2, width // 32, initializer_range=0.3 * width**-0.5))
    network.initialize(0).model.embed_tokens.weight.data *= (width / BASE) ** 0.5
    weights = MasterWeights(
        network,
        lambda groups: OPTIMIZERS[optimizer](groups, learning_rate=RATE),
        "32-true",
        scales=rate_scales(width, base_width, optimizer),
    )
    outputs: dict[str, torch.Tensor] = {}
    for name in LAYERS:
        network.get_submodule(name).register_forward_hook(lambda *a, name=name: outputs.update({name: a[-1].detach()}))
    ids = torch.randint(0, 9, (4, 33), generator=torch.Generator().manual_seed(1)).cumsum(1) % 128

    with torch.no_grad():
        network(ids)
    before = dict(outputs)
    for _ in range(STEPS):
        loss_sum, count = network.loss(ids[:, :-1], ids[:, 1:])
        (loss_sum / count).backward()
        weights.set_learning_rate(RATE)
        weights.step(1.0)
    with torch.no_grad():
        network(ids)
    return {name: float((outputs[name] - before[name]).square().mean().sqrt()) for name in LAYERS}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_rule_makes_updates_of_one_size_at_four_times_the_width(optimizer: str) -> None:
    narrow = moved(BASE, optimizer, BASE)
    with_rule, without = (moved(WIDE, optimizer, base) for base in (BASE, None))
    growth = {name: with_rule[name] / narrow[name] for name in LAYERS}
    assert all(0.8 < ratio < 1.4 for ratio in growth.values()), growth  # the head's gradients are not yet a wide net's
    plain = {name: without[name] / narrow[name] for name in LAYERS}
    assert all(plain[name] > growth[name] for name in LAYERS), plain
    if optimizer == "adamw":  # by rate x width, less what the directions of the first steps do not agree in
        assert min(plain.values()) > 1.7, plain
    else:  # blocks by rate x sqrt(width), the head by AdamW
        assert plain["lm_head"] > 1.7, plain


def test_factors_are_1_at_the_base_width_and_follow_the_optimizer() -> None:
    assert rate_scales(192, None, "adamw") == rate_scales(192, 192, "adamw") == (1.0, 1.0)
    assert rate_scales(256, 64, "adamw") == rate_scales(256, 64, "adamw8bit") == (0.25, 0.25)
    assert rate_scales(256, 64, "muon") == (0.5, 0.25)
    assert rate_scales(32, 64, "adamw") == (2.0, 2.0)


@pytest.mark.parametrize("tied", [False, True])
def test_matrices_and_head_take_the_factor_and_all_else_the_rate(tied: bool) -> None:
    network = Transformer(ModelConfig(61, 32, 64, 2, 4, tie_word_embeddings=tied))
    names = {id(p): name for name, p in network.named_parameters()}
    scales = rate_scales(32, 8, "adamw")
    weights = MasterWeights(
        network, lambda groups: OPTIMIZERS["adamw"](groups, learning_rate=1.0), "32-true", scales=scales
    )
    for rate in (1.0, 0.5):  # as made, and as set
        if rate != 1.0:
            weights.set_learning_rate(rate)
        found = {names[id(p)]: group["lr"] / rate for group in weights.optimizer.param_groups for p in group["params"]}
        matrices = {name for name, p in network.named_parameters() if p.ndim == 2 and "embed" not in name}
        assert {name for name, scale in found.items() if scale == 0.25} == matrices
        assert {name for name, scale in found.items() if scale == 1.0} == set(names.values()) - matrices
