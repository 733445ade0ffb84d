"""What of an experiment may leave the machine: names of private text stay here.

A source with `license: own` is private: where it lies and what its files are called are nobody's business. In: a config
or a record of a document. Out: values for W&B, where private paths are replaced and other paths of this machine keep
their last part only; whether a record may be shown in a page that people pass on. Model cards name sources and their
licences, never a path.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import config as configs
from pipeline.config import Config

OWN, HIDDEN = "own", "private"
PUBLIC_OPTIONS = ("type", "license", "weight", "kind", "replay", "limit_documents", "limit_bytes", "limit_tokens")


def shareable_values(config: Config) -> dict[str, Any]:
    """The resolved config for W&B: of a private source only numbers and kinds, of paths only the last part."""
    values = configs.to_values(config)
    sources = values["data"]["sources"]
    values["data"]["sources"] = {name: _source(options) for name, options in sources.items()}
    return _without_folders(values)


def is_private(record: Mapping[str, Any]) -> bool:
    """Whether a document's record says that it is private."""
    return record.get("license") == OWN


def any_private(sources: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether a data manifest's `sources` name a private one."""
    return any(OWN in source["licenses"] for source in sources.values())


def _source(options: Any) -> Any:
    if not isinstance(options, Mapping) or options.get("license") != OWN:
        return options
    return {key: value if key in PUBLIC_OPTIONS else HIDDEN for key, value in options.items()}


def _without_folders(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_folders(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_folders(inner) for inner in value]
    is_path = isinstance(value, str) and value.startswith(("/", "~")) and "\n" not in value
    return Path(value).name if is_path else value
