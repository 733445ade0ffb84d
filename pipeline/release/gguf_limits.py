"""What a GGUF file of architecture `phi2` can say to llama.cpp, and a refusal of all else, in one place.

In: a model folder and its shape. Out: nothing, or a `UserError` that lists what the format has no words for: llama.cpp
would cut text into other tokens and say nothing. Source: llama.cpp's llama-vocab.cpp (`llm_tokenizer_bpe`: its patterns
by the name `tokenizer.ggml.pre`, no normalizer, added tokens matched as they are) and gguf's list of keys.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from model.config import UnreadableModel, read_field, read_object
from model.special_tokens import token_ids
from pipeline.corpus.text.tokenizer import WORD_PATTERN, load_tokenizer, special_tokens
from pipeline.system.errors import UserError

LARGEST_F16 = 65504.0
# What every llama.cpp stops at by name, whatever a file says (special_eog_ids in its llama-vocab.cpp).
STOPS = {"<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>", "<EOT>"}
_OURS = {"type": "Split", "pattern": {"Regex": WORD_PATTERN}, "behavior": "Isolated", "invert": False}
_DIGITS = {"type": "Digits", "individual_digits": True}


def check_shape(shape: Any, key: str) -> None:
    """llama.cpp's phi2 knows no normalized queries and no attention wider or narrower than the stream."""
    if shape.qk_layernorm or shape.num_attention_heads * shape.head_size != shape.hidden_size:
        raise UserError(
            f"{key}: llama.cpp's phi2 has no qk_layernorm and needs heads x head size = hidden_size; this model has "
            f"qk_layernorm={shape.qk_layernorm}, {shape.num_attention_heads} x {shape.head_size}, hidden_size "
            f"{shape.hidden_size}; leave GGUF out"
        )


def check_tokenizer(tokenizer_json: Path, vocab_size: int, key: str) -> str:
    """llama.cpp's name for the way in which the tokenizer cuts words, once nothing is left that GGUF cannot say."""
    try:
        content = read_object(tokenizer_json)
        unsaid = list(_unsaid(content, tokenizer_json, vocab_size))
    except UnreadableModel as error:
        raise UserError(f"{key}: {error}") from None
    name = _name_of_cutting(read_field(content, "pre_tokenizer", dict, tokenizer_json) or {})
    if name is None:
        unsaid.append("its pre_tokenizer (only GPT-2's, StarCoder's and hornbook's ways to cut words have a name)")
    if name is None or unsaid:
        raise UserError(
            f"{key}: {tokenizer_json} has what a GGUF file cannot say: {'; '.join(unsaid)}. llama.cpp would cut text "
            "into other tokens; leave GGUF out"
        )
    return name


def check_special(tokenizer_json: Path, key: str) -> dict[str, int | bool]:
    """What the file says of special tokens, by gguf's names. llama.cpp stops at its eos, eot and eom, and at tokens
    whose names it knows; it puts nothing but bos before a text, and nothing but eos behind it."""
    special, names = special_tokens(tokenizer_json, key), {i: token for token, i in token_ids(tokenizer_json).items()}
    others = sorted((i for i in special.stop_ids if i != special.eos_token_id), key=lambda i: names.get(i) in STOPS)
    if unsaid := [names.get(i, str(i)) for i in others[2:] if names.get(i) not in STOPS]:
        raise UserError(
            f"{key}: {tokenizer_json.parent} stops at {len(special.stop_ids)} tokens, and GGUF has no place for "
            f"{', '.join(unsaid)}; take it out of eos_token_id in generation_config.json, or leave GGUF out"
        )
    before, after = _added_around(tokenizer_json)
    if before not in ([], [special.bos_token_id]) or after not in ([], [special.eos_token_id]):
        raise UserError(
            f"{key}: {tokenizer_json} puts {[names[i] for i in before]} before and {[names[i] for i in after]} after "
            "every text; GGUF knows only a bos before it and an eos after it; leave GGUF out"
        )
    ids = {"eos": special.eos_token_id, "bos": special.bos_token_id, "pad": special.pad_token_id}
    ids |= dict(zip(("eot", "eom"), others, strict=False))
    found: dict[str, int | bool] = {f"{kind}_token_id": id_ for kind, id_ in ids.items() if id_ is not None}
    return found | {"add_bos_token": bool(before), "add_eos_token": bool(after)}


def _added_around(tokenizer_json: Path) -> tuple[list[int], list[int]]:
    """Ids that the tokenizer puts before and after every text."""
    tokenizer = load_tokenizer(tokenizer_json)
    plain, whole = (tokenizer.encode("a", add_special_tokens=special).ids for special in (False, True))
    start = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), 0)
    return whole[:start], whole[start + len(plain) :]


def check_values(values: Any, type_name: str, tensor: str) -> None:
    """`values`: a tensor in fp32 (numpy), to be stored as F16, Q8_0 or Q4_0: numbers, or a scale a block, in fp16."""
    steps = {"F16": 1.0, "Q8_0": 127.0, "Q4_0": 8.0}.get(type_name)
    largest = float(abs(values).max(initial=0.0))
    if steps is not None and not largest / steps <= LARGEST_F16:
        raise UserError(
            f"gguf: {tensor} has a value of {largest:g}, and {type_name} holds no more than {steps * LARGEST_F16:g}; "
            "leave this kind out"
        )


def _unsaid(content: dict[str, Any], path: Path, vocab_size: int) -> Iterator[str]:
    """What the tokenizer does and the format has no words for."""
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
    if model.get("unk_token") is not None and not set(vocabulary) >= _BYTES:
        yield f"an unk_token ({model['unk_token']!r}) for bytes that the vocabulary lacks"
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    if not all(_is_pair(pair, vocabulary) for pair in pairs):
        yield "merges that are no pairs of its tokens"
    added = read_field(content, "added_tokens", list, path) or []
    yield from _unsaid_tokens(vocabulary, added, vocab_size)


def _unsaid_tokens(vocabulary: dict[str, Any], added: list[Any], vocab_size: int) -> Iterator[str]:
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


def _name_of_cutting(part: dict[str, Any]) -> str | None:
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


def _byte_letters() -> set[str]:
    """The 256 characters that stand for bytes in a byte-level vocabulary."""
    from tokenizers import pre_tokenizers

    return set(pre_tokenizers.ByteLevel.alphabet())


_BYTES = _byte_letters()
