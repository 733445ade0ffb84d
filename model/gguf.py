"""A GGUF file, llama.cpp's format, as a model folder of full weights: a source to grow, continue or evaluate.

In: a file of the architectures in `model.families`, in any type that the package gguf can dequantize. Out: a folder as
`hf.save_folder` writes it, fp32, with the tokenizer and chat template that the file holds. Quantized weights come out
as the numbers that llama.cpp multiplies with; what quantization lost is lost. Refused in one sentence: other
architectures, tokenizers that are not byte-level BPE, ways to split words whose names are not known here.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.attention import rotary_tables
from model.config import ImpossibleShape, ModelConfig, UnreadableModel
from model.families import FAMILIES
from model.hf import save_folder
from model.special_tokens import DEFAULT, SpecialTokens

DIGITS = {"type": "Digits", "individual_digits": True}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_TAIL = r"|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3_WORDS, QWEN_WORDS = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)" + _TAIL % numbers for numbers in (r"\p{N}{1,3}", r"\p{N}"))


def _words(pattern: str) -> list[dict[str, Any]]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return [split, BYTES | {"use_regex": False}]


SPLITTERS: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [BYTES],
    "phi-2": [BYTES],
    "default": [BYTES],
    "olmo": [BYTES],
    "smollm": [DIGITS, BYTES],
    "starcoder": [DIGITS, BYTES],
    "llama-bpe": _words(LLAMA3_WORDS),
    "smaug-bpe": _words(LLAMA3_WORDS),
    "dbrx": _words(LLAMA3_WORDS),
    "qwen2": _words(QWEN_WORDS),
}
"""How a tokenizer splits text into words: llama.cpp's name (`llama-vocab.cpp`) -> pre-tokenizers."""
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # gguf's TokenType
LLAMA3_FACTORS = (8.0, 32.0)  # of the released models: a file stores the frequencies' factors and not their settings


def convert(file: Path, folder: Path) -> ModelConfig:
    """Writes the model folder; returns its shape. Raises `UnreadableModel`, `ImpossibleShape`, and ImportError without
    the package gguf."""
    reader = _open(file)
    facts = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    config = shape_of(facts, tensors, file)
    folder.mkdir(parents=True, exist_ok=True)
    special = _write_tokenizer(facts, folder, file)
    save_folder(folder, _weights(config, tensors, file), config, folder / "tokenizer.json", special)
    return config


def _open(file: Path) -> Any:
    import gguf

    try:
        return gguf.GGUFReader(file)
    except Exception as error:  # of a damaged file numpy and gguf raise whatever they stumble over
        raise UnreadableModel(f"{file} is not readable as GGUF ({error}); download it again.") from error


