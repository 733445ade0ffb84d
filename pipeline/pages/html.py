"""Pages and cards from the Jinja templates in `templates/`. Pages are self-contained: no script, no network.

In: a template's name and its values. Out: HTML, Markdown or lines for a terminal. In HTML every value is escaped,
because pages show the text of users' documents; only charts (`Markup`, see charts.py) are not. A template that lacks a
value raises an error.
"""

import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.system.progress import format_bytes, format_count, format_seconds

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).with_name("templates")


def render(template: str, **values: Any) -> str:
    """The text of a template."""
    return _environment().get_template(template).render(values)


def markdown_cell(text: str) -> str:
    """A cell of a Markdown table."""
    return text.replace("|", "\\|")


def span(ends: Sequence[float], form: str = "") -> str:
    """`1.2M to 3.4M`, and one number where both ends look the same; short ones without a `form`."""
    return " to ".join(dict.fromkeys(format(end, form) if form else format_count(end) for end in ends))


@cache
def _environment() -> "Environment":
    # Imported when the first page is written, because most commands write none.
    from jinja2 import Environment, FileSystemBytecodeCache, FileSystemLoader, StrictUndefined

    class CompiledTemplates(FileSystemBytecodeCache):
        """Compiling takes 70 ms, which counts towards the GPU-hour cap; so templates have a cache as modules have."""

        def dump_bytecode(self, bucket: Any) -> None:
            with suppress(OSError):  # a read-only installation or a full disk only costs the 70 ms
                Path(self.directory).mkdir(exist_ok=True)
                super().dump_bytecode(bucket)

    compiled = CompiledTemplates(str(TEMPLATES / "__pycache__"), "%s.jinja")
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        bytecode_cache=None if sys.dont_write_bytecode else compiled,
        autoescape=lambda name: str(name).endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        auto_reload=False,
    )
    # `{{ bytes | fmt(",.1f") }}` is Python's format(); what was not measured is left empty.
    environment.filters["fmt"] = lambda value, spec=",": "" if value is None else format(value, spec)
    environment.filters["bytes"] = format_bytes
    environment.filters["short"] = format_count
    environment.filters["span"] = span
    environment.filters["duration"] = format_seconds
    environment.filters["spaced"] = lambda name: name.replace("_", " ")
    environment.filters["cell"] = markdown_cell
    return environment
