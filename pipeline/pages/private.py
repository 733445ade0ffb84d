"""What a page that people pass on may show of a document: nothing but figures of private text (`license: own`).

Cards name no private source at all, and its text, paths and groups appear nowhere; W&B gets an allow-list
(pipeline/training/tracking.py).
"""

from collections.abc import Mapping
from typing import Any

OWN = "own"
PRIVATE_NAME = "private text"


def is_private_source(source: Mapping[str, Any]) -> bool:
    """Whether the facts of a source, in a data manifest or report, say that it holds private text."""
    return bool(source.get("private")) or OWN in source.get("licenses", ())


def public_names(sources: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """What a card calls each source: its name, or of private ones `private text`, numbered where there are several."""
    private = [name for name, source in sources.items() if is_private_source(source)]
    numbered = {n: f"{PRIVATE_NAME} {i + 1}" if len(private) > 1 else PRIVATE_NAME for i, n in enumerate(private)}
    return {name: numbered.get(name, name) for name in sources}
