"""The model that a stage after pretraining starts from: this experiment's, another experiment's, or any model folder.

In: the stage's `model` key. Out: a folder that was checked (family, the header of every tensor, tokenizer), and what is
known of how it was made. Files are read, never run: weights from safetensors only, no code and no template of a folder.
`run_step` is how evaluate, export and quantize run: once, with the ledger, the link and the report around the step.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from model.config import read_object
from model.special_tokens import SpecialTokens
from pipeline import config as configs
from pipeline.config import Config
from pipeline.corpus.text.tokenizer import special_tokens
from pipeline.stages import pretrain_step
from pipeline.storage.experiment import Experiment
from pipeline.storage.hub import MODEL_FILES, TOKENIZER_FILES, content_of_model, is_hub_name, local_folder
from pipeline.storage.pins import recorded
from pipeline.storage.steps import MANIFEST, Folder, Step, read_manifest
from pipeline.storage.store import Command, build
from pipeline.system.errors import UserError
from pipeline.system.progress import counted, progress

QUANTIZED = "quantization_config"  # of config.json: written by transformers, torchao and us


@dataclass(frozen=True)
class ModelInput:
    """`content` goes into fingerprints. `manifest`: of the stage that made the folder; `config`: of its experiment;
    both None for a folder that no stage of ours made."""

    folder: Path
    content: str
    manifest: dict[str, Any] | None = None
    config: Config | None = None

    @property
    def tokenizer_json(self) -> Path:
        return self.folder / "tokenizer.json"

    def special_tokens(self) -> SpecialTokens:
        """What the folder says. Raises `UserError` where that names no end of text."""
        return special_tokens(self.tokenizer_json)

    @property
    def context_tokens(self) -> int:
        """The length of the windows it was trained on where a stage of ours says so, else all its positions."""
        if known := (self.manifest or {}).get("context_tokens"):
            return known
        from model.hf import load_config

        return load_config(self.folder).max_position_embeddings

    @property
    def quantized(self) -> bool:
        return QUANTIZED in read_object(self.folder / "config.json")


def find_model(stage: str, config: Config, command: str) -> ModelInput:
    """The model that `<stage>.model` names; null is what this config's own pretraining made.

    Raises `UserError` where there is no model yet, with the command that makes it, or none that can be read.
    """
    wanted, key = getattr(config, stage).model, f"{stage}.model"
    if wanted is None or wanted.endswith((".yaml", ".yml")):
        return _of_pretraining(recorded(configs.load(wanted)) if wanted else config, wanted or command)
    fix = f"{key}: expected a folder with config.json, model.safetensors and tokenizer.json"
    if not is_hub_name(wanted) and not Path(wanted).expanduser().exists():
        raise UserError(f"there is no model at {wanted} yet; {fix}")
    folder = local_folder(wanted, key, MODEL_FILES + TOKENIZER_FILES)
    _check_files(folder, fix)
    made = folder.parent / MANIFEST
    manifest = read_manifest(folder.parent) if made.is_file() else None
    return ModelInput(folder, content_of_model(wanted, key), manifest)


def _of_pretraining(config: Config, command: str) -> ModelInput:
    step = pretrain_step(config)
    fix = f"run: hornbook pretrain {command}"
    if not step.finished:
        raise UserError(f"there is no model at {step.path / 'model'} yet; {fix}")
    _check_files(step.path / "model", fix)
    manifest = read_manifest(step.path)
    return ModelInput(step.path / "model", manifest["content_hash"], manifest, config)


def _check_files(folder: Path, fix: str) -> None:
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise UserError(f"there is no model at {folder} yet (no {name}); {fix}")


def copy_model(model: ModelInput, target: Path, dtype: str) -> None:
    """Writes config, tokenizer and weights in `dtype` ("as_stored": as they are), each read and written again: no file
    of the source folder is copied unread."""
    from model.hf import open_model, save_folder

    shape, state = open_model(model.folder)
    stored = str(state["model.embed_tokens.weight"].dtype).removeprefix("torch.")
    dtype = stored if dtype == "as_stored" else dtype
    with progress("copying", shape.parameters, "parameters") as bar:
        pieces = counted(((name, state[name]) for name in shape.tensor_shapes()), bar)
        save_folder(target, pieces, shape, model.tokenizer_json, model.special_tokens(), dtype)


def check_model(model: ModelInput, stage: str) -> None:
    """Family, shapes and the header of every file of weights; imports torch. Raises `UserError` with the reason.

    A truncated safetensors, a pickle, another family, tensors that do not fit the config, quantized weights: all are
    found here, before any work.
    """
    from model.hf import load_config, open_model, open_state

    key = f"{stage}.model"
    try:
        if not model.quantized:
            open_model(model.folder)
            return
        load_config(model.folder)
        open_state(model.folder)
    except ValueError as error:  # UnreadableModel and ImpossibleShape are ValueErrors
        raise UserError(f"{key}: {error}") from None
    raise UserError(
        f"{key}: {model.folder} holds a quantized model, and hornbook {stage} needs the weights that it was made from: "
        "name that folder"
    )


def run_step(
    config: Config,
    step: Step,
    make: Callable[[Config, ModelInput, Folder], dict[str, Any]],
    show: Callable[[dict[str, Any]], str],
    command: Command,
    device: str = "cpu",
    check: Callable[[Config, ModelInput], None] = lambda config, model: None,
) -> None:
    """Builds `step` unless it is there and prints what came out: `show(manifest)` for a person, or the manifest. Raises
    `UserError` for a model that cannot be read, or that `check` refuses."""
    experiment, stage = Experiment(config), step.name
    model = find_model(stage, config, command.words)
    check_model(model, stage)
    check(config, model)
    experiment.record()
    with experiment.ledger(stage, step.fingerprint, device):
        fresh = not step.finished
        manifest = build(
            step, {step.fingerprint: partial(make, config, model)}, experiment=config.name, store=command.store
        )
    experiment.link(stage, step.path)
    if stage != "export":  # the page shows nothing of an export
        command.write_page(config)
    if command.as_json:
        print(json.dumps(manifest, indent=1), flush=True)
    else:
        print(f"{stage}: {'done' if fresh else 'up to date'}\n{show(manifest)}", flush=True)
