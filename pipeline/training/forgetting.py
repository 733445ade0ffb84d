"""Replay against forgetting: what a model lost on text like that it came from, while it learned another.

A source marked `replay: true` is general text that a grown or continued model is shown again, in its share of
`train.mix`. In: bits per byte on its held-out part right after init and at the end. Out: facts for the manifest, lines
for the console. Without a replay source there is nothing to compare, and nothing is said.
"""

from collections.abc import Mapping
from typing import Any

from pipeline.config import Config


def replay_sources(config: Config) -> list[str]:
    """Names of the sources that are marked as replay."""
    return [n for n, source in config.data.sources.items() if isinstance(source, Mapping) and source.get("replay")]


def what_was_lost(
    config: Config, before: Mapping[str, float], after: Mapping[str, float]
) -> dict[str, dict[str, float | None]]:
    """`{source: {before, after, lost}}` in bits per byte; None where a validation did not take place. A negative
    `lost` is a gain."""
    facts = {}
    for name in replay_sources(config):
        first, last = before.get(name), after.get(name)
        facts[name] = {"before": first, "after": last, "lost": None if first is None or last is None else last - first}
    return facts


def replay_lines(manifest: Mapping[str, Any]) -> list[str]:
    """One line a replay source; none for manifests without."""
    return [f"replay {name}: {in_words(values)}" for name, values in manifest.get("replay", {}).items()]


def in_words(values: Mapping[str, float | None]) -> str:
    """What was lost, in a sentence."""
    before, after, lost = values["before"], values["after"], values["lost"]
    if before is None or after is None or lost is None:
        return "not measured (no held-out text of it, or no time for a validation)"
    what = "lost" if lost > 0 else "gained"
    return f"{before:.4f} bits per byte before, {after:.4f} after: {what} {abs(lost):.4f}"
