"""Llama 2 and 3 (arXiv 2307.09288, 2407.21783), SmolLM2 (arXiv 2502.02737), TinyLlama (arXiv 2401.02385)."""

from model.families.family import Family

LLAMA = Family(
    name="llama",
    architecture="LlamaForCausalLM",
    known="HuggingFaceTB/SmolLM2-135M, TinyLlama/TinyLlama_v1.1, meta-llama/Llama-3.2-1B",
    mlp_bias=None,
    widths_divide=True,
    silent={
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "layer_norm_eps": 1e-6,
    },
    gguf="llama",
    gguf_interleaved=True,
)  # fmt: skip
