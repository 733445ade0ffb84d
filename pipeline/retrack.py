"""`hornbook sync <run>`: writes the W&B, TensorBoard or trackio mirror of a run again from its record, every row once.

In: a run with `metrics.jsonl`. Out: a new W&B run (offline where there is no key: `wandb sync` uploads its folder) or
TensorBoard files, with the rows, the samples and the lineage of its manifests. It is for a run whose mirror was absent,
failed, or broke into pieces over several processes. It trains nothing and leaves the record as it is.
"""

import shutil

from pipeline import runs
from pipeline.config import Config
from pipeline.storage.experiment import Experiment
from pipeline.storage.files import read_metrics
from pipeline.storage.steps import read_manifest
from pipeline.system.errors import UserError

FINISH_SECONDS = 600.0


def run(config: Config) -> str:
    """Writes the mirror and returns a line that says where. Raises `UserError` where there is nothing to write."""
    from pipeline.stages import pretrain_step
    from pipeline.training.tracking import NONE, TENSORBOARD, TRACKIO, WANDB_ID_FILE, mirror_of

    step, experiment = pretrain_step(config), Experiment(config)
    metrics = step.path / "metrics.jsonl"
    if not metrics.is_file():
        raise UserError(f"'{config.name}' has no rows of metrics yet; run: hornbook pretrain <its config>")
    if config.tracking.to == NONE:
        raise UserError("tracking.to is 'none': nothing to write; add tracking.to=wandb, tensorboard or trackio")
    (step.path / WANDB_ID_FILE).unlink(missing_ok=True)  # a new run: W&B cannot take rows of a broken one back
    if config.tracking.to == TENSORBOARD:
        shutil.rmtree(experiment.folder / TENSORBOARD, ignore_errors=True)
    said: list[str] = []
    mirror = mirror_of(config, step, experiment.folder, said.append)
    assert mirror is not None
    mirror.finish_seconds = FINISH_SECONDS
    rows = read_metrics(metrics)
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
    if said:
        raise UserError(f"{said[0]}. Nothing is lost: fix it and run the same command again")
    shown = f"trackio show --project {config.tracking.project}"
    where = shown if config.tracking.to == TRACKIO else experiment.folder / config.tracking.to
    return f"sync: {len(rows):,} rows of {config.name} written to {config.tracking.to} ({where})"
