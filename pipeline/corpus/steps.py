"""The data stage as a chain of cached steps, in the order of DESIGN.md section 4.

Each step names exactly the config keys it reads, so that a changed late setting redoes only what follows it. Raise a
number in `VERSIONS` whenever that step's output changes for the same input: old folders are then never used.
"""

import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_filters.quality import Quality
from data_filters.rule import Rule
from data_filters.table import FILTERS
from pipeline.artifacts import Folder, Step, hash_files, read_manifest
from pipeline.config import Config
from pipeline.corpus.duplicates import drop_exact_duplicates, drop_near_duplicates
from pipeline.corpus.execute import worker_count
from pipeline.corpus.gallery import REPORTS
from pipeline.corpus.options import look_up, make
from pipeline.corpus.publishing import cut_by_score, publish
from pipeline.corpus.reading import apply_rules, read_source, repair_documents
from pipeline.corpus.scoring import score_documents
from pipeline.corpus.shards import TEXTBOOK
from pipeline.corpus.source import Source
from pipeline.corpus.sources import SOURCES
from pipeline.corpus.splitting import split_groups
from pipeline.corpus.tokenizing import (
    check_given_tokenizer,
    copy_tokenizer,
    encode_documents,
    tokenizer_file,
    train_tokenizer,
)
from pipeline.errors import UserError
from pipeline.hub import TOKENIZER_FILES, content_of_model, is_hub_name, local_folder

