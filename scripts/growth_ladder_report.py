"""Tables, crossings and the picture of the ladder, from its finished runs.

In: rows of `growth_ladder.Runs`. Out: JSON values with every seed's figure, means with Student's t intervals over seeds
(95%), and an SVG. Arms are compared within a seed, because a seed has its own text and tokenizer.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from statistics import mean, stdev
from typing import Any

from pipeline.corpus.text.intervals import t_quantile
from pipeline.pages.charts import Plot, chart_file
from pipeline.system.progress import format_count

DEFAULT_SHARE = "grown 0.35"
Row = Mapping[str, Any]
Curve = dict[int, dict[float, float]]
"""Seed -> tokens per parameter of the target -> held-out nats per token."""


def over_seeds(per_seed: Mapping[int, float]) -> dict[str, Any]:
    """`{per_seed, mean, interval}`; no interval for a single seed."""
    values = list(per_seed.values())
    centre, half = mean(values), half_width(values)
    interval = None if half is None else [round(centre - half, 4), round(centre + half, 4)]
    rounded = {str(seed): round(value, 4) for seed, value in sorted(per_seed.items())}
    return {"per_seed": rounded, "mean": round(centre, 4), "interval": interval}


def half_width(values: Sequence[float]) -> float | None:
    """Of the 95% interval of their mean."""
    return t_quantile(len(values) - 1) * stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def ladder_record(rows: Sequence[Row], scale: str) -> dict[str, Any]:
    """All that the rows of one scale show."""
    rows = [row for row in rows if row["scale"] == scale]
    everything = [row for row in rows if not row["tuning"]]
    runs = [row for row in everything if not (row.get("treatment") or row.get("free") or row.get("domain"))]
    kinds = sorted({(r["family"], r["optimizer"], r["source"]) for r in runs if r["arm"] == "grown"})
    return {
        "what": "held-out nats per token at equal FLOPs, source counted; intervals: Student's t over seeds, 95%",
        "scale": scale,
        "target_parameters": rows[0]["target_parameters"] if rows else None,
        "runs": len(runs),
        "cpu_seconds": round(sum(row["cpu_seconds"] for row in rows)),
        "rates": tuning_table(rows),
        "ladders": [_ladder(runs, *kind) for kind in kinds],
        "families": families(runs),
        "treatments": treatments(everything),
        "free": free_sources(everything),
    }


def tuning_table(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Every rate that was tried, on text that no other run reads."""
    found: dict[tuple, dict[str, float]] = {}
    for row in (row for row in rows if row["tuning"]):
        group = (*(row[key] for key in ("arm", "source", "family", "optimizer")), row.get("free", 0))
        found.setdefault(group, {})[f"{row['rate']:g}"] = round(row["loss"], 4)
    return [
        {"arm": arm, "source": source, "family": family, "optimizer": optimizer, "free": free, "loss_by_rate": losses}
        for (arm, source, family, optimizer, free), losses in found.items()
    ]


def _ladder(runs: Sequence[Row], family: str, optimizer: str, source: str) -> dict[str, Any]:
    """One kind of source: its three arms at every budget, what each gains, and where they cross."""
    kin = [row for row in runs if row["family"] == family and row["optimizer"] == optimizer]
    arms = {"scratch": curve(kin, "scratch"), "small": curve(kin, "small", source)}
    shares = sorted({row["share"] for row in kin if row["arm"] == "grown" and row["source"] == source})
    arms |= {f"grown {share:g}": curve(kin, "grown", source, share) for share in shares}
    arms["grown"] = by_other_seeds(arms, [name for name in arms if name.startswith("grown")])
    pairs = [("small", "scratch"), *((name, other) for name in arms if name.startswith("grown")
                                     for other in ("scratch", "small"))]  # fmt: skip
    small = [row for row in kin if row["arm"] == "small" and row["source"] == source]
    places = sorted({at for each in arms.values() for at in _places(each)})
    return {
        "family": family,
        "optimizer": optimizer,
        "source": source,
        "source_parameters": small[0]["parameters"] if small else None,
        "budgets": [_budget(arms, kin, at) for at in places],
        "crossings": [crossing(arms, *pair) for pair in pairs],
    }  # fmt: skip


