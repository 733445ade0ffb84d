"""The pretrain stage: tokens and an initialized network in, an annealed model out, inside a cap of GPU-hours.

In: the data folder, the init folder, `train` and `budget` of the config. Out: `checkpoints/`, `decisions.jsonl`,
`metrics.jsonl` and `model/`, a Hugging Face folder. Every second of every process counts, so whatever can be known
to be wrong is found before torch is imported, and a run that was killed resumes from its newest whole checkpoint.
"""

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import Config
from pipeline.corpus.text.intervals import beside, replay_lines
from pipeline.storage.experiment import Experiment
from pipeline.storage.ledger import Ledger, cards
from pipeline.storage.locks import FolderLock
from pipeline.storage.run_files import finished_manifest
from pipeline.storage.steps import Step, write_manifest
from pipeline.storage.store import Command
from pipeline.system import signals
from pipeline.system.progress import format_attempts, format_seconds
from pipeline.training.budget import EXIT_SLACK_SECONDS
from pipeline.training.cap import Cap, check_cap, check_names, is_last_process, pretrain_cap

if TYPE_CHECKING:
    from pipeline.training.loop import Training


def run(config: Config, step: Step, command: Command) -> None:
    """Trains until the cap, or resumes what a killed process left, or prints that it is up to date.

    Data and init are there. Raises `UserError`, `Busy`, `DiskFull`, `Diverged`, `Stopped`.
    """
    experiment, store = Experiment(config), command.store
    manifest = finished_manifest(step, config.budget)
    if manifest is not None:
        experiment.link("pretrain", step.path)
        print("pretrain: up to date\n" + _last_lines(manifest, step.path, command.words), flush=True)
        return
    cap = pretrain_cap(config, step)
    check_cap("pretrain", config, step, cap)
    step.path.mkdir(parents=True, exist_ok=True)
    with (
        FolderLock(step.path, wait=False) as lock,
        experiment.ledger(
            "pretrain", step.fingerprint, config.train.device, folder=step.path, waited_seconds=lock.waited_seconds
        ) as ledger,
        store.copied(lambda: _seconds_for_copies(command, cap, ledger), ledger.write),
        experiment.linked("pretrain", step.path),
    ):
        check_names(config)  # loads torch: a second trainer is gone by now, and from here on a kill's cost is on record
        experiment.record()
        for name in step.inputs:
            experiment.link(name, step.input(name).path)
        began = time.monotonic()
        command.write_page(config)  # of what there is so far
        page_seconds = time.monotonic() - began  # which the end of the run sets aside
        started, began = time.time(), time.monotonic()
        signals.defer(is_last_process(cap, step, ledger))
        from pipeline.training.loop import Training  # loads lightning: a stop that comes here need not wait for it

        training = Training("pretrain", config, step, cap, experiment, ledger, command.replay)
        facts = _train(config, step, command, training, page_seconds)
        ledger.write()  # the hours by device are summed from it
        hours = ledger.spent_seconds / 3600
        facts["cards"] = cards(ledger.paths[-1], "pretrain", step.fingerprint)
        facts["gpu_hours_total"] = hours + cap.source_seconds / 3600
        manifest = write_manifest(
            step, experiment=config.name, started=started, seconds=time.monotonic() - began, facts=facts,
            device=training.machine.name, gpu_hours=hours, only=("model",),
        )  # fmt: skip
        ledger.write()  # the page sums it
        fits = cap.left_seconds(ledger.spent_seconds) >= page_seconds
        left_out = f"the cap left no time for it; run: hornbook report {command.words}"
        page = command.write_page(config) if fits else left_out
        print(f"pretrain: done\n{_last_lines(manifest, step.path, command.words)}\n  report: {page}", flush=True)
        store.push(step.path)


def _train(config: Config, step: Step, command: Command, training: "Training", page_seconds: float) -> dict[str, Any]:
    """The parts of a pretraining, in the order in which they are needed."""
    from model.hf import load_network
    from model.optim import held_dtype
    from pipeline.corpus.text.shards import TokenShards
    from pipeline.training.batches import TokenBatches
    from pipeline.training.finish import finish
    from pipeline.training.validation import Validation

    device = training.machine.device
    tokens = TokenShards.open(step.input("data").path)
    # In the numbers that it is kept in: fp32 on the way there would be twice what a card of the 9.5 GiB mode has.
    network = load_network(step.input("init").path, held_dtype(training.machine.precision), device=device)
    network.document_end_id = tokens.eos_token_id if config.train.mask_documents else None
    batches = TokenBatches(tokens.train, config, device)
    validation = Validation(tokens.val, config.train.sequence_length, tokens.eos_token_id)
    tasks = command.progress_tasks and command.progress_tasks(config, tokens, step.path, training.cap)
    return training.run(
        network, batches, validation, lambda control: finish(control, config, step.path, tokens), tasks=tasks,
        report_seconds=page_seconds, copy_seconds=command.store.limit_seconds(training.cap.seconds),
    )  # fmt: skip