VERSIONS = {
    "read": 1, "repair": 1, "rules": 1, "exact_dedup": 1, "split": 1, "near_dedup": 1, "tokenizer": 1, "encode": 1,
    "score": 1, "cut": 1, "data": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Builder:
    """Makes steps that share the number of shards and of workers."""

    tasks: int
    workers: int

    def step(self, name: str, make: Any, config: Mapping[str, Any], inputs: Mapping[str, Any], *libraries: str) -> Step:
        return Step(
            name=f"data-{name}".replace("_", "-"),
            version=VERSIONS[name],
            make=make,
            config={"tasks": self.tasks, **config},
            inputs=inputs,
            libraries=libraries,
        )


def read_steps(config: Config, builder: Builder) -> dict[str, Step]:
    """One step per source, by name. Raises `UserError` for what is not a source or cannot be found."""
    sources = {name: options for name, options in config.data.sources.items() if options is not None}
    if not sources:
        raise UserError("data.sources is empty; name at least one text source, `hornbook list sources` shows the types")
    return {name: _read_step(name, sources[name], builder) for name in sorted(sources)}


def _read_step(name: str, options: Any, builder: Builder) -> Step:
    key = f"data.sources.{name}"
    if not re.fullmatch(r"[A-Za-z0-9][\w.]*", name) or name == TEXTBOOK:
        raise UserError(
            f"{key}: expected a name of letters, digits, '_' and '.' other than '{TEXTBOOK}' (it names folders)"
        )
    if not isinstance(options, Mapping) or "type" not in options:
        raise UserError(f"{key} is {options!r}; expected a section such as {{type: jsonl, path: my.jsonl}}")
    cls = look_up(SOURCES, options["type"], f"{key}.type", "sources")
    chosen = {k: v for k, v in options.items() if k != "type"}
    source: Source = make(cls, chosen, key)
    try:
        content = source.content_hash()
    except (UserError, OSError) as error:
        raise UserError(f"{key}.{error}" if isinstance(error, UserError) else f"{key}: cannot read {error}") from None
    location = {"path", "dataset"}  # where a local input lies does not matter, what is in it does
    identity = {k: v for k, v in chosen.items() if k not in location}
    return builder.step(
        "read",
        lambda folder: read_source(folder, name, source, builder.tasks, builder.workers),
        {"source": name, "type": options["type"], "type_version": cls.version, "options": identity},
        {"content": content},
        "datatrove",
        *source.libraries(),
    )


def make_rules(filters: Mapping[str, Any]) -> dict[str, Rule]:
    """The rules that a config names, in the table's order. `UserError` for an unknown filter, option or value."""
    for name in filters:
        look_up(FILTERS, name, f"data.filters.{name}", "filters")
    return {
        name: make(cls, filters[name], f"data.filters.{name}")
        for name, cls in FILTERS.items()
        if filters.get(name) is not None
    }


def tokenizer_step(config: Config, builder: Builder, before: Mapping[str, Step]) -> Step:
    """Trains a tokenizer, or takes over the one that `tokenizer.path` names after checking that it fits."""
    given, vocab_size = config.tokenizer.path, config.tokenizer.vocab_size or config.model.vocab_size
    if given is not None and is_hub_name(given):
        content = {"content": content_of_model(given)}
        return builder.step(
            "tokenizer", lambda folder: _fetch_tokenizer(folder, given, config), {}, content, "tokenizers"
        )
    if given is not None:
        check_given_tokenizer(Path(given), config.model.vocab_size)
        path = tokenizer_file(Path(given))
        files = [p for p in (path, path.with_name("tokenizer_config.json")) if p.is_file()]
        content = {"content": hash_files(files, path.parent)}
        return builder.step("tokenizer", lambda folder: copy_tokenizer(folder, path), {}, content, "tokenizers")
    train_bytes, seed = config.data.tokenizer_train_bytes, config.seed

    def train(folder: Folder) -> dict[str, Any]:
        return train_tokenizer(folder, vocab_size, train_bytes, seed, builder.tasks)

    settings = {"vocab_size": vocab_size, "train_bytes": train_bytes, "seed": seed}
    return builder.step("tokenizer", train, settings, before, "tokenizers")


def _fetch_tokenizer(folder: Folder, name: str, config: Config) -> dict[str, Any]:
    """A hub model's tokenizer: fetched and checked only when the stage runs, so that a dry run needs no network."""
    fetched = local_folder(name, "tokenizer.path", TOKENIZER_FILES)
    check_given_tokenizer(fetched, config.model.vocab_size)
    return copy_tokenizer(folder, tokenizer_file(fetched))


def data_step(config: Config) -> Step:
    """The whole stage as one step with everything before it among its inputs. Builds nothing; raises `UserError`."""
    data, seed = config.data, config.seed
    builder = Builder(data.tasks, worker_count(data.workers))
    tasks, workers, step = builder.tasks, builder.workers, builder.step
    rules = make_rules(data.filters)
    quality: Quality | None = rules.pop("quality", None)  # type: ignore[assignment]
    reads = read_steps(config, builder)
    texts = {f"read-{name}": s for name, s in reads.items()}

    repair = step("repair", lambda f: repair_documents(f, list(reads), tasks, workers), {}, texts, "ftfy", "datatrove")
    options = {name: data.filters[name] or {} for name in rules}
    settings = {"filters": options, "python": platform.python_version()}  # its parser is one of the rules
    ruled = step("rules", lambda f: apply_rules(f, rules, tasks, workers), settings, {"repair": repair}, "datatrove")
    so_far = {"repair": repair, "rules": ruled}
    so_far["exact_dedup"] = step("exact_dedup", lambda f: drop_exact_duplicates(f, tasks, workers), {}, dict(so_far))
    share = data.validation.share
    so_far["split"] = step(
        "split", lambda f: split_groups(f, share, seed, tasks), {"share": share, "seed": seed}, dict(so_far)
    )
    similarity = data.near_dedup_similarity
    so_far["near_dedup"] = step(
        "near_dedup",
        lambda f: drop_near_duplicates(f, similarity, tasks, workers),
        {"similarity": similarity},
        dict(so_far),
        "rensa",
    )
    so_far["tokenizer"] = tokenizer_step(config, builder, dict(so_far))
    so_far["encode"] = step("encode", lambda f: _encode(f, tasks, workers), {}, dict(so_far), "tokenizers")
    so_far["score"] = step("score", lambda f: _score(f, seed, tasks, workers), {"seed": seed}, dict(so_far), "numpy")
    min_score = {"min_score": quality.min_score} if quality else {}
    so_far["cut"] = step("cut", lambda f: cut_by_score(f, quality, tasks), min_score, dict(so_far))
    limits = {
        "max_bytes": data.validation.max_bytes,
        "textbook_min_score": data.validation.textbook_min_score,
        "seed": seed,
    }
    return Step(
        name="data",
        version=VERSIONS["data"],
        make=lambda f: publish(f, sources=list(reads), tasks=tasks, keep_dropped=data.keep_dropped, **limits),
        config={"tasks": tasks, **limits},
        inputs={**texts, **so_far},
        reports=(*Step.reports, *REPORTS),
    )


def _encode(folder: Folder, tasks: int, workers: int) -> dict[str, Any]:
    tokenizer = read_manifest(folder.input("tokenizer"))
    return encode_documents(folder, tokenizer["vocab_size"], tokenizer["eos_token_id"], tasks, workers)


def _score(folder: Folder, seed: int, tasks: int, workers: int) -> dict[str, Any]:
    return score_documents(folder, read_manifest(folder.input("tokenizer"))["vocab_size"], seed, tasks, workers)
