"""The card that a person means: a name of configs/gpus.yaml, a near one, a size such as 24gb, this machine's, its CPU.

In: what was typed after `--card`. Out: the card's name and its row of the table (memory, peak, bandwidth, price). Of a
size it is the slowest card with that memory, so that a forecast promises nothing that another one does not keep.
"""

import os
import re
from collections.abc import Mapping
from typing import Any

from pipeline.config import nearest
from pipeline.system.errors import UserError

DEFAULT, CPU, AUTO = "h100-80", "cpu", "auto"
LARGEST_GB = 1000
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:gb|gib|g)", re.IGNORECASE)
_LEFT_OUT = re.compile(r"nvidia|amd|instinct|geforce|tesla|rtx|[^a-z0-9]")
GEMM_TRIALS = 3


def card_of(word: str | None) -> tuple[str, Mapping[str, Any]]:
    """(name, row). None: this machine's card, else `DEFAULT`. Raises `UserError` for a word that names no card."""
    from pipeline.training.devices import gpu_table

    if word is None or word.lower() == AUTO:
        found = _of_this_machine()
        return found or (_cpu() if word else (DEFAULT, gpu_table()[DEFAULT]))
    if word.lower() == CPU:
        return _cpu()
    size = _SIZE.fullmatch(word.strip())
    return _of_size(float(size[1])) if size else _of_name(word)


def _of_name(word: str) -> tuple[str, Mapping[str, Any]]:
    """Exactly, else without maker and series (`4090`), else the plainest of those that begin so (`a100`): of these the
    one with the fewest words, and of equals the smallest memory."""
    from pipeline.training.devices import gpu_table

    table, short = gpu_table(), _short(word)
    if word in table:
        return word, table[word]
    close = [name for name in table if _short(name) == short] or [
        n for n in table if short and _short(n).startswith(short)
    ]
    if not close:
        raise UserError(
            f"--card is '{word}'{nearest(word.lower(), table)}; expected one of configs/gpus.yaml: {', '.join(table)}; "
            f"or a size such as 24gb, {CPU}, or {AUTO} for this machine's"
        )
    name = min(close, key=lambda name: (len(table[name]["match"]), table[name]["memory_gb"]))
    return name, table[name]


def _short(word: str) -> str:
    return _LEFT_OUT.sub("", word.lower())


def _of_size(gigabytes: float) -> tuple[str, Mapping[str, Any]]:
    """A card of that memory with the speed of the slowest one that has it, or of the next larger size."""
    from pipeline.training.devices import gpu_table

    cards = {name: card for name, card in gpu_table().items() if not card.get("emulates_bf16")}
    if not 1 <= gigabytes <= LARGEST_GB:
        raise UserError(f"--card is a size of {gigabytes:g} GB; expected 1gb to {LARGEST_GB}gb, such as 24gb")
    nearest_size = min(
        (card["memory_gb"] for card in cards.values()), key=lambda size: (size < gigabytes, abs(size - gigabytes))
    )
    same = [name for name, card in cards.items() if card["memory_gb"] == nearest_size]
    slowest = min(same, key=lambda name: cards[name]["bf16_dense_tflops"])
    return f"{gigabytes:g}gb ({slowest})", {**cards[slowest], "memory_gb": gigabytes}


def _of_this_machine() -> tuple[str, Mapping[str, Any]] | None:
    import torch

    from pipeline.training.devices import find_card, gpu_table

    if not torch.cuda.is_available():
        return None
    name, gigabytes = torch.cuda.get_device_name(0), torch.cuda.mem_get_info(0)[1] / 1e9
    found = find_card(name)
    if found is None:  # of its memory, with the speed of a known card
        return name, _of_size(round(gigabytes, 1))[1]
    table = gpu_table()
    return next(key for key, card in table.items() if card == found), found


def _cpu() -> tuple[str, Mapping[str, Any]]:
    """This machine's processor: the peak is that of a matrix product measured now, in the numbers it would train in."""
    import torch

    from pipeline.training.devices import BF16_FLAGS, cpu_flags, measure_gemm

    dtype = torch.bfloat16 if cpu_flags() & BF16_FLAGS else torch.float32
    peak = max(measure_gemm(dtype) for _ in range(GEMM_TRIALS))
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return CPU, {
        "memory_gb": round(memory / 1e9, 1), "bf16_dense_tflops": peak / 1e12, "price_per_hour": 0.0, "cpu": True,
        "emulates_bf16": dtype == torch.float32,
    }  # fmt: skip
