"""Every key of a config: its default, help, kind, range and choices, side by side.

A key is one of three kinds: *identity* (in the fingerprint of the steps that read it), *extendable* (a raised limit
continues a finished run) or *runtime* (never in a fingerprint). Named things (sources, filters) are mappings, so that
`data.filters.quality=null` removes one. Their options are checked by the stage that owns the table, against the
signature of the class or function that takes them.
"""

import dataclasses
import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from model.config import ModelConfig

MISSING = "???"  # as OmegaConf marks a key that must be set; not imported, so that `--help` answers at once
IDENTITY, EXTENDABLE, RUNTIME = "identity", "extendable", "runtime"
PRETRAINING = ("data", "init", "pretrain")
AFTER = ("evaluate", "export", "quantize", "finetune")
STAGES = (*PRETRAINING, *AFTER)  # the order in which they run
MATRICES = ("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2")  # of a block; all of these: all that it has
SWIGLU_MATRICES = ("o_proj", "gate_proj", "up_proj", "down_proj")  # more names, in families other than Phi
BELOW_ONE = (0, 0.999999)
OTHER_MODEL = "experiment config or model folder; null: this experiment's model"


def _key(default: Any, help: str, kind: str = IDENTITY, **about: Any) -> Any:
    """A field and what is known about it; a default of MISSING: the key must be set. `about` may hold
    range=(least, most): both are allowed; a `most` of None: no upper end
    above=n: the value is larger than n
    choices=(...): what the value, or each entry of a list, may be
    internal=True: hornbook alone writes it, into configs that it makes; it is not listed, suggested or overridden
    """
    metadata = {"help": help, "kind": kind, **about}
    if isinstance(default, dict | list):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class ValidationConfig:
    share: float = _key(0.02, "most of a source that is held out, in groups (packages, domains)", range=(1e-6, 0.5))
    max_bytes: int = _key(2_000_000, "most text of a validation set; the rest is train text", range=(1, 1e12))
    textbook_min_score: float = _key(0.7, "documents from this score on form the second validation set", range=(0, 1))


@dataclass
class DecontaminationConfig:
    files: list[str] = _key([], "evaluation items (files or globs of .jsonl, .json, .txt) to keep out of training")
    keys: list[str] | None = _key(None, "fields of a record that hold its text; null: every text in it")
    ngram_words: int = _key(13, "train documents with this many words in a row of an item are dropped", range=(2, 100))
    min_words: int = _key(8, "shorter items with this many words are searched whole, others not", range=(2, 100))


@dataclass
class DataConfig:
    sources: dict[str, Any] = _key({}, "name -> {type: ..., options of that source}; `hornbook list sources`")
    filters: dict[str, Any] = _key({}, "name -> options; `hornbook list filters`; null removes one")
    scorer: dict[str, Any] | None = _key({"type": "shipped"}, "what `filters.quality` cuts by; `hornbook list scorers`")
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    mask_personal_data: bool = _key(True, "e-mail and IP addresses and keys in texts are replaced")
    decontamination: DecontaminationConfig = field(default_factory=DecontaminationConfig)
    near_dedup_similarity: float = _key(
        0.8, "train documents from this Jaccard similarity on are dropped", range=(0.1, 1)
    )
    tokenizer_train_bytes: int = _key(24_000_000, "train text for the tokenizer, taken before the cut", range=(1, 1e12))
    tasks: int = _key(16, "shards of every step; decides the order of documents, a part of the result", range=(1, 1e6))
    keep_dropped: str = _key("sample", "dropped documents kept for reading", RUNTIME, choices=("sample", "all", "none"))
    max_unreadable: float = _key(
        0.1, "most of a source (bytes, documents) that may be unreadable", RUNTIME, range=(0, 1)
    )
    workers: int = _key(0, "processes (cluster tasks) at a time; 0 = one per core (no limit)", RUNTIME, range=(0, 1e4))
    executor: str = _key("local", "where the shards are processed", RUNTIME, choices=("local", "slurm", "ray"))
    executor_options: dict[str, Any] = _key(
        {}, "slurm: partition, time, mem_per_cpu_gb; ray: address, mem_per_cpu_gb", RUNTIME
    )


