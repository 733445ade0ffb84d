"""A study's YAML file, read and checked before anything runs.

In: `configs/studies/<name>.yaml`. Out: a `Study`: base values, axes, cells, seeds, the budget of every member. A wrong
key or value raises `UserError` that names the key.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import config as configs
from pipeline.release.formats import check_formats
from pipeline.studies import design
from pipeline.studies.design import Axes, Cell
from pipeline.system.errors import UserError

KEYS = ("name", "about", "base", "set", "equal", "seeds", "axes", "design", "pairs", "members", "stop", "measures",
        "claims")  # fmt: skip
EQUAL = ("flops", "gpu_hours")
FORM, SPEND = "form", "spend"  # keys of a level that are no keys of a config
SPENT_ON = ("source", "finetune")
AS_STORED = "as stored"  # the form of a model that is not quantized, as the quantize stage calls it


@dataclass(frozen=True)
class Stop:
    """Successive halving: at each of the shares `at` of the budget, the best `keep` of the combinations continue."""

    at: tuple[float, ...]
    keep: float


@dataclass(frozen=True)
class Study:
    """`values`: the base experiment's, overridden by `set`. `axes`: axis -> level -> overrides (dotted keys, and `form`
    and `spend`). `cells`: (axis -> level, seeds). `equal`: ("flops" | "gpu_hours", how many)."""

    name: str
    about: str
    path: Path
    base: Path
    values: dict[str, Any]
    axes: dict[str, dict[str, dict[str, Any]]]
    cells: list[tuple[Cell, tuple[int, ...]]]
    pairs: list[tuple[str, str]]
    equal: tuple[str, float]
    measures: tuple[str, ...]
    stop: Stop | None
    claims: tuple[dict[str, Any], ...]

    @property
    def levels(self) -> dict[str, list[str]]:
        return {axis: list(levels) for axis, levels in self.axes.items()}


def read(path: str | Path) -> Study:
    """Reads and checks a study. Raises `UserError`."""
    path = Path(path)
    values, where = configs.read_yaml(path), f"study {path}"
    try:
        return _study(path, values, where)
    except (TypeError, AttributeError) as error:  # a list where a word is expected, a number where a section is
        raise UserError(f"{where}: a key holds a value of another kind: {' '.join(str(error).split())}") from None


def nested(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`{a.b: 1}` as `{a: {b: 1}}`; a mapping stays what it is."""
    result: dict[str, Any] = {}
    for key, value in overrides.items():
        inner = nested(value) if isinstance(value, Mapping) else value
        for word in reversed(str(key).split(".")):
            inner = {word: inner}
        result = configs.merge(result, inner)
    return result


def _study(path: Path, values: dict[str, Any], where: str) -> Study:
    for key in values:
        design.one_of(key, KEYS, f"{where}: unknown key '{key}'")
    name, base, shared = values.get("name"), values.get("base"), values.get("set") or {}
    is_word = isinstance(name, str) and name and "/" not in name
    _require(is_word, f"{where}: name", name, "a word: it names a folder under runs/")
    _require(isinstance(base, str), f"{where}: base", base, "the experiment that all members start from: ../tiny.yaml")
    base_path = path.parent / str(base)
    if not base_path.is_file():
        raise UserError(f"{where}: base: {base} is not there; expected a config, relative to {path.parent}")
    _require(isinstance(shared, Mapping), f"{where}: set", shared, "keys of a config and their values")
    _refuse_budgets(nested(shared), f"{where}: set")
    axes = _axes(values.get("axes"), where)
    levels = {axis: list(found) for axis, found in axes.items()}
    pairs = [_pair(pair, levels, where) for pair in values.get("pairs") or []]
    return Study(
        name=str(name),
        about=str(values.get("about") or "").strip(),
        path=path,
        base=base_path,
        values=configs.merge(configs.read_with_base(base_path), nested(shared)),
        axes=axes,
        cells=_cells(values, levels, pairs, where),
        pairs=pairs,
        equal=_equal(values.get("equal"), where),
        measures=design.check_measures(values.get("measures") or ["bits_per_byte"], where),
        stop=_stop(values.get("stop"), where),
        claims=design.check_claims(values.get("claims") or [], levels, where),
    )


def _require(fine: Any, what: str, found: Any, expected: str) -> None:
    if not fine:
        raise UserError(f"{what} is {found!r}; expected {expected}")


def _axes(found: Any, where: str) -> dict[str, dict[str, dict[str, Any]]]:
    _require(isinstance(found, Mapping) and found, f"{where}: axes", found, "axis -> level -> overrides")
    axes: dict[str, dict[str, dict[str, Any]]] = {}
    for axis, levels in found.items():
        place = f"{where}: axes.{axis}"
        _require(isinstance(levels, Mapping) and levels, place, levels, "level -> overrides, the reference first")
        for level, overrides in levels.items():
            _check_level(level, overrides, f"{place}.{level}")
        axes[str(axis)] = {level: dict(overrides) for level, overrides in levels.items()}
    return axes


