"""How much text each source of a config has, and how often a number of tokens repeats it.

In: a config; the manifest of its data stage where that is finished. Out: train tokens per source with where the number
comes from (the manifest, or `limit_tokens` and its like, or nothing), and epochs. Nothing is read but manifests.
"""

from collections.abc import Mapping
from typing import Any

from pipeline.config import Config
from pipeline.corpus.text.source import BYTES_PER_TOKEN
from pipeline.stages import data_step
from pipeline.storage.steps import read_manifest
from pipeline.system.errors import UserError
from pipeline.training.mixing import effective_weights

MANIFEST, LIMIT = "the data manifest", "the source's limit, an upper bound"


def text_of(config: Config) -> dict[str, Any]:
    """`{sources: {name: {tokens, from}}, validation_tokens, why}`; `tokens` is None where nothing says how many."""

    why = "the data stage is not made yet"
    try:
        step = data_step(config)
        if step.finished:
            manifest = read_manifest(step.path)
            sources = {n: {"tokens": s["train"]["tokens"], "from": MANIFEST} for n, s in manifest["sources"].items()}
            return {"sources": sources, "validation_tokens": validation_tokens(manifest), "why": None}
    except UserError as error:  # its input is not on this machine, which a plan does not need
        why = str(error)
    named = {name: options for name, options in config.data.sources.items() if isinstance(options, Mapping)}
    sources = {name: _limit(options) for name, options in named.items()}
    most = (len(named) + 1) * config.data.validation.max_bytes / BYTES_PER_TOKEN
    return {"sources": sources, "validation_tokens": round(most), "why": why}


def validation_tokens(manifest: Mapping[str, Any]) -> int:
    """Of all validation sets of a finished data stage; the textbook set's are read twice."""
    return sum(manifest.get(part, {}).get(key, 0) for part, key in (("tokens", "val"), ("textbook", "tokens")))


def epochs_of(config: Config, text: Mapping[str, Any], tokens: float) -> dict[str, float | None]:
    """How often each source is seen in so many tokens; None where its size or its share is unknown."""
    sizes = {name: s["tokens"] for name, s in text["sources"].items() if s["tokens"]}
    unknown = [name for name, s in text["sources"].items() if s["tokens"] is None]
    if config.train.mix is not None:
        total = sum(config.train.mix.values())
        shares = {name: share / total for name, share in config.train.mix.items()}
    elif sizes and not unknown:
        weights = effective_weights(config, sizes)
        shares = {name: weight / sum(weights.values()) for name, weight in weights.items()}
    else:
        shares = {}
    return {
        name: round(tokens * shares.get(name, 0) / sizes[name], 3) if name in sizes and shares else None
        for name in text["sources"]
    }


def unique_tokens(text: Mapping[str, Any]) -> int | None:
    """Of all sources together; None where one of them is unknown."""
    counts = [source["tokens"] for source in text["sources"].values()]
    return None if None in counts or not counts else sum(counts)


def _limit(options: Mapping[str, Any]) -> dict[str, Any]:
    found = [options["limit_tokens"]] if isinstance(options.get("limit_tokens"), int) else []
    found += [options["limit_bytes"] / BYTES_PER_TOKEN] if isinstance(options.get("limit_bytes"), int) else []
    return {"tokens": round(min(found)), "from": LIMIT} if found else {"tokens": None, "from": "unknown"}
