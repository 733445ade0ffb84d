"""The finetune stage: a base model tuned on examples, inside its own cap of GPU-hours.

In: a model (this experiment's, an exported one, any model folder), `finetune.sources` or a ready target task. Out:
`model/` (the whole tuned model), `adapter/` (LoRA, in peft's format), and the gain on the target task. Batches, budget,
ledger, checkpoints, resume and tracking are pretraining's. The base model is measured on the task first, and the result
printed: whether tuning is likely to pay.
"""

import dataclasses
import json
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline import config as configs
from pipeline.config import Config
from pipeline.corpus.text.intervals import beside
from pipeline.corpus.text.tokenizer import load_tokenizer
from pipeline.evaluation.model_input import ModelInput, check_model, find_model
from pipeline.release.formats import no_memory_saved
from pipeline.storage.experiment import Experiment
from pipeline.storage.files import hash_file, hash_json
from pipeline.storage.locks import FolderLock
from pipeline.storage.run_files import REPORTS, finished_manifest
from pipeline.storage.steps import Step, write_manifest
from pipeline.storage.store import Command
from pipeline.system import signals
from pipeline.system.errors import UserError
from pipeline.system.progress import format_attempts, format_seconds
from pipeline.training.cap import Cap, check_cap
from pipeline.tuning.data import (
    Pieces,
    Target,
    TuningData,
    are_texts,
    encode,
    make_target,
    read_sources,
    source_files,
    target_task,
)

VERSION = 4


def run(config: Config, step: Step, command: Command) -> None:
    """Tunes until the cap, resumes what a killed process left, or prints that it is up to date."""
    options, store = config.finetune, command.store
    model = find_model("finetune", config, command.words)
    tuned, sources = check_options(config)
    store.fetch(step)  # a tuning that another machine finished
    manifest = finished_manifest(step, options.budget)
    fresh = manifest is None
    if manifest is None:
        check_model(model, "finetune")
        check_cap("finetune", tuned, step, Cap(options.budget.max_gpu_hours), key="finetune.budget")
        manifest = _tune(config, tuned, model, sources, step)
    else:
        Experiment(config).link("finetune", step.path)
    store.push(step.path)  # also where an earlier process was stopped before all of it was copied
    command.write_page(config)
    if command.as_json:
        print(json.dumps(manifest, indent=1), flush=True)
    else:
        print(f"finetune: {'done' if fresh else 'up to date'}\n{_last_lines(manifest, step.path)}", flush=True)


def check_options(config: Config) -> tuple[Config, dict[str, list[Pieces]]]:
    """The experiment as the training code sees it, and the examples of its sources. Raises `UserError` for options
    that cannot work with any model: sources, task, end, a missing package."""
    tuned = tuning_config(config)
    if _target(config) is None and not config.finetune.sources:
        raise UserError("finetune has nothing to learn from: set finetune.sources, or a finetune.task")
    _check_packages(config.finetune.method)
    return tuned, read_sources(config.finetune.sources)


def _check_packages(method: str) -> None:
    """Raises `UserError` where the method's packages are not installed."""
    needed = {"lora": ("peft",), "qlora": ("peft", "torchao"), "full": ()}[method]
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        extras = "finetune,quantize" if "torchao" in missing else "finetune"
        raise UserError(
            f"finetune.method={method} needs {' and '.join(missing)}: pip install 'hornbook[{extras}]', or set "
            "finetune.method=full"
        )


def finetune_step(config: Config, command: str) -> Step:
    """What a tuning is; imports no torch. Raises `UserError` for sources that cannot be read, or an unknown task."""
    options = config.finetune
    model = find_model("finetune", config, command)
    files = {name: [hash_file(p) for p in source_files(name, source)] for name, source in options.sources.items()}
    identity = configs.identity(options) | {"budget": None}
    if options.budget.apart:
        identity["apart"] = options.budget.apart
    return Step(
        "finetune",
        VERSION,
        {"finetune": identity, "seed": config.seed},
        {"model": model.content, "sources": hash_json(files)},
        ("torch", "lightning", *(["peft"] if options.method != "full" else [])),
        reports=REPORTS,
    )


def tuning_config(config: Config) -> Config:
    """The experiment as the shared training code sees it: `train` and `budget` are `finetune`'s. Raises `UserError`."""
    options = config.finetune
    configs.check_end(options.train, options.budget, "finetune", "finetune.budget")
    tuned = dataclasses.replace(
        config,
        train=options.train,
        budget=options.budget,
        data=configs.DataConfig(),
        sample=configs.SampleConfig(prompts=[]),
    )
    longest = options.train.sequence_length
    shape = dataclasses.replace(
        config.model, max_position_embeddings=max(longest, config.model.max_position_embeddings)
    )
    configs.validate(dataclasses.replace(tuned, model=shape), "finetune")
    return tuned


