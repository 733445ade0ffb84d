"""What a config may not say: values out of range, pairs that contradict each other. One message for all of them.

In: a config whose types are right. Out: sentences that name the key, what was found and what was expected.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.config.schema import STAGES, BudgetConfig, Config, TrainConfig, nearest
from pipeline.system.errors import UserError

BYTES_AND_END = 257  # entries that every tokenizer trained here has
MOST_VOCABULARY = 10_000_000
MOST_PROBLEMS = 12  # that one message lists


def check_end(train: TrainConfig, budget: BudgetConfig, who: str = "the config", key: str = "budget") -> None:
    """Raises `UserError` where nothing ends the training: no hours, no tokens, no epochs."""
    if budget.max_gpu_hours is None and budget.max_tokens is None and train.max_epochs is None:
        raise UserError(f"{who} sets no end: set {key}.max_gpu_hours (or {key}.max_tokens)")


def validate(config: Config, where: str) -> None:
    """Raises one `UserError` for impossible shapes, values and pairs, before any work starts."""
    if found := list(problems(config)):
        raise UserError(one_message(where, found))


def one_message(where: str, problems: Sequence[str]) -> str:
    """One problem on the line itself, several on a line each."""
    if len(problems) == 1:
        return f"{where}: {problems[0]}"
    rest = len(problems) - MOST_PROBLEMS
    lines = [*problems[:MOST_PROBLEMS], *([f"and {rest} more"] if rest > 0 else [])]
    return "\n  ".join([f"{where}: {len(problems)} problems", *lines])


def problems(config: Config) -> Iterable[str]:
    """Everything that is wrong with a config, single keys first."""
    try:
        config.model.validate()
    except ValueError as error:
        yield str(error)
    yield from section_problems(config)
    yield from _name_problems(config.name)
    yield from _step_problems(config.train, config.model.max_position_embeddings)
    yield from _mixing_problems(config)
    if config.finetune.budget.count_source:
        yield (
            "finetune.budget.count_source is true: a tuning has no source, its base model is trained under "
            "budget.max_gpu_hours; remove the key, and set finetune.budget.max_gpu_hours to the tuning's own hours"
        )
    yield from _vocabulary_problems(config)


def section_problems(section: Any, prefix: str = "") -> Iterable[str]:
    """The keys of a section, and of those in it, that are out of their range or choices."""
    for f in dataclasses.fields(section):
        value = getattr(section, f.name)
        if dataclasses.is_dataclass(value):
            yield from section_problems(value, f"{prefix}{f.name}.")
        else:
            yield from value_problems(f"{prefix}{f.name}", value, f)


def value_problems(key: str, value: Any, f: dataclasses.Field) -> Iterable[str]:
    """What is wrong with one value, by the range or choices beside its key. Null is right where the type allows it."""
    choices, above, limits = f.metadata.get("choices", ()), f.metadata.get("above"), f.metadata.get("range")
    several = isinstance(value, list)
    for entry in value if several else [value]:
        if choices and entry not in choices:
            hint = nearest(str(entry), map(str, choices))
            found = f"{key} {'has' if several else 'is'} '{entry}'{hint}"
            yield f"{found}; expected one of {', '.join(map(str, choices))}"
    null = ", or null" if f.default is None else ""
    if above is not None and value is not None and not above < value < math.inf:  # nan is not larger either
        finite = ", and finite" if value == math.inf or value != value else ""
        yield f"{key} is {value}; expected more than {above:g}{finite}{null}"
    if limits is not None and value is not None:
        least, most = limits
        if not least <= value <= (math.inf if most is None else most):
            between = f"at least {least:g}" if most is None else f"{least:g} to {most:g}"
            yield f"{key} is {value}; expected {between}{null}"


def _name_problems(name: str) -> Iterable[str]:
    if set(name.split("/")) & {*STAGES, "jobs"}:
        yield f"name is {name!r}; {', '.join(STAGES)} are names of stages, jobs of a folder: choose another"
    if not name.strip() or name.startswith(("/", ".")) or ".." in name.split("/"):
        yield f"name is {name!r}; expected a word such as 'tiny' (it names a folder under runs/)"


def _step_problems(train: TrainConfig, longest: int) -> Iterable[str]:
    if not 2 <= train.sequence_length <= longest:
        yield (
            f"train.sequence_length is {train.sequence_length}; expected 2 to model.max_position_embeddings ({longest})"
        )
        return  # the checks below count in windows
    windows, rest = divmod(train.global_batch_tokens, train.sequence_length)
    if windows < 1 or rest:
        yield (
            f"train.global_batch_tokens is {train.global_batch_tokens}; expected a positive multiple of "
            f"train.sequence_length ({train.sequence_length})"
        )
    elif train.micro_batch and windows % train.micro_batch:
        yield (
            f"train.micro_batch is {train.micro_batch} windows; expected a divisor of the step's {windows} windows, "
            "or 0"
        )
    yield from _batch_warmup_problems(train)
    if train.float8 != "none" and train.precision == "32-true":
        yield (
            f"train.float8={train.float8} rounds to 8 bits what train.precision=32-true wants in fp32; set "
            "train.float8=none or train.precision=auto"
        )
    if train.optimizer_in_backward and train.clip_norm:
        yield (
            f"train.optimizer_in_backward is true and train.clip_norm is {train.clip_norm:g}: the norm of all "
            "gradients is not known before the first weight moves; set train.clip_norm=0, or "
            "train.optimizer_in_backward=false"
        )
    if train.optimizer_in_backward and train.micro_batch not in (0, windows):
        yield (
            f"train.optimizer_in_backward is true and train.micro_batch={train.micro_batch} of the step's {windows} "
            "windows would sum gradients over several passes, and none is kept; set train.micro_batch=0 and lower "
            "train.global_batch_tokens, or set train.optimizer_in_backward=false"
        )


def _vocabulary_problems(config: Config) -> Iterable[str]:
    vocab_size, least = config.tokenizer.vocab_size, BYTES_AND_END
    if config.model.vocab_size > MOST_VOCABULARY:
        yield f"model.vocab_size is {config.model.vocab_size}; expected 1 to {MOST_VOCABULARY:g}"
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
        sound = all(_is_number(share) and share >= 0 for share in mix.values())
        if set(mix) - set(sources) or not sound or not sum(mix.values()):
            yield f"train.{key} is {mix}; expected shares of at least 0 for names of data.sources {list(sources)}"
        for name in mix:
            if mix[name] and weights.get(name) == 0:
                yield (
                    f"train.{key} gives a share to '{name}' and data.sources.{name}.weight=0 says not to train on it; "
                    "remove one of them"
                )
    if train.decay_min_score is not None and train.max_epochs is not None:
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
