"""Which commit each hub name of a config stands for.

In: a config with names of the hub (`org/name`, `org/name@revision`, `revision:` of a dataset). Out: the same config
with commits in their place, so that fingerprints, every shard and every later stage mean one revision of the text and
the model. `runs/<experiment>/hub.json` keeps what each name was resolved to; members and branches of an experiment
(`<experiment>/<name>`) share its record. `hornbook data` asks the hub anew once its last result is finished; the stages
after it use the record.
"""

import copy
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config.schema import AFTER, Config
from pipeline.storage.files import root, write_json
from pipeline.storage.hub import DATASET, MODEL, Unavailable, commit_of, is_commit, is_hub_name

RECORD = "hub.json"
MAIN = "main"


@dataclass(frozen=True)
class HubName:
    """A name in a config. `key`: where it stands; `asked`: `org/name@revision`; `put(commit)` writes a commit there."""

    key: str
    kind: str
    asked: str
    put: Callable[[str], None]

    @property
    def pinned(self) -> bool:
        return is_commit(self.asked.partition("@")[2])


def record_path(config: Config) -> Path:
    return root() / "runs" / config.name / RECORD


def hub_names(config: Config) -> list[HubName]:
    """Every hub name of a config."""
    places: list[tuple[str, Any, str]] = [("init.source", config.init, "source")]
    places += [("tokenizer.path", config.tokenizer, "path")]
    places += [(f"{stage}.model", getattr(config, stage), "model") for stage in AFTER]
    found = [_model(key, getattr(holder, field), _setter(holder, field)) for key, holder, field in places]
    scorer = config.data.scorer
    if scorer and scorer.get("type") == "classifier":
        found.append(_model("data.scorer.path", scorer.get("path"), lambda value: scorer.update(path=value)))
    for name, options in sorted(config.data.sources.items()):
        found += _datasets(f"data.sources.{name}", options)
    return [one for one in found if one is not None]


def _model(key: str, value: Any, put: Callable[[str], None]) -> HubName | None:
    if not isinstance(value, str) or value.endswith((".yaml", ".yml")) or not is_hub_name(value):
        return None
    name, _, revision = value.partition("@")
    return HubName(key, MODEL, f"{name}@{revision or MAIN}", lambda commit: put(f"{name}@{commit}"))


def _datasets(key: str, options: Any) -> Iterator[HubName | None]:
    if not isinstance(options, dict):
        return
    dataset = options.get("dataset")
    if options.get("type") == "huggingface" and isinstance(dataset, str) and is_hub_dataset(dataset):
        asked = f"{dataset}@{options.get('revision') or MAIN}"
        yield HubName(key, DATASET, asked, lambda commit: options.update(revision=commit))
    yield from _datasets(f"{key}.documents", options.get("documents"))


def is_hub_dataset(dataset: str) -> bool:
    """Whether a source's `dataset` is no local folder."""
    return not dataset.startswith(("/", ".", "~")) and not Path(dataset).expanduser().is_dir()


def _setter(holder: Any, field: str) -> Callable[[str], None]:
    return lambda value: setattr(holder, field, value)


def recorded(config: Config) -> Config:
    """The config with the commits that its experiment has on record; names without one stay. Asks nobody."""
    return _with(config, _records(config))


def _with(config: Config, commits: Mapping[str, Mapping[str, str]]) -> Config:
    pinned = copy.deepcopy(config)
    for name in hub_names(pinned):
        commit = commits.get(name.key, {}).get(name.asked)
        if commit is not None and not name.pinned:
            name.put(commit)
    return pinned


def _records(config: Config) -> dict[str, dict[str, str]]:
    """Key -> name as it was asked for -> commit; what an experiment has on record goes before what its parents have."""
    found: dict[str, dict[str, str]] = {}
    path = Path(config.name)
    for folder in reversed([path, *path.parents]):
        if folder != Path():
            for key, commits in _read(root() / "runs" / folder / RECORD).items():
                found.setdefault(key, {}).update(commits)
    return found


def _read(path: Path) -> dict[str, dict[str, str]]:
    with suppress(OSError, ValueError, RecursionError):
        values = json.loads(path.read_bytes())
        if isinstance(values, dict) and all(isinstance(v, dict) for v in values.values()):
            return {key: {a: c for a, c in v.items() if is_commit(c)} for key, v in values.items()}
    return {}


def resolve(configs: Sequence[Config], path: Path, anew: Callable[[str], bool]) -> None:
    """Asks the hub once for the commit of every name of `configs` that is not pinned and has no commit on record, or
    whose key is to be asked `anew`; writes the record at `path` and prints what was found. Where the hub cannot be
    reached, the record is used. Raises `UserError` where there is none, or the hub refuses the name."""
    record = _read(path)
    found: dict[tuple[str, str], str] = {}
    changed = False
    for config in configs:
        known = _records(config)
        for name in _distinct(hub_names(config)):
            before = known.get(name.key, {}).get(name.asked)
            if name.pinned or (before is not None and not anew(name.key)):
                continue
            place = (name.kind, name.asked)
            if place not in found:
                try:
                    found[place] = commit_of(name.asked, name.kind, name.key)
                except Unavailable as error:
                    if before is None:
                        raise
                    print(f"  hub: {error.why}; {name.asked} stays at commit {before[:12]}, as on record", flush=True)
                    found[place] = before
                else:
                    moved = f" (it was {before[:12]})" if before not in (None, found[place]) else ""
                    print(f"  hub: {name.asked} is commit {found[place][:12]}{moved}", flush=True)
            if record.get(name.key, {}).get(name.asked) != found[place]:
                record.setdefault(name.key, {})[name.asked] = found[place]
                changed = True
    if changed:
        write_json(path, record)


def _distinct(names: Iterable[HubName]) -> list[HubName]:
    return list({(name.key, name.asked): name for name in names}.values())
