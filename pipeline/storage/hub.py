"""A model named by folder or hub name, as a local folder. Only safetensors, JSON and tokenizer files are fetched:
nothing that could be executed. HF_HUB_OFFLINE and HF_HOME are obeyed by huggingface_hub itself. What the hub refuses
is explained here, for models and datasets."""

import os
import re
import shutil
from pathlib import Path

from model import checkpoints, special_tokens
from model.config import ImpossibleShape, ModelConfig, read_object
from pipeline.storage.files import hash_file, hash_files, root
from pipeline.system.errors import UserError

MODEL_FILES = ["*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json"]
GGUF = ".gguf"
TOKENIZER_FILES = ["tokenizer.json", *special_tokens.FILES]
MODEL, DATASET = "model", "dataset"
PAGES = "https://huggingface.co"  # for people, whatever HF_ENDPOINT says
ASK_SECONDS = 10.0  # for one answer about a repository


class Unavailable(UserError):
    """The hub did not answer, or may not be asked (`HF_HUB_OFFLINE`). `why`: in a few words."""

    def __init__(self, message: str, why: str):
        super().__init__(message)
        self.why = why


def is_commit(revision: object) -> bool:
    return isinstance(revision, str) and re.fullmatch(r"[0-9a-f]{40}", revision) is not None


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
    weights_of_ours = "*.safetensors" in patterns and not classifier
    if weights_of_ours:
        known_shape(name, key)  # raises for what is known to be of no use
        hub_shape(name, key)  # a few kilobytes say whether the gigabytes could be read
    return _downloaded(name, key, patterns)


def hub_shape(name: str, key: str) -> ModelConfig:
    """The shape of a hub model by its config.json, which alone is fetched. Raises `UserError` naming `key` for a model
    that no network here computes."""
    config_json = _downloaded(name, key, ["config.json"]) / "config.json"
    if not config_json.is_file():
        raise UserError(f"{key} is '{name}', which has no config.json: it is no model of Hugging Face's form")
    try:
        return ModelConfig.from_hf(read_object(config_json))
    except ValueError as error:  # UnreadableModel and ImpossibleShape are ValueErrors
        raise UserError(f"{key}: {name}: {error}") from None


def _downloaded(name: str, key: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    repository, _, revision = name.partition("@")
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=patterns))
    except Exception as error:
        raise refusal(error, name, MODEL, key) from None


def commit_of(asked: str, kind: str, key: str) -> str:
    """The commit of `org/name@revision` on the hub; with HF_HUB_OFFLINE that of the local cache. Raises `UserError`."""
    from huggingface_hub import HfApi, constants, snapshot_download

    name, _, revision = asked.partition("@")
    try:
        if constants.HF_HUB_OFFLINE:
            return Path(snapshot_download(name, repo_type=kind, revision=revision, local_files_only=True)).name
        about = HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=ASK_SECONDS)
        if about.gated:
            HfApi().auth_check(name, repo_type=kind)  # anyone may see its commits, not its files
    except Exception as error:
        raise refusal(error, asked, kind, key) from None
    return str(about.sha)


def refusal(error: BaseException, name: str, kind: str, key: str) -> Exception:
    """What the hub's library raised, in the user's words and with the remedy: a `UserError`, an `Unavailable` where the
    hub cannot be asked, or the error itself where it is no word of the hub."""
    from huggingface_hub import constants, errors

    chain = [error]
    while (before := chain[-1].__cause__ or chain[-1].__context__) is not None and before not in chain:
        chain.append(before)
    repository, _, revision = name.partition("@")
    what, page = f"{key} is '{name}'", f"{PAGES}/{'datasets/' if kind == DATASET else ''}{repository}"

    def is_a(*kinds: type[BaseException]) -> bool:
        return any(isinstance(one, kinds) for one in chain)

    local = "a local folder (config.json, *.safetensors, tokenizer.json)" if kind == MODEL else "a local folder"
    if is_a(errors.GatedRepoError):
        have = "the account of HF_TOKEN has no access yet" if has_token() else "HF_TOKEN is not set"
        return UserError(
            f"{what}, and that {kind} is gated ({have}): accept its licence at {page}, then type: "
            "export HF_TOKEN=hf_... (a token of that account)"
        )
    if is_a(errors.RevisionNotFoundError):
        return UserError(
            f"{what}, and that {kind} has no revision '{revision}'; expected a branch, tag or commit of it"
        )
    if is_a(errors.RepositoryNotFoundError):
        return UserError(
            f"{what}, and the hub has no {kind} of this name, or none of this name that you may see: look at "
            f"{page}; a private one needs HF_TOKEN; or name {local}"
        )
    if is_a(errors.HFValidationError):
        return UserError(f"{what}; expected a hub name like microsoft/phi-1_5, or {local}")
    if constants.HF_HUB_OFFLINE and is_a(errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError, OSError):
        return Unavailable(
            f"{what}, which was not downloaded before, and HF_HUB_OFFLINE is set: unset HF_HUB_OFFLINE, or run "
            "`hornbook fetch <config>` where there is a network, with the same HORNBOOK_ROOT and HF_HOME; or name "
            f"{local}",
            "HF_HUB_OFFLINE is set",
        )
    if is_a(errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError) or any(map(is_of_transport, chain)):
        first = (str(error).strip().splitlines() or [""])[0][:200]
        why = f"{constants.ENDPOINT} did not give it ({type(error).__name__}: {first})"
        return Unavailable(
            f"{what}: {why}. Perhaps there is no network, or no way to the hub: check it with: curl -I {PAGES}; or "
            f"put it in {local} and name that",
            why,
        )
    return error if isinstance(error, Exception) else Exception(str(error))


def is_of_transport(error: BaseException) -> bool:
    """Whether an error is one of the connection itself: of httpx, of httpx2 (which the hub's library uses), of ours."""
    return isinstance(error, ConnectionError | TimeoutError) or any(
        cls.__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2") for cls in type(error).__mro__
    )


def has_token() -> bool:
    """Whether the hub is asked with a token."""
    from huggingface_hub import get_token

    return get_token() is not None


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
    """What a fingerprint needs: a folder's content, or a hub name as it is written, which is with a commit wherever
    something is made (`pipeline.storage.pins`). Raises `UserError` naming `key` where there is no such folder."""
    if is_hub_name(name):
        return f"hub:{name}"
    folder = local_folder(name, key, [])
    patterns = dict.fromkeys(MODEL_FILES + TOKENIZER_FILES)
    return hash_files([p for pattern in patterns for p in sorted(folder.glob(pattern))], folder)
