"""Rescaling the way Phi-2 is publicly read to have started from Phi-1.5; it does not keep the function.

In: two shapes of one family. Out: rules. Microsoft gave no formula. The best public reading is ModernBERT's (arXiv
2412.13663, appendix A.2), which says it follows Phi: depth by Gopher's scaling, each matrix in the centre of the larger
one and the rim wrapped around. Changed here: heads are tiled one by one with their rotary pairs in place (tiled as flat
rows they straddle heads when the head size changes), and the map of blocks cannot run past the last block.
"""

from model.config import ModelConfig
from model.growth import limits
from model.growth.expansion import grouping
from model.growth.operations import Chain, Scale, Step, Wrap, WrapHeads
from model.growth.rules import Operation, Rule, growth_method, nearest, origin


@growth_method(claims_exact=False)
def rescale(source: ModelConfig, target: ModelConfig, divide_by_fan_in: bool = False) -> list[Rule]:
    """Phi-2's way: blocks by relative depth, each matrix centred in the larger one, the rim wrapped around.

    `divide_by_fan_in`: weights are multiplied by old / new number of inputs, so that sums over repeated inputs keep
    their size. Smaller sizes keep the middle. Expect a loss that jumps and comes back quickly.
    """
    blocks = nearest(source.num_hidden_layers, target.num_hidden_layers)
    limits.refuse("rescale", limits.foreign(source, target) or limits.moved_blocks(source, target, blocks))
    return [
        Rule(name, shape, (origin(name, blocks, source),), _operation(name, source, target, divide_by_fan_in))
        for name, shape in target.tensor_shapes().items()
    ]


def _operation(name: str, source: ModelConfig, target: ModelConfig, divide: bool) -> Operation:
    module, kind = name.split(".")[-2:]
    rows, columns = _rows(module, source, target), _columns(module, source, target)
    if kind == "bias" or module.endswith("layernorm"):
        return Chain(rows)
    fan_in, larger = (
        {"dense": c.num_attention_heads * c.head_size, "fc2": c.intermediate_size}.get(module, c.hidden_size)
        for c in (source, target)
    )
    steps = rows + columns
    if divide and module != "embed_tokens" and fan_in != larger:
        steps += (Scale(fan_in / larger, "old / new number of inputs"),)
    return Chain(steps)


def _rows(module: str, source: ModelConfig, target: ModelConfig) -> tuple[Step, ...]:
    if module in ("embed_tokens", "lm_head"):
        return ()
    if module in ("q_proj", "k_proj", "v_proj"):
        return _heads(0, module == "q_proj", source, target)
    if module in ("q_layernorm", "k_layernorm") and source.qk_norm == "full":
        return _heads(0, module == "q_layernorm", source, target)
    if module in ("q_layernorm", "k_layernorm"):
        before, after = ((1, 1, c.head_size, c.rotary_dim) for c in (source, target))
        return () if before == after else (WrapHeads(0, before, after),)
    if module in ("fc1", "gate_proj"):
        return _wrap(0, source.intermediate_size, target.intermediate_size)
    return _wrap(0, source.hidden_size, target.hidden_size)


def _columns(module: str, source: ModelConfig, target: ModelConfig) -> tuple[Step, ...]:
    if module == "dense":
        return _heads(1, True, source, target)
    if module == "fc2":
        return _wrap(1, source.intermediate_size, target.intermediate_size)
    return _wrap(1, source.hidden_size, target.hidden_size)


def _wrap(axis: int, old: int, new: int) -> tuple[Step, ...]:
    return () if old == new else (Wrap(axis, new),)


def _heads(axis: int, queries: bool, source: ModelConfig, target: ModelConfig) -> tuple[Step, ...]:
    before, after = (
        (grouping(c)[0], grouping(c)[1] if queries else 1, c.head_size, c.rotary_dim) for c in (source, target)
    )
    return () if before == after else (WrapHeads(axis, before, after),)
