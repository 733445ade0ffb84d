"""YAML as people read it: what YAML 1.1 makes of `no`, `1:30` and `010` stays the text that was written.

In: a text, and the annotation of what it holds. Out: plain values. true and false are bools and nothing else is;
numbers are decimal (`1_000`, `1e3`, `.5`) or hexadecimal; a scalar where the schema wants text is that
text, so that a name may be `1.10` or `2e5`. A key that stands twice is an error, and so is a tag of another type.
`number_meant` says which number to write for a text that was meant as one.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, get_args, get_origin

import yaml

from pipeline.config import yaml_limits

_TAG = "tag:yaml.org,2002:"
_NUMBERS = {
    "int": re.compile(r"[-+]?(?:0|[1-9]\d*(?:_\d+)*)$|[-+]?0x[0-9a-fA-F]+$"),
    "float": re.compile(
        r"[-+]?(?:\d+(?:_\d+)*\.(?:\d+(?:_\d+)*)?|\.\d+(?:_\d+)*)(?:[eE][-+]?\d+)?$|[-+]?\d+(?:_\d+)*[eE][-+]?\d+$"
        r"|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
    ),
}
_TIME = re.compile(r"([-+]?)(\d[\d_]*):([0-5]?\d)(?::([0-5]?\d(?:\.\d*)?))?(\.\d*)?")


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


def _construct_float(loader: Any, node: yaml.Node) -> float:
    return float(loader.construct_scalar(node).lower().replace(".inf", "inf").replace(".nan", "nan"))


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
    _TAG + "float": _construct_float,
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
    yaml_limits.check(text)
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _keep_texts(node, annotation)
        return loader.construct_document(node)
    finally:
        loader.dispose()


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
    """The number to write for a text that YAML 1.1 would read as another one (`1:30`, `010`); empty where no number
    can be told, None where the text is no such form."""
    plain = text.strip().replace("_", "")
    if re.fullmatch(r"[-+]?0\d+", plain):
        return str(int(plain))
    for base, mark in ((8, "0o"), (2, "0b"), (16, "0x")):
        if re.fullmatch(rf"[-+]?{mark}[0-9a-fA-F]+", plain):
            try:
                return str(int(plain, base))
            except ValueError:
                return ""
    found = _TIME.fullmatch(text.strip())
    if found is None:
        return _of_units(key, plain)
    sign, first, second, third, rest = found.groups()
    parts = [float(first.replace("_", "")), float(second + (rest or "" if third is None else "")), float(third or 0)]
    if key.endswith("hours"):
        value = parts[0] + parts[1] / 60 + parts[2] / 3600
    elif key.endswith("seconds"):
        value = parts[0] * 60 + parts[1] if third is None else parts[0] * 3600 + parts[1] * 60 + parts[2]
    else:
        return ""
    return f"{sign.replace('+', '')}{value:.6g}"


def _of_units(key: str, text: str) -> str | None:
    """The number that `90m` (of a time) or `1.5M` (of a count) means, in the unit that the key's name ends with."""
    per = {"hours": 3600, "seconds": 1}.get(key.rpartition(".")[2].rpartition("_")[2])
    units = _SECONDS if per else _COUNTS
    if not re.fullmatch(r"(?:\d+(?:\.\d+)?\s*[a-zA-Z]+\s*)+", text):
        return None
    parts = re.findall(r"([\d.]+)\s*([a-zA-Z]+)", text)
    factors = [units.get(unit.lower()) for _, unit in parts]
    if None in factors or (not per and len(parts) > 1):
        return None
    value = sum(float(number) * (factor or 0) for (number, _), factor in zip(parts, factors, strict=True)) / (per or 1)
    return f"{value:.6g}" if per or not value.is_integer() else f"{int(value):_}"


def wrong_value(key: str, value: Any, annotation: Any) -> str | None:
    """What is wrong with a text where the schema wants a number, and the reverse, in words; None where nothing is."""
    if isinstance(value, Mapping) and (of := _of_optional(annotation, dict)) is not None:
        return next((said for k, v in value.items() if (said := wrong_value(f"{key}.{k}", v, of))), None)
    if isinstance(value, list) and (of := _of_optional(annotation, list)) is not None:
        return next((said for entry in value if (said := wrong_value(key, entry, of))), None)
    wanted = {annotation, *get_args(annotation)}
    if str in wanted:
        return f"'{key}' is {value!r}; expected text: write it in quotes" if isinstance(value, bool | float) else None
    if not isinstance(value, str) or not {int, float} & wanted or (meant := number_meant(key, value)) is None:
        return None
    return f"'{key}' is {value!r}; expected a number" + (f": write {meant}" if meant else ", such as 1.5 or 12")
