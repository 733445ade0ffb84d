"""OLMo 2 (arXiv 2501.00656): norms on what attention and MLP add, and over the full width of queries and keys."""

from model.families.family import SWIGLU_TENSORS, Family

OLMO2 = Family(
    name="olmo2",
    architecture="Olmo2ForCausalLM",
    known="allenai/OLMo-2-0425-1B",
    block="post",
    qk_norm="full",
    tensors=SWIGLU_TENSORS
    | {
        "self_attn.q_layernorm": "self_attn.q_norm", "self_attn.k_layernorm": "self_attn.k_norm",
        "attention_output_layernorm": "post_attention_layernorm", "mlp_output_layernorm": "post_feedforward_layernorm",
    },
    silent={
        "vocab_size": 50304, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "layer_norm_eps": 1e-5,
    },
    gguf="olmo2",
)  # fmt: skip
