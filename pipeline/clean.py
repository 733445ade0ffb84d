"""`hornbook clean`: frees what no experiment needs. Says what it would remove; `--yes` removes it.

Kept: every folder that an experiment under `runs/` links to or whose config names it, and everything those were made
from: their inputs, the trunk of a branch, the source a model was grown from. What is left under `artifacts/` came from
configs, code or libraries that are no more, or from experiments that were named here to be forgotten. A folder that a
process is writing is left alone, and so are the answers that an endpoint was paid for (`artifacts/.requests`).
Copies at HORNBOOK_REMOTE stay: other machines may need what this one does not.
"""

import contextlib
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pipeline import config as configs
from pipeline import runs
from pipeline.config import Config
from pipeline.pages import html
from pipeline.remote import place
from pipeline.stages import data_step
from pipeline.storage.files import root
from pipeline.storage.locks import FolderLock
from pipeline.storage.run_files import trunk_folder
from pipeline.storage.steps import MANIFEST, Step, read_manifest
from pipeline.system.errors import Busy, UserError


def plan(forget: Sequence[str] = ()) -> dict[str, Any]:
    """`{experiments, folders: [{path, bytes, state}], kept, bytes}`: what `clean` would remove, nothing touched.

    `forget`: experiments whose links, ledger and own folders are to go too. Raises `UserError` for a name that is none.
    """
    known = runs.names()
    for name in forget:
        if name not in known:
            raise UserError(
                f"there is no experiment '{name}' under {root() / 'runs'}{configs.nearest(name, known)}; known are "
                f"{', '.join(known) or 'none'}"
            )
    needed = _needed([name for name in known if name not in forget])
    folders = [path for path in sorted((root() / "artifacts").glob("[!.]*/*")) if path.is_dir()]
    unneeded = [path for path in folders if path.resolve() not in needed]
    rows = [{"path": str(path), "bytes": runs.folder_bytes(path), "state": runs.state(path)} for path in unneeded]
    return {
        "experiments": [str(root() / "runs" / name) for name in forget],
        "folders": rows,
        "kept": len(folders) - len(unneeded),
        "bytes": sum(row["bytes"] for row in rows),
    }


def remove(planned: dict[str, Any]) -> list[str]:
    """Removes what `plan` said, folders before names; returns what is in use and stays."""
    busy = []
    for row in planned["folders"]:
        folder = Path(row["path"])
        try:
            with FolderLock(folder, wait=False):
                (folder / MANIFEST).unlink(missing_ok=True)  # first: a half removed folder is an unfinished one
                shutil.rmtree(folder)
        except Busy as error:
            busy.append(str(error))
    for folder in sorted(map(Path, planned["experiments"]), reverse=True):  # branches lie inside their trunk's folder
        _remove_names(folder)
    return busy


def _remove_names(folder: Path) -> None:
    """All that one experiment has under `runs/`, but not the experiments that lie in the same folder."""
    others = [root() / "runs" / name for name in runs.names()]
    for path in folder.iterdir():
        if path.is_symlink() or not path.is_dir():
            path.unlink()
        elif not any(other == path or path in other.parents for other in others):
            shutil.rmtree(path)
    with contextlib.suppress(OSError):  # another experiment lies inside
        folder.rmdir()


def show(planned: dict[str, Any], removed: bool, busy: Sequence[str] = ()) -> str:
    """For a person: what is removed, or would be, and its size."""
    remote = place.place()
    name = None if remote is None else remote.name
    return html.render("clean.txt", planned=planned, removed=removed, busy=busy, remote=name).rstrip("\n")


def _needed(names: Iterable[str]) -> set[Path]:
    """Every folder that these experiments link to, or that their recorded configs name, with all it was made from."""
    needed: set[Path] = set()
    for name in names:
        for folder in runs.links(name).values():
            _add(folder, needed)
            if not (folder / MANIFEST).is_file():  # begun anew: what the name last had whole stays until it is done
                _add_last_finished(name, folder.parent, needed)
        for folder in _named(name):
            _add(folder, needed)
    return needed


def _add_last_finished(name: str, stage: Path, needed: set[Path]) -> None:
    """The newest finished folder of an experiment among those of one stage."""
    made = {path.parent: read_manifest(path.parent) for path in stage.glob(f"*/{MANIFEST}")}
    own = [folder for folder, manifest in made.items() if manifest["name"] == name]
    if own:
        _add(max(own, key=lambda folder: made[folder]["finished"]), needed)


def _named(name: str) -> list[Path]:
    """The folders of an experiment's recorded config, as far as they can be known."""
    found: list[Path] = []
    with contextlib.suppress(UserError):  # a config of an older version: its links say what it has
        config = runs.load(name)
        if config.budget.branch_of:
            found.append(trunk_folder(config.budget.branch_of))
        found += [step.path for step in _steps(config)]
    return found


def _steps(config: Config) -> list[Step]:
    """The steps of a config and of the experiment it grows from, as far as they can be known."""
    from pipeline.stages import init_step, pretrain_step, source_config, source_is_experiment

    steps = list(data_step(config).chain())
    if source_is_experiment(config):
        steps += _steps(source_config(config))
    for make in (init_step, pretrain_step):
        with contextlib.suppress(UserError):
            steps.append(make(config))
    return steps


def _add(folder: Path, needed: set[Path]) -> None:
    """A folder, and by its manifest all that it was made from. Raises `UserError` where that is damaged: what it was
    made from would be taken for unneeded."""
    folder = folder.resolve()
    if folder in needed:
        return
    needed.add(folder)
    if not (folder / MANIFEST).is_file():
        return
    manifest = read_manifest(folder)
    for value in manifest["inputs"].values():
        if "path" in value:
            _add(root() / value["path"], needed)
    if branch_of := manifest["config"].get("branch_of"):
        _add(trunk_folder(branch_of), needed)