def curve(rows: Sequence[Row], arm: str, source: str = "", share: float = 0.0) -> Curve:
    found: Curve = {}
    for row in rows:
        if (row["arm"], row["source"], row["share"]) == (arm, source, share):
            found.setdefault(row["seed"], {})[place(row)] = row["loss"]
    return found


def place(row: Row) -> float:
    """Tokens that scratch reads for this budget, per parameter of the target."""
    return round(row["budget_tokens"] / row["target_parameters"], 3)


def by_other_seeds(arms: Mapping[str, Curve], shares: Sequence[str]) -> Curve:
    """Growth at the best share: each seed takes the share that is best in the other seeds at that budget, so that no
    figure chooses its own share. Where no other seed has run it, the share of tuning."""
    found: Curve = {}
    for at in sorted({at for name in shares for at in _places(arms[name])}):
        led = {name: gains(arms, name, "scratch", at) for name in shares}
        for seed in {seed for name in shares for seed in arms[name] if at in arms[name][seed]}:
            others = {
                name: mean(known) for name in shares
                if (known := [gap for other, gap in led[name].items() if other != seed])
            }  # fmt: skip
            name = max(others, key=others.__getitem__) if len(others) == len(shares) else DEFAULT_SHARE
            if (loss := arms.get(name, {}).get(seed, {}).get(at)) is not None:
                found.setdefault(seed, {})[at] = loss
    return found


def _places(curve: Curve) -> list[float]:
    return sorted({at for losses in curve.values() for at in losses})


def gains(arms: Mapping[str, Curve], arm: str, other: str, at: float) -> dict[int, float]:
    """Nats by which `arm` is better than `other`, by seed; seeds that lack one of the two are left out."""
    one, two = arms[arm], arms[other]
    return {seed: two[seed][at] - one[seed][at] for seed in one if at in one[seed] and at in two.get(seed, {})}


def _budget(arms: Mapping[str, Curve], rows: Sequence[Row], at: float) -> dict[str, Any]:
    row = next(row for row in rows if place(row) == at)
    losses = {
        name: over_seeds(values)
        for name, curve in arms.items()
        if (values := {seed: losses[at] for seed, losses in curve.items() if at in losses})
    }
    compared = [(name, other) for other in ("scratch", "small") for name in arms if name not in ("scratch", other)]
    return {
        "steps": row["budget"],
        "tokens_per_parameter": at,
        "flops": row["flops"],
        "losses": losses,
        "gains": {
            f"{name} over {other}": over_seeds(found)
            for name, other in compared
            if (found := gains(arms, name, other, at))
        },
    }


def crossing(arms: Mapping[str, Curve], arm: str, other: str) -> dict[str, Any]:
    """Where `arm`'s lead over `other` changes its sign, in tokens per parameter, by straight lines over the logarithm.

    `interval`: over the seeds, where all of them cross; else None, with how many did and who leads at either end."""
    places = [at for at in _places(arms[arm]) if gains(arms, arm, other, at)]
    found, seeds = {}, set()
    for seed in sorted(arms[arm]):
        lead = [(at, gap) for at in places if (gap := gains(arms, arm, other, at).get(seed)) is not None]
        seeds |= {seed} if len(lead) > 1 else set()
        for (at, gap), (then, later) in pairwise(lead):
            if gap * later < 0:
                found[seed] = math.exp(math.log(at) + math.log(then / at) * gap / (gap - later))
                break
    whole = bool(found) and set(found) == seeds
    logs = [math.log(value) for value in found.values()]
    half = half_width(logs) if whole else None
    ends = {f"{at:g}": over_seeds(gains(arms, arm, other, at)) for at in ((places[0], places[-1]) if places else ())}
    return {
        "arm": arm,
        "against": other,
        "per_seed": {str(seed): round(value, 3) for seed, value in found.items()},
        "seeds": len(seeds),
        "seeds_that_cross": len(found),
        "tokens_per_parameter": round(math.exp(mean(logs)), 3) if whole else None,
        "interval": None if half is None else [round(math.exp(mean(logs) + s * half), 3) for s in (-1, 1)],
        "range": [places[0], places[-1]] if places else None,
        "lead_at_the_ends": ends,
    }