@dataclass
class TokenizerConfig:
    path: str | None = _key(None, "folder or tokenizer.json to use; null: the source model's, else train one")
    vocab_size: int | None = _key(None, "size of a trained vocabulary; null: model.vocab_size")


@dataclass
class InitConfig:
    method: str = _key("random", "growth method; `hornbook list growth`")
    source: str | None = _key(None, "config of a smaller experiment, a Hugging Face folder, a GGUF file or a hub name")
    train_source: bool = _key(False, "train the source experiment first if it is not trained yet", RUNTIME)
    source_overrides: dict[str, Any] = _key({}, "overrides for the source experiment's config", RUNTIME)
    source_checkpoint: str = _key(
        "final", "weights of a source experiment that grow", RUNTIME, choices=("final", "before_decay")
    )
    options: dict[str, Any] = _key({}, "options of the method")
    tolerance: float = _key(1e-5, "largest logit difference / largest logit of an exact method", range=(0, 1))


@dataclass
class TrainConfig:
    sequence_length: int = _key(256, "tokens per window")
    global_batch_tokens: int = _key(8192, "tokens per optimizer step")
    micro_batch: int = _key(
        0, "windows per forward pass; 0 = what fits the card, by plan; on a CPU what fits its caches", RUNTIME,
        range=(0, 1e6),
    )  # fmt: skip
    optimizer: str = _key("adamw", "`hornbook list optimizers`")
    learning_rate: float = _key(3e-3, "peak", range=(1e-12, 1e3))
    beta1: float = _key(0.9, "decay of AdamW's first moment", range=BELOW_ONE)
    beta2: float = _key(0.95, "decay of AdamW's second moment", range=BELOW_ONE)
    muon_momentum: float = _key(
        0.95, "decay of Muon's momentum; 0.8 is faster in runs of some hundred steps", range=BELOW_ONE
    )
    weight_decay: float = _key(0.1, "on matrices only", range=(0, 1e3))
    clip_norm: float = _key(1.0, "gradient norm is cut to this; 0 = never", range=(0, 1e9))
    warmup_steps: int = _key(20, "linear warm-up", range=(0, 1e9))
    decay: str = _key("linear", "shape of the decay; `hornbook list decays`")
    decay_share: float = _key(0.3, "share of the steps over which the learning rate falls to 0", range=(0.01, 0.99))
    mix: dict[str, float] | None = _key(None, "source -> share of tokens; null: tokens x data.sources.<name>.weight")
    decay_mix: dict[str, float] | None = _key(None, "the same, from the decay's start on; null: as before it")
    max_epochs: Any = _key(None, "no source is repeated more often; a number, or source -> number; null: no limit")
    packing: str = _key("stream", "best_fit cuts only documents longer than a window", choices=("stream", "best_fit"))
    mask_documents: bool = _key(False, "attention does not look across the end-of-text token")
    precision: str = _key(
        "auto", "bf16-sr is bf16 with stochastic rounding", RUNTIME,
        choices=("auto", "bf16-mixed", "bf16-sr", "bf16-true", "32-true"),
    )  # fmt: skip
    activation_checkpointing: str = _key(
        "none", "recomputed in backward; selective is the GELU", RUNTIME, choices=("none", "selective", "full")
    )
    optimizer_in_backward: bool = _key(False, "update each weight as soon as its gradient is there", RUNTIME)
    float8: str = _key(
        "none", "fp8 products in the blocks, if the card has them", RUNTIME, choices=("none", "tensorwise", "rowwise")
    )
    compile: str = _key(
        "auto", "torch.compile of each block; auto: on cuda", RUNTIME, choices=("auto", "true", "false")
    )
    validate_every_share: float = _key(
        0.2, "validate each time this share of the budget is used", RUNTIME, range=(1e-6, 1e9)
    )
    checkpoint_every_seconds: float | None = _key(
        None, "work that a killed process loses, at most; null: so that saving takes 1% of the time, 30 s or more",
        RUNTIME, range=(1e-3, 1e9),
    )  # fmt: skip
    keep_checkpoints: int = _key(
        2, "newest ones kept (the newest may be damaged), besides the one from before the decay", RUNTIME,
        range=(2, None),
    )  # fmt: skip
    log_every_steps: int = _key(10, "steps between two rows of metrics", RUNTIME, range=(1, 1e9))
    device: str = _key(
        "auto", "what computes; auto: the best available", RUNTIME, choices=("auto", "cpu", "cuda", "mps")
    )
    batch_start_tokens: int | None = _key(None, "tokens of the first step if the steps grow; null: they do not")
    batch_warmup_tokens: int = _key(
        0, "tokens over which steps grow to global_batch_tokens; 0 = never", range=(0, 1e15)
    )
    learning_rate_base_width: int | None = _key(
        None, "hidden size the learning rate was found at; the matrices of wider models learn slower; null: all alike",
        range=(1, None),
    )  # fmt: skip
    decay_min_score: float | None = _key(
        None, "from the decay's start on only documents scored this or more (0 to 1, as `data.filters.quality` scores)",
        range=(0, 1),
    )  # fmt: skip
    stop_after_worse: int = _key(
        0, "this many validations in a row above the best: decay, then stop; the best is exported; 0 = never",
        range=(0, None),
    )  # fmt: skip
    spike_sigmas: float = _key(
        6.0, "a step whose loss is this many sigmas above the highest of the last 128 is skipped; 0 = none is",
        range=(0, 1e9),
    )  # fmt: skip
    z_loss: float = _key(
        0.0, "weight of log(Z)^2 of each token's softmax in the loss, commonly 1e-4; 0 = off", range=(0, 1)
    )


