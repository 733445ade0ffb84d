"""Every arm by name, and the process that runs one: `python -m scripts.train_bench.arms NAME SHAPE`, in a race."""

import sys
import warnings
from collections.abc import Callable
from functools import partial

from scripts.train_bench import ours, peers
from scripts.train_bench.race import Meter
from scripts.train_bench.shapes import SHAPES, Shape

MODULE = "scripts.train_bench.arms"
GIVEN = " + our settings"  # allocator thresholds and oneDNN for fp32 products, as `hornbook pretrain` sets them
COMPILED = ", compiled"
HUGE_PAGES = ", huge pages"  # the parent's environment asks for them, before torch is loaded

Run = Callable[[Shape, Meter], None]
OURS, BARE, BARE_FP32 = "hornbook", "hornbook, bare loop", "hornbook 32-true, bare loop"
WANDB = "hornbook, W&B offline"
LITGPT, LITGPT_FP32 = "litgpt bf16-mixed", "litgpt 32-true"
PEERS: dict[str, Run] = {
    LITGPT: partial(peers.litgpt, precision="bf16-mixed"),
    "litgpt bf16-true (no fp32 weights)": partial(peers.litgpt, precision="bf16-true"),
    LITGPT_FP32: partial(peers.litgpt, precision="32-true"),
    "transformers loop, fp32": partial(peers.transformers_loop, autocast=False),
    "transformers loop, bf16 autocast": partial(peers.transformers_loop, autocast=True),
    "transformers Trainer, fp32": partial(peers.transformers_trainer, bf16=False),
    "transformers Trainer, bf16": partial(peers.transformers_trainer, bf16=True),
    "nanoGPT loop, fp32": partial(peers.nanogpt_loop, autocast=False),
    "nanoGPT loop, bf16 autocast": partial(peers.nanogpt_loop, autocast=True),
    LITGPT + COMPILED: partial(peers.litgpt, precision="bf16-mixed", compiled=True),
    LITGPT_FP32 + COMPILED: partial(peers.litgpt, precision="32-true", compiled=True),
}
ARMS: dict[str, Run] = {
    OURS: partial(ours.lightning, precision="auto"),
    BARE: partial(ours.bare, precision="auto"),
    BARE_FP32: partial(ours.bare, precision="32-true"),
    BARE + HUGE_PAGES: partial(ours.bare, precision="auto"),
    WANDB: partial(ours.lightning, precision="auto", wandb=True),
    **PEERS,
}


def main(name: str, shape: str) -> None:
    """Trains the arm until the race's parent closes its pipe."""
    warnings.simplefilter("ignore")
    meter = Meter()
    if name.endswith(GIVEN):
        import torch

        from pipeline.training.memory import set_up_allocator

        set_up_allocator()
        torch.set_float32_matmul_precision("medium")
    ARMS[name.removesuffix(GIVEN)](SHAPES[shape], meter)


if __name__ == "__main__":
    main(*sys.argv[1:])
