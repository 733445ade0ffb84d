"""Lightning's Trainer in the role it has here: loop, device placement, logger, callbacks. Nothing else.

Its Timer, ModelCheckpoint, Slurm requeue and sanity check are off: the clock forgets killed lives, the checkpoints are
not atomic, the requeue saves in the middle of a step.
"""

import logging
import warnings

from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Trainer

from pipeline.training.control import Control
from pipeline.training.devices import Machine
from pipeline.training.tracking import Metrics

# Said on purpose, each once understood: what they advise is what this design decided against, or is not ours to mend.
EXPECTED_WARNINGS = (
    r".*configure_optimizers` returned `None`.*",
    r".*LeafSpec.*",
    r".*srun.*",
    r".*does not have many workers.*",
    r".*GPU available but not used.*",
)
TALKATIVE_LOGGERS = ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero")


def build_trainer(machine: Machine, metrics: Metrics, control: Control) -> Trainer:
    """A Trainer that runs until `control` stops it."""
    for name in TALKATIVE_LOGGERS:  # devices found, advertisements: at the level of information
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    return Trainer(
        accelerator={"cuda": "gpu"}.get(machine.device.type, machine.device.type),
        devices=1,
        precision="32-true",  # our own casts: `train.precision` decides them, see model/optim.py
        plugins=[LightningEnvironment()],
        logger=[metrics],
        callbacks=[control],
        max_epochs=-1,
        max_steps=-1,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        log_every_n_steps=1,
        default_root_dir=str(metrics.path.parent),
    )
