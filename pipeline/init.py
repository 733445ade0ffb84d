"""The init stage: the model that pretraining starts from, grown from a smaller one or fresh.

In: the data stage (tokenizer, held-out text) and, for growth, a source model: a hornbook experiment or a Hugging Face
model folder. Out: a Hugging Face folder in fp32. The gate measures source and grown model on the same held-out windows;
a method that claims to preserve the function and does not, fails the stage.
"""

from pathlib import Path
from typing import Any

from pipeline import stages
from pipeline.config import Config
from pipeline.growing.grow import GATE_WINDOWS, HeldOut, SourceFiles, check_method, grow_folder, measure
from pipeline.storage.experiment import Experiment
from pipeline.storage.files import hash_file
from pipeline.storage.hub import MODEL_FILES, Unavailable, hub_shape, is_hub_name, known_shape, local_folder
from pipeline.storage.run_files import WEIGHTS
from pipeline.storage.steps import Folder, Step, content_hash, hash_outputs, read_manifest
from pipeline.storage.store import Command, build
from pipeline.system.errors import UserError
from pipeline.system.progress import format_seconds


def run(config: Config, step: Step, command: Command) -> None:
    """Grows, measures and prints what came out. The data stage and the source are there."""
    experiment = Experiment(config)
    experiment.record()
    fresh = not step.finished
    with experiment.ledger("init", step.fingerprint, waited_seconds=command.waited_seconds):
        makers = {step.fingerprint: lambda folder: _make(config, folder)}
        manifest = build(step, makers, experiment=config.name, store=command.store)
    experiment.link("data", step.input("data").path)
    experiment.link("init", step.path)
    print(_last_lines(manifest, step.path, fresh, command.words), flush=True)
    command.write_page(config)


def _make(config: Config, folder: Folder) -> dict[str, Any]:
    from model.hf import open_model

    check_method(config)
    files = source_files(config)
    source = open_model(files.folder, files.weights) if files else None
    _check_vocabulary(config, folder.input("data"), source[0] if source else None)
    facts = grow_folder(config, source, folder.path, tokenizer_json=folder.input("data") / "tokenizer.json")
    windows = _held_out_windows(config, folder.input("data"))
    return {**facts, **measure(config, files, folder.path, windows), **_source_facts(config)}


def tensor_map(config: Config) -> list[str]:
    """Lines `name, from, to, rule` for every tensor of the grown model, from shapes alone.

    Of a source on the hub its config.json is fetched at most; empty where the hub does not give it. Raises `UserError`.
    """
    from model.growth import GROWTH, rules
    from model.hf import load_config

    check_method(config)
    name, source = config.init.source, None
    if name is not None and is_hub_name(name):
        try:
            source = known_shape(name, "init.source") or hub_shape(name, "init.source")
        except Unavailable:  # what this prints is of use without a network too
            return []
    elif stages.source_is_experiment(config):
        source = stages.source_config(config).model
    elif name is not None:
        source = load_config(local_folder(name, "init.source", MODEL_FILES))
    try:
        return list(rules.tensor_map(GROWTH[config.init.method](source, config.model, **config.init.options), source))
    except ValueError as error:
        raise UserError(str(error)) from None


def _held_out_windows(config: Config, data: Path) -> HeldOut:
    """The first windows of every validation source in turn, so that all kinds of text are in."""
    import numpy as np
    import torch

    from pipeline.corpus.text.shards import TokenShards

    shards = TokenShards.open(data)
    general = [s for name, s in sorted(shards.val.items()) if name != "textbook"]
    length = config.train.sequence_length
    rows = [
        np.asarray(s.tokens[i * length : (i + 1) * length], dtype=np.int64)
        for i in range(GATE_WINDOWS)
        for s in general
        if (i + 1) * length <= s.n_tokens
    ][:GATE_WINDOWS]
    if not rows:
        raise UserError(
            f"held-out text is shorter than one window of {length} tokens; raise data.validation.share, add text, or "
            "split a single document into several files or records"
        )
    byte_count = sum(s.n_bytes for s in general) / max(1, sum(s.n_tokens for s in general))
    return HeldOut(torch.from_numpy(np.stack(rows)), byte_count)