def shape_of(facts: Mapping[str, Any], tensors: Mapping[str, Any], file: Path) -> ModelConfig:
    """The shape that a file's keys state. Raises `UnreadableModel` or `ImpossibleShape`."""
    architecture = facts.get("general.architecture")
    families = {kin.gguf: kin for kin in FAMILIES.values() if kin.gguf}
    if architecture not in families:
        raise ImpossibleShape(
            f"{file} has the architecture {architecture!r}, and hornbook reads: {', '.join(families)}; choose another "
            f"model."
        )
    kin = families[architecture]

    def fact(name: str, default: Any = None) -> Any:
        found = facts.get(f"{architecture}.{name}", default)
        if found is None:
            raise UnreadableModel(f"{file} lacks the key {architecture}.{name}; download it again.")
        return found

    heads, width = fact("attention.head_count"), fact("embedding_length")
    head = fact("attention.key_length", 0) or None
    eps = fact("attention.layer_norm_epsilon" if kin.norm == "layernorm" else "attention.layer_norm_rms_epsilon")
    size = head or width // heads
    values: dict[str, Any] = {
        "vocab_size": len(facts.get("tokenizer.ggml.tokens") or []) or fact("vocab_size"),
        "hidden_size": width,
        "intermediate_size": fact("feed_forward_length"),
        "num_hidden_layers": fact("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": fact("attention.head_count_kv", heads),
        "head_dim": None if head is None or head * heads == width else head,
        "rope_theta": fact("rope.freq_base", 10000.0),
        "max_position_embeddings": fact("context_length"),
        "layer_norm_eps": float(f"{eps:.6g}"),  # stored in fp32
        "tie_word_embeddings": "output.weight" not in tensors,
        "attention_bias": kin.qkv_bias is None and "blk.0.attn_q.bias" in tensors,
        "mlp_bias": kin.mlp_bias is None and "blk.0.ffn_up.bias" in tensors,
    }
    if kin.norm == "layernorm":
        values["partial_rotary_factor"] = fact("rope.dimension_count", size) / size + 1e-9
    if (scaling := facts.get(f"{architecture}.rope.scaling.type")) not in (None, "none"):
        values["rope_scaling"] = {"rope_type": scaling, "factor": fact("rope.scaling.factor")}
    config = ModelConfig(family=kin.name, **values).validate()
    if "rope_freqs.weight" in tensors:
        config.rope_scaling = _llama3_scaling(config, _dequantized(tensors["rope_freqs.weight"]), file)
    return config


def frequency_factors(config: ModelConfig) -> Tensor:
    """What llama.cpp divides the rotary frequencies by, fp32 [R]."""
    # The angle at position 1, from its sine and cosine, is the frequency: there is one place that computes them.
    cos_R, sin_R = (table[0].double() for table in rotary_tables(config, 1, 2, like=torch.zeros(1)))
    exponent_R = torch.arange(0, config.rotary_dim, 2, dtype=torch.float64) / config.rotary_dim
    return (config.rope_theta**-exponent_R / torch.atan2(sin_R, cos_R)).float()


def _llama3_scaling(config: ModelConfig, factors_R: Tensor, file: Path) -> dict[str, Any]:
    for factor in LLAMA3_FACTORS:
        config.rope_scaling = {
            "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }  # fmt: skip
        if torch.allclose(frequency_factors(config), factors_R, rtol=1e-3):
            return config.rope_scaling
    raise ImpossibleShape(
        f"{file} scales its rotary frequencies in a way whose settings a GGUF file does not hold; take the folder that "
        "it was made from."
    )


def _dequantized(tensor: Any) -> Tensor:
    import gguf

    return torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype("float32", copy=True))


def _weights(config: ModelConfig, tensors: Mapping[str, Any], file: Path) -> Iterator[tuple[str, Tensor]]:
    shapes = config.tensor_shapes()
    for name, stored in file_names(config).items():
        weight = _stored(stored, tensors, config, file)
        if weight.numel() != math.prod(shapes[name]):
            raise UnreadableModel(f"{file}: {stored} has {weight.numel():,} numbers, but its keys say {shapes[name]}.")
        yield name, in_file_order(config, name, weight.reshape(shapes[name]), back=True)


def _stored(name: str, tensors: Mapping[str, Any], config: ModelConfig, file: Path) -> Tensor:
    """A tensor by llama.cpp's name; older files of phi2 hold queries, keys and values as one."""
    if name in tensors:
        return _dequantized(tensors[name])
    block, _, rest = name.partition(".attn_")
    kind, _, ending = rest.partition(".")
    joint = tensors.get(f"{block}.attn_qkv.{ending}")
    if kind not in ("q", "k", "v") or joint is None:
        raise UnreadableModel(f"{file} lacks the tensor {name}; download it again.")
    queries, keys = config.num_attention_heads * config.head_size, config.kv_heads * config.head_size
    return _dequantized(joint).split([queries, keys, keys])["qkv".index(kind)]


def file_names(config: ModelConfig) -> dict[str, str]:
    """Our name of every tensor -> llama.cpp's, in the order of the files."""
    import gguf

    architecture = {text: known for known, text in gguf.MODEL_ARCH_NAMES.items()}[config.kin.gguf or ""]
    theirs = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    names = {ours: theirs.get_name(stored, (".weight", ".bias")) for stored, ours in config.stored_names().items()}
    return {ours: name for ours, name in names.items() if name is not None}


def in_file_order(config: ModelConfig, name: str, rows: Tensor, back: bool = False) -> Tensor:
    """A tensor as llama.cpp keeps it; `back`: as we do. For the architecture llama, the two coordinates of a rotary
    pair lie side by side in the rows of queries and keys, instead of half a head apart."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.kv_heads}.get(name.split(".")[-2])
    if heads is None or not config.kin.gguf_interleaved:
        return rows
    half = rows.shape[0] // heads // 2
    pairs = (half, 2) if back else (2, half)
    return rows.reshape(heads, *pairs, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def _write_tokenizer(facts: Mapping[str, Any], folder: Path, file: Path) -> SpecialTokens:
    """`tokenizer.json` from the file's vocabulary; returns what its keys say of special tokens."""

    def fact(name: str) -> Any:
        return facts.get(f"tokenizer.ggml.{name}")

    if fact("model") != "gpt2":
        raise UnreadableModel(
            f"{file} has a tokenizer of the kind {fact('model')!r}; hornbook reads byte-level BPE ('gpt2') from GGUF. "
            "Take the model's Hugging Face folder, which has a tokenizer.json."
        )
    splitting = fact("pre") or "default"
    if splitting not in SPLITTERS:
        raise UnreadableModel(
            f"{file} splits words in the way {splitting!r}; hornbook knows: {', '.join(SPLITTERS)}. Take the model's "
            "Hugging Face folder, which has a tokenizer.json."
        )
    tokens, types, merges = fact("tokens") or [], fact("token_type"), fact("merges") or []
    types = types or [NORMAL] * len(tokens)
    added = [
        {
            "id": id_, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
            "special": kind == CONTROL,
        }
        for id_, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (CONTROL, USER_DEFINED)
    ]  # fmt: skip
    parts = SPLITTERS[splitting]
    bos_id = fact("bos_token_id") if fact("add_bos_token") else None
    content = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": {"type": "NFC"} if splitting == "qwen2" else None,
        "pre_tokenizer": parts[0] if len(parts) == 1 else {"type": "Sequence", "pretokenizers": parts},
        "post_processor": None if bos_id is None else _begins_with(tokens[bos_id], bos_id),
        "decoder": BYTES,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": splitting == "llama-bpe",
            "vocab": {token: id_ for id_, token in enumerate(tokens) if types[id_] != UNUSED},
            "merges": [merge.split(" ", 1) for merge in merges],
        },
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return _special(facts, tokens)


