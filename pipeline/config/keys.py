"""How a key of the config schema is written down: its default, its help, its kind."""

import difflib
from collections.abc import Iterable
from dataclasses import field
from typing import Any

IDENTITY, EXTENDABLE, RUNTIME = "identity", "extendable", "runtime"
STAGES = ("data", "init", "pretrain", "evaluate", "export", "quantize", "finetune")


def key(default: Any, help: str, kind: str = IDENTITY) -> Any:
    metadata = {"help": help, "kind": kind}
    if isinstance(default, dict | list):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def nearest(word: str, candidates: Iterable[str]) -> str:
    """` (did you mean 'x'?)`, or nothing."""
    close = difflib.get_close_matches(word, list(candidates), n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""
