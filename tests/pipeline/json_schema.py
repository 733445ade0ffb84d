"""The part of JSON Schema 2020-12 that report_schema.json uses; another keyword is an error, so none is overlooked."""

import json
from pathlib import Path
from typing import Any

from pipeline.reporting import page
from pipeline.storage.files import root

SCHEMA = json.loads(Path(page.__file__).with_name("report_schema.json").read_text(encoding="utf-8"))
TYPES = {"object": dict, "array": list, "string": str, "null": type(None), "boolean": bool}
NOTES = {"$schema", "$defs", "title", "description"}


def report_of(experiment: str) -> tuple[dict[str, Any], str]:
    """(report.json, which must fit its schema, and the page) of an experiment."""
    folder = root() / "runs" / experiment
    found = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert problems(found, SCHEMA) == []
    return found, (folder / "report.html").read_text(encoding="utf-8")


def problems(value: Any, schema: dict[str, Any], root: dict[str, Any] | None = None, at: str = "$") -> list[str]:
    """What of `value` the schema does not allow, each with its place; empty where it is valid."""
    root = schema if root is None else root
    found: list[str] = []
    for keyword, rule in schema.items():
        match keyword:
            case "$ref":
                found += problems(value, root["$defs"][rule.removeprefix("#/$defs/")], root, at)
            case "anyOf":
                if all(problems(value, option, root, at) for option in rule):
                    found.append(f"{at}: {value!r:.60} fits none of the alternatives")
            case "const":
                found += [] if value == rule else [f"{at}: {value!r:.60} is not {rule!r}"]
            case "type":
                names = rule if isinstance(rule, list) else [rule]
                found += [] if any(_is(value, name) for name in names) else [f"{at}: {value!r:.60} is no {rule}"]
            case "minimum":
                found += [f"{at}: {value} < {rule}"] if _is(value, "number") and value < rule else []
            case "maximum":
                found += [f"{at}: {value} > {rule}"] if _is(value, "number") and value > rule else []
            case "minItems":
                found += [f"{at}: {len(value)} items"] if isinstance(value, list) and len(value) < rule else []
            case "maxItems":
                found += [f"{at}: {len(value)} items"] if isinstance(value, list) and len(value) > rule else []
            case "items":
                for i, item in enumerate(value if isinstance(value, list) else ()):
                    found += problems(item, rule, root, f"{at}[{i}]")
            case "required":
                found += [f"{at}: no {key}" for key in rule if isinstance(value, dict) and key not in value]
            case "properties":
                for key in rule.keys() & (value.keys() if isinstance(value, dict) else set()):
                    found += problems(value[key], rule[key], root, f"{at}.{key}")
            case "additionalProperties":
                more = value.keys() - schema.get("properties", {}).keys() if isinstance(value, dict) else set()
                for key in sorted(more) if rule is not True else ():
                    found += [f"{at}: {key} is unknown"] if rule is False else problems(
                        value[key], rule, root, f"{at}.{key}"
                    )  # fmt: skip
            case _:
                assert keyword in NOTES, keyword
    return found


def _is(value: Any, name: str) -> bool:
    if name in ("number", "integer"):
        return isinstance(value, int if name == "integer" else int | float) and not isinstance(value, bool)
    return isinstance(value, TYPES[name])
