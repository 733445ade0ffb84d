"""`hornbook sync <run>`: writes the W&B, TensorBoard or trackio mirror of a run again from its record, every row once.

In: a run with `metrics.jsonl`. Out: a new W&B run (offline where there is no key: `wandb sync` uploads its folder) or
TensorBoard files, with the rows, the samples and the lineage of its manifests. It is for a run whose mirror was absent,
failed, or broke into pieces over several processes. It trains nothing and leaves the record as it is.
"""

import contextlib
import shutil

from pipeline import runs
from pipeline.config import Config
from pipeline.storage.experiment import Experiment
from pipeline.storage.files import read_metrics, write_text
from pipeline.storage.steps import read_manifest
from pipeline.system.errors import UserError

FINISH_SECONDS = 600.0


def run(config: Config) -> str:
    """Writes the mirror and returns a line that says where. Raises `UserError` where there is nothing to write."""
    from pipeline.stages import pretrain_step
    from pipeline.training.tracking import NONE, TENSORBOARD, TRACKIO, WANDB, WANDB_ID_FILE, mirror_of, wandb_mode

    step, experiment = pretrain_step(config), Experiment(config)
    metrics = step.path / "metrics.jsonl"
    if not metrics.is_file():
        raise UserError(f"'{config.name}' has no rows of metrics yet; run: hornbook pretrain <its config>")
    if config.tracking.to == NONE:
        raise UserError("tracking.to is 'none': nothing to write; add tracking.to=wandb, tensorboard or trackio")
    id_file = step.path / WANDB_ID_FILE
    kept_id = id_file.read_text(encoding="utf-8") if id_file.is_file() else ""
    id_file.unlink(missing_ok=True)  # a new run: W&B cannot take rows of a broken one back
    if config.tracking.to == TENSORBOARD:
        shutil.rmtree(experiment.folder / TENSORBOARD, ignore_errors=True)
    if config.tracking.to == TRACKIO:
        _forget(config)
    mirror = mirror_of(config, step, experiment.folder, lambda _: None)  # its failure is the command's
    assert mirror is not None
    mirror.finish_seconds = FINISH_SECONDS
    rows = read_metrics(metrics)
    print(f"sync: {len(rows):,} rows to {mirror.tool}, in at most {FINISH_SECONDS:.0f} s", flush=True)
    for row in rows:
        mirror.log(row)
    manifests = {
        stage: read_manifest(folder)
        for stage, folder in runs.links(config.name).items()
        if runs.state(folder) == runs.DONE
    }
    if "pretrain" in manifests:
        mirror.samples(rows[-1]["step"], manifests["pretrain"].get("samples", []))
    mirror.artifacts(manifests)
    mirror.finish()
    if mirror.failure:
        if kept_id:
            write_text(id_file, kept_id)  # a run that resumes continues its own curve
        raise UserError(
            f"{mirror.failure}. Nothing is lost: fix it and run the same command again, which starts afresh"
        )
    if config.tracking.to == TRACKIO:
        where = f"trackio show --project {config.tracking.project}"
    elif config.tracking.to == WANDB and wandb_mode() == "offline":
        kept = f"offline-run-*-{id_file.read_text(encoding='utf-8').strip()}"
        where = f"offline, as there is no key; upload: wandb sync {experiment.folder / WANDB / kept}"
    else:
        where = str(experiment.folder / config.tracking.to)
    return f"sync: {len(rows):,} rows of {config.name} written to {config.tracking.to} ({where})"


def _forget(config: Config) -> None:
    """Deletes the run from trackio's local store, which would hold its rows twice."""
    with contextlib.suppress(ImportError, ValueError):  # the mirror reports a missing trackio; no project yet
        import trackio

        for run in trackio.Api().runs(config.tracking.project):
            if run.name == config.name:
                run.delete()
