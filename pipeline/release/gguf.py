"""A model folder as one GGUF file for llama.cpp; what the format or the architecture cannot express is refused.

In: a folder in safetensors of one of our families. Out: `<name>-<type>.gguf` with weights in f16, q8_0 or q4_0, the
vocabulary and, where the model has one, the chat template. llama.cpp's own converter identifies a tokenizer by the
ids that it gives to a test text, so it refuses every tokenizer that was trained on other text; hence this writer.
Tensors are written one after the other: memory holds one of them.

The checks list everything that a file cannot express, because llama.cpp would tokenize text differently without a
warning. Source: llama.cpp's llama-vocab.cpp (`llm_tokenizer_bpe`: its patterns by the name `tokenizer.ggml.pre`, no
normalizer, added tokens matched as they are) and gguf's list of keys.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import pre_tokenizers

from model.config import NO_ROPE_INTERVAL, UnreadableModel, read_field, read_object
from model.special_tokens import DEFAULT, token_ids
from pipeline.corpus.text.tokenizer import WORD_PATTERN, ids_around, load_tokenizer, special_tokens
from pipeline.system.errors import UserError
from pipeline.system.progress import progress

ROPE_FACTORS = "rope_freqs.weight"  # what llama.cpp divides each rotary frequency by
TYPES = ("f16", "q8_0", "q4_0")
BLOCK = 32  # numbers that share a scale in q8_0 and q4_0; rows that it does not divide stay in f16
LARGEST_F16 = 65504.0
# What every llama.cpp stops at by name, whatever a file says (special_eog_ids in its llama-vocab.cpp).
STOPS = {"<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>", "<EOT>"}
_OURS = {"type": "Split", "pattern": {"Regex": WORD_PATTERN}, "behavior": "Isolated", "invert": False}
_DIGITS = {"type": "Digits", "individual_digits": True}


def require_gguf() -> Any:
    """The package. Raises `UserError` where it is not installed."""
    try:
        import gguf
    except ImportError:
        raise UserError("a GGUF file needs the package gguf: pip install 'hornbook[gguf]'") from None
    return gguf


def write_gguf(folder: Path, target: Path, kind: str, name: str) -> dict[str, Any]:
    """Writes `target`, through a temporary name. Returns `{bytes, quantized_share}`: the share of the parameters that
    are in 8 or 4 bits. `kind`: one of `TYPES`. Raises `UserError` for what the format cannot express."""
    gguf = require_gguf()
    from model.gguf import frequency_factors, in_file_order
    from model.hf import open_model

    shape, state = open_model(folder)
    check_shape(shape, "gguf")
    splitting = check_tokenizer(folder / "tokenizer.json", shape.vocab_size, "gguf")
    special = check_special(folder / "tokenizer.json", "gguf")
    part = target.with_name(f".{target.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(part, shape.kin.gguf)
    _add_shape(gguf, writer, shape, name, gguf.LlamaFileType[f"MOSTLY_{kind.upper()}"])
    _add_vocabulary(writer, folder, shape.vocab_size, splitting)
    _add_special(writer, folder, special)
    shapes, quantized = shape.tensor_shapes(), 0
    planned = [(stored, own, _type_of(gguf, stored, shapes[own], kind)) for stored, own in _tensors(shape)]
    for stored, own, type_ in planned:
        quantized += _size(shapes[own]) if type_.name in ("Q8_0", "Q4_0") else 0
        _announce(gguf, writer, stored, shapes[own], type_)
    factors = frequency_factors(shape) if (shape.rope_scaling or {}).get("rope_type") == "llama3" else None
    if factors is not None:
        _announce(gguf, writer, ROPE_FACTORS, tuple(factors.shape), gguf.GGMLQuantizationType.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    total = sum(_size(shapes[own]) for _, own, _ in planned)
    try:
        with progress(f"gguf {kind}", total, "parameters") as bar:
            for _, own, type_ in planned:
                values = in_file_order(shape, own, state[own].float()).numpy()
                check_values(values, type_.name, own)
                writer.write_tensor_data(gguf.quants.quantize(values, type_))
                bar.advance(values.size)
        if factors is not None:
            writer.write_tensor_data(factors.numpy())
        writer.close()
        part.replace(target)
    finally:
        writer.close()
        part.unlink(missing_ok=True)
    return {"bytes": target.stat().st_size, "quantized_share": round(quantized / total, 4)}


def dequantized(path: Path, shape: Any) -> Iterator[tuple[str, Any]]:
    """(our name, fp32 tensor) of a GGUF file that this module wrote, read without llama.cpp."""
    import torch

    from model.gguf import in_file_order

    gguf = require_gguf()
    shapes, stored = shape.tensor_shapes(), {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for written, name in list(_tensors(shape))[: len(shapes)]:
        values = gguf.quants.dequantize(stored[written].data, stored[written].tensor_type)
        weight = torch.from_numpy(values.astype("float32", copy=True)).reshape(shapes[name])
        yield name, in_file_order(shape, name, weight, back=True)


def tensor_bytes(path: Path) -> int:
    """Bytes of all tensors of a GGUF file: what llama.cpp maps into memory."""
    return sum(tensor.n_bytes for tensor in require_gguf().GGUFReader(path).tensors)


def check_shape(shape: Any, key: str) -> None:
    """What llama.cpp's network of this architecture computes differently. Raises `UserError`."""
    narrow = shape.num_attention_heads * shape.head_size != shape.hidden_size
    regular = [(block + 1) % NO_ROPE_INTERVAL != 0 for block in range(shape.num_hidden_layers)]
    lacking = {
        "no qk_layernorm (model.qk_layernorm=true)": shape.qk_layernorm,
        "attention as wide as the stream alone (heads x head size = hidden_size): this model has "
        f"{shape.num_attention_heads} x {shape.head_size}, hidden_size {shape.hidden_size}": narrow
        and shape.family in ("phi", "olmo2"),
        "no biases of attention (model.attention_bias=true)": shape.attention_bias and shape.family != "llama",
        "no biases of the MLP (model.mlp_bias=true)": shape.mlp_bias and shape.family != "llama",
        "every fourth block without rotary embedding, and this model's others (model.no_rope_layers)": (
            shape.kin.rotary_blocks and shape.rotating != regular
        ),
    }
    if found := next((words for words, wrong in lacking.items() if wrong), None):
        raise UserError(f"{key}: llama.cpp's {shape.kin.gguf} has {found}; leave GGUF out")


