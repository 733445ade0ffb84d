"""One YAML file is one experiment; `key=value` words on the command line override it.

Defaults live here as typed dataclasses, OmegaConf merges file and overrides into them, and what stages get is the
plain dataclass. Every key is one of three kinds (`kind` in its metadata): *identity* (in the fingerprint of the
steps that read it), *extendable* (raising it reopens a finished run), *runtime* (never in a fingerprint).
Named things (sources, filters) are mappings, so that `data.filters.quality=null` removes one; their options are
checked against the signature of the class or function that takes them, by the stage that owns the table.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_origin

import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from model.config import ModelConfig
from pipeline.config import yaml_values
from pipeline.config.after import (
    EvaluateConfig,
    ExportConfig,
    QuantizeConfig,
    SampleConfig,
)
from pipeline.config.checks import problems
from pipeline.config.keys import EXTENDABLE, IDENTITY, RUNTIME, nearest
from pipeline.config.keys import key as _key
from pipeline.config.messages import annotation_of, explain
from pipeline.system.errors import UserError

PREVIEW = "/preview"  # what `hornbook data --limit` adds to an experiment's name


@dataclass
class ValidationConfig:
    share: float = _key(0.02, "at most this share of each source is held out, in whole groups (packages, domains)")
    max_bytes: int = _key(2_000_000, "validation reads at most this much text per set; the rest is train text")
    textbook_min_score: float = _key(0.7, "documents at or above this score form the second validation set")


@dataclass
class DecontaminationConfig:
    files: list[str] = _key([], "evaluation items (files or globs of .jsonl, .json, .txt) to keep out of training")
    keys: list[str] | None = _key(None, "fields of a record that hold its text; null: every text in it")
    ngram_words: int = _key(13, "a train document that shares this many words in a row with an item is dropped")
    min_words: int = _key(8, "a shorter item is looked for whole if it has this many words, else not at all")


@dataclass
class DataConfig:
    sources: dict[str, Any] = _key({}, "name -> {type: ..., options of that source}; `hornbook list sources`")
    filters: dict[str, Any] = _key({}, "name -> options; `hornbook list filters`; null removes one")
    scorer: dict[str, Any] | None = _key({"type": "shipped"}, "what `filters.quality` cuts by; `hornbook list scorers`")
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    mask_personal_data: bool = _key(True, "e-mail and IP addresses and keys in texts are replaced")
    decontamination: DecontaminationConfig = field(default_factory=DecontaminationConfig)
    near_dedup_similarity: float = _key(0.8, "train documents at or above this Jaccard similarity are duplicates")
    tokenizer_train_bytes: int = _key(24_000_000, "train text the tokenizer is trained on, taken before the cut")
    tasks: int = _key(16, "shards of every step; decides the order of documents, so it is part of the result")
    keep_dropped: str = _key("sample", "sample | all | none: dropped documents kept for reading", RUNTIME)
    max_unreadable: float = _key(
        0.1, "the stage stops where more of a source (bytes, documents) is unreadable", RUNTIME
    )
    workers: int = _key(0, "processes (or cluster tasks) at a time; 0 = one per core (or no limit)", RUNTIME)
    executor: str = _key("local", "local | slurm | ray: where the shards are worked on", RUNTIME)
    executor_options: dict[str, Any] = _key({}, "of datatrove's executor: partition, time, mem_per_cpu_gb", RUNTIME)


@dataclass
class TokenizerConfig:
    path: str | None = _key(None, "folder or tokenizer.json to use; null: the source model's, else train one")
    vocab_size: int | None = _key(None, "size of a trained vocabulary; null: model.vocab_size")


@dataclass
class InitConfig:
    method: str = _key("random", "growth method; `hornbook list growth`")
    source: str | None = _key(None, "config of a smaller experiment, a Hugging Face folder or a hub name")
    train_source: bool = _key(False, "train the source experiment first where it is not there", RUNTIME)
    source_overrides: dict[str, Any] = _key({}, "overrides for the source experiment's config", RUNTIME)
    source_checkpoint: str = _key("final", "final | before_decay: which weights of a source experiment grow", RUNTIME)
    options: dict[str, Any] = _key({}, "options of the method")
    tolerance: float = _key(1e-5, "largest logit difference / largest logit a method that claims exactness may show")


@dataclass
class TrainConfig:
    sequence_length: int = _key(256, "tokens per window")
    global_batch_tokens: int = _key(8192, "tokens per optimizer step")
    micro_batch: int = _key(
        0, "windows per forward pass; 0 = what fits the card, by plan; on a CPU what fits its caches", RUNTIME
    )
    optimizer: str = _key("adamw", "`hornbook list optimizers`")
    learning_rate: float = _key(3e-3, "peak")
    beta1: float = _key(0.9, "decay of AdamW's first moment")
    beta2: float = _key(0.95, "decay of AdamW's second moment")
    muon_momentum: float = _key(0.95, "decay of Muon's momentum; 0.8 learns faster in runs of a few hundred steps")
    weight_decay: float = _key(0.1, "on matrices only")
    clip_norm: float = _key(1.0, "gradient norm is cut to this; 0 = never")
    warmup_steps: int = _key(20, "linear warm-up")
    decay: str = _key("linear", "shape of the decay; `hornbook list decays`")
    decay_share: float = _key(0.3, "share of the steps that the learning rate falls to zero over")
    mix: dict[str, float] | None = _key(None, "source -> share of tokens; null: tokens x data.sources.<name>.weight")
    decay_mix: dict[str, float] | None = _key(None, "the same, from the decay's start on; null: as before it")
    max_epochs: Any = _key(None, "no source is repeated more often; a number, or source -> number; null: no limit")
    packing: str = _key("stream", "stream | best_fit: whole documents in windows, only longer ones are cut")
    mask_documents: bool = _key(False, "attention does not look across the end-of-text token")
    precision: str = _key("auto", "auto | bf16-mixed | bf16-sr (stochastic rounding) | bf16-true | 32-true", RUNTIME)
    activation_checkpointing: str = _key("none", "none | selective (the GELU) | full: recomputed in backward", RUNTIME)
    optimizer_in_backward: bool = _key(False, "update each weight as soon as its gradient is there", RUNTIME)
    float8: str = _key("none", "none | tensorwise | rowwise: fp8 products in the blocks, on cards with them", RUNTIME)
    compile: str = _key("auto", "auto | true | false: torch.compile for each block; auto: on cuda", RUNTIME)
    validate_every_share: float = _key(0.2, "validation each time this share of the budget is used", RUNTIME)
    checkpoint_every_seconds: float | None = _key(
        None,
        "work that a killed process loses, at most; null: so that saving takes 1% of the time, 30 s or more",
        RUNTIME,
    )
    keep_checkpoints: int = _key(2, "newest ones kept, besides the one from before the decay", RUNTIME)
    log_every_steps: int = _key(10, "steps between two rows of metrics", RUNTIME)
    device: str = _key("auto", "auto | cpu | cuda | mps", RUNTIME)
    batch_start_tokens: int | None = _key(None, "tokens of the first step, where the steps grow; null: they do not")
    batch_warmup_tokens: int = _key(0, "tokens over which the steps grow to global_batch_tokens; 0 = they do not")
    learning_rate_base_width: int | None = _key(
        None, "hidden size the learning rate was found at; the matrices of wider models learn slower; null: all alike"
    )
    decay_min_score: float | None = _key(None, "from the decay's start on only documents scored this or more")
    stop_after_worse: int = _key(
        0, "this many validations in a row above the best: decay, then stop; the best is exported; 0 = never"
    )
    spike_sigmas: float = _key(
        6.0, "a step whose loss is this many sigmas above the highest of the last 128 is skipped; 0 = none is"
    )
    z_loss: float = _key(0.0, "adds this times log(Z)^2 of each token's softmax to the loss, 1e-4 where used; 0 = off")


@dataclass
class BudgetConfig:
    max_gpu_hours: float | None = _key(None, "cap on pretrain, every second of every process", EXTENDABLE)
    max_tokens: int | None = _key(None, "train on at most this many tokens", EXTENDABLE)
    count_source: bool = _key(False, "charge the source's training to the cap too", RUNTIME)
    gpu_hour_price: float | None = _key(None, "for the cost in reports", RUNTIME)
    branches: list[str] = _key([], "budgets (6h, 500M) that `--branch` will be asked for: kept in reach", RUNTIME)
    branch_of: str | None = _key(None, "set by `--branch`: the trunk's fingerprint and the budget", RUNTIME)
    apart: str | None = _key(
        None, "set by studies and for sources: the limits and this text are part of the fingerprint", RUNTIME
    )


@dataclass
class TrackingConfig:
    to: str = _key("wandb", "wandb (offline without a key) | tensorboard | none: a mirror of metrics.jsonl", RUNTIME)
    project: str = _key("hornbook", "W&B project; WANDB_PROJECT wins", RUNTIME)


def _finetune_train() -> TrainConfig:
    """Few steps on few examples: a rate that suits adapters, no weight decay, windows as long as an example."""
    return TrainConfig(
        global_batch_tokens=2048,
        learning_rate=2e-3,
        weight_decay=0.0,
        warmup_steps=5,
        decay_share=0.5,
        log_every_steps=5,
    )


@dataclass
class FinetuneConfig:
    model: str | None = _key(None, "experiment config or model folder; null: this experiment's model", RUNTIME)
    method: str = _key("lora", "lora | qlora (lora on a base in 4 bits) | full (every weight)")
    rank: int = _key(8, "of the two matrices that an adapter adds to each target")
    alpha: float = _key(16.0, "an adapter's output is multiplied by alpha / rank")
    dropout: float = _key(0.0, "of an adapter's input")
    targets: list[str] = _key(["q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"], "matrices that get an adapter")
    sources: dict[str, Any] = _key({}, "name -> {type: text | completion | chat, path: file or glob of .jsonl, .txt}")
    task: str | None = _key(
        "auto",
        "ready target task, measured before and after, trained on where no source is named; auto: sentiment without "
        "sources, none with them (their held-out examples are measured); null: none",
    )
    examples: int = _key(2000, "training examples of the ready task")
    items: int = _key(200, "held-out items of the target task")
    validation_share: float = _key(0.05, "share of the sources' examples held out")
    measure_memory: bool = _key(True, "measure a step of this method and of full tuning first", RUNTIME)
    train: TrainConfig = field(default_factory=_finetune_train)
    budget: BudgetConfig = field(default_factory=BudgetConfig)


@dataclass
class Config:
    name: str = _key(MISSING, "links and ledger live in runs/<name>", RUNTIME)
    seed: int = _key(0, "of everything random")
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    model: ModelConfig = MISSING
    init: InitConfig = field(default_factory=InitConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    quantize: QuantizeConfig = field(default_factory=QuantizeConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads, merges and checks one experiment. Raises `UserError` with the nearest right key, the file and the mend."""
    values = merge(read_with_base(Path(path)), parse_overrides(overrides))
    resolve_source_path(values, Path(path))
    return from_values(values, where=str(path))