def families(runs: Sequence[Row]) -> list[dict[str, Any]]:
    """Every family's scratch runs against phi's, at equal FLOPs."""
    scratch = [row for row in runs if row["arm"] == "scratch" and row["optimizer"] == "adamw"]
    arms = {family: curve([r for r in scratch if r["family"] == family], "scratch") for family in _names(scratch)}
    return [
        {
            "family": family,
            "tokens_per_parameter": at,
            "loss": over_seeds({seed: losses[at] for seed, losses in arms[family].items() if at in losses}),
            "gain_over_phi": over_seeds(found),
        }
        for family in arms
        for at in _places(arms[family])
        if family != "phi" and (found := gains(arms, family, "phi", at))
    ]


def treatments(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What each treatment gains over the plain growth of the same source, share and budget."""
    plain = {_same(row): row["loss"] for row in rows if row["arm"] == "grown" and not row.get("treatment")}
    found: dict[tuple[str, str, float], dict[int, float]] = {}
    for row in rows:
        if row.get("treatment") and _same(row) in plain:
            key = (row["treatment"], row["source"], place(row))
            found.setdefault(key, {})[row["seed"]] = plain[_same(row)] - row["loss"]
    return [
        {"treatment": name, "source": source, "tokens_per_parameter": at, "gain_over_plain": over_seeds(gains)}
        for (name, source, at), gains in found.items()
    ]


def _same(row: Row) -> tuple:
    keys = ("source", "share", "budget", "seed", "family", "optimizer")
    return (*(row[key] for key in keys), row.get("free", 0), row.get("domain", ""))


def free_sources(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A source that costs nothing: losses of every arm on the text that it was given and on the source's."""
    found: dict[tuple, dict[str, dict[int, float]]] = {}
    free = [row for row in rows if row.get("free")]
    places = {(row["domain"], row["budget"]) for row in free}
    for row in rows:
        fresh = row["arm"] == "scratch" and row["family"] == "phi" and row["optimizer"] == "adamw"
        if row.get("free") or (fresh and (row.get("domain", ""), row["budget"]) in places):
            values = found.setdefault((row.get("domain", ""), place(row), row["arm"]), {"loss": {}, "source": {}})
            values["loss"][row["seed"]] = row["loss"]
            if "loss_on_source_text" in row:
                values["source"][row["seed"]] = row["loss_on_source_text"]
    return [
        {
            "text": domain or "the source's kind",
            "tokens_per_parameter": at,
            "arm": arm,
            "loss": over_seeds(values["loss"]),
            "loss_on_source_text": over_seeds(values["source"]) if values["source"] else None,
        }
        for (domain, at, arm), values in found.items()
    ]


def _names(rows: Sequence[Row]) -> list[str]:
    return sorted({row["family"] for row in rows})


def planning_table(record: Mapping[str, Any]) -> dict[str, Any]:
    """What `pipeline.planner.growth` reads: what each arm gains at every budget, and the crossings."""
    return {
        "what": record["what"],
        "ladders": [
            {
                **{key: ladder[key] for key in ("family", "source", "source_parameters")},
                "unit": "nats per token",
                "target_parameters": record["target_parameters"],
                "points": [_point(budget) for budget in ladder["budgets"] if set(budget["gains"]) >= POINT],
                "crossings": [
                    {key: found[key] for key in ("arm", "against", "tokens_per_parameter", "interval")}
                    for found in ladder["crossings"]
                ],
            }
            for ladder in record["ladders"]
            if ladder["optimizer"] == "adamw"
        ],
    }


POINT = {"small over scratch", "grown over scratch", "grown over small"}


def _point(budget: Row) -> dict[str, Any]:
    return {
        "tokens_per_parameter": budget["tokens_per_parameter"],
        "seeds": min(len(budget["gains"][name]["per_seed"]) for name in POINT),
        "gains": {name: {key: budget["gains"][name][key] for key in ("mean", "interval")} for name in sorted(POINT)},
    }


# ---- the picture

COLOURS = {"scratch": "--ink", "small": "--b", "grown": "--a"}
NAMES = {"scratch": "from scratch", "small": "smaller, never grown", "grown": "grown"}


def picture(ladder: Mapping[str, Any]) -> str:
    """Held-out loss against FLOPs: three curves of means. The bands are 95% intervals of what an arm is above or below
    the mean of the three in the same seed: what differs between seeds in all arms alike (text, tokenizer) is not in
    them."""
    curves: dict[str, list[tuple[float, float, float, float]]] = {name: [] for name in COLOURS}
    for budget in ladder["budgets"]:
        found = {name: budget["losses"].get(name, {"per_seed": {}})["per_seed"] for name in COLOURS}
        seeds = set.intersection(*(set(values) for values in found.values()))
        middle = {seed: mean(values[seed] for values in found.values()) for seed in seeds}
        for name, points in curves.items():
            if seeds:
                value = mean(found[name][seed] for seed in seeds)
                half = half_width([found[name][seed] - middle[seed] for seed in seeds]) or 0.0
                points.append((math.log(budget["flops"]), value, value - half, value + half))
    if not curves["scratch"]:
        return ""
    xs = [point[0] for points in curves.values() for point in points]
    ys = [y for points in curves.values() for point in points for y in point[1:]]
    (start, end), (low, high) = (min(xs), max(xs)), (min(ys), max(ys))
    plot = Plot(right=210)

    def at(x: float, y: float) -> tuple[float, float]:
        return (x - start) / ((end - start) or 1.0), (y - low) / ((high - low) or 1.0)

    x_ticks = []
    for budget in ladder["budgets"]:
        words = f"{budget['flops']:.1e} ({budget['tokens_per_parameter']:.1f})".replace("e+", "e")
        x_ticks.append((at(math.log(budget["flops"]), low)[0], words))
    y_ticks = [(share, f"{low + share * (high - low):.2f}") for share in (0, 0.25, 0.5, 0.75, 1)]
    plot.axes(x_ticks, y_ticks, "FLOPs (tokens per parameter of the target)", "held-out nats per token")
    for name, points in curves.items():
        band = [at(x, top) for x, _, _, top in points] + [at(x, bottom) for x, _, bottom, _ in reversed(points)]
        corners = " ".join("{:.1f},{:.1f}".format(*plot.at(*corner)) for corner in band)
        plot.add("polygon", points=corners, fill=f"var({COLOURS[name]})", opacity="0.15")
        plot.path([at(x, y) for x, y, _, _ in points], COLOURS[name])
    taken: list[float] = []
    for name, points in curves.items():
        x, y = plot.at(*at(*points[-1][:2]))
        while any(abs(y - other) < 15 for other in taken):
            y += 15
        taken.append(y)
        plot.text(x + 8, y + 4, f"{NAMES[name]} {points[-1][1]:.3f}", "name halo", fill=f"var({COLOURS[name]})")
    return chart_file(plot.svg("held-out loss against FLOPs for three ways to spend them"))


# ---- in words


def lines(record: Mapping[str, Any]) -> list[str]:
    """The record as Markdown tables."""
    out = []
    for ladder in record["ladders"]:
        title = f"{ladder['source']} source ({format_count(ladder['source_parameters'] or 0)} parameters)"
        names = list(dict.fromkeys(name for b in ladder["budgets"] for name in b["losses"]))
        out += [f"### {ladder['family']}, {ladder['optimizer']}, {title}", ""]
        out += ["| tokens per parameter | seeds | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
        for budget in ladder["budgets"]:
            cells = [_cell(budget["losses"].get(name)) for name in names]
            seeds = max(len(found["per_seed"]) for found in budget["losses"].values())
            out.append(f"| {budget['tokens_per_parameter']:.2f} | {seeds} | " + " | ".join(cells) + " |")
        out += [
            "",
            "| nats better | " + " | ".join(f"{b['tokens_per_parameter']:.2f}" for b in ladder["budgets"]) + " |",
        ]
        out.append("|---" * (len(ladder["budgets"]) + 1) + "|")
        for name in dict.fromkeys(name for b in ladder["budgets"] for name in b["gains"]):
            out.append(f"| {name} | " + " | ".join(_gain(b["gains"].get(name)) for b in ladder["budgets"]) + " |")
        out += ["", *(f"- {crossing_in_words(found)}" for found in ladder["crossings"]), ""]
    for key, heads, cells in TABLES:
        if record[key]:
            out += [f"### {key}", "", "| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
            out += ["| " + " | ".join(cells(found)) + " |" for found in record[key]] + [""]
    return out


TABLES: tuple[tuple[str, tuple[str, ...], Callable[[Row], list[str]]], ...] = (
    ("rates", ("arm", "source", "family", "optimizer", "held-out loss by rate"),
     lambda r: [r["arm"] + (", free" if r["free"] else ""), r["source"], r["family"], r["optimizer"],
                ", ".join(f"{rate}: {loss:.3f}" for rate, loss in r["loss_by_rate"].items())]),
    ("families", ("family", "tokens per parameter", "loss", "better than phi, nats"),
     lambda r: [r["family"], f"{r['tokens_per_parameter']:.2f}", _cell(r["loss"]), _gain(r["gain_over_phi"])]),
    ("treatments", ("treatment", "source", "tokens per parameter", "better than plain growth, nats"),
     lambda r: [r["treatment"], r["source"], f"{r['tokens_per_parameter']:.2f}", _gain(r["gain_over_plain"])]),
    ("free", ("text", "tokens per parameter", "arm", "loss on it", "loss on the source's text"),
     lambda r: [r["text"], f"{r['tokens_per_parameter']:.2f}", r["arm"], _cell(r["loss"]),
                _cell(r["loss_on_source_text"])]),
)  # fmt: skip
"""Key of the record, heads and cells of its table."""


def _cell(found: Row | None) -> str:
    return "" if found is None else f"{found['mean']:.3f}"


def _gain(found: Row | None) -> str:
    if found is None:
        return ""
    spread = "" if found["interval"] is None else f" ({found['interval'][0]:+.3f} to {found['interval'][1]:+.3f})"
    return f"{found['mean']:+.3f}{spread}"


def crossing_in_words(found: Row) -> str:
    """Where two arms cross, or who leads in the whole range."""
    pair = f"{found['arm']} against {found['against']}"
    if not found["range"]:
        return f"{pair}: not measured"
    if found["tokens_per_parameter"]:
        spread = "" if not found["interval"] else " ({:.1f} to {:.1f})".format(*found["interval"])
        return (
            f"{pair}: cross at {found['tokens_per_parameter']:.1f} tokens per parameter{spread}, {found['seeds']} seeds"
        )
    low, high = found["range"]
    leads = list(found["lead_at_the_ends"].values())
    words = ", ".join(f"{_gain(lead)} at {at:.1f}" for lead, at in zip(leads, (low, high), strict=False))
    crossed = f"{found['seeds_that_cross']} of {found['seeds']} seeds cross"
    return f"{pair}: {crossed} within {low:.1f} to {high:.1f} tokens per parameter; lead {words}"
