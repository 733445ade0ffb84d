"""Where the numbers go: rows in `metrics.jsonl`, the record, and copies of them in a mirror that may fail without harm.

In: one row of named numbers per logged step. Out: a line in `metrics.jsonl` with the step and the same names, and the
row in the mirror that `tracking.to` names: Weights & Biases or TensorBoard. After a kill the file is cut back to the
checkpoint from which training resumes, so that there is one row per step, none missing and none double.

A mirror works in its own thread, so that a slow or hanging server cannot delay a step. Its failure is reported once, in
one line with what may be missing there, and ends the mirror only. It sees an allow-list: rows of metrics, samples, and
the config's keys that `logged_config` names. Paths, addresses, prompts, the environment and the command line are never
handed over.
"""

import contextlib
import json
import netrc
import os
import secrets
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any
from urllib.parse import urlparse

from pipeline import config as configs
from pipeline.config import Config
from pipeline.storage.files import read_metrics, write_text
from pipeline.storage.steps import Step
from pipeline.system.disk import DiskFull, writing

WANDB, TENSORBOARD, TRACKIO, NONE = "wandb", "tensorboard", "trackio", "none"
WANDB_ID_FILE = "wandb-id"
ONLINE_FINISH_SECONDS, ONLINE_FINISH_SHARE = 10.0, 0.02  # of the cap: an upload's time; `hornbook sync` does the rest
OFFLINE_FINISH_SECONDS = 1.5  # measured 0.2 s on an idle machine
START_SECONDS = 15  # a server that does not answer within this is treated as absent
UPLOAD_ENDED = "filestream: fatal error"  # `run.finish` of W&B says nothing of an upload that the server refused

LOGGED_SECTIONS = ("model", "train")  # numbers and choices of a schema: no free text
LOGGED_KEYS = {
    "init": ("method", "tolerance", "source_checkpoint"),
    "tokenizer": ("vocab_size",),
    "budget": ("max_gpu_hours", "max_tokens", "count_source", "gpu_hour_price"),
    "data": ("near_dedup_similarity", "tokenizer_train_bytes", "tasks", "mask_personal_data"),
}
LOGGED_OF_SOURCE = ("type", "license", "weight", "replay", "limit_documents", "limit_bytes", "limit_tokens")


class Metrics:
    """`log({"train/loss": 3.2}, step)` appends a row to the file and hands it to the mirror."""

    def __init__(self, path: Path, mirror: "Mirror | None" = None):
        self.path, self.mirror = path, mirror
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - kept open: a row per step must cost microseconds

    def log(self, row: Mapping[str, Any], step: int) -> None:
        line = json.dumps({"step": step, **row}) + "\n"
        with writing(self.path, len(line)):
            self._file.write(line)
            self._file.flush()
        if self.mirror is not None:
            self.mirror.log({"step": step, **row})

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
            if kind is None:  # else the error that ended the run matters; the next process cuts the torn row off
                raise
        finally:
            with contextlib.suppress(OSError):
                self._file.close()
        if self.mirror is not None:
            self.mirror.finish()


class RateMeter:
    """Tokens per second: over all, and since the last `recent()`. Validation and saves are left out."""

    def __init__(self) -> None:
        self.seconds, self.tokens = 0.0, 0
        self._then, self._recent = (0.0, 0), 0.0  # at the last `recent()`: seconds and tokens; what it returned
        self._from = time.monotonic()

    def restart(self) -> None:
        self._from = time.monotonic()

    def leave_out(self, seconds: float) -> None:
        self._from += seconds

    def lap(self, tokens: int) -> float:
        """Ends a step; the seconds since the one before ended, waiting for the batch and bookkeeping included."""
        now = time.monotonic()
        seconds, self._from = now - self._from, now
        self.seconds, self.tokens = self.seconds + seconds, self.tokens + tokens
        return seconds

    def recent(self) -> float:
        if self.seconds > self._then[0]:
            self._recent = (self.tokens - self._then[1]) / (self.seconds - self._then[0])
            self._then = self.seconds, self.tokens
        return self._recent

    def mean(self) -> float:
        return self.tokens / self.seconds if self.seconds > 0 else 0.0

    def state_dict(self) -> dict[str, float]:
        return {"seconds": self.seconds, "tokens": self.tokens}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seconds, self.tokens = state["seconds"], int(state["tokens"])
        self._then = self.seconds, self.tokens


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


def logged_config(config: Config, fingerprints: Mapping[str, str]) -> dict[str, Any]:
    """What of a config leaves this machine: an allow-list of keys, sources without their paths, the fingerprints."""
    values = configs.to_values(config)
    logged: dict[str, Any] = {"name": config.name, "seed": config.seed, "fingerprints": dict(fingerprints)}
    logged |= {section: values[section] for section in LOGGED_SECTIONS}
    logged |= {section: {key: values[section][key] for key in keys} for section, keys in LOGGED_KEYS.items()}
    logged["data"]["sources"] = {
        name: {key: options[key] for key in LOGGED_OF_SOURCE if key in options}
        for name, options in config.data.sources.items()
        if isinstance(options, Mapping)
    }
    logged["data"]["filters"] = {
        name: {k: v for k, v in (options or {}).items() if isinstance(v, int | float)}
        for name, options in config.data.filters.items()
        if options is not None
    }
    return logged


