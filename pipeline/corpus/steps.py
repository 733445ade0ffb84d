"""The data stage as a chain of cached steps, in the order in which they run.

Each step names exactly the config keys it reads, so that a changed late setting redoes only what follows it. Raise a
number in `VERSIONS` whenever that step's output changes for the same input: old folders are then never used.
"""

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config import Config, merge
from pipeline.corpus import account
from pipeline.corpus.contamination import drop_contaminated, item_files
from pipeline.corpus.dropped import REPORTS
from pipeline.corpus.duplicates import drop_exact_duplicates, drop_near_duplicates
from pipeline.corpus.execute import Executor, check_cluster
from pipeline.corpus.named import OF_EVERY_SOURCE, make_source, named_sources, rules_by_source
from pipeline.corpus.publishing import cut_by_score, publish, score_documents
from pipeline.corpus.reading import apply_rules, read_source, repair_documents
from pipeline.corpus.scorers.document_scorers import SHIPPED, make_scorer
from pipeline.corpus.splitting import split_groups
from pipeline.corpus.text.tokenizer import tokenizer_files
from pipeline.corpus.tokenizing import (
    check_given_tokenizer,
    copy_tokenizer,
    encode_documents,
    tokenizer_file,
    train_tokenizer,
)
from pipeline.storage.build import Maker
from pipeline.storage.experiment import Experiment
from pipeline.storage.files import hash_files
from pipeline.storage.hub import TOKENIZER_FILES, content_of_model, is_hub_name, local_folder
from pipeline.storage.steps import Folder, Step, read_manifest
from pipeline.system.errors import UserError

VERSIONS = {
    "read": 5, "repair": 5, "rules": 3, "exact_dedup": 2, "split": 3, "near_dedup": 4, "contamination": 4,
    "tokenizer": 4, "encode": 2, "score": 4, "cut": 3, "data": 5,
}  # fmt: skip


@dataclass(frozen=True)
class Builder:
    """Makes steps that share the number of shards and the place where they are worked on. `makers`: what makes each,
    by its fingerprint."""

    executor: Executor
    makers: dict[str, Maker] = field(default_factory=dict)

    def step(
        self, name: str, make: Maker, config: Mapping[str, Any], inputs: Mapping[str, Any], *libraries: str
    ) -> Step:
        step = Step(
            name=f"data-{name}".replace("_", "-"),
            version=VERSIONS[name],
            config={"tasks": self.executor.tasks, **config},
            inputs=inputs,
            libraries=libraries,
        )
        self.makers[step.fingerprint] = make
        return step


def make_executor(config: Config) -> Executor:
    """Where the stage's shards are worked on. `UserError` for options that the chosen one does not have."""
    data = config.data
    if data.executor != "local":
        check_cluster(data.executor, data.executor_options)
    return Executor(data.tasks, data.workers, data.executor, data.executor_options)


def _read_step(name: str, options: Mapping[str, Any], max_unreadable: float, builder: Builder) -> Step:
    key = f"data.sources.{name}"
    source = make_source(options, key)
    try:
        content = source.content_hash()
    except (UserError, OSError) as error:
        raise UserError(f"{key}.{error}" if isinstance(error, UserError) else f"{key}: cannot read {error}") from None
    # Where a local input lies does not matter, what is in it does.
    elsewhere = (*OF_EVERY_SOURCE, *source.without_effect, "path", "dataset")
    identity = {k: v for k, v in options.items() if k not in elsewhere}
    return builder.step(
        "read",
        lambda folder: read_source(folder, name, source, max_unreadable, builder.executor),
        {"source": name, "type": options["type"], "type_version": source.version, "options": identity},
        {"content": content},
        "datatrove",
        *source.libraries(),
    )


def tokenizer_step(config: Config, builder: Builder, before: str, so_far: Mapping[str, Step]) -> Step:
    """The tokenizer that the config names, or the training of one. `UserError` where it does not fit the model."""
    given, vocab_size = config.tokenizer.path, config.tokenizer.vocab_size or config.model.vocab_size
    if given is not None and is_hub_name(given):
        content = {"content": content_of_model(given, "tokenizer.path")}
        return builder.step(
            "tokenizer", lambda folder: _fetch_tokenizer(folder, given, config), {}, content, "tokenizers"
        )
    if given is not None:
        check_given_tokenizer(Path(given), config.model.vocab_size)
        path = tokenizer_file(Path(given))
        content = {"content": hash_files(tokenizer_files(path), path.parent)}
        return builder.step("tokenizer", lambda folder: copy_tokenizer(folder, path), {}, content, "tokenizers")
    train_bytes, seed = config.data.tokenizer_train_bytes, config.seed

    def train(folder: Folder) -> dict[str, Any]:
        return train_tokenizer(folder, before, vocab_size, train_bytes, seed, builder.executor)

    settings = {"vocab_size": vocab_size, "train_bytes": train_bytes, "seed": seed}
    return builder.step("tokenizer", train, settings, so_far, "tokenizers")


def _fetch_tokenizer(folder: Folder, name: str, config: Config) -> dict[str, Any]:
    """A hub model's tokenizer: fetched and checked only when the stage runs, so that a dry run needs no network."""
    fetched = local_folder(name, "tokenizer.path", TOKENIZER_FILES)
    check_given_tokenizer(fetched, config.model.vocab_size)
    return copy_tokenizer(folder, tokenizer_file(fetched))


def data_step(config: Config) -> Step:
    """The whole stage as one step with everything before it among its inputs. Builds nothing.

    Checks sources, filters, options and tokenizer: raises `UserError` that names the key and the fix. Quick once the
    inputs' hashes are cached."""
    return data_chain(config)[0]


