"""`hornbook runs`: what there is under `runs/`, at a glance. Reads links, manifests and ledgers; changes nothing.

In: the root. Out: one row per experiment: the state of its stages, device-hours, tokens, bits per byte, bytes on disk.
"""

import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline import config as configs
from pipeline.config import Config
from pipeline.storage.files import root, write_text
from pipeline.storage.ledger import HEARTBEAT_SECONDS, LEDGER, spent_hours
from pipeline.storage.locks import lock_owner
from pipeline.storage.pins import recorded
from pipeline.storage.steps import MANIFEST, read_manifest
from pipeline.system.errors import UserError
from pipeline.system.processes import process_lives
from pipeline.system.progress import aligned, format_bytes, format_count

CONFIG, ORIGIN = "config.yaml", ".origin"
DONE, RUNNING, STOPPED, DAMAGED = "done", "running", "stopped", "damaged"


def names() -> list[str]:
    """Every experiment that has left a config or a ledger under `runs/`, branches and previews included."""
    top = root() / "runs"
    found = {path.parent for pattern in (CONFIG, LEDGER) for path in top.rglob(pattern)} if top.is_dir() else set()
    return sorted(folder.relative_to(top).as_posix() for folder in found if folder != top)


def load(word: str, overrides: Sequence[str] = ()) -> Config:
    """`read`, with the commits that the experiment has on record in place of names of the hub."""
    return recorded(read(word, overrides))


def read(word: str, overrides: Sequence[str] = ()) -> Config:
    """The config behind what a person typed: a YAML file, or the name of an experiment under `runs/`; with `overrides`
    laid over it.

    Raises `UserError` where it is neither, with the names there are.
    """
    own = root() / "runs" / word / CONFIG
    if own.is_file() and not word.endswith((".yaml", ".yml")) and not Path(word).is_file():
        return configs.load(own, overrides)
    if word.endswith((".yaml", ".yml")) or Path(word).exists():  # of a folder the reader says that it is one
        return configs.load(word, overrides)
    known = names()
    raise UserError(
        f"there is no experiment '{word}' under {root() / 'runs'}{configs.nearest(word, known)}; expected a "
        f"config file or one of: {', '.join(known) or 'none yet'}"
    )


def claim(name: str, config: Path) -> None:
    """Keeps which file an experiment's config is. Raises `UserError` where another file beside that one has the same
    name: both would write into one folder, and each would be taken for the other."""
    kept = root() / "runs" / name / ORIGIN
    before = Path(kept.read_text(encoding="utf-8")) if kept.is_file() else None
    own = config.resolve()
    beside = before is not None and before != own and before.parent == own.parent and before.is_file()
    if before is not None and beside and before.read_bytes() != own.read_bytes():
        raise UserError(
            f"{before.name} and {config} are two configs with one name ({name}), and its runs belong to {before.name}; "
            f"write another name: in {config} (or, where it takes the place of the other: rm {before})"
        )
    write_text(kept, str(own))


def links(name: str) -> dict[str, Path]:
    """Stage -> folder of one experiment, by its links."""
    folder = root() / "runs" / name
    return {path.name: path.resolve() for path in sorted(folder.iterdir()) if path.is_symlink() and path.exists()}


def state(folder: Path) -> str:
    """`done`, `damaged` (its manifest is), `running` (its process lives, or beat within three heartbeats where it
    cannot be asked) or `stopped`."""
    if (folder / MANIFEST).is_file():
        try:
            read_manifest(folder)
        except UserError:
            return DAMAGED
        return DONE
    owner = lock_owner(folder)
    if owner.get("host") == socket.gethostname():
        return RUNNING if process_lives(owner.get("pid")) else STOPPED
    ledger = folder / LEDGER
    fresh = ledger.is_file() and time.time() - ledger.stat().st_mtime < 3 * HEARTBEAT_SECONDS
    return RUNNING if fresh else STOPPED


def facts(name: str) -> dict[str, Any]:
    """One experiment as plain JSON values; a figure that its stages have not made yet is null."""
    folder = root() / "runs" / name
    stages = {stage: {"folder": str(path), "state": state(path)} for stage, path in links(name).items()}
    made = {stage: read_manifest(Path(s["folder"])) for stage, s in stages.items() if s["state"] == DONE}
    pretrain, init = made.get("pretrain", {}), made.get("init", {})
    hours = spent_hours(folder / LEDGER)
    return {
        "name": name,
        "stages": stages,
        "parameters": (init.get("parameters") or {}).get("grown"),
        "tokens_seen": pretrain.get("tokens_seen"),
        "bits_per_byte": pretrain.get("val_bits_per_byte"),
        "bits_per_byte_interval": pretrain.get("val_bits_per_byte_interval"),
        "annealed": pretrain.get("annealed"),
        "gpu_hours": round(sum(hours.values()), 6),
        "gpu_hours_by_stage": {stage: round(h, 6) for stage, h in hours.items()},
        "bytes": sum(folder_bytes(Path(s["folder"])) for s in stages.values()),
    }


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below; links are not followed."""
    total = 0
    for path, _, files in os.walk(folder):
        for file in files:
            try:
                total += os.lstat(os.path.join(path, file)).st_size
            except OSError:  # removed meanwhile
                continue
    return total


def show(rows: list[dict[str, Any]]) -> str:
    """For a person: a table with one line an experiment."""
    if not rows:
        return f"no experiments under {root() / 'runs'} yet; make one: hornbook data configs/tiny.yaml"
    head = ["experiment", "stages", "parameters", "tokens", "bits/byte", "device-hours", "on disk"]
    return "\n".join(aligned([head, *map(_cells, rows)], left=2))


def _cells(row: dict[str, Any]) -> list[str]:
    stages = [
        stage if s["state"] == DONE else f"{stage} ({s['state']})"
        for stage, s in sorted(row["stages"].items(), key=lambda item: _place(item[0]))
    ]
    bits, between = row["bits_per_byte"], row["bits_per_byte_interval"]
    error = f" ± {(between[1] - between[0]) / 2:.4f}" if between else ""
    return [
        row["name"],
        ", ".join(stages) or "nothing yet",
        "-" if row["parameters"] is None else format_count(row["parameters"]),
        "-" if row["tokens_seen"] is None else format_count(row["tokens_seen"]),
        "-" if bits is None else f"{bits:.4f}{error}{'' if row['annealed'] else ' (not annealed)'}",
        f"{row['gpu_hours']:.4f}",
        format_bytes(row["bytes"]),
    ]


def _place(stage: str) -> tuple[int, str]:
    """In the order in which stages run, what comes after pretraining by name."""
    first = configs.PRETRAINING
    return (first.index(stage) if stage in first else len(first), stage)
