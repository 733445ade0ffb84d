"""The same weights in the same shape: training goes on from another model.

In: two equal shapes. Out: plain copies. Differences that no tensor sees (context length, initializer range) are fine.
"""

from model.config import ModelConfig
from model.growth.operations import Chain
from model.growth.rules import GrowthRefused, Rule, growth_method


@growth_method(claims_exact=True)
def continue_(source: ModelConfig, target: ModelConfig) -> list[Rule]:
    """Same shape, same weights: go on training the source."""
    if differences := _differences(source, target):
        raise GrowthRefused(
            f"init.method=continue keeps the shape, but the target differs: {'; '.join(differences)}. "
            f"Make them equal, or grow with init.method=exact."
        )
    return [Rule(name, shape, (name,), Chain()) for name, shape in target.tensor_shapes().items()]


def _differences(source: ModelConfig, target: ModelConfig) -> list[str]:
    names = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "kv_heads"]
    names += ["head_size", "rotary_dim", "rope_theta", "layer_norm_eps", "qk_layernorm", "tie_word_embeddings"]
    pairs = [(name, getattr(source, name), getattr(target, name)) for name in names]
    return [f"{name} {old} -> {new}" for name, old, new in pairs if old != new]
