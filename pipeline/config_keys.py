"""How a key of the config schema is written down: its default, its help, its kind."""

from dataclasses import field
from typing import Any

IDENTITY, EXTENDABLE, RUNTIME = "identity", "extendable", "runtime"


def key(default: Any, help: str, kind: str = IDENTITY) -> Any:
    metadata = {"help": help, "kind": kind}
    if isinstance(default, dict | list):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)
