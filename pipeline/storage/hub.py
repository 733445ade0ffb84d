"""A model named by folder or hub name, as a local folder. Only safetensors, JSON and tokenizer files are fetched:
nothing that could be executed. HF_HUB_OFFLINE and HF_HOME are obeyed by huggingface_hub itself."""

from pathlib import Path

from model import special_tokens
from pipeline.storage.files import hash_files
from pipeline.system.errors import UserError

MODEL_FILES = ["*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json"]
TOKENIZER_FILES = ["tokenizer.json", *special_tokens.FILES]


def is_hub_name(name: str) -> bool:
    """`organisation/model` or `organisation/model@revision` that is no path on this machine."""
    is_path = name.startswith((".", "/", "~")) or name.endswith((".json", ".yaml", ".yml", ".safetensors"))
    return name.count("/") == 1 and not is_path and not Path(name).exists()


def local_folder(name: str, key: str, patterns: list[str]) -> Path:
    """The folder itself, or a download of `patterns` from the hub. Raises `UserError` naming `key`."""
    if not is_hub_name(name):
        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise UserError(f"{key} is '{name}', which is neither a folder here nor a hub name like microsoft/phi-1_5")
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    repository, _, revision = name.partition("@")
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise UserError(
            f"{key} is '{name}' and the hub did not give it ({type(error).__name__}). "
            "Put the model in a local folder (config.json, *.safetensors, tokenizer.json) and name that folder"
        ) from None


def check_model(name: str, key: str) -> None:
    """Family, shape, and the header of every tensor of a model folder; imports torch. What a hub name holds is not
    known before it is fetched. Raises `UserError` naming `key`, with the reason."""
    if is_hub_name(name):
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