def _begins_with(token: str, id_: int) -> dict[str, Any]:
    begin, text = {"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "type": "TemplateProcessing", "single": [begin, text],
        "pair": [begin, text, begin, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {token: {"id": token, "ids": [id_], "tokens": [token]}},
    }  # fmt: skip


def _special(facts: Mapping[str, Any], tokens: list[str]) -> SpecialTokens:
    ids = {
        kind: facts.get(f"tokenizer.ggml.{kind}_token_id")
        for kind in ("eos", "eot", "eom", "bos", "padding", "unknown")
    }
    ids = {kind: id_ for kind, id_ in ids.items() if id_ is not None and 0 <= id_ < len(tokens)}
    text = {kind: tokens[id_] for kind, id_ in ids.items()}
    templates = {
        name.removeprefix("tokenizer.chat_template").removeprefix(".") or DEFAULT: value
        for name, value in facts.items()
        if name.startswith("tokenizer.chat_template") and isinstance(value, str)
    }
    stop = tuple(dict.fromkeys(ids[kind] for kind in ("eos", "eot", "eom") if kind in ids))
    return SpecialTokens(
        text.get("eos"), ids.get("eos"), stop, text.get("bos"), ids.get("bos"), text.get("padding"),
        ids.get("padding"), text.get("unknown"), templates,
    )  # fmt: skip
