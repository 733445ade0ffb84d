"""Train from scratch, train the smaller shape longer, grow, or continue a base: what the measured ladder says.

In: the size of a target, of its source, and tokens per parameter. Out: an answer in one sentence, with the range that
was measured and whether the question is inside it. The table is written by `scripts/bench_growth.py --report`.
"""

import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from pipeline.system.progress import format_count

GROWTH_LADDER = Path(__file__).with_name("growth_ladder.json")
SAME_SIZE = 2.0  # times as large or as small as the measured target: still "this size"
NEAR = 4.0  # times beyond the measured tokens per parameter: still worth a sentence in a report, which names them
ANSWERS = {
    "scratch": "train from scratch",
    "small": "train a smaller shape for the whole budget and do not grow it",
    "grown": "train a smaller shape first, then grow it",
    "continue": "continue the base as it is",
}
NOT_MEASURED = "What the same FLOPs would have given without growth: not measured at this size."
Ladder = Mapping[str, Any]


@cache
def ladders(path: Path = GROWTH_LADDER) -> tuple[Ladder, ...]:
    """The measured ladders, one for each kind of source; points in the order of their tokens per parameter."""
    return tuple(json.loads(path.read_text(encoding="utf-8"))["ladders"])


def ladder_for(parameters: int, source_parameters: int | None, known: Sequence[Ladder] | None = None) -> Ladder:
    """The one whose target is nearest in size and then whose source is nearest in its ratio to the target."""
    wanted = (source_parameters or parameters / 2) / parameters

    def far(one: Ladder) -> tuple[float, float]:
        ratio = one["source_parameters"] / one["target_parameters"]
        return abs(math.log(one["target_parameters"] / parameters)), abs(math.log(ratio / wanted))

    return min(ladders() if known is None else known, key=far)


def gain(ladder: Ladder, name: str, tokens_per_parameter: float) -> dict[str, Any]:
    """`{mean, interval}` of a gain such as "small over scratch": between two points by straight lines over the
    logarithm, past an end that end's. The interval is the nearer point's."""
    points = [point for point in ladder["points"] if name in point["gains"]]
    places = [math.log(point["tokens_per_parameter"]) for point in points]
    at = min(max(math.log(max(tokens_per_parameter, 1e-9)), places[0]), places[-1])
    nearest = min(range(len(points)), key=lambda i: abs(places[i] - at))
    found = dict(points[nearest]["gains"][name])
    for i, (low, high) in enumerate(pairwise(places)):
        if low <= at <= high:
            one, two = points[i]["gains"][name]["mean"], points[i + 1]["gains"][name]["mean"]
            found["mean"] = one + (two - one) * (at - low) / (high - low)
    return found


def measured_range(ladder: Ladder) -> tuple[float, float]:
    """Tokens per parameter of the target, lowest and highest."""
    places = [point["tokens_per_parameter"] for point in ladder["points"]]
    return places[0], places[-1]


def is_inside(ladder: Ladder, parameters: int, tokens: Sequence[float]) -> bool:
    """Whether a target of this size, on these tokens per parameter (lowest, highest), is within what was measured."""
    low, high = measured_range(ladder)
    ratio = parameters / ladder["target_parameters"]
    return low <= tokens[0] and tokens[-1] <= high and 1 / SAME_SIZE <= ratio <= SAME_SIZE


def answer(parameters: int, tokens: Sequence[float], source_parameters: int | None, is_free: bool) -> dict[str, Any]:
    """`{choice, inside, basis, sentence}`. `tokens`: per parameter of the target, [lowest, highest], as fresh weights
    would read them for all FLOPs. `source_parameters`: of the config's source, None without one. `is_free`: the source
    is a checkpoint that others trained."""
    several = [ladder for ladder in ladders() if len(ladder["points"]) > 1]  # a single budget says nothing of others
    ladder = ladder_for(parameters, source_parameters, several)
    low, high = measured_range(ladder)
    inside = is_inside(ladder, parameters, tokens) and not is_free
    leads = {
        "scratch": 0.0,
        **{arm: _mean(ladder, f"{arm} over scratch", tokens) for arm in ("small", "grown")},
    }
    choice = "continue" if is_free else _choice(ladder, leads, tokens)
    basis = (
        f"measured at {format_count(ladder['target_parameters'])} parameters, {low:.1f} to {high:.1f} tokens per "
        f"parameter, source counted (docs/growth)"
    )
    if is_free:
        why = "growing a base that others trained was not measured against it"
    else:
        why = "; ".join(_lead(ladder, pair, tokens) for pair in _pairs(choice))
    size = f"{format_count(parameters)} parameters at {_span(tokens)} tokens each"
    beyond = "" if inside else f"; {size} are beyond what was measured"
    return {
        "choice": choice,
        "inside": inside,
        "basis": basis,
        "leads_nats": {arm: round(lead, 4) for arm, lead in leads.items()},
        "sentence": f"{ANSWERS[choice]}: {why}, {basis}{beyond}",
    }


