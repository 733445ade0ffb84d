"""What a config may not say: values out of range, pairs that contradict each other. One message per problem.

In: a config whose types are right. Out: sentences that name the key, what was found and what was expected.
"""

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pipeline.config.after import AFTER_RANGES, choices_problems
from pipeline.config.keys import STAGES, nearest

if TYPE_CHECKING:
    from pipeline.config import Config, TrainConfig

BYTES_AND_END = 257  # entries that every tokenizer trained here has


def problems(config: "Config") -> Iterable[str]:
    train, budget, data = config.train, config.budget, config.data
    if set(config.name.split("/")) & {*STAGES, "jobs"}:
        yield f"name is {config.name!r}; {', '.join(STAGES)} are names of stages, jobs of a folder: choose another"
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
    yield from choices_problems(config, nearest)
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
    if config.finetune.budget.count_source:
        yield (
            "finetune.budget.count_source is true: a tuning has no source, its base model is trained under "
            "budget.max_gpu_hours; remove the key, and set finetune.budget.max_gpu_hours to the tuning's own hours"
        )
    if data.executor not in ("local", "slurm", "ray"):
        yield f"data.executor is '{data.executor}'; expected local, slurm or ray"
    if data.keep_dropped not in ("sample", "all", "none"):
        yield f"data.keep_dropped is '{data.keep_dropped}'; expected sample, all or none"
    if config.tracking.to not in ("wandb", "tensorboard", "none"):
        yield f"tracking.to is '{config.tracking.to}'; expected wandb, tensorboard or none"
    yield from _vocabulary_problems(config)


def _vocabulary_problems(config: "Config") -> Iterable[str]:
    vocab_size = config.tokenizer.vocab_size
    least = BYTES_AND_END
    if vocab_size is not None and vocab_size < least:
        yield f"tokenizer.vocab_size is {vocab_size}; expected at least {least} (every byte and the end of text)"
    if config.tokenizer.path is None and vocab_size is None and config.model.vocab_size < least:
        yield (
            f"model.vocab_size is {config.model.vocab_size}; expected at least {least} (every byte and the end of "
            "text), as a tokenizer is trained for it; tokenizer.path names one that is smaller"
        )
    if vocab_size is not None and vocab_size > config.model.vocab_size:
        yield (
            f"tokenizer.vocab_size ({vocab_size}) is larger than model.vocab_size ({config.model.vocab_size}): "
            "the model would have no row for some tokens; raise model.vocab_size"
        )


def _batch_warmup_problems(train: "TrainConfig") -> Iterable[str]:
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


def _in_backward_problems(train: "TrainConfig") -> Iterable[str]:
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


def _mixing_problems(config: "Config") -> Iterable[str]:
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
        sound = all(_is_number(share) and share >= 0 for share in mix.values())
        if set(mix) - set(sources) or not sound or not sum(mix.values()):
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
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


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
    "model.vocab_size": (1, 1e7),
    "init.tolerance": (0, 1),
    "train.micro_batch": (0, 1e6),
    "train.learning_rate": (1e-12, 1e3),
    "train.beta1": (0, 0.999999),
    "train.beta2": (0, 0.999999),
    "train.muon_momentum": (0, 0.999999),
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
    **AFTER_RANGES,
}


def _out_of_range(config: "Config") -> Iterable[str]:
    for key, (least, most) in RANGES.items():
        value: Any = config
        for word in key.split("."):
            value = getattr(value, word)
        if not least <= value <= most:
            yield f"{key} is {value}; expected {least:g} to {most:g}"
    width = config.train.learning_rate_base_width
    if width is not None and width < 1:
        yield f"train.learning_rate_base_width is {width}; expected at least 1 (a hidden size), or null"
    every_tokens = config.evaluate.every_tokens
    if every_tokens is not None and every_tokens < 1:
        yield f"evaluate.every_tokens is {every_tokens}; expected at least 1, or null"
    every = config.train.checkpoint_every_seconds
    if every is not None and not 1e-3 <= every <= 1e9:
        yield f"train.checkpoint_every_seconds is {every}; expected 0.001 to 1e+09, or null"
