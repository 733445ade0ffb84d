"""`hornbook grow <source> <target> model.hidden_size=2560 ...`: growth with no experiment around it.

The same functions as the init stage. The target keeps every value of the source's config that no override names.
With `--text` the logits of both models are compared on that text, without it on seeded random token ids.
"""

import dataclasses
import glob
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from pipeline import config as configs
from pipeline.config import Config
from pipeline.corpus.text.tokenizer import load_tokenizer
from pipeline.growing.grow import GATE_WINDOWS, HeldOut, SourceFiles, check_method, grow_folder, measure
from pipeline.storage.hub import MODEL_FILES, TOKENIZER_FILES, local_folder
from pipeline.system.errors import UserError


def run(source: str, target: str, overrides: Sequence[str], text_path: str | None) -> None:
    """Writes the grown model to `target` (which must not exist or be empty) and prints what the gate measured.
    Raises `UserError`."""
    source_folder, target_folder = local_folder(source, "source", MODEL_FILES + TOKENIZER_FILES), Path(target)
    if target_folder.exists() and (not target_folder.is_dir() or any(target_folder.iterdir())):
        raise UserError(f"{target} exists and is not an empty folder; name another target")
    config = _config(source_folder, source, overrides)
    check_method(config)
    tokenizer = source_folder / "tokenizer.json"
    from model.hf import open_model

    _remove_orphans(target_folder)
    part = target_folder.with_name(f".{target_folder.name}.{os.getpid()}.part")
    try:
        facts = grow_folder(config, open_model(source_folder), part, tokenizer)
        facts |= measure(
            config, SourceFiles(source_folder, source_folder), part, _windows(config, tokenizer, text_path)
        )
        if target_folder.exists():
            target_folder.rmdir()
        part.replace(target_folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    print(f"{facts['method']}: {facts['parameters']['source']:,} -> {facts['parameters']['grown']:,} parameters")
    print(f"largest logit difference {facts['max_abs_logit_diff']:.1e} ({facts['max_rel_logit_diff']:.1e} relative)")
    print(f"model: {target}")


def _remove_orphans(target: Path) -> None:
    """What killed growths to the same target left behind: gigabytes that nobody would look for."""
    for orphan in target.parent.glob(f".{glob.escape(target.name)}.*.part"):
        pid = orphan.name.split(".")[-2]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(orphan, ignore_errors=True)


def _config(source_folder: Path, source: str, overrides: Sequence[str]) -> Config:
    from model.hf import load_config

    try:
        shape = dataclasses.asdict(load_config(source_folder))
    except (ValueError, OSError) as error:
        raise UserError(f"source {source}: {error}") from None
    windows = {"sequence_length": _window(shape["max_position_embeddings"])}
    windows["global_batch_tokens"] = windows["sequence_length"]
    values = {"name": "grow", "model": shape, "init": {"method": "exact", "source": source}, "train": windows}
    return configs.from_values(configs.merge(values, configs.parse_overrides(overrides)), where="grow")


def _window(max_position_embeddings: int) -> int:
    return min(256, max_position_embeddings)


def _windows(config: Config, tokenizer_json: Path, text_path: str | None) -> HeldOut:
    import torch

    length = _window(config.model.max_position_embeddings)
    if text_path is None:
        generator = torch.Generator().manual_seed(config.seed)
        ids = torch.randint(0, config.model.vocab_size, (GATE_WINDOWS, length), generator=generator)
        return HeldOut(ids, float("nan"))
    try:
        text = Path(text_path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--text {text_path} is not readable as UTF-8 text: {error}") from None
    if not tokenizer_json.is_file():
        raise UserError(f"--text needs the source's tokenizer.json, and {tokenizer_json} does not exist")
    ids = load_tokenizer(tokenizer_json).encode(text, add_special_tokens=False).ids[: GATE_WINDOWS * length]
    if len(ids) < length:
        raise UserError(f"--text {text_path} has {len(ids)} tokens; expected at least one window of {length}")
    rows = torch.tensor(ids[: len(ids) // length * length]).view(-1, length)
    return HeldOut(rows, len(text.encode()) / len(ids))
