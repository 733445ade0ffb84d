"""`hornbook list <table>`: the names a config may use, each with its options and the first lines of its docstring."""

import importlib
import inspect
import textwrap
from typing import Any

from pipeline.config import key_kinds

# Each is imported when it is asked for: some load torch.
TABLES = {
    "filters": "data_filters.table:FILTERS",
    "sources": "pipeline.corpus.steps:SOURCES",
    "scorers": "pipeline.corpus.scorers.document_scorers:SCORERS",
    "growth": "model.growth:GROWTH",
    "optimizers": "model.optim:OPTIMIZERS",
    "decays": "model.schedules:DECAYS",
    "tasks": "pipeline.evaluation.tasks:TASKS",
    "kinds": "pipeline.release.formats:FORMATS",
}
_OF_EVERY_SOURCE = """
every source also takes
    weight=1.0: how much of it is read at pretraining, times its tokens
    replay=False: general text against forgetting; the run reports the loss on its held-out part
    filters={}: rules of this source, laid over data.filters; null removes one"""


def show(table: str) -> str:
    if table == "keys":
        rows = key_kinds()
        width = max(map(len, rows))
        return "\n".join(f"{key:<{width}}  {kind:<10}  {about}" for key, (kind, about) in rows.items())
    module, _, name = TABLES[table].partition(":")
    found: dict[str, Any] = getattr(importlib.import_module(module), name)
    text = "\n".join(_entry(name, thing) for name, thing in sorted(found.items()))
    return text + (_OF_EVERY_SOURCE if table == "sources" else "")


def _entry(name: str, thing: Any) -> str:
    about = " ".join(inspect.cleandoc(thing.__doc__ or "").split("\n\n")[0].split())
    lines = [name, textwrap.fill(about, 104, initial_indent="    ", subsequent_indent="    ")]
    if options := ", ".join(_options(thing)):
        lines.append(textwrap.fill(options, 104, initial_indent="    options: ", subsequent_indent=" " * 13))
    return "\n".join(lines)


def _options(thing: Any) -> list[str]:
    """`name=default`. Options without a default are a class's own; a function gets them from its caller."""
    options = []
    for parameter in inspect.signature(thing).parameters.values():
        default = parameter.default
        if default is not parameter.empty:
            value = f"({len(default)} values)" if isinstance(default, tuple) and len(repr(default)) > 60 else default
            options.append(f"{parameter.name}={value}")
        elif inspect.isclass(thing):
            options.append(parameter.name)
    return options
