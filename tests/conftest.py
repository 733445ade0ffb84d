"""Set before torch is imported: waiting threads sleep, so that tests keep their pace on a busy machine."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("WANDB_MODE", "offline")
