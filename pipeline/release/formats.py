"""Quantized weight formats: what each needs, how it is made and saved, and whether it saves anything.

In: a network with full weights. Out: the same network with the matrices of its blocks in another format, through
torchao, or a GGUF file for llama.cpp. In torchao's formats, embedding, head, norms and biases keep 16 or 32 bits: few
bits harm them most. In a small model they are a large part of the size, which the report's bytes show.
To add a format: a class here and a line in `FORMATS`. The module imports torch only where it works on tensors.
"""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pipeline.config import nearest
from pipeline.system.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from model.transformer import Transformer

NEEDS_TORCHAO = "needs the package torchao: pip install 'hornbook[quantize]'"


class Format:
    """`dtype`: torch's name for the numbers of a plain copy; None: weights are quantized. `gguf`: the type of a GGUF
    file; None: a Hugging Face folder."""

    dtype: ClassVar[str | None] = None
    gguf: ClassVar[str | None] = None

    @classmethod
    def why_not(cls, device: "torch.device") -> str | None:
        """Why this machine cannot run it, and what can; None where it can."""
        return None

    @classmethod
    def apply(cls, network: "Transformer", group_size: int) -> None:
        """Changes the network in place."""
        import torch

        if cls.dtype is not None:
            network.to(getattr(torch, cls.dtype))


class FP16(Format):
    """A copy in 16-bit floats (5 bits of exponent): half of fp32; large activations can overflow."""

    dtype = "float16"


class BF16(Format):
    """A copy in bfloat16 (8 bits of exponent): half of fp32, the range of fp32."""

    dtype = "bfloat16"


class _TorchAO(Format):
    @classmethod
    def why_not(cls, device: "torch.device") -> str | None:
        return None if torchao() is not None else NEEDS_TORCHAO

    @classmethod
    def settings(cls, group_size: int, device: "torch.device") -> Any:
        """torchao's config object."""
        raise NotImplementedError

    @classmethod
    def apply(cls, network: "Transformer", group_size: int) -> None:
        from torchao.quantization import quantize_

        device = network.lm_head.weight.device
        quantize_(network, cls.settings(group_size, device), filter_fn=in_blocks)


class INT8(_TorchAO):
    """Weights in 8-bit integers, one scale a row; products in the activations' dtype. Runs everywhere."""

    @classmethod
    def settings(cls, group_size: int, device: "torch.device") -> Any:
        from torchao.quantization import Int8WeightOnlyConfig

        return Int8WeightOnlyConfig(version=2)


class INT8Dynamic(_TorchAO):
    """Weights and activations in 8-bit integers; activations are scaled token by token at run time: 8-bit products."""

    @classmethod
    def settings(cls, group_size: int, device: "torch.device") -> Any:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig

        return Int8DynamicActivationInt8WeightConfig(version=2)


class INT4(_TorchAO):
    """Weights in 4-bit integers, two a byte, a scale and a zero for each group of `quantize.group_size`."""

    @classmethod
    def settings(cls, group_size: int, device: "torch.device") -> Any:
        if device.type == "cuda":
            from torchao.quantization import Int4WeightOnlyConfig
            from torchao.quantization.quantize_.workflows import Int4PackingFormat

            return Int4WeightOnlyConfig(group_size=group_size, int4_packing_format=Int4PackingFormat.TILE_PACKED_TO_4D)
        from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

        return PrototypeInt4WeightOnlyConfig(group_size=group_size, set_inductor_config=False)

    @classmethod
    def why_not(cls, device: "torch.device") -> str | None:
        if device.type not in ("cpu", "cuda"):
            return f"no packed 4-bit product on {device.type}; gguf-q4_0 runs there through llama.cpp"
        return super().why_not(device)


class FP8(_TorchAO):
    """Weights and activations in 8-bit floats: GPUs with fp8 products (compute capability 8.9 and up)."""

    @classmethod
    def settings(cls, group_size: int, device: "torch.device") -> Any:
        from torchao.quantization import Float8DynamicActivationFloat8WeightConfig

        return Float8DynamicActivationFloat8WeightConfig()

    @classmethod
    def why_not(cls, device: "torch.device") -> str | None:
        import torch

        if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
            return "this machine has no fp8 products: they need a GPU such as L4, RTX 4090, H100; int8 runs here"
        return super().why_not(device)


class _GGUF(Format):
    @classmethod
    def why_not(cls, device: "torch.device") -> str | None:
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


