"""`hornbook push RUN org/name`: the export of a run in a repository of the Hugging Face hub.

In: a finished export. Out: one commit with the model folder at its top, GGUF files and Modelfile under `gguf/`, the
data card under `dataset/`. Without `--yes` the list of files is printed and nothing leaves this machine. A model that
was trained on text with `license: own` needs `--allow-private`: its words may be read out of its weights.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.pages.private import is_private_source
from pipeline.release.model_card import for_hub
from pipeline.storage.experiment import Experiment
from pipeline.storage.files import root
from pipeline.storage.steps import MANIFEST, read_manifest
from pipeline.system.errors import UserError
from pipeline.system.progress import aligned, format_bytes

CARD = "README.md"


def plan(config: Config, command: str, repository: str) -> dict[str, Any]:
    """`{repository, folder, files: [{path, from, bytes}], bytes, private: [names of sources], unknown}`; `unknown`:
    whether the folder that says what it was trained on is not here. Raises `UserError` without a finished export."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise UserError(f"the repository is '{repository}'; expected organisation/name, such as my-name/{config.name}")
    folder = Experiment(config).stage_folder("export")
    if folder is None or not (folder / MANIFEST).is_file():
        raise UserError(f"there is no finished export of {command} to push; run: hornbook export {command}")
    manifest = read_manifest(folder)
    tops = {"model": "", "gguf": "gguf/", "dataset": "dataset/"}
    files = [
        {"path": tops[top] + name, "from": str(folder / path), "bytes": about["bytes"]}
        for path, about in sorted(manifest["outputs"].items())
        for top, _, name in [path.partition("/")]
        if top in tops
    ]
    data = manifest["lineage"].get("data")
    made = root() / "artifacts" / "data" / data if data else None
    known = made is None or (made / MANIFEST).is_file()
    sources = read_manifest(made)["sources"] if made and known else {}
    return {
        "repository": repository,
        "folder": str(folder),
        "files": files,
        "bytes": sum(file["bytes"] for file in files),
        "private": sorted(name for name, source in sources.items() if is_private_source(source)),
        "unknown": not known,
    }


def show(planned: Mapping[str, Any]) -> str:
    """For a person, before anything is uploaded."""
    rows = [[file["path"], format_bytes(file["bytes"])] for file in planned["files"]]
    lines = [f"{len(rows)} files, {format_bytes(planned['bytes'])}, of {planned['folder']}"]
    lines += [f"  {line}" for line in aligned(rows, left=1)]
    if planned["private"]:
        lines.append(f"  trained on private text ({', '.join(planned['private'])}): needs --allow-private")
    if planned["unknown"]:
        lines.append("  the data it was trained on is not here, and may be private: needs --allow-private")
    return "\n".join([*lines, f"nothing was uploaded; with --yes it goes to {planned['repository']}"])


def upload(planned: Mapping[str, Any], *, allow_private: bool, public: bool) -> str:
    """Makes the repository where there is none (private, unless `public`), commits all files, and returns the address.
    Raises `UserError` for private text that was not allowed, a missing token, and what the hub refuses."""
    if (planned["private"] or planned["unknown"]) and not allow_private:
        what = f"private text ({', '.join(planned['private'])}: license own)" if planned["private"] else "data not here"
        raise UserError(
            f"this model was trained on {what}, which may be read out of it; add --allow-private if it may go to "
            f"{planned['repository']}"
        )
    from huggingface_hub import CommitOperationAdd, HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    if not get_token():
        raise UserError(
            "HF_TOKEN is not set, and no token is stored: make one with write access at "
            "https://huggingface.co/settings/tokens and type: export HF_TOKEN=hf_..."
        )
    api, name = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None), planned["repository"]
    operations = [CommitOperationAdd(file["path"], _content(file, name)) for file in planned["files"]]
    try:
        address = api.create_repo(name, private=not public, exist_ok=True)
        api.create_commit(name, operations, commit_message="Upload a model trained with hornbook")
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError, RuntimeError) as error:
        raise UserError(f"the hub did not take {name}: {_reason(error, name)}") from None
    return str(address)


def _content(file: Mapping[str, Any], repository: str) -> bytes | str:
    """A path; of the card its text, with the repository's name in place of the folder's."""
    if file["path"] != CARD:
        return file["from"]
    return for_hub(Path(file["from"]).read_text(encoding="utf-8"), repository).encode()


def _reason(error: Exception, name: str) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"HF_TOKEN may not write to {name.partition('/')[0]}; expected a token with write access to it"
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0] if said else 'no answer'}; what is in the repository is unchanged"