def check_tokenizer(tokenizer_json: Path, vocab_size: int, key: str) -> str:
    """llama.cpp's name for the way in which the tokenizer splits words. Raises `UserError` with everything that GGUF
    cannot express."""
    try:
        content = read_object(tokenizer_json)
        missing = list(_inexpressible(content, tokenizer_json, vocab_size))
    except UnreadableModel as error:
        raise UserError(f"{key}: {error}") from None
    name = _splitting_name(read_field(content, "pre_tokenizer", dict, tokenizer_json) or {})
    if name is None:
        missing.append("its pre_tokenizer (only GPT-2's, StarCoder's and hornbook's ways to split words have a name)")
    if name is None or missing:
        raise UserError(
            f"{key}: {tokenizer_json} has what a GGUF file cannot express: {'; '.join(missing)}. llama.cpp would "
            "tokenize text differently; leave GGUF out"
        )
    return name


def check_special(tokenizer_json: Path, key: str) -> dict[str, int | bool]:
    """The file's special tokens, by gguf's names. llama.cpp stops at its eos, eot and eom, and at tokens whose names it
    knows. It puts only bos before a text, and only eos after it. Raises `UserError`."""
    special, names = special_tokens(tokenizer_json, key), {i: token for token, i in token_ids(tokenizer_json).items()}
    others = sorted((i for i in special.stop_ids if i != special.eos_token_id), key=lambda i: names.get(i) in STOPS)
    if missing := [names.get(i, str(i)) for i in others[2:] if names.get(i) not in STOPS]:
        raise UserError(
            f"{key}: {tokenizer_json.parent} stops at {len(special.stop_ids)} tokens, and GGUF has no place for "
            f"{', '.join(missing)}; take it out of eos_token_id in generation_config.json, or leave GGUF out"
        )
    before, after = ids_around(load_tokenizer(tokenizer_json))
    if before not in ([], [special.bos_token_id]) or after not in ([], [special.eos_token_id]):
        raise UserError(
            f"{key}: {tokenizer_json} puts {[names[i] for i in before]} before and {[names[i] for i in after]} after "
            "every text; GGUF knows only a bos before it and an eos after it; leave GGUF out"
        )
    ids = {"eos": special.eos_token_id, "bos": special.bos_token_id, "pad": special.pad_token_id}
    ids |= dict(zip(("eot", "eom"), others, strict=False))
    found: dict[str, int | bool] = {f"{kind}_token_id": id_ for kind, id_ in ids.items() if id_ is not None}
    return found | {"add_bos_token": bool(before), "add_eos_token": bool(after)}


