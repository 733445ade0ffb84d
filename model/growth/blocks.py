"""Which source block each target block comes from: three maps, and the source tensor's name that follows.

In: the number of blocks in source and target. Out: one source index per target block.
"""

from collections.abc import Sequence

from model.config import ModelConfig
from model.growth.rules import Rule


def interleaved(source_blocks: int, target_blocks: int) -> list[tuple[int, bool]]:
    """For each target block: its source block, and whether it is inserted (the second and later ones of a source).

    floor(i * source / target): monotone, every source block is used, and its first use is the one that stays itself.
    """
    sources = [index * source_blocks // target_blocks for index in range(target_blocks)]
    return [(source, index > 0 and sources[index - 1] == source) for index, source in enumerate(sources)]


def nearest(source_blocks: int, target_blocks: int) -> list[int]:
    """Ends on ends, the rest at the nearest relative depth: monotone, and it covers every source block where it grows.

    Gopher's scaling (arXiv 2112.11446), which the Phi talk cites, is read as round(i * source / target); for a doubled
    even depth that runs past the last block, so both ends are fixed here.
    """
    last = max(1, target_blocks - 1)
    return [(2 * index * (source_blocks - 1) + last) // (2 * last) for index in range(target_blocks)]


def stacked(source_blocks: int, target_blocks: int) -> list[int]:
    """The whole list again and again: 0 1 2 0 1 2 (G_stack); a rest takes the first blocks."""
    return [index % source_blocks for index in range(target_blocks)]


def origin(name: str, blocks: Sequence[int], source: ModelConfig) -> str:
    """The source tensor that the target tensor `name` comes from, where target block i comes from block `blocks[i]`."""
    if name == "lm_head.weight" and source.tie_word_embeddings:
        return "model.embed_tokens.weight"
    if not name.startswith("model.layers."):
        return name
    _, _, index, rest = name.split(".", 3)
    return f"model.layers.{blocks[int(index)]}.{rest}"


def block_origins(rules: Sequence[Rule]) -> list[tuple[int, bool]]:
    """For each target block that comes from a source block: which, and whether it adds nothing yet (is silent)."""
    sources = {rule.target: rule.sources for rule in rules}
    origins = []
    while norm := sources.get(f"model.layers.{len(origins)}.input_layernorm.weight"):
        silent = not sources[f"model.layers.{len(origins)}.mlp.fc2.weight"]
        origins.append((int(norm[0].split(".")[2]), silent))
    return origins
