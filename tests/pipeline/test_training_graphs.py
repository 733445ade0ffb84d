"""What torch.compile makes of the blocks of every shipped config: one graph, no breaks, and never eager in silence."""

import dataclasses
from collections.abc import Iterator
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

from model import cpu_kernels
from model.transformer import Block, Transformer
from pipeline import config as configs
from pipeline.training.batches import Batch
from pipeline.training.module import PretrainModule

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SHIPPED = sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem != "gpus")
SMALL = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4}
TOKENS = 32
pytestmark = pytest.mark.filterwarnings("default")  # of torch's compiler, about itself
IN_BACKWARD = (
    "train.optimizer=adamw4bit",
    "train.optimizer_in_backward=true",
    "train.clip_norm=0",
    "train.micro_batch=0",
)


@pytest.fixture
def compiled(monkeypatch) -> Iterator[CompileCounterWithBackend]:
    """Counts what is compiled, down to ATen operations: the rest takes a minute and changes no graph."""
    from torch._dynamo import config

    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(Block, "compile", partialmethod(torch.nn.Module.compile, backend=counter))
    monkeypatch.setattr(cpu_kernels, "usable", lambda tensor: False)  # a GPU has none of them
    torch._dynamo.reset()
    counters.clear()
    with config.patch(recompile_limit=8, fail_on_recompile_limit_hit=False):  # as they come; put back afterwards
        yield counter
    torch._dynamo.reset()


def module_of(name: str, *overrides: str, windows: int = 2) -> PretrainModule:
    """The config's settings on a small network of its family: two passes a step, or one in the backward pass."""
    config = configs.load(CONFIGS / f"{name}.yaml", overrides)
    groups = None if config.model.num_key_value_heads is None else 2
    own = dataclasses.replace(config.model, **SMALL, num_attention_heads=4, num_key_value_heads=groups)
    in_backward = config.train.optimizer_in_backward
    train = dataclasses.replace(
        config.train, sequence_length=TOKENS, global_batch_tokens=TOKENS * windows * (1 if in_backward else 2),
        micro_batch=0 if in_backward else windows, compile="true", batch_start_tokens=None,
    )  # fmt: skip
    network = Transformer(own).initialize(0)
    network.attention_kernel = "sdpa"  # a GPU's
    return PretrainModule(network, train, "bf16-mixed" if train.precision == "auto" else train.precision)


def take_step(module: PretrainModule) -> None:
    train = module.train_config
    ids = torch.randint(0, 512, (train.global_batch_tokens // TOKENS, TOKENS + 1))
    module.training_step(Batch(ids[:, :-1], ids[:, 1:], ids.shape[0] * TOKENS), 0)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [*((name, ()) for name in SHIPPED), ("phi2-24gb", IN_BACKWARD), ("phi2", ("train.activation_checkpointing=full",))],
)
def test_all_blocks_of_a_config_are_one_graph_without_breaks(compiled, name: str, overrides: tuple[str, ...]) -> None:
    module = module_of(name, *overrides)
    for _ in range(2):
        take_step(module)
        ids = torch.zeros((3, TOKENS), dtype=torch.int64)
        module.network.token_nats(ids, ids)  # a validation, of another shape
    assert compiled.frame_count == 1
    assert not counters["graph_break"]


def test_a_new_micro_batch_is_compiled_once_more(compiled) -> None:
    module = module_of("phi2")
    take_step(module)
    module.windows = 1
    take_step(module)
    take_step(module)
    assert compiled.frame_count == 2


def test_one_compilation_too_many_is_an_error_and_never_an_eager_block(compiled) -> None:
    from torch._dynamo import config

    module = module_of("phi2", windows=4)
    assert config.recompile_limit >= 64  # of all networks of a process, each with its policies and micro-batches
    config.recompile_limit = 2
    for module.windows in (4, 2):
        take_step(module)
    module.windows = 1
    with pytest.raises(FailOnRecompileLimitHit):
        take_step(module)