class Mirror:
    """`log(row)` returns at once; `finish()` waits at most `finish_seconds`. Subclasses say how to `_start`."""

    tool = NONE
    finish_seconds = OFFLINE_FINISH_SECONDS

    def __init__(self, say: Callable[[str], None]):
        self.say = say
        self.rows, self.failure = 0, ""  # rows handed over; what went wrong first
        self._work: SimpleQueue[Callable[[Any], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True, name=self.tool)
        self._thread.start()

    def log(self, row: Mapping[str, Any]) -> None:
        self.rows += 1
        self._work.put(lambda run: self._log(run, row))

    def samples(self, step: int, samples: Sequence[Mapping[str, str]]) -> None:
        """Texts of the finished model, as a table where the tool has one."""
        self._work.put(lambda run: self._samples(run, step, samples))

    def artifacts(self, manifests: Mapping[str, Mapping[str, Any]]) -> None:
        """The lineage: the manifests, by stage, of what this run was made from and of what it made."""
        self._work.put(lambda run: self._artifacts(run, manifests))

    def limit_finish(self, cap_seconds: float | None) -> float:
        """Sets how long `finish` may wait under a cap, and returns it."""
        if cap_seconds is not None:
            share = max(OFFLINE_FINISH_SECONDS, ONLINE_FINISH_SHARE * cap_seconds)
            self.finish_seconds = min(self.finish_seconds, share)
        return self.finish_seconds

    def finish(self) -> None:
        """Ends the mirror; a thread that hangs dies with the process."""
        self._work.put(None)
        self._thread.join(self.finish_seconds)
        if self._thread.is_alive():
            self._report(f"did not finish within {self.finish_seconds:.3g} s")

    def _run(self) -> None:
        try:
            run = self._start()
        except Exception as error:  # no failure of a mirror, whatever it is, may cost the run
            self._report(f"did not start ({_reason(error)})")
            return
        try:
            while (item := self._work.get()) is not None:
                item(run)
        except Exception as error:
            self._report(f"is off for the rest of this run ({_reason(error)})")
        try:
            self._finish(run)  # after a failure too: it uploads the rows that the tool still holds
        except Exception as error:
            self._report(f"did not take everything ({_reason(error)})")

    def _report(self, what: str) -> None:
        """Says once, in one line, what is missing in the tool and how to get it there."""
        if self.failure:
            return
        self.failure = f"{self.tool} {what}"
        self.say(
            f"{self.failure}: some of its {self.rows:,} rows may be missing there, and the end of the run. "
            f"metrics.jsonl has every row; `hornbook sync <run>` writes them all to {self.tool} again"
        )

    def _start(self) -> Any:
        raise NotImplementedError

    def _log(self, run: Any, row: Mapping[str, Any]) -> None:
        raise NotImplementedError

    def _finish(self, run: Any) -> None:
        raise NotImplementedError

    def _samples(self, run: Any, step: int, samples: Sequence[Mapping[str, str]]) -> None:
        """Where a tool has no place for text: nothing."""

    def _artifacts(self, run: Any, manifests: Mapping[str, Mapping[str, Any]]) -> None:
        """Where a tool has no lineage: nothing."""


class WandbMirror(Mirror):
    """W&B as WANDB_* sets it up: offline where there is no key; it never asks and never waits.

    `id_file` keeps the run's id, so that a resumed run continues its curve. The id is on disk before W&B gets it, so
    that a kill at any moment leaves no second curve.
    """

    tool = "W&B"

    def __init__(
        self, folder: Path, id_file: Path, name: str, project: str, config: Mapping[str, Any],
        say: Callable[[str], None],
    ):  # fmt: skip
        self.folder, self.id_file, self.name, self.project = folder, id_file, name, project
        self.config = dict(config)
        self.online = wandb_mode() == "online"
        self.finish_seconds = ONLINE_FINISH_SECONDS if self.online else OFFLINE_FINISH_SECONDS
        super().__init__(say)

    def _start(self) -> Any:
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        run_id = os.environ.get("WANDB_RUN_ID") or self._kept_id() or secrets.token_hex(4)
        write_text(self.id_file, run_id + "\n")
        self.folder.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its own deprecations: a user of hornbook cannot fix them
            run = wandb.init(
                id=run_id,
                resume="allow",
                mode=wandb_mode(),  # type: ignore[arg-type]
                dir=os.environ.get("WANDB_DIR") or str(self.folder),
                project=os.environ.get("WANDB_PROJECT") or self.project,
                name=os.environ.get("WANDB_NAME") or self.name,
                config=self.config,
                settings=wandb.Settings(
                    init_timeout=START_SECONDS,
                    console="off",
                    silent=True,
                    disable_git=True,
                    disable_code=True,
                    save_code=False,
                    program="hornbook",
                    x_disable_meta=True,  # command line, paths, user and host
                ),
            )
        # Steps are the x axis: W&B's own counter starts again with every process.
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        return run

    def _kept_id(self) -> str:
        """The id that an earlier process used; empty where there was none."""
        return self.id_file.read_text(encoding="utf-8").strip() if self.id_file.is_file() else ""

    def _log(self, run: Any, row: Mapping[str, Any]) -> None:
        run.log(dict(row))

    def _finish(self, run: Any) -> None:
        run.finish()
        log = Path(run.settings.log_internal)
        if self.online and log.is_file() and UPLOAD_ENDED in log.read_text(encoding="utf-8", errors="replace"):
            raise RuntimeError(f"the server refused rows: see {log}")

    def _samples(self, run: Any, step: int, samples: Sequence[Mapping[str, str]]) -> None:
        import wandb

        table = wandb.Table(columns=["step", "prompt", "text"])
        for sample in samples:
            table.add_data(step, sample["prompt"], sample["text"])
        run.log({"step": step, "samples": table})

    def _artifacts(self, run: Any, manifests: Mapping[str, Mapping[str, Any]]) -> None:
        """Fingerprint and content hash of each stage as an artifact without files: what was used, and what was made."""
        import wandb

        for stage, manifest in manifests.items():
            facts = {key: manifest[key] for key in ("fingerprint", "content_hash", "seconds", "gpu_hours")}
            artifact = wandb.Artifact(f"{stage}-{manifest['fingerprint']}", type=stage, metadata=facts)
            if stage == "pretrain" or not self.online:  # offline a use cannot be looked up
                run.log_artifact(artifact)
            else:
                run.use_artifact(artifact)


class TensorboardMirror(Mirror):
    """Event files under `folder`, for `tensorboard --logdir runs`."""

    tool = "TensorBoard"

    def __init__(self, folder: Path, say: Callable[[str], None]):
        self.folder = folder
        super().__init__(say)

    def _start(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self.folder))

    def _log(self, run: Any, row: Mapping[str, Any]) -> None:
        for name, value in row.items():
            if name != "step" and value is not None:
                run.add_scalar(name, value, row["step"])

    def _finish(self, run: Any) -> None:
        run.close()

    def _samples(self, run: Any, step: int, samples: Sequence[Mapping[str, str]]) -> None:
        for number, sample in enumerate(samples):
            run.add_text(f"samples/{number}", sample["prompt"] + sample["text"], step)


