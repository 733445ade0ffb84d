"""SmolLM3 (Hugging Face, 2025): Llama with every fourth block without rotary embedding (arXiv 2501.18795)."""

from model.families.family import Family

SMOLLM3 = Family(
    name="smollm3",
    architecture="SmolLM3ForCausalLM",
    known="HuggingFaceTB/SmolLM3-3B-Base",
    mlp_bias=None,
    rotary_blocks=True,
    silent={
        "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
        "num_attention_heads": 16, "num_key_value_heads": 4, "max_position_embeddings": 32768,
        "layer_norm_eps": 1e-6, "rope_theta": 2_000_000.0, "tie_word_embeddings": True,
    },
    extra={"use_sliding_window": False},
    gguf="smollm3",
)  # fmt: skip
