"""fp8 matrix products in the blocks, through torchao: on cards that have them, faster than bf16 and less exact.

In: a network, the recipe of the scales. Out: the same network, whose Linear layers in the blocks round inputs, weights
and gradients to 8 bits for their products; weights, names, state dict and optimizer stay what they are, and the head
(whose product belongs to the loss) stays as it is. `tensorwise`: one scale a tensor; `rowwise`: one a row, more exact
and slower. What fp8 gains must be judged at equal GPU-hours: published runs need some more tokens to an equal loss.
Written without a card at hand: speed and loss on one are unmeasured; a CPU only emulates it (`emulate`), for tests.
"""

import importlib.util
from dataclasses import replace

import torch
from torch import nn

RECIPES = ("none", "tensorwise", "rowwise")
LEAST_CAPABILITY = (8, 9)  # Ada and Hopper are the first with fp8 products
MULTIPLE = 16  # of both sizes of a matrix, for its products


def why_not(device: torch.device) -> str | None:
    """What keeps fp8 from being used on this device, and how to change that; None where nothing does."""
    if device.type != "cuda":
        return f"it needs a CUDA card with fp8 products (RTX 40, L4, H100 or newer), this run computes on {device.type}"
    found = torch.cuda.get_device_capability(device)
    if found < LEAST_CAPABILITY:
        least, has = (".".join(map(str, version)) for version in (LEAST_CAPABILITY, found))
        return f"it needs a card of compute capability {least} (RTX 40, L4, H100) or newer, this one has {has}"
    if importlib.util.find_spec("torchao") is None:
        return "it needs torchao, which is not installed; run: pip install 'torchao>=0.18,<0.19'"
    return None


def use_float8(network: nn.Module, recipe: str, emulate: bool = False) -> int:
    """Changes the blocks' Linear layers in place; returns how many. Raises ImportError without torchao."""
    from torchao.float8 import (  # pyright: ignore[reportMissingImports]
        Float8LinearConfig,
        convert_to_float8_training,
    )

    def suits(module: nn.Module, name: str) -> bool:
        sizes = (module.in_features, module.out_features) if isinstance(module, nn.Linear) else (1,)
        return "layers." in name and all(size % MULTIPLE == 0 for size in sizes)

    changed = [name for name, module in network.named_modules() if suits(module, name)]
    config = replace(Float8LinearConfig.from_recipe_name(recipe), emulate=emulate)
    convert_to_float8_training(network, module_filter_fn=suits, config=config)
    return len(changed)