def check_values(values: Any, type_name: str, tensor: str) -> None:
    """`values`: a tensor in fp32 (numpy), to be stored as F16, Q8_0 or Q4_0: numbers, or a scale a block, in fp16.
    Raises `UserError`."""
    steps = {"F16": 1.0, "Q8_0": 127.0, "Q4_0": 8.0}.get(type_name)
    largest = float(abs(values).max(initial=0.0))
    if steps is not None and not largest / steps <= LARGEST_F16:
        raise UserError(
            f"gguf: {tensor} has a value of {largest:g}, and {type_name} holds no more than {steps * LARGEST_F16:g}; "
            "leave this format out"
        )


def _tensors(shape: Any) -> Iterator[tuple[str, str]]:
    """(GGUF's name, ours) in the order of the file. A tied head is written out for phi2, which knows none."""
    from model.gguf import file_names

    names = file_names(shape)
    for name in shape.tensor_shapes():
        yield names[name], name
    if shape.tie_word_embeddings and shape.head_bias:
        yield "output.weight", "model.embed_tokens.weight"


def _type_of(gguf: Any, stored: str, dimensions: tuple[int, ...], kind: str) -> Any:
    """Vectors stay in fp32. In q4_0, embedding and head are q8_0, because 4 bits harm them most."""
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


def _add_shape(gguf: Any, writer: Any, shape: Any, name: str, file_type: Any) -> None:
    writer.add_name(name)
    writer.add_context_length(shape.max_position_embeddings)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_block_count(shape.num_hidden_layers)
    writer.add_head_count(shape.num_attention_heads)
    writer.add_head_count_kv(shape.kv_heads)
    if shape.norm == "layernorm":
        writer.add_layer_norm_eps(shape.eps)
    else:
        writer.add_layer_norm_rms_eps(shape.eps)
    if shape.head_size * shape.num_attention_heads != shape.hidden_size:
        writer.add_key_length(shape.head_size)
        writer.add_value_length(shape.head_size)
    if (shape.rope_scaling or {}).get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(shape.rope_scaling["factor"])
    writer.add_rope_dimension_count(shape.rotary_dim)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_vocab_size(shape.vocab_size)
    writer.add_file_type(file_type)
    writer.add_quantization_version(2)


def _add_vocabulary(writer: Any, folder: Path, vocab_size: int, splitting: str) -> None:
    """Tokens by id. Rows of the embedding without a token get names that no text is encoded to."""
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
    writer.add_tokenizer_pre(splitting)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in model["merges"]])


