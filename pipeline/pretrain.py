"""The pretrain stage: tokens and an initialized network in, an annealed model out, inside a cap of GPU-hours.

In: the data folder, the init folder, `train` and `budget` of the config. Out: `checkpoints/`, `decisions.jsonl`,
`metrics.jsonl` and `model/`, a Hugging Face folder. Every second of every process counts, so whatever can be known
to be wrong is found before torch is imported, and a run that was killed goes on from its newest whole checkpoint.
"""

import math
import time
from pathlib import Path
from typing import Any

from pipeline import ledger as ledgers
from pipeline import report
from pipeline.artifacts import Step, read_manifest, write_manifest
from pipeline.config import Config
from pipeline.errors import Stopped, UserError
from pipeline.experiment import Experiment
from pipeline.initialize import check_method
from pipeline.ledger import LEDGER, Ledger, process_age_seconds, spent_seconds
from pipeline.locks import FolderLock
from pipeline.progress import format_seconds
from pipeline.training.decisions import Decisions
from pipeline.training.identity import finished_manifest, pretrain_step, raised_decay
from pipeline.training.replay import replay_lines

__all__ = ["pretrain_step", "run"]

LEAST_START_SECONDS = 2.0  # imports alone; a fast machine needs this much


def run(config: Config, command: str, replay: str | None = None) -> None:
    """Trains until the cap, or goes on with what a killed process left, or says that it is up to date.

    `command`: what the user typed after `hornbook pretrain`, for messages. `replay`: a `decisions.jsonl` to repeat.
    Raises `UserError`, `Busy`, `DiskFull`, `Diverged`, `Stopped`.
    """
    step = pretrain_step(config)
    experiment = Experiment(config)
    manifest = finished_manifest(step, config.budget)
    if manifest is not None:
        experiment.link("pretrain", step.path)
        print("pretrain: up to date\n" + _last_lines(manifest, step.path, command), flush=True)
        return
    _check_inputs(config, step, command)
    _check_cap(config, step)
    check_method(config)
    step.path.mkdir(parents=True, exist_ok=True)
    experiment.record()
    with (
        FolderLock(step.path, wait=False) as lock,
        experiment.ledger(
            "pretrain",
            step.fingerprint,
            config.train.device,
            folder=step.path,
            waited_seconds=lock.waited_seconds,
        ) as ledger,
    ):
        experiment.link("pretrain", step.path)
        started, began = time.time(), time.monotonic()
        facts, device = _train(config, step, experiment, ledger, replay)
        hours = ledger.spent_seconds / 3600
        ledger.write()  # the cards' hours are summed from it
        facts["cards"] = ledgers.cards(ledger.paths[-1], "pretrain", step.fingerprint)
        facts["gpu_hours_total"] = hours + _source_seconds(config, step) / 3600
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
        page = report.write(config)
        print("pretrain: done\n" + _last_lines(manifest, step.path, command), f"  report: {page}", sep="\n", flush=True)