def data_chain(config: Config) -> tuple[Step, dict[str, Maker]]:
    """The same, and what makes each step of it, by fingerprint."""
    data, seed = config.data, config.seed
    builder = Builder(make_executor(config))
    executor, step = builder.executor, builder.step
    sources = named_sources(config)
    rules, qualities = rules_by_source(config)
    reads = {
        f"read-{name}": _read_step(name, options, data.max_unreadable, builder) for name, options in sources.items()
    }
    mask = data.mask_personal_data
    repair = step(
        "repair",
        lambda f: repair_documents(f, list(sources), mask, executor),
        {"mask": mask},
        reads,
        "ftfy",
        "datatrove",
    )
    settings = {
        "filters": {name: _without_quality(data.filters, options) for name, options in sources.items()},
        "python": platform.python_version(),  # its parser is one of the rules
    }
    libraries = sorted({library for own in rules.values() for rule in own.values() for library in rule.libraries})
    so_far = {
        "repair": repair,
        "rules": step("rules", lambda f: apply_rules(f, rules, executor), settings, {"repair": repair}, *libraries),
    }
    so_far["exact_dedup"] = step("exact_dedup", lambda f: drop_exact_duplicates(f, "rules"), {}, dict(so_far))
    share, max_bytes = data.validation.share, data.validation.max_bytes
    so_far["split"] = step(
        "split",
        lambda f: split_groups(f, "exact_dedup", share, max_bytes, seed),
        {"share": share, "max_bytes": max_bytes, "seed": seed},
        dict(so_far),
    )
    similarity = data.near_dedup_similarity
    so_far["near_dedup"] = step(
        "near_dedup",
        lambda f: drop_near_duplicates(f, "exact_dedup", similarity, executor),
        {"similarity": similarity},
        dict(so_far),
        "rensa",
    )
    last = "near_dedup"
    if data.decontamination.files:
        last = "contamination"
        so_far[last] = _contamination_step(config, builder, dict(so_far))
    so_far["tokenizer"] = tokenizer_step(config, builder, last, dict(so_far))
    so_far["encode"] = step("encode", lambda f: _encode(f, last, executor), {}, dict(so_far), "tokenizers")
    so_far["score"] = _score_step(config, builder, last, dict(so_far))
    limits = {name: quality.min_score for name, quality in qualities.items()}
    min_score: Any = next(iter(limits.values())) if len(set(limits.values())) == 1 else limits or None
    so_far["cut"] = step(
        "cut",
        lambda f: cut_by_score(f, last, qualities, executor.tasks),
        {
            "min_score": min_score,
            "keep_tokens": {name: quality.keep_tokens for name, quality in qualities.items()},
            "sources": sorted(limits),
        },
        dict(so_far),
    )
    validation = {
        "max_bytes": data.validation.max_bytes,
        "textbook_min_score": data.validation.textbook_min_score,
        "seed": seed,
    }
    final = Step(
        name="data",
        version=VERSIONS["data"],
        config={"tasks": executor.tasks, **validation},
        inputs={**reads, **so_far},
        reports=(*Step.reports, *account.FILES, *REPORTS),
    )

    def make_final(folder: Folder) -> dict[str, Any]:
        return publish(folder, tasks=executor.tasks, keep_dropped=data.keep_dropped, **validation)

    return final, {**builder.makers, final.fingerprint: make_final}


def _without_quality(filters: Mapping[str, Any], source: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a source's rules, for the fingerprint; the cut by score is a later step's."""
    chosen = merge(filters, source.get("filters") or {})
    return {name: options for name, options in chosen.items() if options is not None and name != "quality"}


def _contamination_step(config: Config, builder: Builder, so_far: Mapping[str, Step]) -> Step:
    wanted = config.data.decontamination
    files = item_files(wanted.files)
    keys = wanted.keys
    settings = {"keys": keys, "ngram_words": wanted.ngram_words, "min_words": wanted.min_words}
    names = {f"items {path.name}": hash_files([path], path.parent) for path in files}

    def drop(folder: Folder) -> dict[str, Any]:
        return drop_contaminated(
            folder, "near_dedup", files, keys, wanted.ngram_words, wanted.min_words, builder.executor,
            config.data.max_unreadable,
        )  # fmt: skip

    return builder.step("contamination", drop, settings, {**so_far, **names})


def _encode(folder: Folder, before: str, executor: Executor) -> dict[str, Any]:
    tokenizer = read_manifest(folder.input("tokenizer"))
    return encode_documents(folder, before, tokenizer["vocab_size"], tokenizer["eos_token_id"], executor)


def _score_step(config: Config, builder: Builder, before: str, so_far: Mapping[str, Step]) -> Step:
    options = config.data.scorer
    if options and options.get("type") == "trained" and options.get("path") is None:
        options = {**options, "path": str(Experiment(config).folder / SHIPPED.name)}
    scorer = make_scorer(options)
    types = {name: source["type"] for name, source in named_sources(config).items()}
    chosen = [] if scorer is None else scorer.chosen(types)
    content = {} if scorer is None or not chosen else {"scorer": scorer.content()}
    identity = {name: value for name, value in (options or {}).items() if name not in ("path", "sources")}
    libraries = ("numpy",) if scorer is None else scorer.libraries

    def score(folder: Folder) -> dict[str, Any]:
        vocab_size = read_manifest(folder.input("tokenizer"))["vocab_size"]
        return score_documents(folder, before, vocab_size, options, chosen, builder.executor)

    return builder.step("score", score, {**identity, "sources": chosen}, {**so_far, **content}, *libraries)
