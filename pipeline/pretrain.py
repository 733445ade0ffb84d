"""The pretrain stage: tokens and an initialized network in, an annealed model out, inside a cap of GPU-hours.

In: the data folder, the init folder, `train` and `budget` of the config. Out: `checkpoints/`, `decisions.jsonl`,
`metrics.jsonl` and `model/`, a Hugging Face folder. Every second of every process counts, so whatever can be known
to be wrong is found before torch is imported, and a run that was killed goes on from its newest whole checkpoint.
"""

import math
import time
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.corpus.text.intervals import beside, replay_lines
from pipeline.init import check_method
from pipeline.planner.costs import validation_cost
from pipeline.planner.epochs import validation_tokens
from pipeline.remote import download as pulling
from pipeline.remote import upload as pushing
from pipeline.remote.place import place
from pipeline.reporting import page as report
from pipeline.storage import ledger as ledgers
from pipeline.storage.experiment import Experiment
from pipeline.storage.ledger import Ledger
from pipeline.storage.locks import FolderLock
from pipeline.storage.steps import Step, read_manifest, write_manifest
from pipeline.system import signals
from pipeline.system.errors import UserError
from pipeline.system.progress import format_seconds
from pipeline.training.budget import EXIT_SLACK_SECONDS
from pipeline.training.cap import Cap, pretrain_cap
from pipeline.training.identity import finished_manifest, pretrain_step
from pipeline.training.loop import Job, check_cap, is_last_life, train

__all__ = ["pretrain_step", "run"]


def run(config: Config, command: str, replay: str | None = None) -> None:
    """Trains until the cap, or goes on with what a killed process left, or says that it is up to date.

    `command`: what the user typed after `hornbook pretrain`, for messages. `replay`: a `decisions.jsonl` to repeat.
    Raises `UserError`, `Busy`, `DiskFull`, `Diverged`, `Stopped`.
    """
    pulling.fetch_source(config)
    signals.defer(True)  # until the ledger is open: a life that is stopped before would not count
    step = pretrain_step(config)
    experiment = Experiment(config)
    manifest = finished_manifest(step, config.budget)
    if manifest is None:
        signals.defer(place() is None)  # a download may take long
        pulling.fetch_run(step, config)
        signals.defer(True)
        manifest = finished_manifest(step, config.budget)
    if manifest is not None:
        pulling.copy_finished(step, config)
        experiment.link("pretrain", step.path)
        print("pretrain: up to date\n" + _last_lines(manifest, step.path, command), flush=True)
        return
    _check_inputs(config, step, command)
    _tell_validation_cost(config, step)
    if config.evaluate.every_tokens:
        from pipeline.evaluation.choice_sets import check_sets
        from pipeline.evaluation.tasks import check_tasks

        check_tasks(config.evaluate.during, "evaluate.during")
        check_sets(config.evaluate.sets, config.data.max_unreadable)
    cap = pretrain_cap(config, step)
    check_cap("pretrain", config, step, cap)
    step.path.mkdir(parents=True, exist_ok=True)
    with (
        FolderLock(step.path, wait=False) as lock,
        experiment.ledger(
            "pretrain",
            step.fingerprint,
            config.train.device,
            folder=step.path,
            waited_seconds=lock.waited_seconds,
        ) as ledger,
        pushing.pushed(lambda: _seconds_for_copies(cap, ledger), ledger.write),
        experiment.linked("pretrain", step.path),
    ):
        # Loads torch, so not before: a second trainer is gone by now, and what a kill costs from here on is on record.
        check_method(config)
        experiment.record()
        for name in step.inputs:
            experiment.link(name, _input(step, name))
        report_seconds = _write_first_report(config)
        started, began = time.time(), time.monotonic()
        signals.defer(is_last_life(cap, step, ledger))
        facts, device = _train(config, step, cap, experiment, ledger, report_seconds, replay)
        hours = ledger.spent_seconds / 3600
        ledger.write()  # the cards' hours are summed from it
        facts["cards"] = ledgers.cards(ledger.paths[-1], "pretrain", step.fingerprint)
        facts["gpu_hours_total"] = hours + cap.source_seconds / 3600
        manifest = write_manifest(
            step,
            experiment=config.name,
            started=started,
            seconds=time.monotonic() - began,
            facts=facts,
            device=device,
            gpu_hours=hours,
            only=("model",),
        )
        ledger.write()  # the page sums it
        fits = cap.left_seconds(ledger.spent_seconds) >= report_seconds
        page = report.write(config) if fits else f"the cap left no time for it; run: hornbook report {command}"
        print("pretrain: done\n" + _last_lines(manifest, step.path, command), f"  report: {page}", sep="\n", flush=True)
        pushing.push(step.path)