def _train(
    config: Config, step: Step, experiment: Experiment, ledger: Ledger, replayed: str | None
) -> tuple[dict[str, Any], str]:
    from model.hf import load_network
    from pipeline.corpus.shards import TokenShards
    from pipeline.training import branching, devices, mirrors, tracking
    from pipeline.training.batches import TokenBatches
    from pipeline.training.budget import Budget, planned_decay_start
    from pipeline.training.callbacks import Control, Parts
    from pipeline.training.checkpoint import Checkpoints, seed_random_state
    from pipeline.training.finish import finish
    from pipeline.training.forecast import MemoryForecast
    from pipeline.training.module import PretrainModule
    from pipeline.training.replayed import Replay
    from pipeline.training.trainer import build_trainer
    from pipeline.training.validation import Validation

    folder, train = step.path, config.train
    replay = None if replayed is None else Replay(Path(replayed))
    if replay is not None:
        train.precision = replay.precision.pop()
    machine = devices.choose(train)
    ledger.device = machine.name
    print(f"pretrain: {machine.describe()}", flush=True)
    mirror = mirrors.of(config, step, experiment.folder, lambda line: print(f"  {line}", flush=True))
    decisions = _open_decisions(config, folder, replay)
    ledger.inherited_seconds = branching.begin(config, folder, decisions)
    tokens = TokenShards.open(_input(step, "data"))
    memory = MemoryForecast(decisions, machine, machine.held_bytes())
    network = load_network(_input(step, "init")).to(machine.device)
    source_seconds = _source_seconds(config, step)
    batches = TokenBatches(tokens.train, config, machine.device)
    plan = _plan(config, batches)
    if replay is not None:
        plan.cap_seconds = None  # the record says where the run ends
    budget = Budget(plan, lambda: ledger.spent_seconds + source_seconds, decisions)
    budget.replayed_end = None if replay is None else replay.end_step
    start = None if plan.max_steps is None else planned_decay_start(plan.max_steps, train.decay_share)
    print(batches.describe(plan.max_steps, start, at_most=plan.cap_seconds is not None), flush=True)
    network.document_end_id = tokens.eos_token_id if train.mask_documents else None
    validation = Validation(tokens.val, train.sequence_length)
    checkpoints = Checkpoints(folder / "checkpoints", train.keep_checkpoints, decisions)
    module = PretrainModule(network, train, machine.precision)
    seed_random_state(config.seed)
    state = checkpoints.load()
    tracking.cut_metrics(folder / "metrics.jsonl", _last_row(state))
    flops = network.config.flops_per_token(train.sequence_length)
    with tracking.Metrics(folder / "metrics.jsonl", mirror) as metrics:
        parts = Parts(train, machine, batches, validation, budget, checkpoints, metrics, ledger, flops, replay)
        control = Control(parts, module, memory)
        budget.measured.device, budget.measured.peak_flops = machine.name, machine.peak_flops
        control.estimate_ends(config, mirror)
        if state is not None:
            control.load(state)
        _begin_life(config, decisions, control, ledger)
        memory.predict(module, train, plan.cap_seconds)
        if not _only_the_end_is_left(control):
            build_trainer(machine, metrics, control).fit(module, batches)
        if control.stopped:
            raise Stopped(control.stopped)
        facts = {**finish(control, config, folder, tokens), **branching.facts(decisions)}
        if mirror is not None:
            mirror.samples(module.step, facts["samples"])
            mirror.artifacts({name: read_manifest(_input(step, name)) for name in ("data", "init")})
    decisions.add("finish", module.step, annealed=facts["annealed"], stopped_by=facts["stopped_by"])
    if not facts["annealed"] and facts["exported_step"] == module.step:
        print("WARNING: this model is NOT annealed: too little of the cap was left for the decay", flush=True)
    return facts, machine.name


def _check_inputs(config: Config, step: Step, command: str) -> None:
    """Data and init must be there: exit 2 with the command that makes them."""
    for name in ("data", "init"):
        needed = step.inputs[name]
        if isinstance(needed, Step) and not needed.finished:
            raise UserError(f"{needed.path} is not made yet; run: hornbook {name} {command}")
    if config.budget.max_gpu_hours is None and config.budget.max_tokens is None and config.train.max_epochs is None:
        raise UserError("the config sets no end: set budget.max_gpu_hours (or budget.max_tokens)")


def _check_cap(config: Config, step: Step) -> None:
    """What can be said before any long work: whether the hours left are enough to start at all."""
    if config.budget.max_gpu_hours is None:
        return
    spent = spent_seconds(step.path / LEDGER, "pretrain", step.fingerprint)
    spent += _source_seconds(config, step) + process_age_seconds()
    needed, why = LEAST_START_SECONDS, "starting up alone"
    if step.finished:
        last = read_manifest(step.path)
        one_step = config.train.global_batch_tokens / max(1.0, last["tokens_per_second"])
        needed = last["start_seconds"] + (last["forecast"].get("actual", {}).get("end_seconds") or 0.0) + one_step
        why = "starting up, one step and one export took that long last time"
    elif any((step.path / "checkpoints").glob("step-*")):
        return  # something is trained: it is exported in any case
    cap = config.budget.max_gpu_hours * 3600
    if cap - spent < needed:
        raise UserError(
            f"budget.max_gpu_hours={config.budget.max_gpu_hours:g} is {cap:.1f} s, {spent:.1f} s of them are used; "
            f"what is left is less than {needed:.1f} s ({why}). Expected at least budget.max_gpu_hours="
            f"{math.ceil(spent + 2 * needed) / 3600:.4f}"
        )


