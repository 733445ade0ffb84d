"""Where the numbers go: `metrics.jsonl` is the truth, Weights & Biases a mirror that may fail without harm.

In: one row of named numbers per logged step. Out: a line in `metrics.jsonl` with the step and the same names, and the
row in W&B. After a kill the file is cut back to the checkpoint that training goes on from, so that there is one row
per step, none missing and none double.
"""

import json
import netrc
import os
import shutil
import threading
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import Any
from urllib.parse import urlparse

from lightning.pytorch.loggers.logger import Logger

WANDB_ID_FILE = "wandb-id"
ONLINE_FINISH_SECONDS, ONLINE_FINISH_SHARE = 10.0, 0.02  # of the cap: an upload's time; `wandb sync` does the rest
OFFLINE_FINISH_SECONDS = 1.5  # measured 0.2 s on an idle machine
START_SECONDS = 15  # a server that does not answer within this is treated as absent


class Metrics(Logger):
    """Lightning's logger for us: `log_metrics({"train/loss": 3.2}, step)` appends a row and mirrors it."""

    def __init__(self, path: Path, mirror: "WandbMirror | None" = None):
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
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()
        if self.mirror is not None:
            self.mirror.log({"step": step, **metrics})

    def sync(self) -> None:
        """Before a checkpoint: its rows must be on disk when it is."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the file and ends the mirror, whatever ended the run."""
        self.sync()
        self._file.close()
        if self.mirror is not None:
            self.mirror.finish()


def cut_metrics(path: Path, step: int) -> None:
    """Drops the rows after `step`, and a line torn by a kill."""
    if not path.is_file():
        return
    kept = [json.dumps(row) for row in read_metrics(path) if row["step"] <= step]
    temporary = path.with_name(f".{path.name}.part")
    with open(temporary, "w", encoding="utf-8") as file:
        file.writelines(line + "\n" for line in kept)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def set_metrics_aside(path: Path, step: int) -> None:
    """Before an extension drops the old decay's rows: they stay in `metrics-before-<step>.jsonl`."""
    if path.is_file():
        shutil.copyfile(path, path.with_name(f"metrics-before-{step}.jsonl"))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows that are whole."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue  # torn by a kill; the step is trained and written again
    return rows


class WandbMirror:
    """W&B as it is set by WANDB_*: offline where there is no key, never asking, never waiting, never in the way.

    All its work is done in one thread of its own, so that a slow or hanging server cannot delay a step. `id_file`
    keeps the run's id: every life of a run goes on in one curve. Any failure is said once and ends the mirror only.
    """

    def __init__(
        self,
        folder: Path,
        id_file: Path,
        name: str,
        project: str,
        config: Mapping[str, Any],
        say: Callable[[str], None],
    ):
        self.folder, self.id_file, self.name, self.project = folder, id_file, name, project
        self.config, self.say = dict(config), say
        self.online = wandb_mode() == "online"
        self.finish_seconds = ONLINE_FINISH_SECONDS if self.online else OFFLINE_FINISH_SECONDS
        self._rows: SimpleQueue[Mapping[str, Any] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True, name="wandb")
        self._thread.start()

    def log(self, row: Mapping[str, Any]) -> None:
        """Hands a row over; returns at once."""
        self._rows.put(row)

    def limit_finish(self, cap_seconds: float | None) -> float:
        """Sets how long `finish` may wait under a cap, and returns it."""
        if cap_seconds is not None:
            share = max(OFFLINE_FINISH_SECONDS, ONLINE_FINISH_SHARE * cap_seconds)
            self.finish_seconds = min(self.finish_seconds, share)
        return self.finish_seconds

    def finish(self) -> None:
        """Ends the mirror, waiting at most `finish_seconds`; a thread that hangs dies with the process."""
        self._rows.put(None)
        self._thread.join(self.finish_seconds)
        if self._thread.is_alive():
            self.say("W&B did not finish in time; `wandb sync` uploads the rest later")

    def _work(self) -> None:
        try:
            run = self._start()
            while (row := self._rows.get()) is not None:
                run.log(dict(row))
            run.finish()
        except Exception as error:  # any failure of a mirror, whatever its kind, must not cost the run
            reason = str(error).strip().splitlines()[:1]
            self.say(f"W&B is off for this run ({type(error).__name__}: {reason}); metrics.jsonl has everything")

    def _start(self) -> Any:
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        kept = self.id_file.read_text(encoding="utf-8").strip() if self.id_file.is_file() else ""
        self.folder.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its own deprecations are nothing that a user of hornbook could mend
            run = wandb.init(
                id=os.environ.get("WANDB_RUN_ID") or kept or None,
                resume="allow",
                mode=wandb_mode(),  # type: ignore[arg-type]
                dir=os.environ.get("WANDB_DIR") or str(self.folder),
                project=os.environ.get("WANDB_PROJECT") or self.project,
                name=os.environ.get("WANDB_NAME") or self.name,
                config=self.config,
                settings=wandb.Settings(
                    init_timeout=START_SECONDS, console="off", silent=True, disable_git=True, save_code=False
                ),
            )
        self.id_file.write_text(run.id + "\n", encoding="utf-8")
        # Steps are the x axis: W&B's own counter starts again with every life.
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        return run


def wandb_mode() -> str:
    return os.environ.get("WANDB_MODE") or ("online" if _has_key() else "offline")


def _has_key() -> bool:
    """Whether W&B would log in without asking: a key in the environment or in a netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