class TrackioMirror(Mirror):
    """A run of trackio's local store (TRACKIO_DIR, else in HF_HOME), for `trackio show`; with TRACKIO_SPACE_ID also in
    that Space. A resumed run continues the one of its name."""

    tool = "trackio"

    def __init__(self, name: str, project: str, config: Mapping[str, Any], say: Callable[[str], None]):
        self.name, self.project, self.config = name, project, dict(config)
        super().__init__(say)

    def _start(self) -> Any:
        try:
            import trackio
        except ImportError:
            raise RuntimeError("it is not installed: pip install 'hornbook[trackio]'") from None
        options = {"resume": "allow", "embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
        return trackio.init(project=self.project, name=self.name, config=self.config, **options)

    def _log(self, run: Any, row: Mapping[str, Any]) -> None:
        run.log({k: v for k, v in row.items() if k != "step" and v is not None}, step=row["step"])

    def _finish(self, run: Any) -> None:
        run.finish()


def mirror_of(config: Config, step: Step, folder: Path, say: Callable[[str], None]) -> Mirror | None:
    """The mirror that `tracking.to` names, None for "none". `step`: the pretraining; `folder`: of the experiment."""
    if config.tracking.to == NONE:
        return None
    if config.tracking.to == TENSORBOARD:
        return TensorboardMirror(folder / TENSORBOARD, say)
    fingerprints = {name: s.fingerprint for name, s in step.inputs.items() if isinstance(s, Step)}
    fingerprints["model"] = step.fingerprint
    if config.tracking.to == TRACKIO:
        return TrackioMirror(config.name, config.tracking.project, logged_config(config, fingerprints), say)
    return WandbMirror(
        folder=folder,
        id_file=step.path / WANDB_ID_FILE,
        name=config.name,
        project=config.tracking.project,
        config=logged_config(config, fingerprints),
        say=say,
    )


def _reason(error: Exception) -> str:
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])


def wandb_mode() -> str:
    """`online`, `offline` or `disabled`: what WANDB_MODE says, else whether there is a key."""
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
