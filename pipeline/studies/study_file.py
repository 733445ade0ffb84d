"""A study's YAML file, read and checked before anything runs.

In: `configs/studies/<name>.yaml`. Out: a `Study`: base values, axes, cells, seeds, the budget that every member gets.
What is wrong raises `UserError` with the key.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import config as configs
from pipeline.config.keys import nearest
from pipeline.studies import design
from pipeline.studies.claims import check_claims
from pipeline.studies.design import Cell
from pipeline.studies.measures import check_measures
from pipeline.system.errors import UserError

KEYS = ("name", "about", "base", "set", "equal", "seeds", "axes", "design", "pairs", "members", "stop", "measures",
        "claims")  # fmt: skip
EQUAL = ("flops", "gpu_hours")
FORM, SPEND = "form", "spend"  # keys of a level that are no keys of a config
SPENT_ON = ("source", "finetune")
AS_STORED = "as stored"  # the form of a model that nothing was done to, as the quantize stage calls it


@dataclass(frozen=True)
class Stop:
    """Successive halving: at each of the shares `at` of the budget, the best `keep` of the combinations go on."""

    at: tuple[float, ...]
    keep: float


@dataclass(frozen=True)
class Study:
    """`values`: the base experiment's, with `set` laid over. `axes`: axis -> level -> overrides (dotted keys), with
    `form` and `spend` among them. `cells`: (axis -> level, seeds). `equal`: ("flops" | "gpu_hours", how many)."""

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


def _study(path: Path, values: dict[str, Any], where: str) -> Study:
    for key in values:
        if key not in KEYS:
            raise UserError(f"{where}: unknown key '{key}'{nearest(str(key), KEYS)}; expected of {', '.join(KEYS)}")
    name = values.get("name")
    if not isinstance(name, str) or not name or "/" in name:
        raise UserError(f"{where}: name is {name!r}; expected a word: it names a folder under runs/")
    base, base_values = _base(values, path, where)
    axes = _axes(values.get("axes"), where)
    levels = {axis: list(found) for axis, found in axes.items()}
    pairs = _pairs(values.get("pairs") or [], levels, where)
    shared = values.get("set") or {}
    if not isinstance(shared, Mapping):
        raise UserError(f"{where}: set is {shared!r}; expected keys of a config and their values")
    _refuse_budgets(nested(shared), f"{where}: set")
    return Study(
        name,
        str(values.get("about") or "").strip(),
        path,
        base,
        configs.merge(base_values, nested(shared)),
        axes,
        _cells(values, levels, pairs, where),
        pairs,
        _equal(values.get("equal"), where),
        check_measures(values.get("measures") or ["bits_per_byte"], where),
        _stop(values.get("stop"), where),
        check_claims(values.get("claims") or [], levels, where),
    )


def nested(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`{a.b: 1}` as `{a: {b: 1}}`; a mapping stays what it is."""
    result: dict[str, Any] = {}
    for key, value in overrides.items():
        inner = nested(value) if isinstance(value, Mapping) else value
        for word in reversed(str(key).split(".")):
            inner = {word: inner}
        result = configs.merge(result, inner)
    return result


def _base(values: Mapping[str, Any], path: Path, where: str) -> tuple[Path, dict[str, Any]]:
    base = values.get("base")
    if not isinstance(base, str):
        raise UserError(f"{where}: base is {base!r}; expected the experiment that all members start from: ../tiny.yaml")
    found = path.parent / base
    if not found.is_file():
        raise UserError(f"{where}: base: {base} is not there; expected a config, relative to {path.parent}")
    return found, configs.read_with_base(found)


def _axes(found: Any, where: str) -> dict[str, dict[str, dict[str, Any]]]:
    if not isinstance(found, Mapping) or not found:
        raise UserError(f"{where}: axes is {found!r}; expected axis -> level -> overrides")
    axes: dict[str, dict[str, dict[str, Any]]] = {}
    for axis, levels in found.items():
        if not isinstance(levels, Mapping) or not levels:
            raise UserError(f"{where}: axes.{axis} is {levels!r}; expected level -> overrides, the reference first")
        for level, overrides in levels.items():
            place = f"{where}: axes.{axis}.{level}"
            if not isinstance(level, str) or not level.replace("_", "").replace(".", "").isalnum():
                raise UserError(
                    f"{place}: a level's name is letters, digits and _ (quote on, off, yes, no and numbers)"
                )
            if not isinstance(overrides, Mapping):
                raise UserError(f"{place} is {overrides!r}; expected overrides such as {{init.method: stack}}, or {{}}")
            _check_level(overrides, place)
        axes[str(axis)] = {level: dict(overrides) for level, overrides in levels.items()}
    return axes