def _write_first_report(config: Config) -> float:
    """The page of what there is so far; returns the seconds it takes here, which the end of the run sets aside."""
    started = time.monotonic()
    report.write(config)
    return time.monotonic() - started


def _seconds_for_copies(cap: Cap, ledger: Ledger) -> float:
    """How long the end may wait for HORNBOOK_REMOTE: never past the cap."""
    limit = pushing.limit_seconds(cap.seconds)
    return max(0.0, min(cap.left_seconds(ledger.spent_seconds) - EXIT_SLACK_SECONDS, limit))


def _train(
    config: Config,
    step: Step,
    cap: Cap,
    experiment: Experiment,
    ledger: Ledger,
    report_seconds: float,
    replayed: str | None,
) -> tuple[dict[str, Any], str]:
    from model.hf import load_network
    from pipeline.corpus.text.shards import TokenShards
    from pipeline.evaluation.during_training import ProgressTasks
    from pipeline.training.batches import TokenBatches
    from pipeline.training.decisions import Replay
    from pipeline.training.finish import finish
    from pipeline.training.validation import Validation

    tokens = TokenShards.open(_input(step, "data"))

    def network(machine: Any) -> Any:
        loaded = load_network(_input(step, "init")).to(machine.device)
        loaded.document_end_id = tokens.eos_token_id if config.train.mask_documents else None
        return loaded

    job = Job(
        "pretrain",
        config,
        step,
        batches=lambda machine: TokenBatches(tokens.train, config, machine.device),
        network=network,
        validation=lambda: Validation(tokens.val, config.train.sequence_length, tokens.eos_token_id),
        finish=lambda control: finish(control, config, step.path, tokens),
        cap=cap,
        report_seconds=report_seconds,
        replay=None if replayed is None else Replay(Path(replayed)),
        tasks=ProgressTasks(config, tokens, step.path, cap) if config.evaluate.every_tokens else None,
    )
    return train(job, experiment, ledger)


def _check_inputs(config: Config, step: Step, command: str) -> None:
    """Data and init must be there: exit 2 with the command that makes them."""
    for name in ("data", "init"):
        needed = step.inputs[name]
        if isinstance(needed, Step) and not pulling.fetch(needed):
            raise UserError(f"{needed.path} is not made yet; run: hornbook {name} {command}")
    if config.budget.max_gpu_hours is None and config.budget.max_tokens is None and config.train.max_epochs is None:
        raise UserError("the config sets no end: set budget.max_gpu_hours (or budget.max_tokens)")


def _tell_validation_cost(config: Config, step: Step) -> None:
    """Before any work. In hours it is checked by the first pieces of the first validation."""
    words, warning = validation_cost(config, validation_tokens(read_manifest(_input(step, "data"))))
    print(f"  WARNING: {warning}" if warning else f"  {words}", flush=True)


def _input(step: Step, name: str) -> Path:
    value = step.inputs[name]
    if not isinstance(value, Step):
        raise TypeError(f"the input '{name}' of pretrain must be a step, found {value!r}")
    return value.path


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
        f"  {used}, {manifest['lives']} {'life' if manifest['lives'] == 1 else 'lives'}; " + _how_it_ended(manifest),
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
