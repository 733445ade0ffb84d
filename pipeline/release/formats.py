"""The kinds of numbers that weights can be kept in after training, what each needs, and how it is made and saved.

In: a network in full. Out: the same network with its blocks' matrices in another kind, through torchao, or a GGUF file
for llama.cpp. Embedding, head, norms and biases stay in 16 or 32 bits in torchao's kinds: they are what few bits harm
most, and in a small model they are much of its size, which the report's bytes show.
To add one: a class here and a line in `KINDS`.
"""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from model.transformer import Transformer

NEEDS_TORCHAO = "needs the package torchao: pip install 'hornbook[quantize]'"


class Kind:
    """One kind. `dtype`: of what is not quantized; None: as it is stored."""

    dtype: ClassVar[torch.dtype | None] = None
    gguf: ClassVar[str | None] = None

    @classmethod
    def why_not(cls, device: torch.device) -> str | None:
        """Why this machine cannot run it, and what can; None where it can."""
        return None

    @classmethod
    def apply(cls, network: Transformer, group_size: int) -> None:
        """Changes the network in place."""


class FP16(Kind):
    """A copy in 16-bit floats (5 bits of exponent): half of fp32; large activations can overflow."""

    dtype = torch.float16


class BF16(Kind):
    """A copy in bfloat16 (8 bits of exponent): half of fp32, the range of fp32."""

    dtype = torch.bfloat16


class _TorchAO(Kind):
    @classmethod
    def why_not(cls, device: torch.device) -> str | None:
        return None if torchao() is not None else NEEDS_TORCHAO

    @classmethod
    def settings(cls, group_size: int, device: torch.device) -> Any:
        """torchao's config object."""
        raise NotImplementedError

    @classmethod
    def apply(cls, network: Transformer, group_size: int) -> None:
        from torchao.quantization import quantize_

        device = network.lm_head.weight.device
        quantize_(network, cls.settings(group_size, device), filter_fn=in_blocks)


class INT8(_TorchAO):
    """Weights in 8-bit integers, one scale a row; products in the activations' kind. Runs everywhere."""

    @classmethod
    def settings(cls, group_size: int, device: torch.device) -> Any:
        from torchao.quantization import Int8WeightOnlyConfig

        return Int8WeightOnlyConfig(version=2)


class INT8Dynamic(_TorchAO):
    """Weights in 8-bit integers and activations too, scaled token by token as they come: 8-bit products."""

    @classmethod
    def settings(cls, group_size: int, device: torch.device) -> Any:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig

        return Int8DynamicActivationInt8WeightConfig(version=2)


class INT4(_TorchAO):
    """Weights in 4-bit integers, two a byte, a scale and a zero for each group of `quantize.group_size`."""

    @classmethod
    def settings(cls, group_size: int, device: torch.device) -> Any:
        if device.type == "cuda":
            from torchao.quantization import Int4WeightOnlyConfig
            from torchao.quantization.quantize_.workflows import Int4PackingFormat

            return Int4WeightOnlyConfig(group_size=group_size, int4_packing_format=Int4PackingFormat.TILE_PACKED_TO_4D)
        from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

        return PrototypeInt4WeightOnlyConfig(group_size=group_size, set_inductor_config=False)

    @classmethod
    def why_not(cls, device: torch.device) -> str | None:
        if device.type not in ("cpu", "cuda"):
            return f"no packed 4-bit product on {device.type}; gguf-q4_0 runs there through llama.cpp"
        return super().why_not(device)


class FP8(_TorchAO):
    """Weights and activations in 8-bit floats: cards with fp8 products (compute capability 8.9 and up)."""

    @classmethod
    def settings(cls, group_size: int, device: torch.device) -> Any:
        from torchao.quantization import Float8DynamicActivationFloat8WeightConfig

        return Float8DynamicActivationFloat8WeightConfig()

    @classmethod
    def why_not(cls, device: torch.device) -> str | None:
        if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
            return "this machine has no fp8 products: they need a card such as L4, RTX 4090, H100; int8 runs here"
        return super().why_not(device)


class _GGUF(Kind):
    @classmethod
    def why_not(cls, device: torch.device) -> str | None:
        try:
            import gguf  # noqa: F401
        except ImportError:
            return "needs the package gguf: pip install 'hornbook[gguf]'"
        return None


class GGUFQ8(_GGUF):
    """A GGUF file for llama.cpp: 8-bit integers, a scale for every 32 weights, embedding and head too."""

    gguf = "q8_0"


