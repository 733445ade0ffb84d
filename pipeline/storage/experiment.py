"""`runs/<experiment>/`: the only place where names live. Links to the stages' folders, the ledger, the config."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline import config as configs
from pipeline.config import Config
from pipeline.storage.files import root, write_text
from pipeline.storage.ledger import LEDGER, Ledger
from pipeline.storage.steps import MANIFEST


class Experiment:
    """The named side of one config. Creating it touches nothing; `record` writes the resolved config."""

    def __init__(self, config: Config):
        self.config = config
        self.folder = root() / "runs" / config.name

    @property
    def ledger_path(self) -> Path:
        return self.folder / LEDGER

    def ledger(self, stage: str, fingerprint: str, device: str = "cpu", **more: Any) -> Ledger:
        return Ledger(self.ledger_path, stage=stage, fingerprint=fingerprint, device=device, **more)

    def record(self) -> None:
        write_text(self.folder / "config.yaml", configs.to_yaml(self.config))

    def link(self, stage: str, target: Path) -> Path:
        """`runs/<name>/<stage>` -> the stage's folder, relative, so that the root can move."""
        self.folder.mkdir(parents=True, exist_ok=True)
        link = self.folder / stage
        temporary = self.folder / f".{stage}.{os.getpid()}"
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        temporary.symlink_to(os.path.relpath(target.resolve(), self.folder.resolve()))
        temporary.replace(link)
        return link

    @contextlib.contextmanager
    def linked(self, stage: str, target: Path) -> Iterator[None]:
        """The link while the body trains in `target`. Where the body fails before anything of the training is saved,
        the link leads where it led before: to a folder that may be finished."""
        before = self.stage_folder(stage)
        link = self.link(stage, target)
        try:
            yield
        except BaseException:
            if not any((target / "checkpoints").glob("step-*")) and not (target / MANIFEST).is_file():
                if before is not None:
                    self.link(stage, before)
                else:
                    link.unlink(missing_ok=True)
            raise

    def stage_folder(self, stage: str) -> Path | None:
        """Where `runs/<name>/<stage>` leads, or None."""
        link = self.folder / stage
        return link.resolve() if link.exists() else None
