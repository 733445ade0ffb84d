"""The shapes that a card is checked with, their networks and batches."""

import torch

from model.config import ModelConfig
from model.float8 import use_float8
from model.optim import OPTIMIZERS, MasterWeights, needs_slices
from model.transformer import Transformer

SHAPES = {
    "tiny": ModelConfig(512, 64, 256, 2, 4),
    "125m": ModelConfig(51200, 768, 3072, 12, 12),
    "1.3b": ModelConfig(51200, 2048, 8192, 24, 32),
    "2.7b": ModelConfig(51200, 2560, 10240, 32, 32, partial_rotary_factor=0.4),
}


def built(
    shape: str,
    device: torch.device,
    precision: str,
    optimizer: str,
    in_backward: bool = False,
    float8: str = "none",
) -> tuple[Transformer, MasterWeights]:
    """A network in its precision, with its optimizer; fp8 is emulated where there is no card."""
    torch.manual_seed(0)
    with device:
        network = Transformer(SHAPES[shape])
    if shape == "tiny":
        network.initialize(0)
    network.attention_kernel = "sdpa"
    if float8 != "none":
        use_float8(network, float8, emulate=device.type == "cpu")
    sliced = needs_slices(precision, in_backward)
    make = lambda groups: OPTIMIZERS[optimizer](groups, learning_rate=1e-3, sliced=sliced)  # noqa: E731
    return network, MasterWeights(network, make, precision, in_backward=in_backward)


def batch_of(network: Transformer, windows: int, tokens: int, device: torch.device, seed: int) -> torch.Tensor:
    """Windows of `tokens` + 1 ids that can be learned."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randint(0, 8, (windows, tokens + 1), generator=generator)
    return (steps.cumsum(1) % network.config.vocab_size).to(device)


def step(network: Transformer, weights: MasterWeights, ids_BT: torch.Tensor, clip_norm: float | None) -> torch.Tensor:
    """One pass and one optimizer step, nothing read by the host; the mean loss."""
    loss_sum, _ = network.loss(ids_BT[:, :-1], ids_BT[:, 1:])
    loss = loss_sum / ids_BT[:, 1:].numel()
    loss.backward()
    weights.accumulate()
    weights.step(clip_norm)
    return loss.detach()
