"""YAML as people read it: what YAML 1.1 makes of `no`, `1:30` and `010` stays the text that was written.

In: a text, and the annotation of what it holds. Out: plain values. true and false are bools and nothing else is;
numbers are decimal (`1_000`, `1e3`, `.5`) or hexadecimal; a scalar where the schema wants text is that
text, so that a name may be `1.10` or `2e5`. A key that stands twice is an error, and so is a tag of another type.
`number_meant` tells which number to write for a text that was meant as one.
"""

import dataclasses
import re
from typing import Any, get_args, get_origin

import yaml

MAX_BYTES, MAX_DEPTH, MAX_NODES = 1_000_000, 50, 100_000  # a few kilobytes can ask for gigabytes, or for a deep stack
_TAG = "tag:yaml.org,2002:"
_NUMBERS = {
    "int": re.compile(r"[-+]?(?:0|[1-9]\d*(?:_\d+)*)$|[-+]?0x[0-9a-fA-F]+$"),
    "float": re.compile(
        r"[-+]?(?:\d+(?:_\d+)*\.(?:\d+(?:_\d+)*)?|\.\d+(?:_\d+)*)(?:[eE][-+]?\d+)?$|[-+]?\d+(?:_\d+)*[eE][-+]?\d+$"
        r"|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
    ),
}
_CLOCK = re.compile(r"[-+]?\d+(?::[0-5]?\d){1,2}(?:\.\d*)?")
_SECONDS: dict[str, float] = {
    **dict.fromkeys(("d", "day", "days"), 86_400), **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), 3600),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), 60),
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1),
}  # fmt: skip
_COUNTS: dict[str, float] = {
    "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12, "kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_SafeLoader):
    """PyYAML's safe loader with the rules above."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, shape) for tag, shape in found if tag in (_TAG + "null", _TAG + "merge")]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_TAG + "bool", re.compile(r"true$|True$|TRUE$|false$|False$|FALSE$"), list("tTfF"))
_Loader.add_implicit_resolver(_TAG + "int", _NUMBERS["int"], list("-+0123456789"))
_Loader.add_implicit_resolver(_TAG + "float", _NUMBERS["float"], list("-+.0123456789"))


def _construct_bool(loader: Any, node: yaml.Node) -> bool:
    text = loader.construct_scalar(node).lower()
    if text not in ("true", "false"):
        raise ValueError(f"{text!r} is neither true nor false")
    return text == "true"


def _construct_int(loader: Any, node: yaml.Node) -> int:
    text = loader.construct_scalar(node)
    return int(text, 16 if "x" in text else 10)


def _construct_mapping(loader: Any, node: yaml.Node) -> dict[str, Any]:
    seen: set[str] = set()
    if not isinstance(node, yaml.MappingNode):
        raise yaml.constructor.ConstructorError(None, None, "expected a mapping", node.start_mark)
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise yaml.constructor.ConstructorError(None, None, "a key is no text", key.start_mark)
        if key.tag == _TAG + "merge":
            continue
        if key.value in seen:
            raise yaml.constructor.ConstructorError(None, None, f"found duplicate key {key.value}", key.start_mark)
        seen.add(key.value)
    loader.flatten_mapping(node)
    return {loader.construct_object(key): loader.construct_object(value, deep=True) for key, value in node.value}


_Loader.yaml_constructors = {
    **{tag: yaml.SafeLoader.yaml_constructors[tag] for tag in (None, _TAG + "null", _TAG + "str", _TAG + "seq")},
    _TAG + "bool": _construct_bool,
    _TAG + "int": _construct_int,
    _TAG + "float": lambda loader, node: float(re.sub(r"\.(?=inf|nan)", "", loader.construct_scalar(node).lower())),
    _TAG + "map": _construct_mapping,
}


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper; a text that either set of rules would take for something else stands in quotes."""


_Dumper.yaml_implicit_resolvers = {
    first: [*yaml.SafeDumper.yaml_implicit_resolvers.get(first, []), *_Loader.yaml_implicit_resolvers.get(first, [])]
    for first in {*yaml.SafeDumper.yaml_implicit_resolvers, *_Loader.yaml_implicit_resolvers}
}


