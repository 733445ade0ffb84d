"""One YAML file is one experiment; `key=value` words on the command line override it.

In: a file, the files that its `base` names, overrides. Out: a checked `Config`, or one `UserError` that lists every
unknown, missing and wrong key with what was found, what was expected and the nearest right name.
"""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml

from model.config import shown
from pipeline.config import yaml_values
from pipeline.config.checks import one_message, problems, value_problems
from pipeline.config.schema import Config, key_kinds, nearest
from pipeline.system.errors import UserError

PREVIEW = "/preview"  # what `hornbook data --limit` adds to an experiment's name
_EXPECTED: dict[Any, str] = {
    int: "a whole number", float: "a number", str: "text", bool: "true or false", list: "a list such as [a, b]",
    dict: "a section of named things",
}  # fmt: skip
_BOOLS = {
    **dict.fromkeys(("true", "yes", "on", "y", "1"), True),
    **dict.fromkeys(("false", "no", "off", "n", "0"), False),
}


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads, merges and checks one experiment. Raises `UserError`."""
    values = merge(read_with_base(Path(path)), parse_overrides(overrides))
    resolve_source_path(values, Path(path))
    return from_values(values, where=str(path))


def read_with_base(path: Path, above: Sequence[Path] = ()) -> dict[str, Any]:
    """The values of a config, laid over those of the config that its `base` names (relative to its own folder), and
    so on. Raises `UserError` for a base that is missing, that leads back, or whose name would be taken over."""
    values = read_yaml(path)
    resolve_source_path(values, path)
    if "base" not in values:
        return values
    base, chain = values.pop("base"), [*above, path.resolve()]
    if not isinstance(base, str) or not base:
        raise UserError(f"config {path}: base is {base!r}; expected the name of another config, such as phi2.yaml")
    if (path.parent / base).resolve() in chain:
        raise UserError(f"config {path}: base: {base} leads back to itself ({' -> '.join(p.name for p in chain)})")
    if not (path.parent / base).is_file():
        raise UserError(f"config {path}: base: {base} is not there; expected a YAML file beside {path.name}")
    if "name" not in values:
        raise UserError(f"config {path} has a base and no name of its own; set name: it names a folder under runs/")
    return merge(read_with_base(path.parent / base, chain), values)


def read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(f"config {path} {what}; expected a YAML file such as configs/tiny.yaml")
    try:
        values = yaml_values.load(path.read_text(encoding="utf-8-sig"), Config)
    except (yaml.YAMLError, ValueError, RecursionError, OSError) as error:
        raise UserError(f"config {path} is not readable YAML: {' '.join(str(error).split())}") from None
    if values is None:  # an empty file: what it lacks is named like any other missing key
        return {}
    if not isinstance(values, dict):
        raise UserError(f"config {path} holds no sections; expected `name: ...`, `model: ...`, see configs/tiny.yaml")
    return values


def parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """Nested values of `key=value` words; a value is YAML, as in a file."""
    values: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or key.startswith("-") or not all(key.split(".")):
            raise UserError(f"'{word}' is not an override; expected key=value such as budget.max_gpu_hours=0.1")
        try:
            found = yaml_values.load(text, _annotation(key))
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise UserError(f"overrides {word}: {' '.join(str(error).split())}") from None
        for name in reversed(key.split(".")):
            found = {name: found}
        values = merge(values, found)
    return values


def _annotation(key: str) -> Any:
    """The type of a key in the schema, or None. Raises `ValueError` for a key that only hornbook sets."""
    found: Any = Config
    for part in key.split("."):
        fields = {f.name: f for f in dataclasses.fields(found)} if dataclasses.is_dataclass(found) else {}
        if part in fields and fields[part].metadata.get("internal"):
            raise ValueError(f"'{key}' is set by hornbook itself; remove the override")
        found = fields[part].type if part in fields else None
    return found


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid over `base`, section by section; a null or a plain value replaces what was there."""
    result = dict(base)
    for key, value in over.items():
        inner = result.get(key)
        result[key] = merge(inner, value) if isinstance(inner, dict) and isinstance(value, Mapping) else value
    return result


def resolve_source_path(values: dict[str, Any], config_path: Path) -> None:
    """`init.source: tiny-source.yaml` is looked for beside the config that names it, then in the working folder."""
    init = values.get("init")
    source = init.get("source") if isinstance(init, Mapping) else None
    if isinstance(source, str):
        for candidate in (config_path.parent / source, Path(source)):
            if candidate.exists():
                values["init"] = {**values["init"], "source": str(candidate)}
                return


def from_values(values: Mapping[str, Any], where: str) -> Config:
    """A checked `Config` from plain nested values; `where` names them in errors."""
    found: list[str] = []
    config: Config | None = _section(Config, Config(), values, "", found)
    if config is not None:  # else what was found explains why
        source = config.init.source
        if config.tokenizer.path is None and source is not None and not source.endswith((".yaml", ".yml")):
            config.tokenizer.path = source  # a trained model knows its own tokenizer only
        found = list(problems(config))
    if config is None or found:
        raise UserError(one_message(where, found))
    return config


