"""Where the numbers go: `metrics.jsonl` is the truth; a mirror (mirrors.py) may fail without harm.

In: one row of named numbers per logged step. Out: a line in `metrics.jsonl` with the step and the same names, and the
row in the mirror. After a kill the file is cut back to the checkpoint that training goes on from, so that there is
one row per step, none missing and none double.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger

from pipeline.storage.steps import read_metrics, write_text
from pipeline.system.disk import DiskFull, writing
from pipeline.training.mirrors import Mirror


class Metrics(Logger):
    """Lightning's logger for us: `log_metrics({"train/loss": 3.2}, step)` appends a row and mirrors it."""

    def __init__(self, path: Path, mirror: Mirror | None = None):
        super().__init__()
        self.path, self.mirror = path, mirror
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - kept open: a row per step must cost microseconds

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The config is in the manifest and, for W&B, given at its start."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        line = json.dumps({"step": step, **metrics}) + "\n"
        with writing(self.path, len(line)):
            self._file.write(line)
            self._file.flush()
        if self.mirror is not None:
            self.mirror.log({"step": step, **metrics})

    def sync(self) -> None:
        """Before a checkpoint: its rows must be on disk when it is."""
        with writing(self.path, 0):
            self._file.flush()
            os.fsync(self._file.fileno())

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Closes the file and ends the mirror, whatever ended the run."""
        try:
            self.sync()
        except (OSError, DiskFull):
            if kind is None:  # else what ended the run is to be said; the next life cuts the torn row off
                raise
        finally:
            with contextlib.suppress(OSError):
                self._file.close()
        if self.mirror is not None:
            self.mirror.finish()


def cut_metrics(path: Path, step: int) -> None:
    """Drops the rows after `step`, and a line torn by a kill."""
    if not path.is_file():
        return
    write_text(path, "".join(json.dumps(row) + "\n" for row in read_metrics(path) if row["step"] <= step))


def set_metrics_aside(path: Path, step: int) -> None:
    """Before an extension drops the old decay's rows: they stay in `metrics-before-<step>.jsonl`."""
    if path.is_file():
        with writing(path, path.stat().st_size):
            shutil.copyfile(path, path.with_name(f"metrics-before-{step}.jsonl"))