def _choice(ladder: Ladder, leads: Mapping[str, float], tokens: Sequence[float]) -> str:
    """The arm with the highest mean; growth, which is more to do, only where its lead over the other is clear."""
    plain = max(("scratch", "small"), key=leads.__getitem__)
    interval = gain(ladder, f"grown over {plain}", _middle(tokens))["interval"]
    return "grown" if leads["grown"] > leads[plain] and interval is not None and interval[0] > 0 else plain


def without_growth(parameters: int, tokens: float, source_parameters: int) -> str:
    """What a run that grew would have reached with the same FLOPs and no growth, in a sentence for its report, which
    names the tokens per parameter at which that was measured."""
    ladder = ladder_for(parameters, source_parameters)
    low, high = measured_range(ladder)
    at = min(max(tokens, low), high)
    if not is_inside(ladder, parameters, [at]) or not 1 / NEAR <= tokens / at <= NEAR:
        return NOT_MEASURED
    words = []
    for arm, name in (("scratch", "this size from scratch"), ("small", "the source's size, never grown,")):
        found = gain(ladder, f"grown over {arm}", at)
        sign, word = (1, "worse") if found["mean"] > 0 else (-1, "better")
        words.append(f"{name} {sign * found['mean']:.2f} {ladder['unit']} {word}{_interval(_signed(found, sign))}")
    nearest = min(ladder["points"], key=lambda point: abs(math.log(point["tokens_per_parameter"] / at)))
    seeds = f"{nearest['seeds']} seed{'' if nearest['seeds'] == 1 else 's'}"
    return (
        f"The same FLOPs without growth, as measured at {format_count(ladder['target_parameters'])} parameters and "
        f"{at:.2g} tokens per parameter, {seeds} (here {tokens:.2g}): {'; '.join(words)}."
    )


def _pairs(choice: str) -> list[tuple[str, str]]:
    others = [arm for arm in ("scratch", "small", "grown") if arm != choice]
    return [(choice, other) for other in others]


def _lead(ladder: Ladder, pair: tuple[str, str], tokens: Sequence[float]) -> str:
    arm, other = pair
    name, sign = f"{arm} over {other}", 1
    if name not in ladder["points"][0]["gains"]:
        name, sign = f"{other} over {arm}", -1
    found = _signed(gain(ladder, name, _middle(tokens)), sign)
    interval = found["interval"]
    clear = interval is not None and (interval[0] > 0 or interval[1] < 0)
    names = {"scratch": "fresh weights", "small": "the smaller shape", "grown": "growth"}
    told = "" if clear else ", not told apart"
    return f"{found['mean']:+.2f} {ladder['unit']}{_interval(found)} against {names[other]}{told}"


def _signed(found: Mapping[str, Any], sign: int) -> dict[str, Any]:
    """A gain seen from the other side where `sign` is -1."""
    interval = found["interval"] and sorted(sign * end for end in found["interval"])
    return {"mean": sign * found["mean"], "interval": interval}


def _mean(ladder: Ladder, name: str, tokens: Sequence[float]) -> float:
    return gain(ladder, name, _middle(tokens))["mean"]


def _middle(tokens: Sequence[float]) -> float:
    return math.sqrt(tokens[0] * tokens[-1])


def _interval(found: Mapping[str, Any]) -> str:
    return "" if found["interval"] is None else " ({:.2f} to {:.2f})".format(*found["interval"])


def _span(tokens: Sequence[float]) -> str:
    low, high = (f"{n:.1f}" if n < 10 else f"{n:,.0f}" for n in (tokens[0], tokens[-1]))
    return low if low == high else f"{low} to {high}"