def _section(cls: type, base: Any, values: Any, prefix: str, found: list[str]) -> Any:
    """`base`, or a new `cls`, with `values` laid over it. Appends to `found` what is wrong, and then returns None where
    no section can be made: values out of range leave one, so that all checks can follow."""
    if not isinstance(values, Mapping):
        found.append(f"'{prefix.rstrip('.')}' is {shown(values)}; expected a section with keys")
        return None
    fields, made, whole = {f.name: f for f in dataclasses.fields(cls)}, {}, True
    for key in values:
        if key not in fields:
            same = [k for k in key_kinds() if k.rsplit(".", 1)[-1] == key]
            hint = f" (did you mean '{same[0]}'?)" if same else nearest(str(key), _public(cls))
            found.append(f"unknown key '{prefix}{key}'{hint}")
            whole = False
    for name, f in fields.items():
        key, default = f"{prefix}{name}", getattr(base, name, None)
        if name not in values:
            if f.metadata.get("required") or (base is None and _has_no_default(f)):
                found.append(f"'{key}' has no value; it must be set, see configs/tiny.yaml")
                whole = False
        elif dataclasses.is_dataclass(f.type):
            made[name] = _section(f.type, default, values[name], f"{key}.", found)  # type: ignore[arg-type]
            whole = whole and made[name] is not None
        else:
            value = values[name]
            if isinstance(default, dict) and isinstance(value, Mapping):
                value = merge(default, value)
            try:
                made[name] = _value(key, value, f.type)
                found += value_problems(key, made[name], f)
            except ValueError as error:
                found.append(str(error))
                whole = False
    if not whole:
        return None
    return cls(**made) if base is None else dataclasses.replace(base, **made)


def _public(cls: type) -> list[str]:
    return [f.name for f in dataclasses.fields(cls) if not f.metadata.get("internal")]


def _has_no_default(f: dataclasses.Field) -> bool:
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


def _value(key: str, value: Any, annotation: Any) -> Any:
    """A copy of the value in the type that the schema wants. Raises `ValueError` in words."""
    if annotation is Any:
        return _plain(value)
    null = ""
    if type(None) in get_args(annotation):  # `X | None`
        if value is None:
            return None
        null = " or null"
        annotation = next(a for a in get_args(annotation) if a is not type(None))
    wanted, inner = get_origin(annotation) or annotation, get_args(annotation)
    if wanted is dict and isinstance(value, Mapping) and all(isinstance(k, str) for k in value):
        return {k: _value(f"{key}.{k}", v, inner[1]) for k, v in value.items()}
    if wanted is list and isinstance(value, list | tuple):
        return [_value(key, v, inner[0]) for v in value]
    if wanted is bool and str(value).lower() in _BOOLS:
        return _BOOLS[str(value).lower()]
    if wanted is str and isinstance(value, str | int | Path) and not isinstance(value, bool):
        return str(value)
    if wanted in (int, float) and isinstance(value, int | float | str) and not isinstance(value, bool):
        return _number(key, value, wanted, null)
    hint = ": write it in quotes" if wanted is str and isinstance(value, bool | float) else ""
    raise _wrong(key, value, wanted, null + hint)


def _number(key: str, value: int | float | str, wanted: type, null: str) -> int | float:
    """The number; of a text too, unless YAML 1.1 would read it as another one."""
    if isinstance(value, str) and (meant := yaml_values.number_meant(key, value)) is not None:
        raise _wrong(key, value, float, f": write {meant}" if meant else ", such as 1.5 or 12")
    if wanted is int and isinstance(value, float):
        raise _wrong(key, value, int, null + (f": write {int(value):_}" if value.is_integer() else ""))
    try:
        return wanted(value)
    except (ValueError, OverflowError):
        raise _wrong(key, value, wanted, null) from None


def _wrong(key: str, value: Any, wanted: type, hint: str = "") -> ValueError:
    found = "null" if value is None else shown(value)
    return ValueError(f"'{key}' is {found}; expected {_EXPECTED[wanted]}{hint}")


def _plain(value: Any) -> Any:
    """A copy with plain lists and dictionaries."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def preview(config: Config, limit: int) -> Config:
    """The same experiment on at most `limit` documents of each source, under a name of its own."""
    if limit < 1:
        raise UserError(f"--limit is {limit}; expected at least 1 document of each source")
    sources = {}
    for name, options in config.data.sources.items():
        if isinstance(options, Mapping):
            given = options.get("limit_documents")
            sources[name] = {**options, "limit_documents": min(limit, given) if isinstance(given, int) else limit}
    data = dataclasses.replace(config.data, sources=sources)
    return dataclasses.replace(config, name=config.name + PREVIEW, data=data)


def to_values(section: Any) -> dict[str, Any]:
    """The resolved config as plain JSON values: what manifests, W&B and `runs/<name>/config.yaml` hold. Internal keys
    are left out where they are not set."""
    values = {f.name: getattr(section, f.name) for f in dataclasses.fields(section) if _is_shown(section, f)}
    return {k: to_values(v) if dataclasses.is_dataclass(v) else copy.deepcopy(v) for k, v in values.items()}


def _is_shown(section: Any, f: dataclasses.Field) -> bool:
    return not f.metadata.get("internal") or getattr(section, f.name) is not None


def to_yaml(config: Config) -> str:
    return yaml_values.dump(to_values(config))
