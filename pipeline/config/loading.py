"""One YAML file is one experiment; `key=value` words on the command line override it.

In: a file, the files that its `base` names, overrides. Out: a checked `Config`, or one `UserError` that lists every
unknown, missing and wrong key with what was found, what was expected and the nearest right name.
"""

import copy
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml

from model.config import shown
from pipeline.config import yaml_values
from pipeline.config.checks import one_message, validate, value_problems
from pipeline.config.schema import MISSING, Config, key_kinds, nearest
from pipeline.system.errors import UserError

NO_VALUE = "has no value; it must be set"
WHOLE = "`hornbook new FOLDER --text PATH` writes a whole config; configs/tiny.yaml is an example"
PREVIEW = "/preview"  # what `hornbook data --limit` adds to an experiment's name
_EXPECTED: dict[Any, str] = {
    int: "a whole number", float: "a number", str: "text", bool: "true or false", list: "a list such as [a, b]",
    dict: "a section of named things", Any: "plain values",
}  # fmt: skip


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
    """The values of a config file, unchecked. Raises `UserError`."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(f"config {path} {what}; expected a YAML file such as configs/tiny.yaml")
    try:
        values = yaml_values.load(path.read_text(encoding="utf-8-sig"), Config)
    except UnicodeDecodeError as error:
        wide = error.object[:2] in (b"\xff\xfe", b"\xfe\xff")
        told = f"iconv -f UTF-16 -t UTF-8 {path} > new.yaml" if wide else "or save it as UTF-8 in your editor"
        kind = "UTF-16" if wide else f"not UTF-8 (byte {error.start})"
        raise UserError(f"config {path} is {kind}; expected UTF-8: {told}") from None
    except (yaml.YAMLError, ValueError, RecursionError, OSError) as error:
        raise UserError(f"config {path} is not readable YAML: {_yaml_problem(str(error))}") from None
    if values is None:  # an empty file: what it lacks is named like any other missing key
        return {}
    if not isinstance(values, dict):
        raise UserError(f"config {path} holds no sections; expected `name: ...`, `model: ...`, see configs/tiny.yaml")
    return values


def _yaml_problem(said: str) -> str:
    """What the parser says, and what is usually behind it."""
    said = " ".join(said.replace('in "<unicode string>", ', "at ").split())
    for words, meant in {
        "mapping values are not allowed": "keys of a section begin in one column, and a text with ': ' needs quotes",
        "unknown escape character": "write a path with / or in single quotes: 'C:\\docs'",
        "unexpected end of stream": "a quote or bracket is opened and not closed",
        "duplicate key": "keep one of the two",
        "did not find expected": "a text with ': ' or a comma needs quotes, and each bracket its other half",
        "character '\\t'": "indent with spaces",
    }.items():
        if words in said:
            return f"{said}; {meant}"
    return said


def parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """Nested values of `key=value` words; a value is YAML, as in a file. Raises `UserError`."""
    values: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or key.startswith("-") or not all(key.split(".")):
            raise UserError(f"'{word}' is not an override; expected key=value{_override_meant(word)}")
        try:
            found = yaml_values.load(text, _annotation(key))
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise UserError(f"overrides {word}: {' '.join(str(error).split())}") from None
        for name in reversed(key.split(".")):
            found = {name: found}
        values = merge(values, found)
    return values


def _override_meant(word: str) -> str:
    """What to write in place of a word that is no `key=value`."""
    key, colon, value = word.partition(":")
    if word.endswith((".yaml", ".yml")):
        return ": a command takes one config (another one can name it as its base)"
    if colon and key in key_kinds():
        return f": write {key}={value.strip()}"
    return " such as budget.max_gpu_hours=0.1, without spaces, or in quotes: 'data.sources.docs.path=my docs'"


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
    unfit: list[str] = []
    out_of_range: list[str] = []
    _check_section(Config, values, "", unfit, out_of_range)
    if unfit:
        lacks = any(NO_VALUE in problem for problem in unfit)
        found = [*unfit, *(_asked_for_next(values) if lacks else []), *out_of_range]
        whole = f"{'; ' if len(found) == 1 else chr(10) + '  '}{WHOLE}" if lacks else ""
        raise UserError(one_message(where, found) + whole)
    try:
        config = _by_omegaconf(values, Config)
    except ValueError as error:  # an interpolation that leads nowhere, such as ${train.beta3}
        raise UserError(f"{where}: {error}") from None
    source = config.init.source
    if config.tokenizer.path is None and source is not None and not source.endswith((".yaml", ".yml")):
        config.tokenizer.path = source  # a trained model knows its own tokenizer only
    validate(config, where)
    return config


def _asked_for_next(values: Mapping[str, Any]) -> list[str]:
    """What has a default, and without which a stage would stop all the same."""
    found, data, budget, train = [], values.get("data"), values.get("budget"), values.get("train")
    if isinstance(data, Mapping | None) and not (data or {}).get("sources"):
        found.append("'data.sources' is empty; the data stage needs a source of text")
    if (
        isinstance(budget, Mapping | None)
        and not {"max_gpu_hours", "max_tokens"} & set(budget or {})
        and not (isinstance(train, Mapping) and train.get("max_epochs"))
    ):
        found.append("'budget.max_gpu_hours' is not set; pretraining needs an end")
    return found


def _by_omegaconf(value: Any, annotation: Any) -> Any:
    """The value in a type of the schema; of a section, laid over its defaults. Raises `ValueError`."""
    from omegaconf import OmegaConf  # not at the top, so that `--help` answers at once
    from omegaconf.errors import OmegaConfBaseException

    try:
        if dataclasses.is_dataclass(annotation):
            return OmegaConf.to_object(OmegaConf.merge(_schema(annotation), value))
        return OmegaConf.to_container(OmegaConf.typed_dict({"": value}, element_type=annotation))[""]  # type: ignore
    except (OmegaConfBaseException, TypeError, AttributeError, ValueError, OverflowError) as error:
        key, words = getattr(error, "full_key", None), str(error).partition("\n")[0]
        raise ValueError(f"'{key}': {words}" if key else words) from None


@functools.cache
def _schema(section: type) -> Any:
    """Its keys with their types and defaults; merging copies it. Making it takes as long as the rest of a load."""
    from omegaconf import OmegaConf

    return OmegaConf.structured(section)


def _check_section(cls: type, values: Any, prefix: str, unfit: list[str], out_of_range: list[str]) -> None:
    """Appends every unknown, missing and wrong key of a section to `unfit`: OmegaConf's own message has only the first
    one, and no nearest name."""
    if not isinstance(values, Mapping):
        unfit.append(f"'{prefix.rstrip('.')}' is {shown(values)}; expected a section with keys")
        return
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            same = [k for k in key_kinds() if k.rsplit(".", 1)[-1] == key]
            public = [f.name for f in fields.values() if not f.metadata.get("internal")]
            hint = f" (did you mean '{same[0]}'?)" if same else nearest(str(key), public)
            unfit.append(f"unknown key '{prefix}{key}'{hint}")
    for name, f in fields.items():
        key, value = f"{prefix}{name}", values.get(name, MISSING)
        if value == MISSING:
            if f.default_factory is dataclasses.MISSING and f.default in (dataclasses.MISSING, MISSING):
                inner = key_kinds(f.type, f"{key}.") if dataclasses.is_dataclass(f.type) else {key: ()}  # type: ignore
                must = _required(f.type) if dataclasses.is_dataclass(f.type) else ()  # type: ignore[arg-type]
                unfit += [f"'{k}' {NO_VALUE}" for k in inner if k == key or k.removeprefix(f"{key}.") in must]
        elif dataclasses.is_dataclass(f.type):
            _check_section(f.type, value, f"{key}.", unfit, out_of_range)  # type: ignore[arg-type]
        else:
            try:
                value = _converted(key, value, f.type)
                if "${" not in str(value):  # an interpolation is known, and checked, once all values are laid
                    out_of_range += value_problems(key, value, f)
            except ValueError as error:
                unfit.append(str(error))


def _required(cls: type) -> set[str]:
    """Fields without a default."""
    missing = dataclasses.MISSING
    return {f.name for f in dataclasses.fields(cls) if f.default is missing and f.default_factory is missing}


def _converted(key: str, value: Any, annotation: Any) -> Any:
    """The value as OmegaConf converts it to the type of the schema. Raises `ValueError` in words, also for a text that
    YAML 1.1 would read as another number and for a text without its quotes."""
    null = " or null" if type(None) in get_args(annotation) else ""
    wanted = get_args(annotation)[0] if null else annotation
    kind, inner = get_origin(wanted) or wanted, get_args(wanted)
    if kind is dict and isinstance(value, Mapping):
        value = {k: _converted(f"{key}.{k}", v, inner[1]) for k, v in value.items()}
    elif kind is list and isinstance(value, list | tuple):
        value = [_converted(key, v, inner[0]) for v in value]
    hint, unquoted = null, kind is str and isinstance(value, bool | float)
    meant = yaml_values.number_meant(key, value) if kind in (int, float) and isinstance(value, str) else None
    if meant is not None:
        kind, hint = float, f": write {meant}" if meant else ", such as 1.5 or 12"
    elif unquoted:
        hint += ": write it in quotes"
    else:
        try:
            return _by_omegaconf(value, annotation)
        except ValueError:
            hint += f": write {int(value):_}" if kind is int and isinstance(value, float) and value % 1 == 0 else ""
    found = "null" if value is None else shown(value)
    raise ValueError(f"'{key}' is {found}; expected {_EXPECTED[kind]}{hint}")


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values as `section.key` -> value."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found.update(flat(value, f"{prefix}{key}."))
        else:
            found[prefix + key] = value
    return found


def preview(config: Config, limit: int) -> Config:
    """The same experiment on at most `limit` documents of each source, from all of its files, under a name of its own.
    Raises `UserError`."""
    if limit < 1:
        raise UserError(f"--limit is {limit}; expected at least 1 document of each source")
    sources = {}
    for name, options in config.data.sources.items():
        if isinstance(options, Mapping):
            given = options.get("limit_documents")
            most = min(limit, given) if isinstance(given, int) else limit
            sources[name] = {**options, "limit_documents": most, "spread": True}
    data = dataclasses.replace(config.data, sources=sources)
    return dataclasses.replace(config, name=config.name + PREVIEW, data=data)


def to_values(section: Any) -> dict[str, Any]:
    """The resolved config as plain JSON values: what manifests, W&B and `runs/<name>/config.yaml` hold. Internal keys
    are left out where they are not set."""
    found = [(getattr(section, f.name), f) for f in dataclasses.fields(section)]
    values = {f.name: value for value, f in found if value is not None or not f.metadata.get("internal")}
    return {k: to_values(v) if dataclasses.is_dataclass(v) else copy.deepcopy(v) for k, v in values.items()}


def to_yaml(config: Config) -> str:
    return yaml_values.dump(to_values(config))
