"""How a fresh network's tensors start: a pure function of (seed, tensor name, shape).

Every tensor draws from its own generator, seeded by the seed and the tensor's name, so the result depends neither on
the order nor on the device, and growth (`model/growth/random.py`) can stream the same values to disk one by one.
Rule: weights N(0, initializer_range), the two projections that write into the residual stream divided by sqrt(2 L)
so that its variance does not grow with depth (GPT-2, Radford et al. 2019), norms 1, biases 0.
"""

import hashlib
import math

import torch
from torch import Tensor

from model.config import ModelConfig

RESIDUAL_WRITERS = ("self_attn.dense.weight", "mlp.fc2.weight")


def tensor_generator(seed: int, name: str) -> torch.Generator:
    """A CPU generator that depends on the seed and the tensor's name only."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator(device="cpu").manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def initial_std(name: str, config: ModelConfig) -> float:
    """Standard deviation of the weight `name`; 0 for norms and biases, which start at constants."""
    if name.endswith(".bias") or "layernorm" in name:
        return 0.0
    depth = math.sqrt(2 * config.num_hidden_layers) if name.endswith(RESIDUAL_WRITERS) else 1.0
    return config.initializer_range / depth


def initial_tensor(name: str, shape: tuple[int, ...], config: ModelConfig, seed: int) -> Tensor:
    """The fp32 start value of one tensor, on the CPU."""
    if name.endswith(".bias"):
        return torch.zeros(shape)
    if "layernorm" in name:
        return torch.ones(shape)
    return torch.randn(shape, generator=tensor_generator(seed, name)) * initial_std(name, config)
