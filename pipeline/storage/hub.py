"""A model named by folder or hub name, as a local folder. Only safetensors, JSON and tokenizer files are fetched:
nothing that could be executed. HF_HUB_OFFLINE and HF_HOME are obeyed by huggingface_hub itself."""

import functools
import os
import shutil
from pathlib import Path

from model import checkpoints, special_tokens
from model.config import ImpossibleShape, ModelConfig, read_object
from pipeline.storage.files import hash_file, hash_files, root
from pipeline.system.errors import UserError

MODEL_FILES = ["*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json"]
GGUF = ".gguf"
TOKENIZER_FILES = ["tokenizer.json", *special_tokens.FILES]


def is_hub_name(name: str) -> bool:
    """`organisation/model` or `organisation/model@revision` that is no path on this machine."""
    is_path = name.startswith((".", "/", "~")) or name.endswith((".json", ".yaml", ".yml", ".safetensors", GGUF))
    return name.count("/") == 1 and not is_path and not Path(name).exists()


def local_folder(name: str, key: str, patterns: list[str], classifier: bool = False) -> Path:
    """The folder itself, a download of `patterns` from the hub, or what a GGUF file holds, as a folder of full weights
    under artifacts/. A `classifier` may be of any family. Raises `UserError` naming `key`."""
    if not is_hub_name(name):
        folder = Path(name).expanduser()
        if name.endswith(GGUF) and folder.is_file():
            return _converted(folder, key)
        if not folder.is_dir():
            raise UserError(f"{key} is '{name}', which is neither a folder here nor a hub name like microsoft/phi-1_5")
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    weights_of_ours = "*.safetensors" in patterns and not classifier
    if weights_of_ours:
        known_shape(name, key)  # raises for what is known to be of no use
    repository, _, revision = name.partition("@")
    try:
        fetch = functools.partial(snapshot_download, repository, revision=revision or None)
        if weights_of_ours:  # a few kilobytes say whether the gigabytes could be read
            _check_shape(Path(fetch(allow_patterns=["config.json"])) / "config.json", name, key)
        return Path(fetch(allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        why = f"{type(error).__name__}: {why_not(error, repository)}"
        raise UserError(
            f"{key} is '{name}' and the hub did not give it. {why}; or put the model in a local folder "
            "(config.json, *.safetensors, tokenizer.json) and name that folder"
        ) from None


def why_not(error: BaseException, repository: str, kind: str = "") -> str:
    """What is usually behind an error of the hub, and what to do. `kind`: "datasets/" for a data set."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    page = f"https://huggingface.co/{kind}{repository}"
    chain = [error, error.__cause__, error.__context__]
    for one in (chained for chained in chain if chained is not None):
        if isinstance(one, GatedRepoError):
            return f"it is gated: accept its terms at {page}, then type: export HF_TOKEN=hf_..."
        if isinstance(one, RevisionNotFoundError):
            return f"it has no such revision: see {page}/tree/main"
        if isinstance(one, RepositoryNotFoundError):
            return f"there is none of this name, or it is private: look at {page}; a private one needs HF_TOKEN"
        if isinstance(one, HFValidationError):
            return "it is no name of the form owner/name"
        if isinstance(one, OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set: unset HF_HUB_OFFLINE"
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return "it was not downloaded before, and HF_HUB_OFFLINE is set: unset HF_HUB_OFFLINE"
    return "there is no network, or no way to the hub: check it with: curl -I https://huggingface.co"


def _check_shape(config_json: Path, name: str, key: str) -> None:
    """Raises `UserError` for a model that no network here computes."""
    if not config_json.is_file():
        raise UserError(f"{key} is '{name}', which has no config.json: it is no model of Hugging Face's form")
    try:
        ModelConfig.from_hf(read_object(config_json))
    except ValueError as error:  # UnreadableModel and ImpossibleShape are ValueErrors
        raise UserError(f"{key}: {name}: {error}") from None


def _converted(file: Path, key: str) -> Path:
    """The model of a GGUF file as a folder, made once for each content."""
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise UserError(f"{key} is a GGUF file, which needs the package gguf: pip install 'hornbook[gguf]'") from None
    from model.gguf import convert

    folder = root() / "artifacts" / "gguf" / hash_file(file)[:12]
    if not folder.is_dir():
        part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
        try:
            convert(file, part)
            part.rename(folder)
        except (ValueError, OSError) as error:  # UnreadableModel and ImpossibleShape are ValueErrors
            if not folder.is_dir():  # else another process was faster
                raise UserError(f"{key}: {error}") from None
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return folder


def known_shape(name: str, key: str) -> ModelConfig | None:
    """The shape of a checkpoint that is known by its hub name (`model.checkpoints`), before it is fetched; None for any
    other. Raises `UserError` naming `key` for one whose family hornbook does not read."""
    try:
        checkpoints.refuse(name)
    except ImpossibleShape as error:
        raise UserError(f"{key} is '{name}': {error}") from None
    found = checkpoints.find(name)
    return found and found.shape


def check_model(name: str, key: str) -> None:
    """Family, shape, and the header of every tensor of a model folder; imports torch. Of a hub name what is known
    before it is fetched. Raises `UserError` naming `key`, with the reason."""
    if is_hub_name(name):
        known_shape(name, key)
        return
    from model.hf import open_model

    try:
        open_model(local_folder(name, key, MODEL_FILES))
    except ValueError as error:  # UnreadableModel and ImpossibleShape are ValueErrors
        raise UserError(f"{key}: {error}") from None


def content_of_model(name: str, key: str = "model") -> str:
    """What a fingerprint needs: a folder's content, or a hub name as it is written. Raises `UserError` naming `key`
    where there is no such folder.

    A name without `@revision` is taken at its word: pin one where the hub's model may change.
    """
    if is_hub_name(name):
        return f"hub:{name}"
    folder = local_folder(name, key, [])
    patterns = dict.fromkeys(MODEL_FILES + TOKENIZER_FILES)
    return hash_files([p for pattern in patterns for p in sorted(folder.glob(pattern))], folder)
