"""The model that a stage after pretraining takes: this experiment's, another experiment's, or any Phi folder.

In: the stage's `model` key. Out: a folder that was looked at (family, every tensor's header, tokenizer) and what is
known of how it was made. Files are read, never run: weights from safetensors only, no code and no template of a folder.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.config import read_object
from model.special_tokens import SpecialTokens
from pipeline import config as configs
from pipeline.config import Config
from pipeline.corpus.text.tokenizer import special_tokens
from pipeline.storage.hub import MODEL_FILES, TOKENIZER_FILES, content_of_model, is_hub_name, local_folder
from pipeline.storage.steps import MANIFEST, Step, read_manifest
from pipeline.system.errors import UserError

QUANTIZED = "quantization_config"  # of config.json: written by transformers, torchao and us


@dataclass(frozen=True)
class TakenModel:
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


def taken_model(config: Config, wanted: str | None, command: str, key: str) -> TakenModel:
    """What `key` (such as `evaluate.model`, its value `wanted`) names; null is what this config's pretraining made.

    Raises `UserError` where there is no model yet, with the command that makes it, or none that can be read.
    """
    if wanted is None or wanted.endswith((".yaml", ".yml")):
        return _of_experiment(configs.load(wanted) if wanted else config, wanted or command)
    mend = f"{key}: expected a folder with config.json, model.safetensors and tokenizer.json"
    if not is_hub_name(wanted) and not Path(wanted).expanduser().is_dir():
        raise UserError(f"there is no model at {wanted} yet; {mend}")
    folder = local_folder(wanted, key, MODEL_FILES + TOKENIZER_FILES)
    _check_files(folder, mend)
    made = folder.parent / MANIFEST
    manifest = read_manifest(folder.parent) if made.is_file() else None
    return TakenModel(folder, content_of_model(wanted, key), manifest)


def _of_experiment(config: Config, command: str) -> TakenModel:
    from pipeline.stages import pretrain_step

    step: Step = pretrain_step(config)
    mend = f"run: hornbook pretrain {command}"
    if not step.finished:
        raise UserError(f"there is no model at {step.path / 'model'} yet; {mend}")
    _check_files(step.path / "model", mend)
    manifest = read_manifest(step.path)
    return TakenModel(step.path / "model", manifest["content_hash"], manifest, config)


def _check_files(folder: Path, mend: str) -> None:
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise UserError(f"there is no model at {folder} yet (no {name}); {mend}")


def check_readable(model: TakenModel, key: str) -> None:
    """Family, shapes and the header of every file of weights. Raises `UserError` with the reason.

    A truncated safetensors, a pickle, another family, tensors that do not fit the config: all found here, before any
    work. Imports torch.
    """
    from model.hf import load_config, open_model, open_state

    try:
        if model.quantized:
            load_config(model.folder)
            open_state(model.folder)
        else:
            open_model(model.folder)
    except ValueError as error:  # UnreadableModel and ImpossibleShape are ValueErrors
        raise UserError(f"{key}: {error}") from None


def refuse_quantized(model: TakenModel, key: str, what: str) -> None:
    """For stages that need weights in full. Raises `UserError`."""
    if model.quantized:
        raise UserError(
            f"{key}: {model.folder} holds a quantized model, and {what} needs the weights that it was made from: name "
            "that folder"
        )