class GGUFQ4(_GGUF):
    """A GGUF file for llama.cpp: 4-bit integers, a scale for every 32 weights; embedding and head in q8_0."""

    gguf = "q4_0"


KINDS: dict[str, type[Kind]] = {
    "fp16": FP16,
    "bf16": BF16,
    "int8": INT8,
    "int8-dynamic": INT8Dynamic,
    "int4": INT4,
    "fp8": FP8,
    "gguf-q8_0": GGUFQ8,
    "gguf-q4_0": GGUFQ4,
}


def torchao() -> Any:
    """The package, imported without the lines that it prints beside a torch that its kernels were not built for; None
    where it is not installed."""
    logging.getLogger("torchao").setLevel(logging.ERROR)
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            import torchao
    except ImportError:
        return None
    return torchao


def in_blocks(module: nn.Module, name: str) -> bool:
    """Which modules are quantized: the blocks' matrices."""
    return isinstance(module, nn.Linear) and ".layers." in f".{name}"


def memory_bytes(network: nn.Module) -> int:
    """Bytes of all tensors as they lie in memory: of a quantized one, of the tensors that it is made of."""
    storages = {
        part.untyped_storage().data_ptr(): part.untyped_storage().nbytes()
        for tensor in [*network.parameters(), *network.buffers()]
        for part in _parts(tensor.data)
    }
    return sum(storages.values())


def quantized_share(network: nn.Module) -> float:
    """Share of the parameters that are in a kind of fewer bits than a float of 16."""
    tensors = list(network.parameters())
    packed = sum(t.numel() for t in tensors if _is_packed(t.data))
    return packed / sum(t.numel() for t in tensors)


def save(network: Transformer, folder: Path, kind: type[Kind], group_size: int) -> int:
    """Writes `model.safetensors`, the parts of quantized tensors under torchao's own names, and the kind into
    `config.json` as transformers writes it. Returns the bytes of the weights' file."""
    from safetensors.torch import save_file

    state = {name: tensor.detach() for name, tensor in network.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    tensors, metadata = _flatten(state)
    save_file({name: t.contiguous().cpu() for name, t in tensors.items()}, folder / "model.safetensors", metadata)
    if issubclass(kind, _TorchAO):
        from torchao.core.config import config_to_dict

        settings = kind.settings(group_size, network.lm_head.weight.device)
        path = folder / "config.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        content["quantization_config"] = {
            "quant_method": "torchao",
            "quant_type": {"default": config_to_dict(settings)},
            "modules_to_not_convert": ["lm_head"],
            "include_input_output_embeddings": False,
        }
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return (folder / "model.safetensors").stat().st_size


def _flatten(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not any(_is_packed(tensor) for tensor in state.values()):
        return state, {"format": "pt"}
    from torchao.prototype.safetensors import safetensors_support, safetensors_utils

    with contextlib.suppress(ImportError):
        from torchao.prototype.quantization.int4.int4_opaque_tensor import Int4OpaqueTensor

        name = Int4OpaqueTensor.__name__  # the packed int4 of CPUs: not yet in torchao's own list
        if name not in safetensors_support.ALLOWED_TENSORS_SUBCLASSES:
            safetensors_support.ALLOWED_TENSORS_SUBCLASSES.append(name)
            safetensors_utils.ALLOWED_CLASSES[name] = Int4OpaqueTensor
    tensors, metadata = safetensors_support.flatten_tensor_state_dict(state)  # type: ignore[arg-type]  # its hint is wrong
    return tensors, {**metadata, "format": "pt"}


def load_state(folder: Path) -> dict[str, Tensor]:
    """The tensors that `save` wrote."""
    from safetensors import safe_open
    from safetensors.torch import load_file

    with safe_open(folder / "model.safetensors", "pt") as file:
        metadata = dict(file.metadata() or {})
    tensors = load_file(folder / "model.safetensors")
    if "tensor_names" not in metadata:
        return tensors
    torchao()
    _flatten({})
    from torchao.prototype.safetensors.safetensors_support import unflatten_tensor_state_dict

    return unflatten_tensor_state_dict(tensors, metadata)[0]


def _is_packed(tensor: Tensor) -> bool:
    return hasattr(tensor, "tensor_data_names")


def _parts(tensor: Tensor) -> Iterator[Tensor]:
    """A plain tensor itself; of a quantized one everything that it is made of."""
    if not _is_packed(tensor):
        yield tensor
        return
    names = [*tensor.tensor_data_names, *getattr(tensor, "optional_tensor_data_names", [])]  # type: ignore[attr-defined]
    for name in names:
        part = getattr(tensor, name, None)
        if part is not None:
            yield from _parts(part)