def _check_level(level: Any, overrides: Any, place: str) -> None:
    if not isinstance(level, str) or not level.replace("_", "").replace(".", "").isalnum():
        raise UserError(f"{place}: a level's name is letters, digits and _ (quote on, off, yes, no and numbers)")
    is_section = isinstance(overrides, Mapping)
    _require(is_section, place, overrides, "overrides such as {init.method: stack}, or {}")
    _refuse_budgets(nested({key: value for key, value in overrides.items() if key not in (FORM, SPEND)}), place)
    if overrides.get(FORM, AS_STORED) != AS_STORED:
        check_formats([overrides[FORM]], f"{place}.form")
    spend = overrides.get(SPEND, {})
    is_spend = isinstance(spend, Mapping) and not set(spend) - set(SPENT_ON)
    _require(is_spend, f"{place}.spend", spend, f"shares of the budget for {' and '.join(SPENT_ON)}")
    for key, share in spend.items():
        _require(_is_share(share), f"{place}.spend.{key}", share, "a share of the budget, 0 to below 1")


def _refuse_budgets(values: Mapping[str, Any], place: str) -> None:
    """Members whose limits differ are not equal: `equal` sets them."""
    source = (values.get("init") or {}).get("source_overrides") or {}
    sections = {
        "budget": values.get("budget") or {},
        "finetune.budget": (values.get("finetune") or {}).get("budget") or {},
        "init.source_overrides.budget": source.get("budget") or {},
    }
    for prefix, section in sections.items():
        for key in ("max_gpu_hours", "max_tokens", "count_source"):
            if key in section:
                raise UserError(
                    f"{place} sets {prefix}.{key}: members would not have equal budgets; set `equal` for all of them, "
                    "and a level's `spend: {source: 0.3, finetune: 0.1}` for the shares of source and tuning"
                )


def _pair(found: Any, levels: Axes, where: str) -> tuple[str, str]:
    is_pair = isinstance(found, list) and len(found) == 2 and found[0] != found[1] and not set(found) - set(levels)
    if not is_pair:
        raise UserError(f"{where}: pairs has {found!r}; expected two axes of {', '.join(levels)}")
    return found[0], found[1]


def _cells(
    values: Mapping[str, Any], levels: Axes, pairs: list[tuple[str, str]], where: str
) -> list[tuple[Cell, tuple[int, ...]]]:
    seeds, entries = _seeds(values.get("seeds", [1]), where), values.get("members")
    kind = values.get("design", "members" if "members" in values else "full")
    is_known = kind in ("full", "pairs", "members") and (kind == "members") == ("members" in values)
    _require(is_known, f"{where}: design", kind, "full or pairs, or an explicit list `members` without it")
    if kind == "members":
        is_list = isinstance(entries, list) and entries
        _require(is_list, f"{where}: members", entries, "a list such as [{start: grown}]")
        listed = design.listed(levels, entries or [])
        return [(cell, seeds if own is None else _seeds(own, where)) for cell, own in listed]
    return [(cell, seeds) for cell in (design.full(levels) if kind == "full" else design.pairs(levels, pairs))]


def _seeds(found: Any, where: str) -> tuple[int, ...]:
    are_whole = isinstance(found, list) and found and all(type(seed) is int for seed in found)
    _require(are_whole, f"{where}: seeds", found, "a list of whole numbers such as [1, 2, 3]")
    return tuple(dict.fromkeys(found))


def _equal(found: Any, where: str) -> tuple[str, float]:
    kind, number = next(iter(found.items())) if isinstance(found, Mapping) and len(found) == 1 else ("", None)
    if kind not in EQUAL or not isinstance(number, int | float) or not 0 < number < 1e40:
        raise UserError(
            f"{where}: equal is {found!r}; members need equal budgets: expected {{gpu_hours: 0.02}}, or "
            "{flops: 1e12} where the machine is too busy for its hours to be equal"
        )
    return kind, float(number)


def _stop(found: Any, where: str) -> Stop | None:
    if found is None:
        return None
    at: Any = found.get("at") if isinstance(found, Mapping) else None
    keep: Any = found.get("keep") if isinstance(found, Mapping) else None
    rising = isinstance(at, list) and at and all(map(_is_share, at)) and sorted(set(at)) == at
    _require(
        rising and _is_share(keep) and keep > 0,
        f"{where}: stop",
        found,
        "{at: [0.25, 0.5], keep: 0.5}: rising shares of the budget, and which share of the combinations continues at "
        "each",
    )
    if any(not share or abs(share / at[0] - round(share / at[0])) > 1e-6 for share in at):
        raise UserError(f"{where}: stop.at is {at}; expected multiples of the first: members are validated that often")
    return Stop(tuple(map(float, at)), float(keep))


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value < 1
