"""A Phi model folder as one GGUF file for llama.cpp, architecture `phi2`.

In: a folder of ours (or any Phi folder in safetensors). Out: `<name>-<kind>.gguf` with weights in f16, q8_0 or q4_0,
the vocabulary and, where the model has one, the chat template. llama.cpp's own converter knows a tokenizer by the ids
that it gives to a test text, so that it refuses every tokenizer that was trained on one's own text; hence this writer.
Tensors are written one after the other: memory holds one of them.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from model.special_tokens import DEFAULT
from pipeline.corpus.text.tokenizer import special_tokens
from pipeline.release.gguf_limits import check_shape, check_special, check_tokenizer, check_values
from pipeline.system.errors import UserError

KINDS = ("f16", "q8_0", "q4_0")
BLOCK = 32  # numbers that share a scale in q8_0 and q4_0; rows that it does not divide stay in f16
EXTRA = "it needs the package gguf: pip install 'hornbook[gguf]'"
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.final_layernorm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.dense": "attn_output",
    "input_layernorm": "attn_norm",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}


def require_gguf() -> Any:
    """The package. Raises `UserError` where it is not installed."""
    try:
        import gguf
    except ImportError:
        raise UserError(f"a GGUF file was asked for; {EXTRA}") from None
    return gguf


def write_gguf(folder: Path, target: Path, kind: str, name: str) -> dict[str, Any]:
    """Writes `target`, through a temporary name. Returns `{bytes, quantized_share}`: the share of the parameters that
    are in the kind's own blocks. `kind`: one of `KINDS`. Raises `UserError` for what the
    format cannot say (pipeline/release/gguf_limits.py)."""
    gguf = require_gguf()
    from model.hf import open_model

    shape, state = open_model(folder)
    check_shape(shape, "gguf")
    cutting = check_tokenizer(folder / "tokenizer.json", shape.vocab_size, "gguf")
    special = check_special(folder / "tokenizer.json", "gguf")
    part = target.with_name(f".{target.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(part, "phi2")
    _add_shape(writer, shape, name, gguf.LlamaFileType[f"MOSTLY_{kind.upper()}"])
    _add_vocabulary(writer, folder, shape.vocab_size, cutting)
    _add_special(writer, folder, special)
    shapes, quantized = shape.tensor_shapes(), 0
    planned = [(stored, own, _type_of(gguf, stored, shapes[own], kind)) for stored, own in _tensors(shape)]
    for stored, own, type_ in planned:
        quantized += _size(shapes[own]) if type_.name in ("Q8_0", "Q4_0") else 0
        _announce(gguf, writer, stored, shapes[own], type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    try:
        for _, own, type_ in planned:
            values = state[own].float().numpy()
            check_values(values, type_.name, own)
            writer.write_tensor_data(gguf.quants.quantize(values, type_))
        writer.close()
        part.replace(target)
    finally:
        writer.close()
        part.unlink(missing_ok=True)
    total = sum(_size(shapes[own]) for _, own, _ in planned)
    return {"bytes": target.stat().st_size, "quantized_share": round(quantized / total, 4)}


def _tensors(shape: Any) -> Iterator[tuple[str, str]]:
    """(GGUF's name, ours) in the order of the file. A tied head is written out: llama.cpp's phi2 knows none."""
    for name in shape.tensor_shapes():
        yield _stored_name(name), name
    if shape.tie_word_embeddings:
        yield "output.weight", "model.embed_tokens.weight"


def _stored_name(name: str) -> str:
    module, _, kind = name.rpartition(".")
    prefix = ""
    if module.startswith("model.layers."):
        _, _, block, module = module.split(".", 3)
        prefix = f"blk.{block}."
    return f"{prefix}{NAMES[module]}.{kind}"


def _type_of(gguf: Any, stored: str, dimensions: tuple[int, ...], kind: str) -> Any:
    """Vectors stay in fp32. Of q4_0, embedding and head are q8_0: they are what 4 bits harm most."""
    types = gguf.GGMLQuantizationType
    if len(dimensions) == 1:
        return types.F32
    if kind == "f16" or dimensions[-1] % BLOCK:
        return types.F16
    return types.Q8_0 if kind == "q8_0" or stored.startswith(("output", "token_embd")) else types.Q4_0


def _announce(gguf: Any, writer: Any, stored: str, dimensions: tuple[int, ...], type_: Any) -> None:
    import numpy as np

    if type_.name in ("Q8_0", "Q4_0"):
        packed = gguf.quants.quant_shape_to_byte_shape(dimensions, type_)
        writer.add_tensor_info(stored, packed, np.dtype(np.uint8), _size(packed), raw_dtype=type_)
    else:
        dtype = np.dtype(np.float16 if type_.name == "F16" else np.float32)
        writer.add_tensor_info(stored, dimensions, dtype, _size(dimensions) * dtype.itemsize)


def _size(dimensions: tuple[int, ...]) -> int:
    return math.prod(dimensions)


def _add_shape(writer: Any, shape: Any, name: str, file_type: Any) -> None:
    writer.add_name(name)
    writer.add_context_length(shape.max_position_embeddings)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_block_count(shape.num_hidden_layers)
    writer.add_head_count(shape.num_attention_heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_eps(shape.layer_norm_eps)
    writer.add_rope_dimension_count(shape.rotary_dim)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_vocab_size(shape.vocab_size)
    writer.add_file_type(file_type)
    writer.add_quantization_version(2)


def _add_vocabulary(writer: Any, folder: Path, vocab_size: int, cutting: str) -> None:
    """Tokens by id; rows of the embedding that no token has are filled with names that nothing is encoded to."""
    import gguf

    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    model = content["model"]
    tokens = [f"[PAD{i}]" for i in range(vocab_size)]
    types = [gguf.TokenType.UNUSED] * vocab_size
    for token, id_ in model["vocab"].items():
        tokens[id_], types[id_] = token, gguf.TokenType.NORMAL
    for added in content.get("added_tokens", []):
        kind = gguf.TokenType.CONTROL if added.get("special") else gguf.TokenType.USER_DEFINED
        tokens[added["id"]], types[added["id"]] = added["content"], kind
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(cutting)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in model["merges"]])


def _add_special(writer: Any, folder: Path, special: Mapping[str, int | bool]) -> None:
    """What ends, begins and pads, and the chat templates."""
    for name, value in special.items():
        getattr(writer, f"add_{name}")(value)
    templates = special_tokens(folder / "tokenizer.json").chat_templates
    if templates:
        several = [{"name": name, "template": text} for name, text in templates.items()]
        writer.add_chat_template(templates[DEFAULT] if set(templates) == {DEFAULT} else several)


def dequantized(path: Path, shape: Any) -> Iterator[tuple[str, Any]]:
    """(our name, fp32 tensor) of a GGUF file that this module wrote: what its weights say, without llama.cpp."""
    import torch

    gguf = require_gguf()
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for name, dimensions in shape.tensor_shapes().items():
        tensor = stored[_stored_name(name)]
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        yield name, torch.from_numpy(values.astype("float32", copy=True)).reshape(dimensions)


def tensor_bytes(path: Path) -> int:
    """Bytes of all tensors of a GGUF file: what llama.cpp maps into memory."""
    return sum(tensor.n_bytes for tensor in require_gguf().GGUFReader(path).tensors)
