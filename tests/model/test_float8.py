"""fp8 products: refused where they cannot be had; emulated, they change the loss by as little as stated."""

import pytest
import torch

from model.config import ModelConfig
from model.float8 import use_float8, why_not
from model.optim import MasterWeights, adamw
from model.transformer import Transformer

CONFIG = ModelConfig(512, 64, 256, 2, 4)
STEPS, LOSS_DIFFERENCE = 20, 0.03  # of a loss that falls from 6.2 to about 4, in networks as small as this


def test_a_cpu_is_refused_with_what_it_takes() -> None:
    assert "it needs a CUDA card with fp8 products" in str(why_not(torch.device("cpu")))


@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise"])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_emulated_fp8_trains_as_bf16_does_and_keeps_names_and_head(recipe: str) -> None:
    pytest.importorskip("torchao.float8", reason="torchao is not installed")
    losses = []
    for float8 in (False, True):
        network = Transformer(CONFIG).initialize(0)
        names = list(network.state_dict())
        if float8:
            assert use_float8(network, recipe, emulate=True) == 2 * 6
            assert list(network.state_dict()) == names
            assert type(network.lm_head) is torch.nn.Linear
        weights = MasterWeights(network, lambda groups: adamw(groups, 3e-3), "bf16-mixed")
        generator, total = torch.Generator().manual_seed(1), 0.0
        for step in range(STEPS):
            ids_BT = torch.randint(0, 8, (4, 65), generator=generator).cumsum(1) % CONFIG.vocab_size
            loss_sum, count = network.loss(ids_BT[:, :-1], ids_BT[:, 1:])
            (loss_sum / count).backward()
            weights.step(1.0)
            total += float(loss_sum.detach() / count) if step >= STEPS - 5 else 0.0
        losses.append(total / 5)
    assert losses[0] < 5.5
    assert losses[0] != losses[1]
    assert abs(losses[1] - losses[0]) < LOSS_DIFFERENCE
