"""Qwen2 and Qwen2.5 (arXiv 2412.15115): Llama with biases on queries, keys and values, which no field announces."""

from model.families.family import Family

QWEN2 = Family(
    name="qwen2",
    architecture="Qwen2ForCausalLM",
    known="Qwen/Qwen2.5-0.5B, Qwen/Qwen2.5-1.5B",
    qkv_bias=True,
    out_bias=False,
    silent={
        "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 32768, "layer_norm_eps": 1e-6,
    },
    extra={"use_sliding_window": False},
    gguf="qwen2",
)  # fmt: skip