@dataclass
class BudgetConfig:
    max_gpu_hours: float | None = _key(None, "cap on pretrain, every second of every process", EXTENDABLE, above=0)
    max_tokens: int | None = _key(None, "train on at most this many tokens", EXTENDABLE, above=0)
    count_source: bool = _key(False, "charge the source's training to the cap too", RUNTIME)
    gpu_hour_price: float | None = _key(None, "for the cost in reports", RUNTIME)
    branches: list[str] = _key([], "budgets (6h, 500M) that `--branch` will be asked for: kept in reach", RUNTIME)
    branch_of: str | None = _key(None, "of a branch: its trunk's fingerprint and its budget", RUNTIME, internal=True)
    apart: str | None = _key(
        None, "of studies' members and sources: the limits and this text are part of the fingerprint", RUNTIME,
        internal=True,
    )  # fmt: skip


@dataclass
class TrackingConfig:
    to: str = _key(
        "wandb", "mirror of metrics.jsonl; wandb is offline without a key", RUNTIME,
        choices=("wandb", "tensorboard", "trackio", "none"),
    )  # fmt: skip
    project: str = _key("hornbook", "project of W&B (WANDB_PROJECT wins) or trackio", RUNTIME)


@dataclass
class SampleConfig:
    model: str | None = _key(None, OTHER_MODEL, RUNTIME)
    prompts: list[str] = _key(["def fibonacci(n):"], "continued at the end of pretraining", RUNTIME)
    max_new_tokens: int = _key(96, "length of a sample", RUNTIME, range=(1, 1e6))
    temperature: float = _key(0.7, "0 = always the likeliest token", RUNTIME, range=(0, 1e3))
    top_k: int = _key(50, "choose among this many likeliest tokens; 0 = all", RUNTIME, range=(0, 1e7))


@dataclass
class ExportConfig:
    model: str | None = _key(None, OTHER_MODEL, RUNTIME)
    dtype: str = _key("as_stored", "of the exported weights", choices=("as_stored", "float32", "float16", "bfloat16"))
    gguf: list[str] = _key(
        [], "also GGUF files for llama.cpp (needs the extra `gguf`)", choices=("f16", "q8_0", "q4_0")
    )
    license: str | None = _key(None, "of the model, for its card")


