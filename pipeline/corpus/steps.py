"""The data stage as a chain of cached steps: what each one is, and which steps it reads. `pipeline/data.py` makes them.

`data_step` strings the chain. Below it stands what a config names (sources, rules, scorer, executor), as objects. All
of it raises `UserError` for what is unknown or does not fit. Each step names exactly the config keys that it reads, so
that a changed late setting redoes only what follows it. Raise a number in `VERSIONS` whenever that step's output
changes for the same input: old folders are then never used.

To add a source: a class with `items` and `content_hash` in a file of `sources/`, and a line in `SOURCES`.
"""

import platform
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from data_filters.c4 import C4Quality
from data_filters.general import Quality
from data_filters.rule import Rule
from data_filters.table import FILTERS
from pipeline.config import Config, merge
from pipeline.corpus.contamination import item_files
from pipeline.corpus.execute import Executor, check_cluster
from pipeline.corpus.exercises.source import Exercises
from pipeline.corpus.reading import read_source
from pipeline.corpus.scorers.document_scorers import SHIPPED, make_scorer
from pipeline.corpus.sources.document_files import TextFolder, Warc
from pipeline.corpus.sources.python_library import PythonLibrary
from pipeline.corpus.sources.records import HuggingFace, Jsonl, Parquet
from pipeline.corpus.synthetic.source import Rewritten, Synthetic
from pipeline.corpus.text.shards import SAMPLES, TEXTBOOK
from pipeline.corpus.text.source import Source, look_up, make
from pipeline.corpus.text.tokenizer import check_given_tokenizer, tokenizer_file, tokenizer_files
from pipeline.pages.data_card import ATTRIBUTION, CARD, REPORT
from pipeline.storage.experiment import Experiment
from pipeline.storage.files import hash_files
from pipeline.storage.hub import GGUF, TOKENIZER_FILES, content_of_model, is_hub_name, local_folder
from pipeline.storage.steps import Step
from pipeline.storage.store import Maker
from pipeline.system.errors import UserError

VERSIONS = {
    "read": 5, "repair": 5, "rules": 3, "exact_dedup": 2, "split": 3, "near_dedup": 4, "contamination": 4,
    "tokenizer": 4, "encode": 2, "score": 5, "cut": 3, "data": 5,
}  # fmt: skip
Inputs = Mapping[str, Step | str]

SOURCES: dict[str, type[Source]] = {
    "python_library": PythonLibrary,
    "exercises": Exercises,
    "jsonl": Jsonl,
    "parquet": Parquet,
    "text": TextFolder,
    "warc": Warc,
    "huggingface": HuggingFace,
    "synthetic": Synthetic,
}
OF_EVERY_SOURCE = ("type", "weight", "filters", "replay")  # read here and at pretraining, not by the source's class


def data_step(config: Config) -> Step:
    """The whole stage as one step with everything before it among its inputs. Builds nothing.

    Checks sources, filters, options and tokenizer: raises `UserError` that names the key and the fix. Quick once the
    inputs' hashes are cached."""
    data, seed = config.data, config.seed
    make_executor(config)  # checks its options
    sources = named_sources(config)
    own_rules, qualities = rules_by_source(config)
    reads = {f"read-{name}": _read(config, name, options) for name, options in sources.items()}
    repair = _step(config, "repair", {"mask": data.mask_personal_data}, reads, "ftfy", "datatrove")
    rules = _rules(config, own_rules, _by_name(repair))
    exact = _step(config, "exact_dedup", {}, _by_name(repair, rules))
    # The split comes before near deduplication, which drops train texts that are near a validation text.
    share, max_bytes = data.validation.share, data.validation.max_bytes
    split_settings = {"share": share, "max_bytes": max_bytes, "seed": seed}
    split = _step(config, "split", split_settings, _by_name(repair, rules, exact))
    similarity = {"similarity": data.near_dedup_similarity}
    near = _step(config, "near_dedup", similarity, _by_name(repair, rules, exact, split), "rensa")
    filtered = [repair, rules, exact, split, near]
    if data.decontamination.files:
        filtered.append(_contamination(config, _by_name(*filtered)))
    # Tokenizer and ids come before score and cut, so that moving the cut moves neither.
    tokenizer = _tokenizer(config, _by_name(*filtered))
    encode = _step(config, "encode", {}, _by_name(*filtered, tokenizer), "tokenizers")
    score = _score(config, _by_name(*filtered, tokenizer, encode))
    cut = _cut(config, qualities, _by_name(*filtered, tokenizer, encode, score))
    textbook_min_score = data.validation.textbook_min_score
    return Step(
        name="data",
        version=VERSIONS["data"],
        config={"tasks": data.tasks, "max_bytes": max_bytes, "textbook_min_score": textbook_min_score, "seed": seed},
        inputs={**reads, **_by_name(*filtered, tokenizer, encode, score, cut)},
        reports=(*Step.reports, REPORT, CARD, ATTRIBUTION, *SAMPLES),
    )