FORMATS: dict[str, type[Format]] = {
    "fp16": FP16,
    "bf16": BF16,
    "int8": INT8,
    "int8-dynamic": INT8Dynamic,
    "int4": INT4,
    "fp8": FP8,
    "gguf-q8_0": GGUFQ8,
    "gguf-q4_0": GGUFQ4,
}


def check_formats(names: Sequence[str], key: str = "quantize.kinds") -> None:
    """Raises `UserError` for a format that is not in `hornbook list kinds`."""
    for name in names:
        if name not in FORMATS:
            raise UserError(f"{key} has '{name}'{nearest(name, FORMATS)}; expected of {', '.join(FORMATS)}")


def torchao() -> Any:
    """The package, imported without the warnings that it prints where its kernels were built for another torch; None
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


def no_better_than(row: dict[str, Any], rows: list[dict[str, Any]]) -> str | None:
    """A format that is no larger on disk and in memory, no slower and no worse on held-out text than this row's; None
    where there is none, so that this format saves something."""
    if "unavailable" in row:
        return None
    for other in rows:
        if other is row or "unavailable" in other:
            continue
        smaller = other["disk_bytes"] <= row["disk_bytes"] and other["memory_bytes"] <= row["memory_bytes"]
        faster = not row.get("tokens_per_second") or (other.get("tokens_per_second") or 0) >= row["tokens_per_second"]
        better = all(
            other["scores"][name]["score"] <= found["score"]
            for name, found in row["scores"].items()
            if name.startswith("bits_per_byte") and found["score"] is not None
        )
        if smaller and faster and better:
            return other["kind"]
    return None


def no_saving_lines(rows: list[dict[str, Any]]) -> list[str]:
    """For each format that saves nothing on this model and machine, the one that is no worse in every figure."""
    return [
        f"{row['kind']} saves nothing here: {row['no_better_than']} is no larger, no slower and no worse"
        for row in rows
        if row.get("no_better_than")
    ]


def no_memory_saved(manifest: Mapping[str, Any]) -> str:
    """A note where a tuning method takes as much memory as full tuning: in a small model, optimizer states are a small
    part of a step's memory."""
    own, full = ((manifest["memory_bytes"] or {}).get(name) for name in (manifest["method"], "full"))
    saves_nothing = manifest["method"] != "full" and own and full and own >= full
    return f": {manifest['method']} saves no memory here" if saves_nothing else ""


def in_blocks(module: "nn.Module", name: str) -> bool:
    """Which modules are quantized: the blocks' matrices."""
    from torch import nn

    return isinstance(module, nn.Linear) and ".layers." in f".{name}"


def memory_bytes(network: "nn.Module") -> int:
    """Bytes of all tensors as they lie in memory; a quantized tensor counts with all its parts."""
    storages = {
        part.untyped_storage().data_ptr(): part.untyped_storage().nbytes()
        for tensor in [*network.parameters(), *network.buffers()]
        for part in _parts(tensor.data)
    }
    return sum(storages.values())


def quantized_share(network: "nn.Module") -> float:
    """Share of the parameters that are stored in fewer than 16 bits."""
    tensors = list(network.parameters())
    packed = sum(t.numel() for t in tensors if _is_packed(t.data))
    return packed / sum(t.numel() for t in tensors)


def save(network: "Transformer", folder: Path, form: type[Format], group_size: int) -> int:
    """Writes `model.safetensors`, the parts of quantized tensors under torchao's own names, and the format into
    `config.json` as transformers writes it. Returns the size of the weights' file in bytes."""
    from safetensors.torch import save_file

    stored = network.config.kin.stored_name
    state = {stored(name): tensor.detach() for name, tensor in network.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    tensors, metadata = _flatten(state)
    save_file({name: t.contiguous().cpu() for name, t in tensors.items()}, folder / "model.safetensors", metadata)
    if issubclass(form, _TorchAO):
        from torchao.core.config import config_to_dict

        settings = form.settings(group_size, network.lm_head.weight.device)
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


def _flatten(state: "dict[str, Tensor]") -> "tuple[dict[str, Tensor], dict[str, str]]":
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


def _is_packed(tensor: "Tensor") -> bool:
    return hasattr(tensor, "tensor_data_names")


def _parts(tensor: "Tensor") -> Iterator["Tensor"]:
    """A plain tensor itself, or the parts of a quantized one."""
    if not _is_packed(tensor):
        yield tensor
        return
    names = [*tensor.tensor_data_names, *getattr(tensor, "optional_tensor_data_names", [])]  # type: ignore[attr-defined]
    for name in names:
        part = getattr(tensor, name, None)
        if part is not None:
            yield from _parts(part)
