"""The init stage: the model that pretraining starts from, grown from a smaller one or fresh.

In: the data stage (tokenizer, held-out text) and, for growth, a source model: a hornbook experiment (trained
first where `init.train_source` allows it) or a Hugging Face Phi folder. Out: a Hugging Face folder in fp32.
The gate measures source and grown model on the same held-out windows; a method that claims to preserve the
function and does not, fails the stage.
"""

import dataclasses
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pipeline import config as configs
from pipeline.config import Config, nearest
from pipeline.corpus.text.tokenizer import special_tokens
from pipeline.data import data_step
from pipeline.growing.gate import GATE_WINDOWS, HeldOut, SourceFiles, measure, one_thread
from pipeline.growing.source import check_source, source_config, source_is_experiment
from pipeline.remote import download as pulling
from pipeline.remote.place import index_in
from pipeline.storage.experiment import Experiment
from pipeline.storage.hub import MODEL_FILES, content_of_model, is_hub_name, local_folder
from pipeline.storage.locks import FolderLock
from pipeline.storage.steps import Folder, Step, build, content_hash, hash_file, hash_outputs, read_manifest
from pipeline.system.errors import STOPPED, WRONG_INPUT, Failure, Stopped, UserError
from pipeline.system.processes import start as start_child
from pipeline.system.progress import Progress, format_seconds, progress
from pipeline.training.decisions import Decisions
from pipeline.training.identity import (
    INDEX,
    WEIGHTS,
    checkpoint_name,
    finished_manifest,
    pretrain_step,
)


def init_step(config: Config) -> Step:
    """The init stage as a cached step; imports no torch. Raises `UserError` where its source is not trained yet."""
    source = config.init.source
    inputs: dict[str, Step | str] = {"data": data_step(config)}
    if source is not None:
        inputs["source"] = _source_content(config)
    return Step(
        "init",
        2,
        lambda folder: _make(config, folder),
        init_identity(config),
        inputs,
        ("torch", "safetensors"),
        reports=(*Step.reports, "README.md"),
    )


def init_identity(config: Config) -> dict[str, Any]:
    """What of the config decides the init stage's output, its inputs aside."""
    return {
        "model": dataclasses.asdict(config.model),
        "init": {k: v for k, v in configs.identity(config.init).items() if k != "source"},
        "seed": config.seed,
        "sequence_length": config.train.sequence_length,
    }


def run(config: Config, command: str) -> None:
    """Trains the source where that is allowed and needed, then grows, measures and says what came out."""
    check_method(config)
    check_source(config)
    data = require_data(config, command)
    experiment = Experiment(config)
    experiment.record()
    pulling.fetch_source(config)
    waited_from = time.monotonic()
    if source_is_experiment(config):
        _ensure_source(config, command)
    waited_seconds = time.monotonic() - waited_from
    step = init_step(config)
    fresh = not step.finished
    # The source's own ledger has the seconds of its training.
    with experiment.ledger("init", step.fingerprint, waited_seconds=waited_seconds):
        manifest = build(step, experiment=config.name)
    experiment.link("data", data.path)
    experiment.link("init", step.path)
    print(_last_lines(manifest, step.path, fresh, command), flush=True)
    from pipeline.reporting import page as report

    report.write(config)


def check_method(config: Config) -> None:
    """Unknown method, option, optimizer or decay, a source too many or too few: said before any work."""
    from model.growth import GROWTH
    from model.optim import OPTIMIZERS
    from model.schedules import DECAYS

    for key, table in (("optimizer", OPTIMIZERS), ("decay", DECAYS)):
        name = getattr(config.train, key)
        if name not in table:
            raise UserError(f"train.{key} is '{name}'{nearest(name, table)}; expected one of {', '.join(table)}")
    method = GROWTH.get(config.init.method)
    if method is None:
        raise UserError(
            f"init.method is '{config.init.method}'{nearest(config.init.method, GROWTH)}; "
            f"expected one of {', '.join(GROWTH)}"
        )
    options = list(method.options)
    for key in config.init.options:
        if key not in options:
            raise UserError(
                f"init.options.{key}: method '{config.init.method}' has no such option{nearest(key, options)}; "
                f"it takes {', '.join(options) or 'none'}"
            )
    if method.needs_source and config.init.source is None:
        raise UserError(
            f"init.method '{config.init.method}' grows a smaller model: set init.source, or init.method=random"
        )
    if not method.needs_source and config.init.source is not None:
        raise UserError(
            f"init.method is '{config.init.method}', which uses no source: set init.method=exact, or init.source=null"
        )


