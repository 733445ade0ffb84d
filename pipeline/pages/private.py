"""What a page that people pass on may show of private text (`license: own`): nothing but figures.

The report under `runs/` is its owner's and shows everything. Cards, and the report that `hornbook report --share`
writes, are made of `shared_account` and `shared_report`: no text, path, group, file name or name of a private source.
W&B gets an allow-list (pipeline/training/tracking.py).
"""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

OWN = "own"
PRIVATE_NAME, TUNING_NAME = "private text", "tuning data"
NOT_A_SOURCE = ("textbook",)  # a set of documents of several sources
TEXTS = ("text", "notice", "copyright", "prompt")  # of public documents: kept as they are
_FOLDERS = re.compile(r"(?<![\w.:/])~?/(?:[^\s/'\"]+/)+")


def is_private_source(source: Mapping[str, Any]) -> bool:
    """Whether the facts of a source, in a data manifest or report, say that it holds private text."""
    return bool(source.get("private")) or OWN in source.get("licenses", ())


def public_names(sources: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """What a card calls each source: its name, or of private ones `private text`, numbered where there are several."""
    private = [name for name, source in sources.items() if is_private_source(source)]
    return {name: name for name in sources} | _numbered(private, PRIVATE_NAME)


def _numbered(names: list[str], public: str) -> dict[str, str]:
    return {name: f"{public} {i + 1}" if len(names) > 1 else public for i, name in enumerate(names)}


def shared_report(report: Mapping[str, Any]) -> dict[str, Any]:
    """A `report.json` to pass on. Where text is private, samples of the model are left out too: it may have learnt its
    text by heart, and their prompts are the owner's. Data that a model was tuned on has no name."""
    data, tuned = report.get("data"), report.get("finetune")
    names = public_names(data["sources"]) if data else {}
    found = {key: _renamed(value, names) for key, value in report.items() if key not in ("data", "finetune")}
    private = any(name != public for name, public in names.items())
    if data:
        found["data"] = shared_account(data)
    if tuned:
        task, sets = (tuned.get("target") or {}).get("name"), list(tuned["bits_per_byte"] or ())
        own = _numbered([name for name in sets if name != task], TUNING_NAME)
        found["finetune"] = _renamed(tuned, dict(zip(sets, sets, strict=True)) | own)
    if "pretrain" in found and private:
        found["pretrain"]["samples"] = []
    return {**found, "shared": True}


def shared_account(account: Mapping[str, Any]) -> dict[str, Any]:
    """A `data.report.json` to pass on."""
    names = public_names(account["sources"])
    private = {name for name, public in names.items() if name != public}
    if not private:
        return _renamed(account, names)
    sources = {name: _shared_source(s) if name in private else s for name, s in account["sources"].items()}
    skipped: Counter[str] = Counter()
    for source in sources.values():
        skipped.update(source["files"]["skipped"])
    groups, twins, contamination = account["groups"], account["duplicates"], account["contamination"]
    largest = [{**g, "group": "" if g["source"] in private else g["group"]} for g in groups["largest"]]
    shared = {
        **account,
        "sources": sources,
        "files": {**account["files"], "skipped": dict(skipped)},
        "groups": {**groups, "largest": largest},
        "duplicates": {**twins, "largest_clusters": [{**c, "path": ""} for c in twins["largest_clusters"]]},
        "contamination": contamination and {
            **contamination,
            "most_matched": [{**m, "item": f"item {i + 1}"} for i, m in enumerate(contamination["most_matched"])],
        },
    }  # fmt: skip
    return _renamed(shared, names)


def _shared_source(source: Mapping[str, Any]) -> dict[str, Any]:
    """Endings of files are names too: only how many were skipped is shown."""
    files, lost = source["files"], source["lost_files"]
    n = sum(files["skipped"].values())
    skipped = {PRIVATE_NAME: n} if n else {}
    return {**source, "files": {**files, "skipped": skipped}, "lost_files": [{**f, "file": ""} for f in lost]}


def _renamed(value: Any, names: Mapping[str, str], key: str = "") -> Any:
    """`value` with public names of sources in place of their own, without the folders of paths, and of examples from
    private text only the numbers. `names`: every source -> public name; `key`: what holds the value."""
    private = {name: public for name, public in names.items() if name != public}
    if isinstance(value, Mapping):
        if value.get("private") is True and "text" in value:
            figures = {k: value[k] for k in ("value", "threshold") if isinstance(value.get(k), int | float)}
            return {"private": True, **figures}
        by_source = bool(private) and set(value) <= {*names, *NOT_A_SOURCE}
        return {
            (names.get(k, k) if by_source else _in_parts(k, private)): _renamed(v, names, str(k))
            for k, v in value.items()
            if not (k == "detail" and private)  # what a text is a copy of
        }
    if isinstance(value, list | tuple):
        return [
            private.get(v, v) if isinstance(v, str) else _renamed(v, names, key) for v in _sentences(value, private)
        ]
    if not isinstance(value, str) or key in TEXTS:
        return value
    if key in ("source", "reason"):  # `where` counts what it excludes under its source
        return private.get(value, value)
    return _FOLDERS.sub("", value)


def _in_parts(key: Any, private: Mapping[str, str]) -> Any:
    """`val/notes/bits_per_byte` with the public name of `notes`."""
    return "/".join(private.get(part, part) for part in key.split("/")) if "/" in str(key) else key


def _sentences(values: Any, private: Mapping[str, str]) -> list[Any]:
    """Warnings name a source by its key."""
    found = list(values)
    for name, public in private.items():
        key = re.compile(rf"data\.sources\.{re.escape(name)}(?![\w])")
        found = [key.sub(public, v) if isinstance(v, str) else v for v in found]
    return found