def read_with_base(path: Path, above: Sequence[Path] = ()) -> dict[str, Any]:
    """The values of a config, laid over those of the config that its `base` names (relative to its own folder), and
    so on. Raises `UserError` for a base that is missing, that leads back, or whose name would be taken over."""
    values = read_yaml(path)
    resolve_source_path(values, path)
    if "base" not in values:
        return values
    base, chain = values.pop("base"), [*above, path.resolve()]
    if not isinstance(base, str) or not base:
        raise UserError(f"config {path}: base is {base!r}; expected the name of another config, such as phi2.yaml")
    if (path.parent / base).resolve() in chain:
        raise UserError(f"config {path}: base: {base} leads back to itself ({' -> '.join(p.name for p in chain)})")
    if not (path.parent / base).is_file():
        raise UserError(f"config {path}: base: {base} is not there; expected a YAML file beside {path.name}")
    if "name" not in values:
        raise UserError(f"config {path} has a base and no name of its own; set name: it names a folder under runs/")
    return merge(read_with_base(path.parent / base, chain), values)


def from_values(values: Mapping[str, Any], where: str) -> Config:
    """A checked `Config` from plain nested values; `where` names them in errors."""
    try:
        check_keys(values, Config, "", where)  # OmegaConf's own message does not name the nearest key
        merged = OmegaConf.merge(_schema(), OmegaConf.create(dict(values)))
        config: Config = OmegaConf.to_object(merged)  # type: ignore[assignment]
        source = config.init.source
        if config.tokenizer.path is None and source is not None and not source.endswith((".yaml", ".yml")):
            config.tokenizer.path = source  # a model that was trained already knows one tokenizer only
        validate(config, where)
    except OmegaConfBaseException as error:
        raise UserError(f"{where}: {explain(error, values, Config, ModelConfig)}") from None
    except (TypeError, AttributeError, ValueError, OverflowError) as error:
        raise UserError(f"{where}: a section holds a value of another kind: {' '.join(str(error).split())}") from None
    return config


