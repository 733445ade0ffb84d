"""`hornbook list <table>`: the names a config may use, each with its options and the first lines of its docstring."""

import inspect
import textwrap
from typing import Any

from pipeline.config import key_kinds


def show(table: str) -> str:
    if table == "keys":
        return _show_keys()
    return "\n".join(_entry(name, thing) for name, thing in sorted(_table(table).items()))


def _table(name: str) -> dict[str, Any]:
    if name == "filters":
        from data_filters.table import FILTERS

        return dict(FILTERS)
    if name == "sources":
        from pipeline.corpus.sources import SOURCES

        return dict(SOURCES)
    if name == "growth":
        from model.growth import GROWTH

        return dict(GROWTH)
    if name == "optimizers":
        from model.optim import OPTIMIZERS

        return dict(OPTIMIZERS)
    from model.schedules import DECAYS

    return dict(DECAYS)


def _entry(name: str, thing: Any) -> str:
    options = [str(p) for p in inspect.signature(thing).parameters.values() if p.default is not p.empty]
    about = inspect.cleandoc(thing.__doc__ or "").split("\n\n")[0]
    head = f"{name}" + (f"  [{', '.join(options)}]" if options else "")
    return head + "\n" + textwrap.indent(textwrap.fill(" ".join(about.split()), 100), "    ")


def _show_keys() -> str:
    rows = key_kinds()
    width = max(map(len, rows))
    return "\n".join(f"{key:<{width}}  {kind:<10}  {about}" for key, (kind, about) in rows.items())
