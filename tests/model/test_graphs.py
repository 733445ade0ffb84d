"""Compiled blocks: one graph serves all blocks of a kind without a break, in every family."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

from model.config import ModelConfig
from model.families import FAMILIES
from model.transformer import Transformer


def compiled_graphs(model: ModelConfig, policy: str) -> int:
    """Graphs of two forward and backward passes of the same size. Nine blocks: one more than dynamo may compile one
    function for, so that a block of its own for each would be an error."""
    torch._dynamo.reset()
    counters.clear()
    counter = CompileCounterWithBackend("aot_eager")
    network = Transformer(model).initialize(0)
    network.activation_checkpointing, network.attention_kernel = policy, "sdpa"
    for block in network.model.layers:
        block.compile(dynamic=False, backend=counter)
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for seed in range(2):
            ids = torch.randint(0, 256, (2, 33), generator=torch.Generator().manual_seed(seed))
            network.loss(ids[:, :-1], ids[:, 1:])[0].backward()
    assert not counters["graph_break"]
    return counter.frame_count


@pytest.mark.filterwarnings("ignore:The .grad attribute")
@pytest.mark.parametrize("policy", ["none", "selective", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_has_one_graph_for_each_kind_of_block(family: str, policy: str) -> None:
    kinds = 2 if family == "smollm3" else 1  # every fourth of its blocks does not rotate
    assert compiled_graphs(ModelConfig(256, 64, 128, 9, 4, family=family).validate(), policy) == kinds
