"""How a stage after pretraining runs: its step is built once; ledger, links and report come around it."""

import json
from collections.abc import Callable
from typing import Any

from pipeline.config import Config
from pipeline.reporting import page as report
from pipeline.storage.experiment import Experiment
from pipeline.storage.steps import Step, build


def run_step(
    config: Config, stage: str, step: Step, show: Callable[[dict[str, Any]], str], *, as_json: bool, device: str = "cpu"
) -> dict[str, Any]:
    """Builds `step` unless it is there and prints what came out: `show(manifest)` for a person, or the manifest."""
    experiment = Experiment(config)
    experiment.record()
    with experiment.ledger(stage, step.fingerprint, device):
        fresh = not step.finished
        manifest = build(step, experiment=config.name)
    experiment.link(stage, step.path)
    if stage in report.AFTER:
        report.write(config)
    if as_json:
        print(json.dumps(manifest, indent=1), flush=True)
    else:
        print(f"{stage}: {'done' if fresh else 'up to date'}\n{show(manifest)}", flush=True)
    return manifest
