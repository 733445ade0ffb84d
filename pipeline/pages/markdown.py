"""Markdown for cards: a table, and the front matter that Hugging Face reads."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in lines)


def front_matter(values: Mapping[str, Any]) -> str:
    """What is not known is left out."""
    known = {key: value for key, value in values.items() if value}
    return "---\n" + yaml.safe_dump(known, sort_keys=False, allow_unicode=True) + "---"