def require_data(config: Config, command: str) -> Step:
    """The finished data step. Raises `UserError` with the command that makes it."""
    step = data_step(config)
    if not pulling.fetch(step):
        raise UserError(f"the data of this config is not made yet; run: hornbook data {command}")
    return step


def _source_content(config: Config) -> str:
    """What the fingerprint holds of the source: the content of its weights, not its name or its hours."""
    if not source_is_experiment(config):
        return content_of_model(config.init.source or "", "init.source")
    source = source_config(config)
    if config.init.source_checkpoint == "before_decay" and pretrain_step(source).finished:
        return before_decay(pretrain_step(source)).sha256
    step = pretrain_step(source)
    if not step.finished:
        raise UserError(
            f"the source experiment {config.init.source} is not trained yet (it costs {_price(source)}), so this "
            "stage's folder is not known; run init first"
        )
    return read_manifest(step.path)["content_hash"]


def _ensure_source(config: Config, command: str) -> None:
    source = source_config(config)
    source_command = f"runs/{source.name}/config.yaml"
    if is_trained(source):
        return
    experiment = Experiment(source)
    path = experiment.folder / "config.yaml"
    if not config.init.train_source:
        raise untrained_source(config)
    experiment.folder.mkdir(parents=True, exist_ok=True)
    with FolderLock(experiment.folder, wait=True):  # another experiment may want the same source at the same time
        if is_trained(source):
            return
        experiment.record()
        print(f"source '{source.name}' is not trained yet: training it first, {_price(source)}", flush=True)
        for verb in ("init", "pretrain"):
            _run_child(verb, path, source_command)
            if verb == "init":  # what a killed parent left training is on its way out: wait for it, never beside it
                folder = pretrain_step(source).path
                folder.mkdir(parents=True, exist_ok=True)
                with FolderLock(folder, wait=True):
                    pass


def untrained_source(config: Config) -> UserError:
    """The error for a source experiment that nothing allows to train: its price and the commands."""
    source = source_config(config)
    path = Experiment(source).folder / "config.yaml"
    return UserError(
        f"the source experiment '{source.name}' ({config.init.source}) is not trained yet; it costs {_price(source)}. "
        f"Run: hornbook init {path} && hornbook pretrain {path}, or set init.train_source=true"
    )


def is_trained(config: Config) -> bool:
    """Whether nothing is left to do for this experiment's pretraining, its own sources included."""
    if source_is_experiment(config) and not is_trained(source_config(config)):
        return False
    return finished_manifest(pretrain_step(config), config.budget) is not None


def _price(source: Config) -> str:
    if source.budget.max_gpu_hours:
        return f"at most {source.budget.max_gpu_hours:g} GPU-hours"
    return f"{source.budget.max_tokens:,} tokens" if source.budget.max_tokens else "an unlimited budget"


def _run_child(verb: str, path: Path, source_command: str) -> None:
    """One stage of the source as its own process, with its own folder, lock and ledger."""
    child = start_child([sys.executable, "-P", "-m", "pipeline", verb, str(path)])
    try:
        code = child.wait()
    except BaseException:
        child.terminate()
        child.wait()
        raise
    if code == STOPPED:
        raise Stopped("SIGTERM")
    failure = f"the source's stage failed (its message is above): hornbook {verb} {source_command}"
    if code == WRONG_INPUT:
        raise UserError(failure)
    if code != 0:
        raise Failure(failure)


def _make(config: Config, folder: Folder) -> dict[str, Any]:
    from model.hf import open_model

    check_method(config)
    files = source_files(config)
    source = open_model(files.folder, files.weights) if files else None
    _check_vocabulary(config, folder.input("data"), source[0] if source else None)
    facts = grow_folder(config, source, folder.path, tokenizer_json=folder.input("data") / "tokenizer.json")
    windows = _held_out_windows(config, folder.input("data"))
    return {**facts, **measure(config, files, folder.path, windows), **_source_facts(config)}


@one_thread()
def grow_folder(config: Config, source: Any, target: Path, tokenizer_json: Path) -> dict[str, Any]:
    """Applies the method's rules and writes the grown model as a Hugging Face folder in fp32.

    `source`: (ModelConfig, state by name), or None for a method that needs none. `tokenizer_json`: goes with the model,
    with what the files beside it say; where it does not exist, what they say of ids alone. Raises `UserError` for what
    the method cannot do, with the method's own reason.
    """
    from model.growth import GROWTH
    from model.growth.blocks import block_origins
    from model.growth.rules import cautions, stream
    from model.hf import save_folder

    method = GROWTH[config.init.method]
    source_config_, state = source if source else (None, {})
    try:
        rules = method(source_config_, config.model, **config.init.options)
    except ValueError as error:
        raise UserError(str(error)) from None
    for caution in cautions(source_config_, config.model) if source_config_ else []:
        print(f"note: {caution}", flush=True)
    special = special_tokens(tokenizer_json, need_end=False)
    with progress("growing", config.model.parameters, "parameters") as bar:
        pieces = _counted(stream(rules, state, seed=config.seed), bar)
        save_folder(
            target, pieces, config.model, tokenizer_json if tokenizer_json.is_file() else None, special, "float32"
        )
    return {
        "method": config.init.method,
        "source": config.init.source,
        "parameters": {
            "source": source_config_.parameters if source_config_ else None,
            "grown": config.model.parameters,
        },
        "source_model": dataclasses.asdict(source_config_) if source_config_ else None,
        "blocks": [{"source": block, "silent": silent} for block, silent in block_origins(rules)],
    }


