"""What growth cannot keep, in the words of the config: reasons with the keys to change.

In: two shapes. Out: sentences; none means that `Expansion` keeps the function.
"""

from collections import Counter
from collections.abc import Sequence

from model.config import ModelConfig
from model.growth.expansion import grouping
from model.growth.operations import head_origins, matching_theta, spread
from model.growth.rules import GrowthRefused


def refuse(method: str, reasons: list[str], way_out: str = "") -> None:
    """Raises `GrowthRefused` if there are reasons, and says what else could be done."""
    if reasons:
        raise GrowthRefused(
            f"init.method={method} cannot do this: {'; '.join(reasons)}. Change these keys of the target (or of "
            f"init.source){way_out}, or start fresh with init.method=random."
        )


def impossible(source: ModelConfig, target: ModelConfig) -> list[str]:
    """What `Expansion` has no place for, exact or not."""
    if other := foreign(source, target):
        return shrinking(source, target) + other
    return shrinking(source, target) + _groups(source, target) + _rotary_space(source, target)


def shrinking(source: ModelConfig, target: ModelConfig) -> list[str]:
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    pairs = [(name, getattr(source, name), getattr(target, name)) for name in sizes]
    pairs.append(("num_key_value_heads", source.kv_heads, target.kv_heads))
    pairs.append(("head_dim", source.head_size, target.head_size))
    return [f"model.{name} would shrink from {old} to {new}" for name, old, new in pairs if new < old]


def foreign(source: ModelConfig, target: ModelConfig) -> list[str]:
    """What no method maps: another family, another vocabulary, tensors that one of the two does not have."""
    if source.family != target.family:
        return [
            f"model.family differs: the source is of the family {source.family} and the target of {target.family}, "
            f"whose networks compute other functions; write model.family={source.family}"
        ]
    return [
        f"model.{name} differs (source {getattr(source, name)}, target {getattr(target, name)})"
        for name in ("vocab_size", "qk_layernorm", "attention_bias", "mlp_bias")
        if getattr(source, name) != getattr(target, name)
    ]


def unnormalizable(source: ModelConfig, target: ModelConfig, new_units: str) -> list[str]:
    """Changes of heads that queries and keys normalized without a bias do not survive."""
    if source.qk_norm == "none" or source.norm == "layernorm" or source.family != target.family:
        return []
    if source.head_size != target.head_size:
        return [
            f"model.head_dim would grow from {source.head_size} to {target.head_size}, and queries and keys that are "
            "normalized without a bias leave new coordinates at 0 for good; keep model.head_dim (more heads are fine)"
        ]
    before, after = grouping(source), grouping(target)
    if source.qk_norm == "head" or before == after:
        return []
    copies = [set(Counter(head for head, _ in head_origins(before, after, keys)).values()) for keys in (False, True)]
    if new_units == "copies" and all(len(counts) == 1 for counts in copies):
        return []
    return [
        "queries and keys are normalized over all heads together, so heads can only be copied, each as often as the "
        "others; take init.options.new_units=copies with whole multiples of model.num_attention_heads "
        f"({source.num_attention_heads}) and model.num_key_value_heads ({source.kv_heads}), or keep both"
    ]


def moved_blocks(source: ModelConfig, target: ModelConfig, blocks: Sequence[int]) -> list[str]:
    """Blocks without rotary embedding must come from such blocks."""
    flags = [source.rotating[block] for block in blocks]
    if source.family != target.family or flags == target.rotating:
        return []
    return [
        "blocks with and without rotary embedding would change places; write model.no_rope_layers="
        f"[{','.join(str(int(flag)) for flag in flags)}]"
    ]


def _groups(source: ModelConfig, target: ModelConfig) -> list[str]:
    before, after = grouping(source), grouping(target)
    needed = before[0] * spread(before, after)
    if not needed > after[0] >= before[0]:
        return []
    return [
        f"{before[1]} attention heads share a key-value head in the source and {after[1]} in the target, which needs "
        f"model.num_key_value_heads of at least {needed}, not {after[0]}"
    ]


def _rotary_space(source: ModelConfig, target: ModelConfig) -> list[str]:
    if target.rotary_dim < source.rotary_dim:
        factor = f"{source.rotary_dim / target.head_size:g}"
        return [
            f"the rotary size would shrink (source {source.rotary_dim}, target {target.rotary_dim}); write "
            f"model.partial_rotary_factor={factor}"
        ]
    passing = source.head_size - source.rotary_dim
    if target.head_size - target.rotary_dim >= passing or target.head_size < source.head_size:
        return []
    return [
        f"{passing} coordinates of each head do not rotate in the source, and the target has "
        f"{target.head_size - target.rotary_dim}; write model.partial_rotary_factor="
        f"{source.rotary_dim / target.head_size:g}, or heads of at least {target.rotary_dim + passing}"
    ]


def newly_tied(source: ModelConfig, target: ModelConfig) -> list[str]:
    """A target that has one matrix where the source has two."""
    if source.tie_word_embeddings or not target.tie_word_embeddings:
        return []
    return [
        "model.tie_word_embeddings is true, but the source's embedding and head are two matrices and one cannot be "
        "both; write model.tie_word_embeddings=false"
    ]


def changed_angles(source: ModelConfig, target: ModelConfig) -> list[str]:
    """Rotary settings under which the source's pairs cannot keep their angles."""
    if source.rope_scaling != target.rope_scaling:
        return [f"model.rope_scaling differs (source {source.rope_scaling}, target {target.rope_scaling})"]
    old, new = source.rotary_dim, target.rotary_dim
    theta = matching_theta(source, new)
    # 1e-7: at 2048 positions that moves an angle by less than 1e-5, as much as fp32 frequencies do
    if new < old or abs(target.rope_theta / theta - 1) <= 1e-7:
        return []
    if old == new:
        return [f"model.rope_theta differs (source {source.rope_theta:g}, target {target.rope_theta:g})"]
    if new % old == 0 and target.rope_theta == source.rope_theta:
        return []
    return [
        f"the rotary size differs (source {old}, target {new}); write model.rope_theta={theta!r}, or a whole multiple "
        f"of {old} with model.rope_theta={source.rope_theta!r}, or keep it by model.partial_rotary_factor="
        f"{old / target.head_size:g}"
    ]