def source_files(config: Config) -> SourceFiles | None:
    """The files that this config grows from, every byte of them looked at; None without a source.
    Raises `UserError`."""
    if config.init.source is None:
        return None
    if not stages.source_is_experiment(config):
        if config.init.source_checkpoint != "final":
            raise UserError(
                f"init.source_checkpoint={config.init.source_checkpoint} needs a source experiment (a .yaml): "
                f"{config.init.source} holds one set of weights only; set init.source_checkpoint=final"
            )
        folder = local_folder(config.init.source, "init.source", MODEL_FILES)
        return SourceFiles(folder, folder)
    step = stages.pretrain_step(stages.source_config(config))
    if config.init.source_checkpoint == "final":
        folder = _whole_model(step)
        return SourceFiles(folder, folder)
    early = stages.before_decay(step)
    if hash_file(early.folder / WEIGHTS) != early.sha256:
        raise UserError(f"{early.folder / WEIGHTS} is damaged; set init.source_checkpoint=final")
    return SourceFiles(step.path / "model", early.folder)


def _whole_model(step: Step) -> Path:
    """The source experiment's model folder, after a look at every byte: it may be damaged, or just being extended."""
    if content_hash(hash_outputs(step.path, ("model",)), step.reports) != read_manifest(step.path)["content_hash"]:
        raise UserError(
            f"{step.path / 'model'} is not what its manifest says: it is damaged, or another process is extending "
            "that run. Wait for it and run this again; delete the folder's manifest.json to train the source again"
        )
    return step.path / "model"


def _source_facts(config: Config) -> dict[str, Any]:
    if config.init.source is None or not stages.source_is_experiment(config):
        return {"source_gpu_hours": None, "source_checkpoint": None}
    step = stages.pretrain_step(stages.source_config(config))
    taken: dict[str, Any] = {"which": config.init.source_checkpoint}
    if config.init.source_checkpoint == "before_decay":
        taken["step"] = stages.before_decay(step).step
    # The hours of the whole source, its decay included: they were spent, whichever weights are taken.
    return {"source_gpu_hours": read_manifest(step.path).get("gpu_hours_total"), "source_checkpoint": taken}


def _check_vocabulary(config: Config, data: Path, source: Any) -> None:
    tokens = read_manifest(data)["vocab_size"]
    if tokens > config.model.vocab_size:
        raise UserError(
            f"the tokenizer has {tokens} entries but model.vocab_size is {config.model.vocab_size}: the model would "
            f"have no row for some tokens; set model.vocab_size={tokens} or more"
        )
    if source is not None and source.vocab_size != config.model.vocab_size:
        raise UserError(
            f"model.vocab_size is {config.model.vocab_size}, the source's is {source.vocab_size}; growth keeps the "
            f"vocabulary: set model.vocab_size={source.vocab_size}"
        )


def _last_lines(manifest: dict[str, Any], path: Path, fresh: bool, command: str) -> str:
    parameters = manifest["parameters"]
    checkpoint = manifest.get("source_checkpoint") or {}
    early = f" (step {checkpoint['step']:,}, before its decay)" if "step" in checkpoint else ""
    lines = [f"init: {'done in ' + format_seconds(manifest['seconds']) if fresh else 'up to date'}"]
    if parameters["source"]:
        lines += [
            f"  {manifest['method']}: {parameters['source'] / 1e6:.2f}M{early} -> {parameters['grown'] / 1e6:.2f}M "
            "parameters",
            f"  bits per byte on held-out text: source {manifest['source_bits_per_byte']:.4f}, "
            f"grown {manifest['grown_bits_per_byte']:.4f}",
            f"  largest logit difference {manifest['max_abs_logit_diff']:.1e} "
            f"({manifest['max_rel_logit_diff']:.1e} of the largest logit)",
        ]
    else:
        lines.append(
            f"  {manifest['method']}: {parameters['grown'] / 1e6:.2f}M parameters, "
            f"{manifest['grown_bits_per_byte']:.3f} bits per byte before any training"
        )
    return "\n".join([*lines, f"  model: {path}", f"  next: hornbook pretrain {command}"])