def _open_decisions(config: Config, folder: Path, replay: Any) -> Decisions:
    """The record so far; a raised cap opens a new branch from before the decay."""
    from pipeline.training.tracking import set_metrics_aside

    decisions = Decisions(folder / "decisions.jsonl")
    if replay is not None:
        replay.begin(decisions)
        return decisions
    decay = raised_decay(decisions, config.budget)
    if decay is not None:
        set_metrics_aside(folder / "metrics.jsonl", decay["step"])
        limits = {"max_gpu_hours": config.budget.max_gpu_hours, "max_tokens": config.budget.max_tokens}
        decisions.add("extend", decay["step"], **limits)
        print(f"  the cap was raised: going on from step {decay['step']:,}, before the decay", flush=True)
    return decisions


def _plan(config: Config, batches: Any) -> Any:
    """The limits of the run: the hours, and the tokens or what `train.max_epochs` leaves of them."""
    from pipeline.training import branching
    from pipeline.training.budget import Plan, planned_decay_start

    budget, train = config.budget, config.train
    sizes = batches.sizes
    asked = None if budget.max_tokens is None else max(1, sizes.whole_steps(budget.max_tokens // train.sequence_length))
    most = batches.most_steps(lambda last: planned_decay_start(last, train.decay_share))
    if most == 0:
        raise UserError(
            f"train.max_epochs={train.max_epochs} leaves less text than one step of {sizes.tokens(1):,} "
            "tokens: raise it, or lower train.global_batch_tokens"
        )
    if most is None and asked is None and budget.max_gpu_hours is None:
        raise UserError(
            f"the config sets no end: train.max_epochs={train.max_epochs} leaves a source without one; set "
            "budget.max_gpu_hours (or budget.max_tokens)"
        )
    bounded = most is not None and (asked is None or most < asked)
    if most is not None and bounded:
        wanted = f", fewer than budget.max_tokens={budget.max_tokens:,}" if budget.max_tokens else ""
        tokens = sizes.tokens(most)
        print(f"  train.max_epochs ends the text after {tokens:,} tokens in {most:,} steps{wanted}", flush=True)
    return Plan(
        cap_seconds=None if budget.max_gpu_hours is None else budget.max_gpu_hours * 3600,
        max_steps=most if bounded else asked,
        decay_share=train.decay_share,
        checkpoint_every_seconds=train.checkpoint_every_seconds,
        validate_every_share=train.validate_every_share,
        max_gpu_hours=budget.max_gpu_hours,
        max_tokens=None if bounded else budget.max_tokens,
        max_steps_reason="max_epochs" if bounded else "max_tokens",
        steps_available=batches.steps_available,
        branches=branching.planned(config),
    )


def _last_row(state: Any) -> int:
    """The step of the last row of metrics that the checkpoint vouches for."""
    if state is None:
        return -1
    # The last step's row waits for its validation: `finish` writes both, in the next life if need be.
    waits = state.values["final_row"] and state.values["validated"]["step"] != state.step
    return state.step - 1 if waits else state.step


def _begin_life(config: Config, decisions: Decisions, control: Any, ledger: Ledger) -> None:
    """What the machine decided for this life, before anything follows from it."""
    from pipeline.training import cards

    machine, module, measured = control.parts.machine, control.module, control.parts.budget.measured
    place = {"step": module.step, "windows": module.windows}
    moved = cards.begin_life(decisions, ledger, machine, measured, config.budget, **place)
    if module.step:
        print(f"  life {ledger.life}: going on from step {module.step:,}", flush=True)
    if moved:
        print(f"  {moved}", flush=True)


def _only_the_end_is_left(control: Any) -> bool:
    """Trained to the end and killed while exporting, or killed so late that only an export fits."""
    budget, step = control.parts.budget, control.module.step
    control.use_decisions()
    if step == 0:
        return False
    if step >= budget.end_step(step):
        return True
    if not budget.too_late(step):
        return False
    left = round(budget.remaining_seconds(), 1)
    budget.decisions.add("emergency", step, reason="a kill left too little of the cap", remaining_seconds=left)
    print(
        f"WARNING: {left:.1f} s of the cap are left, too few for a decay: exporting step {step:,} as it is", flush=True
    )
    return True


def _input(step: Step, name: str) -> Path:
    value = step.inputs[name]
    if not isinstance(value, Step):
        raise TypeError(f"the input '{name}' of pretrain must be a step, found {value!r}")
    return value.path


def _source_seconds(config: Config, step: Step) -> float:
    """The source's training, where `budget.count_source` charges it to this cap."""
    if not config.budget.count_source:
        return 0.0
    return 3600 * (read_manifest(_input(step, "init")).get("source_gpu_hours") or 0.0)


def _last_lines(manifest: dict[str, Any], path: Path, command: str) -> str:
    """What happened, for a person."""
    after, before = manifest["bits_per_byte"], manifest["initial_bits_per_byte"]
    hours, cap = manifest["gpu_hours"], manifest["max_gpu_hours"]
    used = f"{hours:.4f} device-hours ({format_seconds(hours * 3600)})"
    used += f" of {cap:g}, {100 * hours / cap:.1f}%" if cap else ""
    mfu = f", MFU {100 * manifest['mfu']:.0f}%" if manifest["mfu"] else ""
    epochs = ", ".join(f"{name} {value:.2f}" for name, value in manifest["epochs"].items())
    share = manifest.get("validated_share", 1)
    part = "" if share == 1 else f"   (on {100 * share:.0f}% of the held-out text: the cap left no time for more)"
    if trunk := manifest.get("trunk"):
        used += f", {trunk['gpu_hours']:.4f} of them the trunk's ({trunk['steps']:,} steps)"
    lines = [f"  bits per byte   before    after{part}"]
    lines += [f"    {name:<13} {before.get(name, math.nan):7.4f}  {value:7.4f}" for name, value in after.items()]
    lines += [f"  {line}" for line in replay_lines(manifest)]
    skipped = f", {manifest['skipped_steps']} of them skipped" if manifest.get("skipped_steps") else ""
    lines += [
        f"  {manifest['tokens_seen']:,} tokens in {manifest['steps']:,} steps{skipped}; epochs: {epochs}",
        f"  {manifest['tokens_per_second']:,.0f} tokens/s{mfu}, "
        f"peak memory {manifest['peak_memory_bytes'] / 1e9:.2f} GB",
        f"  {used}, {manifest['lives']} {'life' if manifest['lives'] == 1 else 'lives'}; " + _how_it_ended(manifest),
    ]
    lines += _forecast_line(manifest["forecast"])
    for sample in manifest["samples"]:
        text = sample["prompt"] + sample["text"]
        lines += ["  sample:", *(f"    | {line}" for line in text.splitlines()[:8])]
    lines += [f"  model: {path / manifest['model']}", f"  next: hornbook sample {command}"]
    return "\n".join(lines)


def _how_it_ended(manifest: dict[str, Any]) -> str:
    if manifest["exported_step"] != manifest["steps"]:
        return f"the model is the best one on held-out text, of step {manifest['exported_step']:,}"
    return "annealed" if manifest["annealed"] else "NOT ANNEALED"


def _forecast_line(forecast: dict[str, Any]) -> list[str]:
    """How far off the forecasts were, where there are any."""
    memory, steps = forecast["memory"].get("ratio"), forecast["time"].get("ratio")
    parts = [f"{name} {value:.3f}" for name, value in (("memory", memory), ("length", steps)) if value is not None]
    return [f"  forecast over fact: {', '.join(parts)}"] if parts else []
