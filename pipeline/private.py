"""What a page that people pass on may show of a document: nothing but figures of private text (`license: own`).

Model cards name sources and their licences, never a path; W&B gets an allow-list (pipeline/training/mirrors.py).
"""

from collections.abc import Mapping
from typing import Any

OWN = "own"


def is_private(record: Mapping[str, Any]) -> bool:
    """Whether a document's record says that it is private."""
    return record.get("license") == OWN


def any_private(sources: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether a data manifest's `sources` name a private one."""
    return any(OWN in source["licenses"] for source in sources.values())
