"""One YAML file is one experiment; `key=value` words on the command line override it.

Defaults live here as typed dataclasses, OmegaConf merges file and overrides into them, and what stages get is the
plain dataclass. Every key is one of three kinds (`kind` in its metadata): *identity* (in the fingerprint of the
steps that read it), *extendable* (raising it reopens a finished run), *runtime* (never in a fingerprint).
Named things (sources, filters) are mappings, so that `data.filters.quality=null` removes one; their options are
checked against the signature of the class or function that takes them, by the stage that owns the table.
"""

import dataclasses
import difflib
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from model.config import ModelConfig
from pipeline import yaml_limits
from pipeline.errors import UserError

PREVIEW = "/preview"  # what `hornbook data --limit` adds to an experiment's name
IDENTITY, EXTENDABLE, RUNTIME = "identity", "extendable", "runtime"


def _key(default: Any, help: str, kind: str = IDENTITY) -> Any:
    metadata = {"help": help, "kind": kind}
    if isinstance(default, dict | list):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class ValidationConfig:
    share: float = _key(0.02, "share of the text held out, in whole groups (packages, domains)")
    max_bytes: int = _key(2_000_000, "validation text per set is cut here, so that one evaluation stays cheap")
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
    max_unreadable: float = _key(0.1, "the stage stops where more of a source cannot be read", RUNTIME)
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
        6.0, "a step whose loss or gradient norm is this far above the last 128 is skipped; 0 = never"
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


@dataclass
class TrackingConfig:
    to: str = _key("wandb", "wandb (offline without a key) | tensorboard | none: a mirror of metrics.jsonl", RUNTIME)
    project: str = _key("hornbook", "W&B project; WANDB_PROJECT wins", RUNTIME)