def _step(config: Config, name: str, settings: Mapping[str, Any], inputs: Inputs, *libraries: str) -> Step:
    tasks = {"tasks": config.data.tasks}  # the number of shards decides the order of documents
    return Step(f"data-{name}".replace("_", "-"), VERSIONS[name], {**tasks, **settings}, inputs, libraries)


def _by_name(*steps: Step) -> dict[str, Step]:
    """Steps as inputs: `data-near-dedup` is `near_dedup` to those that read it."""
    return {step.name.removeprefix("data-").replace("-", "_"): step for step in steps}


def _read(config: Config, name: str, options: Mapping[str, Any]) -> Step:
    key = f"data.sources.{name}"
    source = make_source(options, key)
    # Where a local input lies does not matter, what is in it does.
    elsewhere = (*OF_EVERY_SOURCE, *source.without_effect, "path", "dataset")
    identity = {k: v for k, v in options.items() if k not in elsewhere}
    settings = {"source": name, "type": options["type"], "type_version": source.version, "options": identity}
    inputs = {"content": _content(source, key)}
    return _step(config, "read", settings, inputs, "datatrove", *source.libraries())


def _content(source: Source, key: str) -> str:
    try:
        return source.content_hash()
    except UserError as error:
        raise UserError(f"{key}.{error}") from None
    except OSError as error:
        raise UserError(f"{key}: cannot read {error}") from None


def _rules(config: Config, rules: Mapping[str, Mapping[str, Rule]], before: Inputs) -> Step:
    libraries = sorted({library for own in rules.values() for rule in own.values() for library in rule.libraries})
    filters = {}
    for name, options in named_sources(config).items():
        chosen = merge(config.data.filters, options.get("filters") or {})
        # The cut by score is a later step's.
        filters[name] = {rule: value for rule, value in chosen.items() if value is not None and rule != "quality"}
    settings = {"filters": filters, "python": platform.python_version()}  # its parser is one of the rules
    return _step(config, "rules", settings, before, *libraries)


def _contamination(config: Config, before: Inputs) -> Step:
    wanted = config.data.decontamination
    settings = {"keys": wanted.keys, "ngram_words": wanted.ngram_words, "min_words": wanted.min_words}
    items = {f"items {path.name}": hash_files([path], path.parent) for path in item_files(wanted.files)}
    return _step(config, "contamination", settings, {**before, **items})


def _tokenizer(config: Config, before: Inputs) -> Step:
    """The tokenizer that the config names, or the training of one. `UserError` where it does not fit the model."""
    given = config.tokenizer.path
    if given is None:
        vocab_size = config.tokenizer.vocab_size or config.model.vocab_size
        settings = {"vocab_size": vocab_size, "train_bytes": config.data.tokenizer_train_bytes, "seed": config.seed}
        return _step(config, "tokenizer", settings, before, "tokenizers")
    if is_hub_name(given):  # fetched and checked only when the stage runs, so that a dry run needs no network
        content = content_of_model(given, "tokenizer.path")
    else:
        place = local_folder(given, "tokenizer.path", TOKENIZER_FILES) if given.endswith(GGUF) else Path(given)
        check_given_tokenizer(place, config.model.vocab_size)
        path = tokenizer_file(place)
        content = hash_files(tokenizer_files(path), path.parent)
    return _step(config, "tokenizer", {}, {"content": content}, "tokenizers")