def _counted(pieces: Iterable[tuple[str, Any]], bar: Progress) -> Iterator[tuple[str, Any]]:
    for name, piece in pieces:
        yield name, piece
        bar.advance(piece.numel())


def tensor_map(config: Config) -> list[str]:
    """Lines `name, from, to, rule` for every tensor of the grown model, from shapes alone.

    Empty where the source is a hub name: its shape is not known before it is fetched.
    """
    from model.growth import GROWTH
    from model.growth import rules as growth
    from model.hf import load_config

    name, source = config.init.source, None
    if name is not None and is_hub_name(name):
        return []
    if source_is_experiment(config):
        source = source_config(config).model
    elif name is not None:
        source = load_config(local_folder(name, "init.source", MODEL_FILES))
    try:
        return list(growth.tensor_map(GROWTH[config.init.method](source, config.model, **config.init.options), source))
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


@dataclasses.dataclass(frozen=True)
class EarlyCheckpoint:
    """The checkpoint of a pretraining from just before its decay; `sha256` of its weights, as its own index says."""

    folder: Path
    step: int
    sha256: str


def source_files(config: Config) -> SourceFiles | None:
    """The files that this config grows from, every byte of them looked at; None without a source."""
    if config.init.source is None:
        return None
    if not source_is_experiment(config):
        if config.init.source_checkpoint != "final":
            raise UserError(
                f"init.source_checkpoint={config.init.source_checkpoint} needs a source experiment (a .yaml): "
                f"{config.init.source} holds one set of weights only; set init.source_checkpoint=final"
            )
        folder = local_folder(config.init.source, "init.source", MODEL_FILES)
        return SourceFiles(folder, folder)
    step = pretrain_step(source_config(config))
    if config.init.source_checkpoint == "final":
        folder = _whole_model(step)
        return SourceFiles(folder, folder)
    early = before_decay(step)
    if hash_file(early.folder / WEIGHTS) != early.sha256:
        raise UserError(f"{early.folder / WEIGHTS} is damaged; set init.source_checkpoint=final")
    return SourceFiles(step.path / "model", early.folder)


def before_decay(step: Step) -> EarlyCheckpoint:
    """The checkpoint that a finished pretraining kept from before its decay. Raises `UserError` where it is gone."""
    decays = Decisions(step.path / "decisions.jsonl", mend=False).decays()
    missing = "never came to its decay" if not decays else f"lacks its checkpoint of step {decays[0]['step']}"
    if decays:
        folder = step.path / "checkpoints" / checkpoint_name(decays[0]["step"])
        if (folder / WEIGHTS).is_file() and (folder / INDEX).is_file():
            index = index_in((folder / INDEX).read_bytes())
            if index is not None:
                return EarlyCheckpoint(folder, decays[0]["step"], index["files"][WEIGHTS]["sha256"])
            missing = f"has a damaged checkpoint of step {decays[0]['step']}"
    raise UserError(f"the source {step.path} {missing}; set init.source_checkpoint=final, or train it again")


def _whole_model(step: Step) -> Path:
    """The source experiment's model folder, after a look at every byte: it may be damaged, or just being extended."""
    if content_hash(hash_outputs(step.path, ("model",)), step.reports) != read_manifest(step.path)["content_hash"]:
        raise UserError(
            f"{step.path / 'model'} is not what its manifest says: it is damaged, or another process is extending "
            "that run. Wait for it and run this again; delete the folder's manifest.json to train the source anew"
        )
    return step.path / "model"


def _source_facts(config: Config) -> dict[str, Any]:
    if config.init.source is None or not source_is_experiment(config):
        return {"source_gpu_hours": None, "source_checkpoint": None}
    step = pretrain_step(source_config(config))
    taken: dict[str, Any] = {"which": config.init.source_checkpoint}
    if config.init.source_checkpoint == "before_decay":
        taken["step"] = before_decay(step).step
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
