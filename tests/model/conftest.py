"""Shared by the tests of `model`: networks with every tensor off its start value, and transformers' beside them."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from model.config import ModelConfig
from model.growth import GROWTH
from model.growth.rules import apply
from model.transformer import Transformer

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def network_of() -> Callable[..., Transformer]:
    """Builds a network whose gains, biases and stream mean all matter, as if it had been trained."""

    def build(config: ModelConfig, seed: int = 0, dtype: torch.dtype = torch.float64) -> Transformer:
        network = Transformer(config).to(torch.float64)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                start, spread = (1.0, 0.3) if "norm.weight" in name else (0.0, 0.3)
                if parameter.ndim == 2:  # a small embedding with an offset: LayerNorm's eps and centring then count
                    start, spread = (0.01, 0.02) if "embed" in name else (0.0, parameter.shape[1] ** -0.5)
                    spread *= 4 if config.tie_word_embeddings and "embed" in name else 1  # it also makes the logits
                parameter.copy_(start + spread * noise)
        return network.to(dtype)

    return build


@pytest.fixture
def reference_of() -> Callable[..., Any]:
    """The same weights in the class of transformers that the family's exports name."""

    def convert(network: Transformer, attention: str = "sdpa") -> Any:
        config = AutoConfig.for_model(**network.config.to_hf())
        reference = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.float32)
        assert type(reference).__name__ == network.config.kin.architecture
        reference = reference.to(network.lm_head.weight.dtype).eval()
        state = network.state_dict()
        state = {stored: state[ours] for stored, ours in network.config.stored_names().items()}
        if network.config.tie_word_embeddings:  # which transformers lists under both names
            state["lm_head.weight"] = state["model.embed_tokens.weight"]
        reference.load_state_dict(state)
        if network.lm_head.weight.dtype == torch.float64:  # their RMSNorms compute in fp32 whatever they are given
            for module in reference.modules():
                if type(module).__name__.endswith("RMSNorm"):
                    module.forward = partial(_rms_norm_in_fp64, module)
        return reference

    return convert


def _rms_norm_in_fp64(norm: Any, x: Tensor) -> Tensor:
    return norm.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.variance_epsilon)


@pytest.fixture
def grow() -> Callable[..., Transformer]:
    """Grows a network in memory, in the dtype that it has."""

    def grown_from(source: Transformer, target: ModelConfig, method: str = "exact", seed: int = 0, **options):
        dtype = source.lm_head.weight.dtype
        rules = GROWTH[method](source.config, target, **options)
        grown = Transformer(target).to(dtype)
        grown.load_state_dict(dict(apply(rules, source.state_dict(), seed, dtype)))
        return grown

    return grown_from


@pytest.fixture
def train() -> Callable[..., Transformer]:
    """Trains a network for a few steps on random windows, so that its weights have what training leaves in them."""

    def trained(network: Transformer, steps: int, rate: float = 1e-2) -> Transformer:
        optimizer = torch.optim.AdamW(network.parameters(), lr=rate)
        generator = torch.Generator().manual_seed(23)
        for _ in range(steps):
            ids = torch.randint(0, network.config.vocab_size, (4, 33), generator=generator) ** 2
            ids %= network.config.vocab_size  # squares are uneven: there is something to learn
            optimizer.zero_grad()
            loss_sum, count = network.loss(ids[:, :-1], ids[:, 1:])
            (loss_sum / count).backward()
            optimizer.step()
        return network

    return trained