def _score(config: Config, before: Inputs) -> Step:
    scorer = make_scorer(scorer_options(config))
    types = {name: source["type"] for name, source in named_sources(config).items()}
    chosen = [] if scorer is None else scorer.chosen(types)
    content = {} if scorer is None or not chosen else {"scorer": scorer.content()}
    identity = {name: value for name, value in (config.data.scorer or {}).items() if name not in ("path", "sources")}
    libraries = ("numpy",) if scorer is None else scorer.libraries
    return _step(config, "score", {**identity, "sources": chosen}, {**before, **content}, *libraries)


def _cut(config: Config, qualities: Mapping[str, Quality], before: Inputs) -> Step:
    limits = {name: quality.min_score for name, quality in qualities.items()}
    # One number where all sources are cut at the same score, which is the usual case and what reports show.
    min_score: Any = next(iter(limits.values())) if len(set(limits.values())) == 1 else limits or None
    keep_tokens = {name: quality.keep_tokens for name, quality in qualities.items()}
    settings = {"min_score": min_score, "keep_tokens": keep_tokens, "sources": sorted(limits)}
    return _step(config, "cut", settings, before)


def named_sources(config: Config) -> dict[str, Mapping[str, Any]]:
    """The sections of a config's sources, by name, without those set to null. Raises `UserError`."""
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
            raise UserError(
                f"{key} is {options!r}, without a type; expected a section such as {{type: jsonl, path: my.jsonl}}, or "
                "type: text for a folder of documents; hornbook list sources shows all types"
            )
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
    """The source behind a section of `data.sources`; the source that it rewrites is made first."""
    cls = look_up(SOURCES, options["type"], f"{key}.type", "sources")
    own = {name: value for name, value in options.items() if name not in OF_EVERY_SOURCE}
    if isinstance(inner := own.get("documents"), Mapping):
        unnamed = {name: value for name, value in inner.items() if name != "name"}
        own["documents"] = Rewritten(inner.get("name"), inner, make_source(unnamed, f"{key}.documents"))
    return make(cls, own, key)


def source_reader(name: str, options: Mapping[str, Any], max_unreadable: float, executor: Executor) -> Maker:
    """What makes the read step of one source."""
    source = make_source(options, f"data.sources.{name}")
    return partial(read_source, name=name, source=source, max_unreadable=max_unreadable, executor=executor)


def scorer_options(config: Config) -> Mapping[str, Any] | None:
    """The section `data.scorer`; a trained scorer without a path is that of the experiment."""
    options = config.data.scorer
    if options and options.get("type") == "trained" and options.get("path") is None:
        return {**options, "path": str(Experiment(config).folder / SHIPPED.name)}
    return options


def make_executor(config: Config) -> Executor:
    """Where the stage's shards are worked on; checks the options of a cluster."""
    data = config.data
    if data.executor != "local":
        check_cluster(data.executor, data.executor_options)
    return Executor(data.tasks, data.workers, data.executor, data.executor_options)


def make_rules(filters: Mapping[str, Any], key: str = "data.filters") -> dict[str, Rule]:
    """The rules that a section of filters names, in the table's order."""
    for name in filters:
        look_up(FILTERS, name, f"{key}.{name}", "filters")
    return {
        name: make(cls, filters[name], f"{key}.{name}")
        for name, cls in FILTERS.items()
        if filters.get(name) is not None
    }


def rules_by_source(config: Config) -> tuple[dict[str, dict[str, Rule]], dict[str, Quality]]:
    """For each source its rules, and the cut by score where it has one: `data.filters` with the source's own
    `filters` laid over them (null takes one away). Raises `UserError`."""
    data = config.data
    make_rules(data.filters)  # a mistake there is reported with data.filters as its place
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