def _seconds_for_copies(command: Command, cap: Cap, ledger: Ledger) -> float:
    """How long the end may wait for copies: never past the cap."""
    limit = command.store.limit_seconds(cap.seconds)
    return max(0.0, min(cap.left_seconds(ledger.spent_seconds) - EXIT_SLACK_SECONDS, limit))


def _last_lines(manifest: dict[str, Any], path: Path, command: str) -> str:
    """What happened, for a person."""
    after, before = manifest["bits_per_byte"], manifest["initial_bits_per_byte"]
    hours, cap = manifest["gpu_hours"], manifest["max_gpu_hours"]
    used = f"{hours:.4f} device-hours ({format_seconds(hours * 3600)})"
    total = manifest["gpu_hours_total"]
    used += f" and {total - hours:.4f} of the source" if total > hours else ""
    used += f" of {cap:g}, {100 * total / cap:.1f}%" if cap else ""
    mfu = f", MFU {100 * manifest['mfu']:.0f}%" if manifest["mfu"] else ""
    epochs = ", ".join(f"{name} {value:.2f}" for name, value in manifest["epochs"].items())
    share = manifest.get("validated_share", 1)
    part = "" if share == 1 else f"   (on {100 * share:.0f}% of the held-out text: the cap left no time for more)"
    if trunk := manifest.get("trunk"):
        used += f", {trunk['gpu_hours']:.4f} of them the trunk's ({trunk['steps']:,} steps)"
    lines = [f"  bits per byte   before    after  95% interval over documents{part}"]
    lines += [
        f"    {name:<13} {before.get(name, math.nan):7.4f}  {value:7.4f}  {beside(manifest, name)}"
        for name, value in after.items()
    ]
    lines += [f"  {line}" for line in replay_lines(manifest)]
    skipped = f", {manifest['skipped_steps']} of them skipped" if manifest.get("skipped_steps") else ""
    lines += [
        f"  {manifest['tokens_seen']:,} tokens in {manifest['steps']:,} steps{skipped}; epochs: {epochs}",
        f"  {manifest['tokens_per_second']:,.0f} tokens/s{mfu}, "
        f"peak memory {manifest['peak_memory_bytes'] / 1e9:.2f} GB",
        f"  {used}, {format_attempts(manifest['lives'])}; {_how_it_ended(manifest)}",
    ]
    lines += forecast_lines(manifest["forecast"])
    for sample in manifest["samples"]:
        text = sample["prompt"] + sample["text"]
        lines += ["  sample:", *(f"    | {line}" for line in text.splitlines()[:8])]
    lines += [f"  model: {path / manifest['model']}", f"  next: hornbook sample {command}"]
    return "\n".join(lines)


def _how_it_ended(manifest: dict[str, Any]) -> str:
    if manifest["exported_step"] != manifest["steps"]:
        return f"the model is the best one on held-out text, of step {manifest['exported_step']:,}"
    return "annealed" if manifest["annealed"] else "NOT ANNEALED"


def forecast_lines(forecast: dict[str, Any]) -> list[str]:
    """For the end of a run: how far off the forecasts were, and what to make of it."""
    time, memory = forecast["time"], forecast["memory"].get("ratio")
    parts = [f"{name} {value:.3f}" for name, value in (("memory", memory), ("length", time.get("ratio"))) if value]
    lines = [f"  forecast over fact: {', '.join(parts)}"] if parts else []
    if "range" not in time:
        return lines
    low, high = time["range"]
    fact = time[time["unit"]]
    said = f"    length: at step {time['at_step']:,} {low:,} to {high:,} {time['unit']} were forecast, {fact:,} came"
    if again := time.get("again"):
        low_again, high_again = again["range"]
        said += f"; at step {again['at_step']:,} {low_again:,} to {high_again:,} (over fact {again['ratio']:.3f})"
    if low <= fact <= high:
        return [*lines, f"{said}: within the range"]
    planned, later = time.get("planned_step_seconds"), time.get("later_step_seconds")
    if planned and later and abs(later / planned - 1) > 0.05:
        how = "slower" if later > planned else "faster"
        said += f": a step took {later:.3g} s after it, {planned:.3g} s were measured before: the machine got {how}"
    return [*lines, said]
