"""What a config names, as objects: sources and rules. Raises `UserError` for what is unknown or does not fit.

To add a source: a class with `items` and `content_hash` in a file of `sources/`, and a line in `SOURCES`.
"""

import re
from collections.abc import Mapping
from typing import Any

from data_filters.c4 import C4Quality
from data_filters.quality import Quality
from data_filters.rule import Rule
from data_filters.table import FILTERS
from pipeline.config import Config, merge
from pipeline.corpus.exercises.source import Exercises
from pipeline.corpus.sources.document_files import TextFolder, Warc
from pipeline.corpus.sources.python_library import PythonLibrary
from pipeline.corpus.sources.record_files import HuggingFace, Jsonl, Parquet
from pipeline.corpus.synthetic.source import Rewritten, Synthetic
from pipeline.corpus.text.shards import TEXTBOOK
from pipeline.corpus.text.source import Source, look_up, make
from pipeline.system.errors import UserError

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


def named_sources(config: Config) -> dict[str, Mapping[str, Any]]:
    """The sections of a config's sources, by name, without those set to null."""
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
    """The source behind a section of `data.sources`; the source that it rewrites is made first."""
    cls = look_up(SOURCES, options["type"], f"{key}.type", "sources")
    own = {name: value for name, value in options.items() if name not in OF_EVERY_SOURCE}
    if isinstance(inner := own.get("documents"), Mapping):
        unnamed = {name: value for name, value in inner.items() if name != "name"}
        own["documents"] = Rewritten(inner.get("name"), inner, make_source(unnamed, f"{key}.documents"))
    return make(cls, own, key)


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
    `filters` laid over them (null takes one away)."""
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