@dataclass
class EvaluateConfig:
    model: str | None = _key(None, OTHER_MODEL, RUNTIME)
    tasks: list[str] = _key(["bits_per_byte", "cloze", "arithmetic", "exercises"], "`hornbook list tasks`")
    items: int = _key(200, "most items of a task; standard errors say what that is good for", range=(2, 1e6))
    sets: dict[str, str] = _key({}, "public multiple-choice sets: name -> .jsonl or .parquet file on this machine")
    every_tokens: int | None = _key(None, "every so many tokens of pretraining; null: never", RUNTIME, range=(1, None))
    during: list[str] = _key(["cloze"], "tasks scored then, besides `sets` and `sample.prompts`", RUNTIME)
    during_items: int = _key(40, "most items of a task then", RUNTIME, range=(2, 1e6))
    lm_eval: list[str] = _key([], "tasks of lm-eval, run on the model's folder (needs the extra `eval`)")
    lm_eval_path: str | None = _key(None, "folder with further lm-eval tasks in YAML; its own are then left out")


@dataclass
class QuantizeConfig:
    model: str | None = _key(None, OTHER_MODEL, RUNTIME)
    kinds: list[str] = _key(["bf16", "int8", "int8-dynamic", "int4", "gguf-q8_0", "gguf-q4_0"], "`hornbook list kinds`")
    group_size: int = _key(32, "weights that share a scale in int4", choices=(32, 64, 128, 256))
    tasks: list[str] = _key(["bits_per_byte", "cloze"], "measured before and after; `hornbook list tasks`")
    items: int = _key(100, "most items of a task", range=(2, 1e6))


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
    model: str | None = _key(None, OTHER_MODEL, RUNTIME)
    method: str = _key("lora", "qlora is lora on a 4-bit base, full is every weight", choices=("lora", "qlora", "full"))
    rank: int = _key(8, "of the two matrices that an adapter adds to each target", range=(1, 4096))
    alpha: float = _key(16.0, "an adapter's output is multiplied by alpha / rank", range=(1e-6, 1e6))
    dropout: float = _key(0.0, "of an adapter's input", range=(0, 0.99))
    targets: list[str] = _key(
        list(MATRICES), "matrices that get an adapter; the default: all of a block", choices=MATRICES + SWIGLU_MATRICES
    )
    sources: dict[str, Any] = _key(
        {},
        "name -> {path: file or glob of .jsonl, .json, .txt}; the format (messages, ShareGPT, Alpaca, prompt and "
        "completion, text) is told from each record",
    )
    task: str | None = _key(
        "auto",
        "ready target task, measured before and after, trained on where no source is named; auto: sentiment without "
        "sources, none with them (their held-out examples are measured); null: none",
    )
    examples: int = _key(2000, "training examples of the ready task", range=(1, 1e7))
    items: int = _key(200, "held-out items of the target task", range=(2, 1e6))
    validation_share: float = _key(0.05, "share of the sources' examples held out", range=(0.001, 0.5))
    measure_memory: bool = _key(True, "measure a step of this method and of full tuning first", RUNTIME)
    train: TrainConfig = field(default_factory=_finetune_train)
    budget: BudgetConfig = field(default_factory=BudgetConfig)


@dataclass
class Config:
    name: str = _key(MISSING, "links and ledger are in runs/<name>", RUNTIME)
    seed: int = _key(0, "of everything random")
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    model: ModelConfig = _key(MISSING, "the network's shape")
    init: InitConfig = field(default_factory=InitConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    quantize: QuantizeConfig = field(default_factory=QuantizeConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)


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
    """Dotted key -> (kind, help), for `hornbook list keys` and to check and suggest names."""
    found: dict[str, tuple[str, str]] = {}
    for f in dataclasses.fields(cls):
        if dataclasses.is_dataclass(f.type):
            found |= key_kinds(f.type, f"{prefix}{f.name}.")  # pyright: ignore
        elif not f.metadata.get("internal"):
            choices = " | ".join(map(str, f.metadata.get("choices", ())))
            about = ": ".join(filter(None, [choices, f.metadata.get("help")]))
            found[prefix + f.name] = (f.metadata.get("kind", IDENTITY), about)
    return found


def nearest(word: str, candidates: Iterable[str]) -> str:
    """` (did you mean 'x'?)`, or nothing."""
    close = difflib.get_close_matches(word, list(candidates), n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""