def _add_special(writer: Any, folder: Path, special: Mapping[str, int | bool]) -> None:
    """The tokens that end, begin and pad a text, and the chat templates."""
    for name, value in special.items():
        getattr(writer, f"add_{name}")(value)
    templates = special_tokens(folder / "tokenizer.json").chat_templates
    if templates:
        several = [{"name": name, "template": text} for name, text in templates.items()]
        writer.add_chat_template(templates[DEFAULT] if set(templates) == {DEFAULT} else several)


def _inexpressible(content: dict[str, Any], path: Path, vocab_size: int) -> Iterator[str]:
    """What the tokenizer does and the format cannot express."""
    model = read_field(content, "model", dict, path) or {}
    vocabulary = read_field(model, "vocab", dict, path) if model.get("type", "BPE") == "BPE" else None
    merges = read_field(model, "merges", list, path) if vocabulary is not None else None
    if vocabulary is None or merges is None:
        yield f"a model of type {model.get('type')!r} (expected byte-level BPE)"
        return
    for name in ("byte_fallback", "ignore_merges", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            yield f"{name} {model[name]!r}"
    for name in ("normalizer", "decoder"):
        part = read_field(content, name, dict, path)
        if part is not None and (name, part.get("type")) != ("decoder", "ByteLevel"):
            yield f"a {name} ({_types(part)})"
    if model.get("unk_token") is not None and not set(vocabulary) >= set(pre_tokenizers.ByteLevel.alphabet()):
        yield f"an unk_token ({model['unk_token']!r}) for bytes that the vocabulary lacks"
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    if not all(_is_pair(pair, vocabulary) for pair in pairs):
        yield "merges that are no pairs of its tokens"
    added = read_field(content, "added_tokens", list, path) or []
    yield from _inexpressible_tokens(vocabulary, added, vocab_size)


def _inexpressible_tokens(vocabulary: dict[str, Any], added: list[Any], vocab_size: int) -> Iterator[str]:
    ids = [*vocabulary.values()]
    for token in added:
        if not isinstance(token, dict) or not isinstance(token.get("content"), str) or not token["content"]:
            yield f"the added token {token!r:.80}"
            continue
        ids.append(token.get("id"))
        if flags := [flag for flag in ("lstrip", "rstrip", "single_word") if token.get(flag)]:
            yield f"{', '.join(flags)} of the added token {token['content']!r}"
    wrong = next((i for i in ids if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < vocab_size), None)
    if wrong is not None:
        yield f"the token id {wrong!r} (the model has {vocab_size:,} rows)"


def _is_pair(pair: Any, vocabulary: dict[str, Any]) -> bool:
    """A GGUF file writes a merge as two tokens with a space between."""
    return isinstance(pair, list) and len(pair) == 2 and all(isinstance(p, str) and " " not in p for p in pair) and (
        "".join(pair) in vocabulary
    )  # fmt: skip


def _types(part: dict[str, Any]) -> str:
    inner = part.get("normalizers") or part.get("decoders") or part.get("pretokenizers")
    names = [str(p.get("type")) for p in inner if isinstance(p, dict)] if isinstance(inner, list) else []
    return ", ".join(names) or str(part.get("type"))


def _splitting_name(part: dict[str, Any]) -> str | None:
    """ "starcoder" isolates digits as ours does; the two differ only where several spaces stand before a digit."""
    parts = part.get("pretokenizers") if part.get("type") == "Sequence" else [part]
    if not isinstance(parts, list) or not parts or not _is_byte_level(parts[-1], use_regex=parts[:-1] != [_OURS]):
        return None
    if parts[:-1] in ([_OURS], [_DIGITS]):
        return "starcoder"
    return "gpt-2" if len(parts) == 1 else None


def _is_byte_level(part: Any, use_regex: bool) -> bool:
    if not isinstance(part, dict) or part.get("type") != "ByteLevel":
        return False
    return not part.get("add_prefix_space", True) and part.get("use_regex", True) is use_regex
