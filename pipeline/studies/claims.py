"""Claims that a study is to answer, each beside the verdict of its own figures.

In: `claims` of the study's file: what is said, which finding answers it (kind, measure, levels), what it expects of it
(better, worse, same). Out: a verdict, worked out from the finding alone, so that more seeds can change it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.config.keys import nearest
from pipeline.studies.measures import MEASURES, QUALITY
from pipeline.system.errors import UserError

KINDS = ("main", "direct", "interaction", "equal bytes")
EXPECTED = ("better", "worse", "same")
KEYS = ("says", "kind", "measure", "levels", "expect")


def check_claims(found: Any, axes: Mapping[str, Sequence[str]], where: str) -> tuple[dict[str, Any], ...]:
    """The claims with `measure` filled in. Raises `UserError` for one that no finding could answer."""
    if not isinstance(found, list):
        raise UserError(f"{where}: claims is {found!r}; expected a list of {{{', '.join(KEYS)}}}")
    known = [level for levels in axes.values() for level in levels]
    checked = []
    for number, claim in enumerate(found, 1):
        place = f"{where}: claims, entry {number}"
        if not isinstance(claim, Mapping) or set(claim) - set(KEYS) or not {"says", "kind", "levels"} <= set(claim):
            raise UserError(f"{place} is {claim!r}; expected the keys {', '.join(KEYS)}")
        filled = {"measure": QUALITY, "expect": "better", **claim}
        for key, allowed in (("kind", KINDS), ("expect", EXPECTED), ("measure", tuple(MEASURES))):
            if filled[key] not in allowed:
                hint = nearest(str(filled[key]), allowed)
                raise UserError(f"{place}.{key} is '{filled[key]}'{hint}; expected of {', '.join(allowed)}")
        for level in filled["levels"]:
            if level not in known:
                raise UserError(
                    f"{place}.levels has '{level}'{nearest(str(level), known)}; expected of the axes' levels"
                )
        checked.append(filled)
    return tuple(checked)


def verdicts(claims: Sequence[Mapping[str, Any]], effects: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """`{says, verdict, effect}` a claim; `effect` is the index of the finding that it rests on, or None."""
    found = []
    for claim in claims:
        index = next((i for i, effect in enumerate(effects) if _answers(effect, claim)), None)
        words = "not measured yet" if index is None else _verdict(effects[index], claim["expect"])
        found.append({"says": claim["says"], "verdict": words, "effect": index})
    return found


def _answers(effect: Mapping[str, Any], claim: Mapping[str, Any]) -> bool:
    levels = [change["level"] for change in effect["changes"]]
    same = (effect["kind"], effect["measure"]) == (claim["kind"], claim["measure"])
    return same and sorted(levels) == sorted(claim["levels"])


def _verdict(effect: Mapping[str, Any], expected: str) -> str:
    seeds = f"{effect['seeds']} seed{'' if effect['seeds'] == 1 else 's'}"
    if not effect["clear"]:
        return f"no clear difference with {seeds}" if expected == "same" else f"not shown by {seeds}"
    better = (effect["mean"] < 0) == MEASURES[effect["measure"]].lower_is_better
    came = "better" if better else "worse"
    return f"holds here, with {seeds}" if came == expected else f"does not hold here: {came}, with {seeds}"