@dataclass
class SampleConfig:
    model: str | None = _key(None, "experiment config or model folder; null: this experiment's model", RUNTIME)
    prompts: list[str] = _key(["def fibonacci(n):"], "continued at the end of pretraining", RUNTIME)
    max_new_tokens: int = _key(96, "length of a sample", RUNTIME)
    temperature: float = _key(0.7, "0 = always the likeliest token", RUNTIME)
    top_k: int = _key(50, "choose among this many likeliest tokens; 0 = all", RUNTIME)


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
        merged = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.create(dict(values)))
        config: Config = OmegaConf.to_object(merged)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise UserError(f"{where}: {_explain(error, values)}") from None
    except (TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{where}: a section holds a value of another kind: {' '.join(str(error).split())}") from None
    source = config.init.source
    if config.tokenizer.path is None and source is not None and not source.endswith((".yaml", ".yml")):
        config.tokenizer.path = source  # a model that was trained already knows one tokenizer only
    validate(config, where)
    return config


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
    return yaml.safe_dump(to_values(config), sort_keys=False, allow_unicode=True)


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
        text = path.read_text(encoding="utf-8")
        yaml_limits.check(text)
        values = OmegaConf.to_container(OmegaConf.load(io.StringIO(text)))
    except (yaml.YAMLError, ValueError, OmegaConfBaseException, OSError) as error:
        raise UserError(f"config {path} is not readable YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"config {path} holds no sections; expected `name: ...`, `model: ...`, see configs/tiny.yaml")
    return values  # type: ignore[return-value]


def parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    for word in words:
        key, equals, _ = word.partition("=")
        if not equals or key.startswith("-") or not key:
            raise UserError(f"'{word}' is not an override; expected key=value such as budget.max_gpu_hours=0.1")
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist(list(words)))  # type: ignore[return-value]
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"overrides {' '.join(words)}: {' '.join(str(error).split())}") from None


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid over `base`, section by section; a null or a plain value replaces what was there."""
    result = dict(base)
    for key, value in over.items():
        inner = result.get(key)
        result[key] = merge(inner, value) if isinstance(inner, dict) and isinstance(value, Mapping) else value
    return result


def nearest(word: str, candidates: Iterable[str]) -> str:
    """` (did you mean 'x'?)`, or nothing."""
    close = difflib.get_close_matches(word, list(candidates), n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""


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


def validate(config: Config, where: str) -> None:
    """Impossible shapes, values and pairs: one message each, before any work starts."""
    try:
        config.model.validate()
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    for problem in _problems(config):
        raise UserError(f"{where}: {problem}")


def _problems(config: Config) -> Iterable[str]:
    train, budget, data = config.train, config.budget, config.data
    if set(config.name.split("/")) & {"data", "init", "pretrain", "jobs"}:
        yield f"name is {config.name!r}; data, init and pretrain are names of stages, jobs of a folder: choose another"
    if not config.name.strip() or config.name.startswith(("/", ".")) or ".." in config.name.split("/"):
        yield f"name is {config.name!r}; expected a word such as 'tiny' (it names a folder under runs/)"
    if train.sequence_length < 2 or train.sequence_length > config.model.max_position_embeddings:
        yield (
            f"train.sequence_length is {train.sequence_length}; expected 2 to model.max_position_embeddings "
            f"({config.model.max_position_embeddings})"
        )
    if train.global_batch_tokens <= 0 or train.global_batch_tokens % train.sequence_length:
        yield (
            f"train.global_batch_tokens is {train.global_batch_tokens}; expected a positive multiple of "
            f"train.sequence_length ({train.sequence_length})"
        )
    elif train.micro_batch and (train.global_batch_tokens // train.sequence_length) % train.micro_batch:
        yield (
            f"train.micro_batch is {train.micro_batch} windows; expected a divisor of the step's "
            f"{train.global_batch_tokens // train.sequence_length} windows, or 0"
        )
    yield from _batch_warmup_problems(train)
    for key, allowed in (
        ("precision", ("auto", "bf16-mixed", "bf16-sr", "bf16-true", "32-true")),
        ("activation_checkpointing", ("none", "selective", "full")),
        ("compile", ("auto", "true", "false")),
        ("float8", ("none", "tensorwise", "rowwise")),
        ("device", ("auto", "cpu", "cuda", "mps")),
        ("packing", ("stream", "best_fit")),
    ):
        if getattr(train, key) not in allowed:
            yield f"train.{key} is '{getattr(train, key)}'; expected one of {', '.join(allowed)}"
    if config.init.source_checkpoint not in ("final", "before_decay"):
        yield f"init.source_checkpoint is '{config.init.source_checkpoint}'; expected final or before_decay"
    yield from _out_of_range(config)
    if train.float8 != "none" and train.precision == "32-true":
        yield (
            f"train.float8={train.float8} rounds to 8 bits what train.precision=32-true wants in fp32; set "
            "train.float8=none or train.precision=auto"
        )
    yield from _in_backward_problems(train)
    if train.stop_after_worse < 0:
        yield f"train.stop_after_worse is {train.stop_after_worse}; expected 0 (never) or a number of validations"
    if train.keep_checkpoints < 2:
        yield f"train.keep_checkpoints is {train.keep_checkpoints}; expected at least 2 (the newest may be damaged)"
    yield from _mixing_problems(config)
    for key in ("max_gpu_hours", "max_tokens"):
        value = getattr(budget, key)
        if value is not None and not 0 < value < math.inf:
            yield f"budget.{key} is {value}; expected more than 0, and a number"
    if data.executor not in ("local", "slurm", "ray"):
        yield f"data.executor is '{data.executor}'; expected local, slurm or ray"
    if data.keep_dropped not in ("sample", "all", "none"):
        yield f"data.keep_dropped is '{data.keep_dropped}'; expected sample, all or none"
    if config.tracking.to not in ("wandb", "tensorboard", "none"):
        yield f"tracking.to is '{config.tracking.to}'; expected wandb, tensorboard or none"
    vocab_size = config.tokenizer.vocab_size
    if vocab_size is not None and vocab_size > config.model.vocab_size:
        yield (
            f"tokenizer.vocab_size ({vocab_size}) is larger than model.vocab_size ({config.model.vocab_size}): "
            "the model would have no row for some tokens; raise model.vocab_size"
        )


def _batch_warmup_problems(train: TrainConfig) -> Iterable[str]:
    start, full, length = train.batch_start_tokens, train.global_batch_tokens, train.sequence_length
    if (start is None) != (train.batch_warmup_tokens == 0):
        yield (
            f"train.batch_start_tokens is {start} and train.batch_warmup_tokens is {train.batch_warmup_tokens}: a "
            "batch-size warm-up needs both; set both, or null and 0"
        )
    elif start is not None and (start <= 0 or start % length or full % start):
        yield (
            f"train.batch_start_tokens is {start}; expected a multiple of train.sequence_length ({length}) that "
            f"divides train.global_batch_tokens ({full})"
        )
    elif start is not None and train.micro_batch and start // length % train.micro_batch:
        yield (
            f"train.micro_batch is {train.micro_batch} windows and the first step of a batch-size warm-up has "
            f"{start // length}; expected a divisor, or 0"
        )


def _in_backward_problems(train: TrainConfig) -> Iterable[str]:
    if not train.optimizer_in_backward:
        return
    if train.clip_norm:
        yield (
            f"train.optimizer_in_backward is true and train.clip_norm is {train.clip_norm:g}: the norm of all "
            "gradients is not known before the first weight moves; set train.clip_norm=0, or "
            "train.optimizer_in_backward=false"
        )
    windows = train.global_batch_tokens // train.sequence_length
    if train.micro_batch not in (0, windows):
        yield (
            f"train.optimizer_in_backward is true and train.micro_batch={train.micro_batch} of the step's {windows} "
            "windows would sum gradients over several passes, and none is kept; set train.micro_batch=0 and lower "
            "train.global_batch_tokens, or set train.optimizer_in_backward=false"
        )


def _mixing_problems(config: Config) -> Iterable[str]:
    train, sources = config.train, config.data.sources
    for name, source in sources.items():
        if isinstance(source, Mapping) and not isinstance(source.get("replay", False), bool):
            yield f"data.sources.{name}.replay is {source['replay']!r}; expected true or false"
    weights = {k: s["weight"] for k, s in sources.items() if isinstance(s, Mapping) and "weight" in s}
    for name, weight in weights.items():
        if not _is_number(weight) or weight < 0:
            yield f"data.sources.{name}.weight is {weight!r}; expected a number of at least 0 (0 = not trained on)"
    for key in ("mix", "decay_mix"):
        mix = getattr(train, key)
        if mix is None:
            continue
        if set(mix) - set(sources) or not all(0 <= share < math.inf for share in mix.values()) or not sum(mix.values()):
            yield f"train.{key} is {mix}; expected shares of at least 0 for names of data.sources {list(sources)}"
        for name in mix:
            if mix[name] and weights.get(name) == 0:
                yield (
                    f"train.{key} gives a share to '{name}' and data.sources.{name}.weight=0 says not to train on it; "
                    "remove one of them"
                )
    least = train.decay_min_score
    if least is not None and not 0 <= least <= 1:
        yield f"train.decay_min_score is {least}; expected 0 to 1 (`data.filters.quality` scores so), or null"
    if least is not None and train.max_epochs is not None:
        yield (
            "train.decay_min_score reads documents again that the stable phase has read, which train.max_epochs does "
            "not count: set one of them to null"
        )
    limits: Any = train.max_epochs if isinstance(train.max_epochs, Mapping) else {"": train.max_epochs}
    if train.max_epochs is not None and (
        set(limits) - {"", *sources} or not all(_is_number(limit) and limit > 0 for limit in limits.values())
    ):
        yield (
            f"train.max_epochs is {train.max_epochs}; expected more than 0, or that for names of data.sources "
            f"{list(sources)}, or null"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# key -> (least, most): both ends belong to the range; not-a-number lies in none
RANGES: dict[str, tuple[float, float]] = {
    "data.tasks": (1, 1e6),
    "data.workers": (0, 1e4),
    "data.max_unreadable": (0, 1),
    "data.decontamination.ngram_words": (2, 100),
    "data.decontamination.min_words": (2, 100),
    "data.near_dedup_similarity": (0.1, 1),
    "data.tokenizer_train_bytes": (1, 1e12),
    "data.validation.share": (1e-6, 0.5),
    "data.validation.max_bytes": (1, 1e12),
    "data.validation.textbook_min_score": (0, 1),
    "model.vocab_size": (257, 1e7),  # every byte and the end of text
    "init.tolerance": (0, 1),
    "train.micro_batch": (0, 1e6),
    "train.learning_rate": (1e-12, 1e3),
    "train.beta1": (0, 0.999999),
    "train.beta2": (0, 0.999999),
    "train.weight_decay": (0, 1e3),
    "train.clip_norm": (0, 1e9),
    "train.warmup_steps": (0, 1e9),
    "train.z_loss": (0, 1),
    "train.batch_warmup_tokens": (0, 1e15),
    "train.decay_share": (0.01, 0.99),
    "train.validate_every_share": (1e-6, 1e9),
    "train.spike_sigmas": (0, 1e9),
    "train.log_every_steps": (1, 1e9),
    "sample.max_new_tokens": (1, 1e6),
    "sample.temperature": (0, 1e3),
    "sample.top_k": (0, 1e7),
}


def _out_of_range(config: Config) -> Iterable[str]:
    for key, (least, most) in RANGES.items():
        value: Any = config
        for word in key.split("."):
            value = getattr(value, word)
        if not least <= value <= most:
            yield f"{key} is {value}; expected {least:g} to {most:g}"
    width = config.train.learning_rate_base_width
    if width is not None and width < 1:
        yield f"train.learning_rate_base_width is {width}; expected at least 1 (a hidden size), or null"
    every = config.train.checkpoint_every_seconds
    if every is not None and not 1e-3 <= every <= 1e9:
        yield f"train.checkpoint_every_seconds is {every}; expected 0.001 to 1e+09, or null"
    size = config.tokenizer.vocab_size
    if size is not None and size < 257:
        yield f"tokenizer.vocab_size is {size}; expected at least 257 (every byte and the end of text)"


def resolve_source_path(values: dict[str, Any], config_path: Path) -> None:
    """`init.source: tiny-source.yaml` is looked for beside the config that names it, then in the working folder."""
    init = values.get("init")
    source = init.get("source") if isinstance(init, Mapping) else None
    if isinstance(source, str):
        for candidate in (config_path.parent / source, Path(source)):
            if candidate.exists():
                values["init"] = {**values["init"], "source": str(candidate)}
                return


def _explain(error: OmegaConfBaseException, values: Mapping[str, Any]) -> str:
    """What was found and what was expected, by the schema; the library's own words where it has more to say."""
    key = getattr(error, "full_key", None) or ""
    text = str(error).splitlines()[0]
    if "Missing mandatory value" in text or "MissingMandatoryValue" in type(error).__name__:
        return f"'{key}' has no value; it must be set, see configs/tiny.yaml"
    expected, found = _expected(_annotation(key)), _value(key, values)
    shown = "null" if found is None else repr(found)
    return f"'{key}' is {shown}; expected {expected}{_hint(found)}" if expected else f"'{key}': {text}"


def _hint(found: Any) -> str:
    """How to write what was probably meant."""
    if isinstance(found, float) and found.is_integer():
        return f": write {int(found):_}"
    unit = re.fullmatch(r"([\d.]+)\s*[a-zA-Z]+", found) if isinstance(found, str) else None
    return f": write {unit[1]}, in the unit that the key's name ends with" if unit else ""


def _annotation(key: str) -> Any:
    """The type of a key in the schema, or None."""
    found: Any = Config
    for part in key.split("."):
        fields = {f.name: f.type for f in dataclasses.fields(found)} if dataclasses.is_dataclass(found) else {}
        found = ModelConfig if found is Config and part == "model" else fields.get(part)
    return found


def _value(key: str, values: Any) -> Any:
    for part in key.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


def _expected(annotation: Any) -> str:
    """A type in words; empty for one that has none here."""
    inner = [_expected(a) for a in get_args(annotation) if a is not type(None)]
    if type(None) in get_args(annotation) and len(inner) == 1 and inner[0]:
        return f"{inner[0]} or null"
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    words |= {list: "a list such as [a, b]", dict: "a section of named things"}
    return words.get(get_origin(annotation) or annotation, "")
