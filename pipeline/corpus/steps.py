"""The data stage as a chain of cached steps, in the order in which they run.

Each step names exactly the config keys it reads, so that a changed late setting redoes only what follows it. Raise a
number in `VERSIONS` whenever that step's output changes for the same input: old folders are then never used.
"""

import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_filters.c4 import C4Quality
from data_filters.quality import Quality
from data_filters.rule import Rule
from data_filters.table import FILTERS
from pipeline.config import Config, merge
from pipeline.corpus import account, cluster
from pipeline.corpus.contamination import drop_contaminated, item_files
from pipeline.corpus.duplicates import drop_exact_duplicates, drop_near_duplicates
from pipeline.corpus.execute import Executor
from pipeline.corpus.gallery import REPORTS
from pipeline.corpus.publishing import cut_by_score, publish
from pipeline.corpus.reading import apply_rules, read_source, repair_documents
from pipeline.corpus.scorers.base import SHIPPED
from pipeline.corpus.scoring import make_scorer, score_documents
from pipeline.corpus.sources.source import Source
from pipeline.corpus.sources.table import SOURCES
from pipeline.corpus.splitting import split_groups
from pipeline.corpus.text.options import look_up, make
from pipeline.corpus.text.shards import TEXTBOOK
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
OF_EVERY_SOURCE = ("type", "weight", "filters", "replay")  # read here and at pretraining, not by the source's class


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
        cluster.check(data.executor, data.executor_options)
    return Executor(data.tasks, data.workers, data.executor, data.executor_options)


def named_sources(config: Config) -> dict[str, Mapping[str, Any]]:
    """The sources of a config, by name, without those set to null. `UserError` for what is not a source."""
    sources = {name: options for name, options in sorted(config.data.sources.items()) if options is not None}
    if not sources:
        raise UserError("data.sources is empty; name at least one text source, `hornbook list sources` shows the types")
    for name, options in sources.items():
        key = f"data.sources.{name}"
        if not re.fullmatch(r"[A-Za-z0-9][\w.]*", name) or name == TEXTBOOK:
            raise UserError(
                f"{key}: expected a name of letters, digits, '_' and '.' other than '{TEXTBOOK}' (it names folders)"
            )
        if not isinstance(options, Mapping) or "type" not in options:
            raise UserError(f"{key} is {options!r}; expected a section such as {{type: jsonl, path: my.jsonl}}")
        weight = options.get("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
            raise UserError(f"{key}.weight is {weight!r}; expected a number of at least 0 (1: by its own tokens)")
        if not isinstance(options.get("filters") or {}, Mapping):
            raise UserError(f"{key}.filters is {options['filters']!r}; expected a section laid over data.filters")
    return {name: _with_documents(name, options, sources) for name, options in sources.items()}


def _with_documents(name: str, options: Mapping[str, Any], sources: Mapping[str, Any]) -> Mapping[str, Any]:
    """A source that rewrites another names it: `documents: mine` becomes the options of `data.sources.mine`."""
    named = options.get("documents")
    if not isinstance(named, str):
        return options
    if named not in sources or named == name or isinstance(sources[named].get("documents"), str):
        others = ", ".join(sorted(set(sources) - {name})) or "none"
        raise UserError(
            f"data.sources.{name}.documents is '{named}'; expected the name of another source with texts of its own "
            f"(there are: {others})"
        )
    return {**options, "documents": {**sources[named], "name": named}}


def make_source(options: Mapping[str, Any], key: str) -> Source:
    """The source behind a section of `data.sources`. `UserError` for an unknown type, option or value."""
    cls = look_up(SOURCES, options["type"], f"{key}.type", "sources")
    return make(cls, {k: v for k, v in options.items() if k not in OF_EVERY_SOURCE}, key)


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


def make_rules(filters: Mapping[str, Any], key: str = "data.filters") -> dict[str, Rule]:
    """The rules that a config names, in the table's order. `UserError` for an unknown filter, option or value."""
    for name in filters:
        look_up(FILTERS, name, f"{key}.{name}", "filters")
    return {
        name: make(cls, filters[name], f"{key}.{name}")
        for name, cls in FILTERS.items()
        if filters.get(name) is not None
    }


def rules_by_source(config: Config) -> tuple[dict[str, dict[str, Rule]], dict[str, Quality]]:
    """For each source its rules, and the cut by score where it has one: `data.filters` with the source's own
    `filters` laid over them (null takes one away)."""
    data = config.data
    make_rules(data.filters)  # a mistake there is said of data.filters
    rules: dict[str, dict[str, Rule]] = {}
    qualities: dict[str, Quality] = {}
    for name, options in named_sources(config).items():
        own = options.get("filters") or {}
        rules[name] = make_rules(merge(data.filters, own), f"data.sources.{name}.filters" if own else "data.filters")
        quality = rules[name].pop("quality", None)
        if isinstance(quality, Quality):
            qualities[name] = quality
        if data.mask_personal_data and "personal_data" in rules[name]:
            raise UserError(
                "data.filters.personal_data drops texts with addresses and keys, but data.mask_personal_data replaces "
                "them before any filter looks: choose one (data.mask_personal_data=false or the filter set to null)"
            )
        c4 = rules[name].get("c4")
        if isinstance(c4, C4Quality) and c4.remove_lines:
            raise UserError(
                "data.filters.c4.remove_lines rewrites texts, and the data stage has written them before its rules "
                "decide; take it out here, or run the rule in a datatrove pipeline of your own (as_datatrove_filter)"
            )
    return rules, qualities


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
