"""How evaluate, export and quantize run: the step is built once, with the ledger, the link and the report around it."""

import json
from collections.abc import Callable
from typing import Any

from pipeline.config import Config
from pipeline.storage.build import Maker, build
from pipeline.storage.experiment import Experiment
from pipeline.storage.steps import Step
from pipeline.storage.store import Command


def run_step(
    config: Config,
    step: Step,
    make: Maker,
    show: Callable[[dict[str, Any]], str],
    command: Command,
    device: str = "cpu",
) -> None:
    """Builds `step` unless it is there and prints what came out: `show(manifest)` for a person, or the manifest."""
    experiment, stage = Experiment(config), step.name
    experiment.record()
    with experiment.ledger(stage, step.fingerprint, device):
        fresh = not step.finished
        manifest = build(step, {step.fingerprint: make}, experiment=config.name, store=command.store)
    experiment.link(stage, step.path)
    if stage != "export":  # the page shows nothing of an export
        command.write_page(config)
    if command.as_json:
        print(json.dumps(manifest, indent=1), flush=True)
    else:
        print(f"{stage}: {'done' if fresh else 'up to date'}\n{show(manifest)}", flush=True)
