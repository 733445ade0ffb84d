"""A look at a YAML file before it is loaded: a few kilobytes can ask for gigabytes, or overflow the parser's stack.

In: the text. Out: nothing, or a `ValueError` that says what no config has. Events are read one after the other, so the
look itself needs no stack and no memory. What an alias stands for is counted as often as it is named.
"""

import yaml

MAX_BYTES, MAX_DEPTH, MAX_NODES = 1_000_000, 50, 100_000
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def check(text: str) -> None:
    """Raises `ValueError` for a text that is too large, too deep, too often aliased or that holds itself,
    `yaml.YAMLError` as loading."""
    if len(text) > MAX_BYTES:
        raise ValueError(f"it has {len(text):,} characters; a config has at most {MAX_BYTES:,}")
    sizes: dict[str, int] = {}  # of what an anchor stands for, in nodes
    open_nodes: list[tuple[str | None, int]] = []  # anchor, nodes before it
    nodes = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in open_nodes):
                raise ValueError(f"line {event.start_mark.line + 1}: *{event.anchor} stands inside what it names")
            nodes += sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.NodeEvent):
            nodes += 1
        if isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, nodes))
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            if anchor is not None:
                sizes[anchor] = nodes - before + 1
        if len(open_nodes) > MAX_DEPTH:
            raise ValueError(f"line {event.start_mark.line + 1} is more than {MAX_DEPTH} levels deep")
        if nodes > MAX_NODES:
            raise ValueError(
                f"by line {event.start_mark.line + 1} its aliases stand for more than {MAX_NODES:,} values"
            )
