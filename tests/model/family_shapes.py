"""Small random shapes of every family, and pairs to grow between, drawn by hypothesis."""

import dataclasses
from typing import Any

from hypothesis import strategies as st

from model.config import ModelConfig
from model.families import FAMILIES

VOCABULARY = 97
SCALINGS = [
    None,
    {"rope_type": "linear", "factor": 3.0},
    {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
]  # fmt: skip


@st.composite
def shapes(draw: st.DrawFn, family: str) -> ModelConfig:
    """A shape that its family's class in transformers can hold."""
    kin = FAMILIES[family]
    groups, per_group, head = draw(st.integers(1, 3)), draw(st.integers(1, 3)), 2 * draw(st.integers(2, 6))
    heads, blocks = groups * per_group, draw(st.integers(1, 3))
    more: dict[str, Any] = {"head_dim": head}
    width = draw(st.integers(16, 60))
    if kin.norm == "layernorm":
        more |= {"partial_rotary_factor": 4 / head + 1e-9, "qk_layernorm": draw(st.booleans())}
        if more["qk_layernorm"]:
            more["head_dim"], width = None, heads * head
    else:
        more |= {"rope_scaling": draw(st.sampled_from(SCALINGS))}
    if kin.widths_divide:
        width = heads * max(1, width // heads)
    if kin.qkv_bias is None:
        more["attention_bias"] = draw(st.booleans())
    if kin.mlp_bias is None:
        more["mlp_bias"] = draw(st.booleans())
    if kin.rotary_blocks and draw(st.booleans()):
        more["no_rope_layers"] = draw(st.lists(st.integers(0, 1), min_size=blocks, max_size=blocks))
    return ModelConfig(
        VOCABULARY, width, draw(st.integers(16, 60)), blocks, heads, groups, family=family,
        rope_theta=draw(st.sampled_from([500.0, 10000.0])), layer_norm_eps=draw(st.sampled_from([1e-6, 1e-5, 1e-3])),
        tie_word_embeddings=draw(st.booleans()), max_position_embeddings=64, **more,
    ).validate()  # fmt: skip


@st.composite
def pairs(draw: st.DrawFn, family: str) -> tuple[ModelConfig, ModelConfig, str]:
    """A source, a larger target that `exact` accepts, and `new_units`."""
    source, kin = draw(shapes(family)), FAMILIES[family]
    blocks = source.num_hidden_layers + draw(st.integers(0, 4))
    origins = [index * source.num_hidden_layers // blocks for index in range(blocks)]
    change: dict[str, Any] = {"num_hidden_layers": blocks}
    change["intermediate_size"] = source.intermediate_size + draw(st.integers(0, 90))
    change["tie_word_embeddings"] = source.tie_word_embeddings and draw(st.booleans())
    change["layer_norm_eps"] = draw(st.sampled_from([source.layer_norm_eps, 1e-6, 1e-4]))
    groups, per_group = source.kv_heads, source.num_attention_heads // source.kv_heads
    units = draw(st.sampled_from(["random", "copies"]))
    if source.qk_norm == "full":
        if units == "copies":
            groups, per_group = groups * draw(st.integers(1, 2)), per_group * draw(st.integers(1, 2))
    else:
        groups, per_group = groups + draw(st.integers(0, 2)), per_group + draw(st.integers(0, 2))
    heads = change["num_attention_heads"] = groups * per_group
    change["num_key_value_heads"] = groups
    width = source.hidden_size + draw(st.integers(0, 130))
    if source.qk_layernorm:
        width = heads * max(source.head_size, -(-source.hidden_size // heads))
        change["partial_rotary_factor"] = source.rotary_dim / (width // heads) + 1e-9
    elif kin.norm == "layernorm":
        change["head_dim"] = source.head_size + draw(st.integers(0, 6))
        change["partial_rotary_factor"] = 4 / change["head_dim"] + 1e-9
    elif source.qk_norm == "none" and draw(st.booleans()):  # a whole multiple keeps the base, and fp32 frequencies
        change["head_dim"] = source.head_size * draw(st.integers(1, 2))
    if kin.widths_divide:
        width = heads * -(-width // heads)
    change["hidden_size"] = width
    if source.kin.rotary_blocks:
        change["no_rope_layers"] = [int(source.rotating[origin]) for origin in origins]
    return source, dataclasses.replace(source, **change).validate(), units
