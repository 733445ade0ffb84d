"""The network that is tuned: with adapters (LoRA), with adapters on a base in 4 bits (QLoRA), or whole."""

from pathlib import Path
from typing import Any

from pipeline.config import FinetuneConfig
from pipeline.system.errors import UserError


def check_packages(method: str) -> None:
    """Raises `UserError` where the method's packages are not installed."""
    from importlib.util import find_spec

    needed = {"lora": ("peft",), "qlora": ("peft", "torchao"), "full": ()}[method]
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        extras = "finetune,quantize" if "torchao" in missing else "finetune"
        raise UserError(
            f"finetune.method={method} needs {' and '.join(missing)}: pip install 'hornbook[{extras}]', or set "
            "finetune.method=full"
        )


def prepare(folder: Path, options: FinetuneConfig, device: Any, precision: str, seed: int) -> Any:
    """The model of a folder on its device, ready to be trained by `options.method` in `precision`."""
    from model.adapters import add_adapters, cast_frozen, quantize_base
    from model.hf import load_network
    from model.optim import PRECISIONS
    from pipeline.release.formats import torchao

    network = load_network(folder)
    if options.method != "full":
        torchao()  # peft imports it too: without the lines that it prints
    if options.method == "qlora":
        quantize_base(network)
    if options.method != "full":
        add_adapters(network, options.targets, options.rank, options.alpha, options.dropout, seed)
    network = network.to(device)
    cast_frozen(network, PRECISIONS[precision])
    return network