def _check_level(overrides: Mapping[str, Any], place: str) -> None:
    own = {key: value for key, value in overrides.items() if key not in (FORM, SPEND)}
    _refuse_budgets(nested(own), place)
    known = configs.key_kinds()
    for key in own:
        inside = any(key.startswith(f"{name}.") for name in known)  # of a section of named things
        section = any(name.startswith(f"{key}.") for name in known)
        if key not in known and not inside and not section:
            raise UserError(f"{place}: unknown key '{key}'{nearest(str(key), [*known, FORM, SPEND])}")
    if FORM in overrides:
        from pipeline.quantize import check_kinds

        if overrides[FORM] != AS_STORED:
            check_kinds([overrides[FORM]], f"{place}.form")
    spend = overrides.get(SPEND, {})
    if not isinstance(spend, Mapping) or set(spend) - set(SPENT_ON):
        raise UserError(f"{place}.spend is {spend!r}; expected shares of the budget for {' and '.join(SPENT_ON)}")
    for key, share in spend.items():
        if not isinstance(share, int | float) or not 0 <= share < 1:
            raise UserError(f"{place}.spend.{key} is {share!r}; expected a share of the budget, 0 to below 1")


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
                    "and a level's `spend: {source: 0.3, finetune: 0.1}` for what of it goes where"
                )


def _pairs(found: Any, levels: Mapping[str, list[str]], where: str) -> list[tuple[str, str]]:
    pairs = []
    for pair in found:
        if not isinstance(pair, list) or len(pair) != 2 or pair[0] == pair[1] or set(pair) - set(levels):
            raise UserError(f"{where}: pairs has {pair!r}; expected two axes of {', '.join(levels)}")
        pairs.append((pair[0], pair[1]))
    return pairs


def _cells(
    values: Mapping[str, Any], levels: dict[str, list[str]], pairs: list[tuple[str, str]], where: str
) -> list[tuple[Cell, tuple[int, ...]]]:
    seeds = _seeds(values.get("seeds", [1]), f"{where}: seeds")
    kind = values.get("design", "members" if "members" in values else "full")
    if kind not in ("full", "pairs", "members") or (kind == "members") != ("members" in values):
        raise UserError(
            f"{where}: design is {kind!r}; expected full or pairs, or an explicit list `members` without it"
        )
    if kind == "members":
        if not isinstance(values["members"], list) or not values["members"]:
            raise UserError(f"{where}: members is {values['members']!r}; expected a list such as [{{start: grown}}]")
        listed = design.listed(levels, values["members"])
        return [(c, seeds if own is None else _seeds(own, f"{where}: seeds")) for c, own in listed]
    return [(cell, seeds) for cell in (design.full(levels) if kind == "full" else design.pairs(levels, pairs))]


def _seeds(found: Any, where: str) -> tuple[int, ...]:
    if not isinstance(found, list) or not found or not all(type(seed) is int for seed in found):
        raise UserError(f"{where} is {found!r}; expected a list of whole numbers such as [1, 2, 3]")
    return tuple(dict.fromkeys(found))


def _equal(found: Any, where: str) -> tuple[str, float]:
    given = [(key, found[key]) for key in EQUAL if key in found] if isinstance(found, Mapping) else []
    number = given[0][1] if given else None
    if len(given) != 1 or len(found) != 1 or not isinstance(number, int | float) or not 0 < number < 1e40:
        raise UserError(
            f"{where}: equal is {found!r}; members need equal budgets: expected {{gpu_hours: 0.02}}, or "
            "{flops: 1e12} where the machine is too busy for its hours to be equal"
        )
    return given[0][0], float(number)


def _stop(found: Any, where: str) -> Stop | None:
    if found is None:
        return None
    at: Any = found.get("at") if isinstance(found, Mapping) else None
    keep: Any = found.get("keep") if isinstance(found, Mapping) else None
    fine = isinstance(at, list) and at and all(isinstance(a, int | float) and 0 < a < 1 for a in at)
    if not fine or sorted(set(at)) != at or not isinstance(keep, int | float) or not 0 < keep < 1:
        raise UserError(
            f"{where}: stop is {found!r}; expected {{at: [0.25, 0.5], keep: 0.5}}: rising shares of the budget, and "
            "which share of the combinations goes on at each"
        )
    if any(abs(a / at[0] - round(a / at[0])) > 1e-6 for a in at):
        raise UserError(f"{where}: stop.at is {at}; expected multiples of the first: members are validated that often")
    return Stop(tuple(map(float, at)), float(keep))