@functools.cache
def _schema() -> Any:
    """Merging copies it."""
    return OmegaConf.structured(Config)


def preview(config: Config, limit: int) -> Config:
    """The same experiment on at most `limit` documents of each source, under a name of its own."""
    if limit < 1:
        raise UserError(f"--limit is {limit}; expected at least 1 document of each source")
    sources = {}
    for name, options in config.data.sources.items():
        if isinstance(options, Mapping):
            given = options.get("limit_documents")
            sources[name] = {**options, "limit_documents": min(limit, given) if isinstance(given, int) else limit}
    data = dataclasses.replace(config.data, sources=sources)
    return dataclasses.replace(config, name=config.name + PREVIEW, data=data)


def to_values(config: Any) -> dict[str, Any]:
    """The resolved config as plain JSON values: what manifests, W&B and `runs/<name>/config.yaml` hold."""
    return dataclasses.asdict(config)


def to_yaml(config: Config) -> str:
    return yaml_values.dump(to_values(config))


def identity(section: Any) -> dict[str, Any]:
    """The identity keys of one section (or the whole), for a fingerprint."""
    result = {}
    for f in dataclasses.fields(section):
        value = getattr(section, f.name)
        if dataclasses.is_dataclass(value):
            result[f.name] = identity(value)
        elif f.metadata.get("kind", IDENTITY) == IDENTITY:
            result[f.name] = value
    return result


