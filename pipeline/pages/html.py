"""Pages and cards from the Jinja templates in `templates/`. Pages are self-contained: one stylesheet, one script that
shows the values of curves, no network.

In: a template's name and its values. Out: HTML, Markdown or lines for a terminal. In HTML every value is escaped,
because pages show the text of users' documents; only charts (`Markup`, see charts.py) are not. A template that lacks a
value raises an error.
"""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from pipeline.system.progress import format_bytes, format_count, format_seconds

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).with_name("templates")
REASONS = TEMPLATES / "reasons.yaml"


def render(template: str, **values: Any) -> str:
    """The text of a template."""
    return _environment().get_template(template).render(values)


def markdown_cell(text: str) -> str:
    """A cell of a Markdown table."""
    return text.replace("|", "\\|")


def span(ends: Sequence[float], form: str = "") -> str:
    """`1.2M to 3.4M`, and one number where both ends look the same; short ones without a `form`."""
    return " to ".join(dict.fromkeys(format(end, form) if form else format_count(end) for end in ends))


def with_contents(page: Markup) -> Markup:
    """A page's content, each heading with an address, after links to all of them; without links where few are there."""
    links: list[Markup] = []

    def addressed(match: re.Match[str]) -> str:
        level, title = match[1], match[2]
        words = re.sub(r"<[^>]*>|&[^;]*;", "", title).split(":")[0].split(",")[0]
        address = "-".join(re.findall(r"\w+", words.lower())) or f"part-{len(links)}"
        address += f"-{len(links)}" if any(f'"#{address}"' in link for link in links) else ""
        links.append(Markup(f'<a class="to-{level}" href="#{address}">{title}</a>'))
        return f'<{level} id="{address}">{title}</{level}>'

    content = re.sub(r"<(h[23])>(.*?)</\1>", addressed, page, flags=re.DOTALL)
    shown = Markup('<nav aria-label="Contents">{}</nav>').format(Markup("\n").join(links)) if len(links) > 2 else ""
    return Markup(f"{shown}{content}")


@cache
def _reasons() -> dict[str, str]:
    import yaml

    return yaml.safe_load(REASONS.read_text(encoding="utf-8"))


def reason_in_words(reason: str) -> str:
    """What a rule's reason, or the cause of an unreadable document, means; its own words where that is not listed."""
    words = _reasons().get(reason) or _reasons().get(re.sub(r"\d+", "N", reason))
    return words.format(*re.findall(r"\d+", reason)) if words else reason.replace("_", " ")


def flow(value: Any) -> str:
    """A plain value as YAML on one line: `{path: "my notes", limit_tokens: 1_000_000}`."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {flow(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(flow, value)) + "]"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, int):
        return f"{value:_}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return repr(value) if "e" not in repr(value) else f"{value:.4g}"
    plain = re.fullmatch(r"[A-Za-z/][\w./@-]*", value) and value.lower() not in ("null", "true", "false", "yes", "no")
    return value if plain else json.dumps(value, ensure_ascii=False)


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
    environment.filters["flow"] = flow
    environment.filters["spaced"] = lambda name: name.replace("_", " ")
    environment.filters["cell"] = markdown_cell
    environment.filters["reason"] = reason_in_words
    environment.filters["with_contents"] = with_contents
    return environment