def dump(values: Any) -> str:
    """Plain values as a file that `load` reads back, in the order of their keys."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def load(text: str, annotation: Any = None) -> Any:
    """The value of a text; `annotation`: its type in the schema, where known. Raises `ValueError` or
    `yaml.YAMLError`."""
    _check_limits(text)
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _keep_texts(node, annotation)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _check_limits(text: str) -> None:
    """Raises `ValueError` for a text that is too large, too deep, too often aliased or that holds itself.

    Events are read one after the other, so this needs no stack and no memory, and runs before anything is built. What
    an alias stands for is counted as often as it is named."""
    if len(text) > MAX_BYTES:
        raise ValueError(f"it has {len(text):,} characters; a config has at most {MAX_BYTES:,}")
    sizes: dict[str, int] = {}  # of what an anchor stands for, in nodes
    open_nodes: list[tuple[str | None, int]] = []  # anchor, nodes before it
    nodes = 0
    for event in yaml.parse(text, Loader=_SafeLoader):
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


def _keep_texts(node: yaml.Node, annotation: Any) -> None:
    """Scalars where the schema wants text become the text as it is written."""
    if isinstance(node, yaml.MappingNode) and dataclasses.is_dataclass(annotation):
        fields = {f.name: f.type for f in dataclasses.fields(annotation)}
        for key, value in node.value:
            _keep_texts(value, fields.get(key.value) if isinstance(key, yaml.ScalarNode) else None)
    elif isinstance(node, yaml.MappingNode) and (of := _of_optional(annotation, dict)) is not None:
        for _, value in node.value:
            _keep_texts(value, of)
    elif isinstance(node, yaml.SequenceNode) and (of := _of_optional(annotation, list)) is not None:
        for entry in node.value:
            _keep_texts(entry, of)
    elif isinstance(node, yaml.ScalarNode) and str in (annotation, *get_args(annotation)) and node.tag in (
        _TAG + "int", _TAG + "float", _TAG + "bool",
    ):  # fmt: skip
        node.tag = _TAG + "str"


def _of_optional(annotation: Any, container: type) -> Any:
    """What a `container[...]` or `container[...] | None` holds, else None."""
    for one in (annotation, *get_args(annotation)):
        if get_origin(one) is container:
            return get_args(one)[-1]
    return None


def number_meant(key: str, text: str) -> str | None:
    """The number to write for a text that YAML 1.1 would read as another one (`1:30`, `010`), or that has a unit;
    empty where no number can be told, None where the text is no such form."""
    plain = text.strip().replace("_", "")
    unit = {"hours": 3600, "seconds": 1}.get(key.rpartition(".")[2].rpartition("_")[2])  # what the key counts in
    if re.fullmatch(r"[-+]?0\d+", plain):
        return str(int(plain))
    if re.fullmatch(r"[-+]?0[box][0-9a-fA-F]+", plain):
        try:
            return str(int(plain, 0))
        except ValueError:
            return ""
    if re.fullmatch(r"[-+]?\d+,\d+", plain):  # a decimal comma; `1,000` may be a thousand
        return "" if re.fullmatch(r"[-+]?[1-9]\d{0,2},\d{3}", plain) else plain.replace(",", ".")
    if re.fullmatch(r"[-+]?\d+(\.\d+)?\s*%", plain):
        return f"{float(plain.rstrip('% ')) / 100:g}"
    if _CLOCK.fullmatch(plain):
        parts = [float(part) for part in plain.lstrip("-+").split(":")]
        sizes = (60, 1) if unit == 1 and len(parts) == 2 else (3600, 60, 1)
        seconds = sum(part * size for part, size in zip(parts, sizes, strict=False))
        return f"{'-' if plain[0] == '-' else ''}{seconds / unit:.6g}" if unit else ""
    return _without_units(plain, unit)


def _without_units(text: str, unit: int | None) -> str | None:
    """The number that `90m` (of a time) or `1.5M` (of a count) means; `unit`: the seconds that a time counts in."""
    if not re.fullmatch(r"(?:\d+(?:\.\d+)?\s*[a-zA-Z]+\s*)+", text):
        return None
    parts = re.findall(r"([\d.]+)\s*([a-zA-Z]+)", text)
    factors = [(_SECONDS if unit else _COUNTS).get(name.lower()) for _, name in parts]
    if None in factors or (not unit and len(parts) > 1):
        return None
    value = sum((float(number) * (factor or 0) for (number, _), factor in zip(parts, factors, strict=True)), 0.0)
    return f"{int(value):_}" if not unit and value.is_integer() else f"{value / (unit or 1):.6g}"
