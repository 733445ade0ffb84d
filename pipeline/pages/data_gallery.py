"""Texts in the report, folded: what was dropped, by reason, and what missed or made it by least.

In: the gallery of `data.report.json`, in which private text has no name and no words. Out: HTML.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any


def gallery(data: Mapping[str, Any]) -> str:
    """One fold a reason, the most frequent first."""
    blocks = []
    for entry in data["gallery"]:
        inside = examples(entry["examples"])
        if entry["near_misses"]:
            inside += f"<p class=note><b>Missed by least</b></p>{examples(entry['near_misses'])}"
        title = f"{entry['filter']}: {entry['reason']}".replace("_", " ")
        if inside:
            blocks.append(
                f"<details><summary>{escape(title)} <i>{entry['documents']:,}</i></summary>{inside}</details>"
            )
    if not blocks:
        return ""
    note = "More, and samples of what was kept, lie in the data folder: dropped/ and kept/ (zstd JSON lines)."
    return f"<h3>Gallery of what was dropped</h3><p class=note>{note}</p>{''.join(blocks)}"


def examples(records: Sequence[Mapping[str, Any]]) -> str:
    return "".join(map(_example, records))


def _example(record: Mapping[str, Any]) -> str:
    name = "private text" if record.get("private") else f"<code>{escape(record['path'])}</code>"
    text = f"<pre>{escape(record['text'])}</pre>" if record.get("text") else ""
    return f"<p class=note>{name} {escape(_measured(record))}</p>{text}"


def _measured(record: Mapping[str, Any]) -> str:
    parts = []
    if record.get("value") is not None:
        parts.append(f"measured {_number(record['value'])}")
    if record.get("threshold") is not None:
        parts.append(f"limit {_number(record['threshold'])}")
    if record.get("detail"):
        parts.append(record["detail"])
    return "; ".join(parts)


def _number(value: float | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value
