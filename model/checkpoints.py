"""Checkpoints that people start from, known by hub name before anything is downloaded (families/checkpoints.yaml).

Out: shape, license and training tokens of a name; a refusal for a name whose family no network here computes.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from model.config import ModelConfig

TABLE = Path(__file__).with_name("families") / "checkpoints.yaml"


@dataclass(frozen=True)
class Checkpoint:
    """`tokens`: of training, as its makers state them. `gated`: the hub asks for an agreement first."""

    name: str
    shape: ModelConfig
    tokens: float
    license: str
    gated: bool = False

    @property
    def terms(self) -> str:
        """License and access, for people."""
        return f"{self.license}, gated" if self.gated else self.license


@functools.cache
def known() -> dict[str, Checkpoint]:
    """Every checkpoint of the table by its own name, in the table's order."""
    return {
        name: Checkpoint(
            name, ModelConfig.from_hf(row["config"]), row["tokens"], row["license"], row.get("gated", False)
        )
        for name, row in _table()["known"].items()
    }


def find(name: str) -> Checkpoint | None:
    """The checkpoint of a hub name, with or without `@revision`; None for a name that the table does not have."""
    name = name.partition("@")[0]
    return next(
        (known()[own] for own, entry in _table()["known"].items() if name in (own, *entry.get("also", ()))), None
    )


def named(word: str) -> tuple[str, Checkpoint] | None:
    """(hub name, checkpoint) of a name as people write it: `smollm2-135m`, `qwen3-0.6b` (the base model), or the whole
    hub name of any checkpoint in the table; None for another."""
    found, short = find(word), word.lower()
    if found is not None:
        return word, found
    rows = _table()["known"].items()
    for own, _ in rows:
        last = own.split("/")[1].lower()
        if short in (last, last.removesuffix("-base"), last.removesuffix("_v1.1"), last.removesuffix("-hf")):
            return own, known()[own]
    return next(
        (
            (name, known()[own])
            for own, entry in rows
            for name in entry.get("also", ())
            if name.split("/")[1].lower() == short
        ),
        None,
    )


def refuse(name: str) -> None:
    """Raises `ImpossibleShape` for a hub name that is known to be of a family that no network here computes."""
    for pattern, family in _table()["refused"].items():
        if fnmatchcase(name, pattern):
            ModelConfig.from_hf({"model_type": family})  # raises, with what is read instead


@functools.cache
def _table() -> Mapping[str, Any]:
    return yaml.safe_load(TABLE.read_text(encoding="utf-8"))