def _target(config: Config) -> Target | None:
    options = config.finetune
    task = target_task(options)
    return None if task is None else make_target(task, options.examples, options.items, config.seed)


def _tune(config: Config, tuned: Config, model: ModelInput, sources: Any, step: Step) -> dict[str, Any]:
    from pipeline.training.loop import Training

    experiment, options = Experiment(config), config.finetune
    step.path.mkdir(parents=True, exist_ok=True)
    experiment.record()
    signals.defer(True)
    with (
        FolderLock(step.path, wait=False),
        experiment.ledger("finetune", step.fingerprint, options.train.device, folder=step.path) as ledger,
        experiment.linked("finetune", step.path),
    ):
        started = time.time()
        tuning = _make_tuning(config, tuned, model, sources, step)
        cap = Cap(tuning.tuned.budget.max_gpu_hours)
        training = Training("finetune", tuning.tuned, step, cap, experiment, ledger)
        facts = tuning.run(training)
        manifest = write_manifest(
            step,
            experiment=config.name,
            started=started,
            facts=facts,
            device=training.machine.name,
            gpu_hours=ledger.spent_seconds / 3600,
            only=("model", "adapter") if facts["adapter"] else ("model",),
        )
        ledger.write()
        return manifest


def _make_tuning(config: Config, tuned: Config, model: ModelInput, sources: Any, step: Step) -> Any:
    """What is tuned on what, with windows as long as the examples need."""
    from model.hf import load_config
    from pipeline.tuning.run import Tuning

    shape, target = load_config(model.folder), _target(config)
    end = model.special_tokens().eos_token_id
    assert end is not None
    data = _data(config, sources, target, load_tokenizer(model.tokenizer_json), end, shape)
    rows = max(1, tuned.train.global_batch_tokens // data.length)
    windows = dataclasses.replace(tuned.train, sequence_length=data.length, global_batch_tokens=rows * data.length)
    return Tuning(config, dataclasses.replace(tuned, train=windows), model, data, target, end, step.path)


def _data(config: Config, sources: Any, target: Any, tokenizer: Any, end: int, shape: Any) -> TuningData:
    """The sources' examples, or the ready task's where there are no sources."""
    options = config.finetune
    text_sources = [name for name, source in options.sources.items() if are_texts(name, source)]
    if not sources:
        sources = {target.name: [[(prompt, False), (label, True), ("", True)] for prompt, label in target.train]}
    most = min(options.train.sequence_length, shape.max_position_embeddings)
    data = encode(sources, text_sources, tokenizer, end, most, options.validation_share, config.seed)
    for name, (learnt, held_out) in data.examples.items() if options.sources else ():
        print(f"  {name}: {learnt:,} examples to learn from, {held_out:,} of your own held out to test on", flush=True)
    if data.cut:
        print(f"  {data.cut:,} examples are longer than {data.length} tokens and keep only their end", flush=True)
    return data


def _last_lines(manifest: dict[str, Any], path: Path) -> str:
    hours, cap = manifest["gpu_hours"], manifest["max_gpu_hours"]
    after, before = manifest["bits_per_byte"], manifest["initial_bits_per_byte"]
    lines = [
        f"  {manifest['method']}: {manifest['trainable_parameters']:,} of {manifest['parameters']:,} parameters "
        f"trained ({100 * manifest['trainable_share']:.2f}%)"
    ]
    lines += [
        f"  bits per byte learnt, {n}: {before.get(n, float('nan')):.4f} -> {v:.4f} ({beside(manifest, n)})"
        for n, v in after.items()
    ]
    if target := manifest["target"]:
        lines.append(
            f"  {target['name']}: {100 * target['before']:.1f}% -> {100 * target['after']:.1f}% "
            f"(± {100 * target['standard_error']:.1f} points, {target['items']} items, "
            f"guessing {100 * target['chance']:.0f}%)"
        )
    if memory := manifest["memory_bytes"]:
        shown = ", ".join(f"{k} {v / 1e6:,.1f} MB" if v else f"{k} did not fit" for k, v in memory.items())
        lines.append(f"  memory of a step, above an empty process: {shown}{no_memory_saved(manifest)}")
    used = f"{hours:.4f} device-hours ({format_seconds(hours * 3600)})" + (f" of {cap:g}" if cap else "")
    lines.append(
        f"  {manifest['steps']:,} steps; {used}, {format_attempts(manifest['lives'])}; "
        f"{'annealed' if manifest['annealed'] else 'NOT ANNEALED'}"
    )
    lines.append(f"  model: {path / 'model'}")
    if manifest["adapter"]:
        lines.append(f"  adapter: {path / 'adapter'} (peft)")
    return "\n".join(lines)
