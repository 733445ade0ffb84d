"""Low-rank adapters (LoRA, arXiv 2106.09685) in our network, put there by peft, and the network without them again.

In: a network, targets, a rank. Out: the same network whose targets add B A x * alpha / rank to what they compute and
whose other weights are frozen; its merged weights; the adapter under the names that peft loads. `quantize_base`: the
blocks' matrices in NF4, 4 bits and a scale for every 64 weights (QLoRA, arXiv 2305.14314).
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from model.families.family import Family
from model.transformer import Transformer

A, B = ".lora_A.default.weight", ".lora_B.default.weight"
NF4_BLOCK, NF4_SCALERS = 64, 256  # weights that share a scale, scales that share a scale of their own
SCALES = "adapter_scale"


def add_adapters(
    network: Transformer, targets: Sequence[str], rank: int, alpha: float, dropout: float, seed: int
) -> None:
    """In place. Raises ImportError without peft. The same seed gives the same first weights; B is 0, so that nothing
    changes before the first step."""
    from peft import LoraConfig, inject_adapter_in_model

    torch.manual_seed(seed)
    settings = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # only ever divided by the rank
        lora_dropout=dropout,
        target_modules=list(targets),
    )
    inject_adapter_in_model(settings, network)
    setattr(network, SCALES, alpha / rank)


def quantize_base(network: Transformer) -> None:
    """The blocks' matrices in NF4, in place; one that 64 does not divide stays as it is. Raises ImportError without
    torchao."""
    from torchao.quantization import NF4Tensor

    for module in network.model.layers.modules():
        if isinstance(module, nn.Linear) and module.weight.numel() % NF4_BLOCK == 0:
            scalers = math.gcd(module.weight.numel() // NF4_BLOCK, NF4_SCALERS)
            packed = NF4Tensor.from_tensor(module.weight.detach(), NF4_BLOCK, scalers)
            module.weight = nn.Parameter(packed, requires_grad=False)


def cast_frozen(network: nn.Module, dtype: torch.dtype) -> None:
    """What is not trained, in the numbers that the network computes in; packed weights stay packed."""
    for parameter in network.parameters():
        if not parameter.requires_grad and not is_packed(parameter):
            parameter.data = parameter.data.to(dtype)


def is_adapted(network: nn.Module) -> bool:
    return hasattr(network, SCALES)


def is_packed(tensor: Tensor) -> bool:
    """Whether its bytes are fewer than its shape says."""
    return hasattr(tensor, "get_original_weight")


def trainable_share(network: nn.Module) -> float:
    """Trained parameters over those of the base."""
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    base = sum(p.numel() for name, p in network.named_parameters() if not name.endswith((A, B)))
    return trained / base


class Merged(Mapping[str, Tensor]):
    """The weights of the network without adapters, in fp32 and under their own names; each is made when it is asked
    for. `trained`: the adapters in the precision that they are kept in."""

    def __init__(self, network: nn.Module, trained: Mapping[str, Tensor]) -> None:
        self._scale, self._trained = getattr(network, SCALES), trained
        own = {name: p for name, p in network.named_parameters() if not name.endswith((A, B))}
        self._parameters = {name.replace(".base_layer.", "."): (name, p) for name, p in own.items()}

    @torch.no_grad()
    def __getitem__(self, wanted: str) -> Tensor:
        name, parameter = self._parameters[wanted]
        weight = getattr(parameter, "get_original_weight", parameter.detach)().float()
        if name.endswith(".base_layer.weight"):
            module = name.removesuffix(".base_layer.weight")
            a, b = self._trained[module + A].float(), self._trained[module + B].float()
            weight = weight + self._scale * (b @ a).to(weight.device)
        return weight

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)


def peft_state(trained: Mapping[str, Tensor], family: Family) -> dict[str, Tensor]:
    """The adapter under the names that `PeftModel.from_pretrained` reads."""
    return {
        "base_model.model." + family.stored_name(name).replace(".default.", "."): tensor.detach()
        .float()
        .cpu()
        .contiguous()
        for name, tensor in trained.items()
    }
