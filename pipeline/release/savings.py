"""Where a saver saves nothing: a word for it in the tables of quantization and fine-tuning."""

from collections.abc import Mapping
from typing import Any


def no_better_than(row: dict[str, Any], rows: list[dict[str, Any]]) -> str | None:
    """A kind that is no larger on disk and in memory, no slower and no worse on held-out text; None if there is none:
    then this kind saves something."""
    if "unavailable" in row:
        return None
    for other in rows:
        if other is row or "unavailable" in other:
            continue
        smaller = other["disk_bytes"] <= row["disk_bytes"] and other["memory_bytes"] <= row["memory_bytes"]
        faster = not row.get("tokens_per_second") or (other.get("tokens_per_second") or 0) >= row["tokens_per_second"]
        better = all(
            other["scores"][name]["score"] <= found["score"]
            for name, found in row["scores"].items()
            if name.startswith("bits_per_byte") and found["score"] is not None
        )
        if smaller and faster and better:
            return other["kind"]
    return None


def no_saving_lines(rows: list[dict[str, Any]]) -> list[str]:
    """For each kind that saves nothing on this model and machine, what is no worse in every figure."""
    return [
        f"{row['kind']} saves nothing here: {row['no_better_than']} is no larger, no slower and no worse"
        for row in rows
        if row.get("no_better_than")
    ]


def no_memory_saved(manifest: Mapping[str, Any]) -> str:
    """A word where the method takes as much memory as full tuning: states are a small part of a small model's step."""
    own, full = ((manifest["memory_bytes"] or {}).get(name) for name in (manifest["method"], "full"))
    saves_nothing = manifest["method"] != "full" and own and full and own >= full
    return f": {manifest['method']} saves no memory here" if saves_nothing else ""
