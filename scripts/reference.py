"""Writes docs/reference/: every verb with its options, every config key with its default and meaning.

    scripts/with_env.sh scripts/reference.py     after a change of arguments.py or config/schema.py (pipeline/)

A test compares the pages with what this would write.
"""

import dataclasses
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.config.arguments import VERBS, Argument
from pipeline.config.schema import IDENTITY, MISSING, Config
from pipeline.pages.html import flow, markdown_cell

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "reference"
MADE = "<!-- Written by scripts/reference.py. -->\n"
KINDS = (
    "*identity* keys decide a result and are part of its fingerprint; a raised *extendable* limit continues a finished "
    "run; *runtime* keys change nothing that is computed."
)


def pages() -> dict[str, str]:
    """File name -> text."""
    return {"keys.md": keys(), "verbs.md": verbs()}


def keys() -> str:
    """Every key of a config, section by section."""
    lines = [MADE, "# Config keys", "", f"{KINDS} On the command line: `hornbook list keys`.", ""]
    lines += ["## Top", "", *_table(Config, "", inner=False)]
    for section in dataclasses.fields(Config):
        if dataclasses.is_dataclass(section.type):
            about = " ".join(inspect.cleandoc(section.type.__doc__ or "").split()) if section.name == "model" else ""
            lines += [
                "",
                f"## {section.name}",
                "",
                *([about, ""] if about else []),
                *_table(section.type, section.name),
            ]
    return "\n".join(lines) + "\n"


def _table(cls: Any, section: str, inner: bool = True) -> list[str]:
    head = ["| key | default | kind | meaning |", "|---|---|---|---|"]
    return head + [
        f"| {' | '.join(map(markdown_cell, row))} |" for row in _rows(cls, f"{section}." if section else "", inner)
    ]


def _rows(cls: Any, prefix: str, inner: bool) -> Iterator[tuple[str, str, str, str]]:
    for f in dataclasses.fields(cls):
        if dataclasses.is_dataclass(f.type):
            # Of finetune only what it has beside the sections that pretraining has too.
            if inner and prefix != "finetune.":
                yield from _rows(f.type, f"{prefix}{f.name}.", inner)
            elif inner:
                yield f"`{prefix}{f.name}`", "", "", f"the keys of `{f.name}`, for tuning"
        elif not f.metadata.get("internal"):
            choices = " \\| ".join(map(str, f.metadata.get("choices", ()))).replace("\\", "")
            about = ": ".join(filter(None, [choices, f.metadata.get("help")]))
            yield f"`{prefix}{f.name}`", _default(f), str(f.metadata.get("kind", IDENTITY)), about


def _default(f: Any) -> str:
    if f.default_factory is not dataclasses.MISSING:
        return f"`{flow(f.default_factory())}`"
    return "must be set" if f.default in (dataclasses.MISSING, MISSING) else f"`{flow(f.default)}`"


def verbs() -> str:
    """Every verb of the command with its options."""
    lines = [MADE, "# Verbs", "", "`hornbook <verb> ...`; a config is a YAML file, or the name of a run.", ""]
    for verb in VERBS:
        lines += [f"## {verb.name}", "", _sentence(verb.description or verb.help), ""]
        lines += ["| | |", "|---|---|"]
        lines += [
            f"| `{markdown_cell(_typed(argument))}` | {markdown_cell(_help(argument))} |" for argument in verb.arguments
        ]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _sentence(words: str) -> str:
    return words[0].upper() + words[1:] + ("" if words.endswith(".") else ".")


def _typed(argument: Argument) -> str:
    names, settings = argument
    value = settings.get("metavar") or ("|".join(map(str, settings["choices"])) if "choices" in settings else "VALUE")
    if not names[0].startswith("-"):
        return str(settings.get("metavar", names[0]))
    return ", ".join(names) + ("" if settings.get("action") == "store_true" else f" {value}")


def _help(argument: Argument) -> str:
    return str(argument[1].get("help", ""))


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
        print(FOLDER / name)
