"""Qwen3, dense sizes (arXiv 2505.09388): queries and keys normalized per head, heads of 128 whatever the width."""

from model.families.family import SWIGLU_TENSORS, Family

QWEN3 = Family(
    name="qwen3",
    architecture="Qwen3ForCausalLM",
    known="Qwen/Qwen3-0.6B-Base, Qwen/Qwen3-1.7B-Base",
    qk_norm="head",
    tensors=SWIGLU_TENSORS
    | {"self_attn.q_layernorm": "self_attn.q_norm", "self_attn.k_layernorm": "self_attn.k_norm"},
    silent={
        "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 128, "max_position_embeddings": 32768,
        "layer_norm_eps": 1e-6,
    },
    extra={"use_sliding_window": False},
    gguf="qwen3",
)  # fmt: skip