def key_kinds(cls: type = Config, prefix: str = "") -> dict[str, tuple[str, str]]:
    """Dotted key -> (kind, help), for `hornbook list keys` and for nearest-name suggestions."""
    found: dict[str, tuple[str, str]] = {}
    for f in dataclasses.fields(cls):
        inner = ModelConfig if f.name == "model" and cls is Config else f.type
        if isinstance(inner, type) and dataclasses.is_dataclass(inner):
            found.update(key_kinds(inner, f"{prefix}{f.name}."))
        else:
            found[prefix + f.name] = (f.metadata.get("kind", IDENTITY), f.metadata.get("help", ""))
    return found


def read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(f"config {path} {what}; expected a YAML file such as configs/tiny.yaml")
    try:
        values = yaml_values.load(path.read_text(encoding="utf-8-sig"), Config)
    except (yaml.YAMLError, ValueError, RecursionError, OSError) as error:
        raise UserError(f"config {path} is not readable YAML: {' '.join(str(error).split())}") from None
    if values is None:  # an empty file: what it lacks is named like any other missing key
        return {}
    if not isinstance(values, dict):
        raise UserError(f"config {path} holds no sections; expected `name: ...`, `model: ...`, see configs/tiny.yaml")
    return values


def parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """Nested values of `key=value` words; a value is YAML, as in a file."""
    values: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or key.startswith("-") or not all(key.split(".")):
            raise UserError(f"'{word}' is not an override; expected key=value such as budget.max_gpu_hours=0.1")
        try:
            found = yaml_values.load(text, annotation_of(key, Config, ModelConfig))
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise UserError(f"overrides {word}: {' '.join(str(error).split())}") from None
        for name in reversed(key.split(".")):
            found = {name: found}
        values = merge(values, found)
    return values


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid over `base`, section by section; a null or a plain value replaces what was there."""
    result = dict(base)
    for key, value in over.items():
        inner = result.get(key)
        result[key] = merge(inner, value) if isinstance(inner, dict) and isinstance(value, Mapping) else value
    return result


def check_keys(values: Any, cls: type, prefix: str, where: str) -> None:
    """Raises `UserError` for the first key that the schema does not have."""
    if not isinstance(values, Mapping):
        raise UserError(f"{where}: '{prefix.rstrip('.')}' must be a section with keys, found {values!r}")
    names = {f.name: f for f in dataclasses.fields(cls)}
    for key, value in values.items():
        if key not in names:
            everywhere = [k for k in key_kinds() if k.rsplit(".", 1)[-1] == key]
            hint = f" (did you mean '{everywhere[0]}'?)" if everywhere else nearest(str(key), names)
            raise UserError(f"{where}: unknown key '{prefix}{key}'{hint}")
        inner = ModelConfig if cls is Config and key == "model" else names[key].type
        if isinstance(inner, type) and dataclasses.is_dataclass(inner):
            check_keys(value, inner, f"{prefix}{key}.", where)
        elif get_origin(inner) is dict and not isinstance(value, Mapping):
            raise UserError(f"{where}: '{prefix}{key}' must be a section of named things, found {value!r}")
        elif wrong := yaml_values.wrong_value(prefix + key, value, inner):
            raise UserError(f"{where}: {wrong}")


def validate(config: Config, where: str) -> None:
    """Impossible shapes, values and pairs: one message each, before any work starts."""
    try:
        config.model.validate()
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    for problem in problems(config):
        raise UserError(f"{where}: {problem}")


def resolve_source_path(values: dict[str, Any], config_path: Path) -> None:
    """`init.source: tiny-source.yaml` is looked for beside the config that names it, then in the working folder."""
    init = values.get("init")
    source = init.get("source") if isinstance(init, Mapping) else None
    if isinstance(source, str):
        for candidate in (config_path.parent / source, Path(source)):
            if candidate.exists():
                values["init"] = {**values["init"], "source": str(candidate)}
                return
