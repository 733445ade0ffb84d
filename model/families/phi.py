"""Phi-1, Phi-1.5 and Phi-2 (arXiv 2306.11644, 2309.05463): parallel blocks, LayerNorm, biases everywhere."""

from model.families.family import Family

PHI = Family(
    name="phi",
    architecture="PhiForCausalLM",
    known="microsoft/phi-1, microsoft/phi-1_5, microsoft/phi-2",
    norm="layernorm",
    block="parallel",
    mlp="gelu",
    qk_norm=None,  # model.qk_layernorm decides
    qkv_bias=True,
    out_bias=True,
    mlp_bias=True,
    head_bias=True,
    tensors={},
    fields={},
    silent={
        "vocab_size": 51200, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24,
        "num_attention_heads": 32,
    },
    extra={"resid_pdrop": 0.0, "embd_pdrop": 0.0},
    gguf="phi2",
)  # fmt: skip
