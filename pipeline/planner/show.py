"""A plan as lines for a person: what each line rests on stands in it, or under `notes`."""

from collections.abc import Mapping
from typing import Any

from pipeline.planner.advice import TOKENS_PER_PARAMETER
from pipeline.system.progress import format_count, format_seconds


def show(plan: Mapping[str, Any]) -> str:
    lines = [
        f"{plan['name']} on {plan['card']}: {plan['parameters']:,} parameters, "
        f"{plan['flops_per_token'] / 1e9:.3g} GFLOP per token",
        *_memory(plan),
        *_hours(plan),
        *_overhead(plan["overhead"]),
        *_text(plan["text"]),
        _disk(plan["disk_gb"]),
        *_cards(plan["cards"]),
        *_growth(plan["growth"]),
        *_advice(plan["advice"], plan["verdict"]),
        *_measured(plan["measured"]),
    ]
    return "\n".join(lines)


def _memory(plan: Mapping[str, Any]) -> list[str]:
    memory = plan["memory"]
    kinds = ", ".join(f"{kind} {gib:g}" for kind, gib in memory["by_kind_gib"].items())
    lines = [
        f"  memory    {'fits' if memory['fits'] else 'DOES NOT FIT'}: {memory['needed_gib']:g} GiB of the card's "
        f"{memory['card_gib']:g} at micro-batch {memory['micro_batch']} "
        f"({memory['traced_gib']:g} traced: {kinds}; peak in the {memory['peak_in']})",
        "  fastest settings that fit a card of",
    ]
    return lines + [f"    {size:>4} GiB  {_rung(rung)}" for size, rung in plan["savers"].items()]


def _rung(rung: Mapping[str, Any] | None) -> str:
    if rung is None:
        return "no setting fits: a smaller model or a shorter train.sequence_length"
    words = [f"{k}={v}" for k, v in rung.items() if k not in ("needed_gib", "micro_batch")]
    return f"{' '.join(words)} micro_batch={rung['micro_batch']}: {rung['needed_gib']:g} GiB"


def _hours(plan: Mapping[str, Any]) -> list[str]:
    hours = plan["hours"]
    slow, fast = hours["tokens_per_second"]
    lines = [f"  speed     {slow:,} to {fast:,} tokens/s by the {hours['basis']}"]
    if "tokens" in hours:
        lines.append(
            f"  buys      {_span(hours['tokens'])} tokens in {_span(hours['gpu_hours'])} GPU-hours for "
            f"{_span(hours['cost_usd'])} USD; {_span(hours['tokens_per_parameter'])} tokens per parameter "
            f"(compute-optimal: about {TOKENS_PER_PARAMETER})"
        )
    if "cost_at_own_price" in hours:
        lines.append(f"            {_span(hours['cost_at_own_price'])} at the config's budget.gpu_hour_price")
    return lines


def _overhead(overhead: Mapping[str, Any]) -> list[str]:
    if not overhead:
        return []
    parts = ", ".join(
        f"{kind} {100 * share:.2g}% ({format_seconds(overhead['seconds'][kind])})"
        for kind, share in overhead["share_by_kind"].items()
    )
    said = f"{100 * overhead['share']:.1f}% of the hours to what is no training"
    if overhead["nothing_left"]:
        total = format_seconds(sum(overhead["seconds"].values()))
        said = f"ALL of the hours: what is no training takes {total}; raise budget.max_gpu_hours"
    return [
        f"  lost      {said}: {parts}",
        f"            {overhead['basis']}; data: {overhead['data']}",
    ]


def _text(text: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, source in text["sources"].items():
        epochs = text["epochs"].get(name)
        size = "unknown size" if source["tokens"] is None else f"{format_count(source['tokens'])} tokens"
        seen = "epochs unknown" if epochs is None else f"{_span(epochs)} epochs"
        lines.append(f"    {name:<16} {size} (by {source['from']}), {seen}")
    why = f" ({text['why']})" if text["why"] else ""
    return [f"  text{why}", *lines] if lines else []


def _disk(disk: Mapping[str, Any]) -> str:
    known = {kind: disk[kind] for kind in ("tokens", "text")}
    more = ", ".join(f"{'unknown' if gb is None else f'{gb:g} GB'} of {kind}" for kind, gb in known.items())
    return f"  disk      {disk['checkpoints']:g} GB of checkpoints at most, {disk['model']:g} GB of model, {more}"


def _cards(cards: list[Mapping[str, Any]]) -> list[str]:
    lines = ["  cards     prices of configs/gpus.yaml, the micro-batch that fits"]
    for row in cards:
        fits = f"micro-batch {row['micro_batch']}" if row["micro_batch"] else "does not fit as it is set"
        cost = f"{_span(row['cost_usd'])} USD" if "cost_usd" in row else f"{row['price_per_hour']:g} USD an hour"
        buys = f"{_span(row['tokens'])} tokens in {_span(row['gpu_hours'])} h, " if "tokens" in row else ""
        lines.append(f"    {row['card']:<10} {row['memory_gb']:>4} GB  {buys}{cost}, {fits}")
    return lines


def _growth(growth: Mapping[str, Any] | None) -> list[str]:
    if growth is None:
        return []
    share, gain = growth["source_share"], growth["gain_nats"]
    return [
        f"  growth    a smaller source first, on {100 * share[0]:.0f} to {100 * share[1]:.0f}% of the FLOPs "
        f"({growth['meaning']}): {gain[0]:.2f} to {gain[1]:.2f} nats better than fresh weights in "
        f"{growth['runs']} runs of {format_count(growth['measured_at_parameters'])} parameters; larger ones unmeasured"
    ]


def _advice(choices: list[Mapping[str, Any]], verdict: Mapping[str, Any]) -> list[str]:
    if not choices:
        return [f"  advice    {verdict['why']}"]
    close = f" (not told apart from: {'; '.join(verdict['not_told_apart'])})" if verdict["not_told_apart"] else ""
    best = f"            best of what these hours can train: {verdict['best_trained']}{close}"
    lines = [
        f"  advice    {verdict['why']}",
        *([best] if verdict["best_trained"] else []),
        f"            expected loss on general text{', best first' if verdict['best_trained'] else ''}:",
    ]
    notes = list(dict.fromkeys(choice["basis"] for choice in choices))
    for choice in choices:
        ends = dict.fromkeys(f"{end:.2f}" for end in choice["expected_loss"] or ())
        loss = (" to ".join(ends) or "unknown").ljust(12)
        tokens = f", {_span(choice['tokens'])} tokens" if choice["tokens"] else ""
        starved = "; starved: too few tokens for its size" if choice["starved"] else ""
        lines.append(
            f"    {loss}  {choice['choice']} ({format_count(choice['parameters'])}{tokens})"
            f"{starved} [{notes.index(choice['basis']) + 1}]"
        )
    return [*lines, *(f"    [{number}] {note}" for number, note in enumerate(notes, 1))]


def _measured(measured: Mapping[str, Any] | None) -> list[str]:
    if measured is None:
        return []
    mfu = f", MFU {100 * measured['mfu']:.0f}%" if measured["mfu"] else ""
    ratio = measured["forecast_over_measured"]
    lines = [
        f"  measured  {measured['device']}, {measured['precision']}: "
        f"{measured['tokens_per_second']:,.0f} tokens/s{mfu} "
        f"at micro-batch {measured['micro_batch']}; first step {format_seconds(measured['first_step_seconds'])}",
        f"            memory {measured['peak_memory_bytes'] / 2**30:.2f} GiB, forecast "
        f"{measured['forecast_bytes'] / 2**30:.2f}" + (f" ({ratio:g}x)" if ratio else ""),
        f"            {measured['basis']}",
    ]
    if hours := measured["hours"]:
        bought = _span(hours["tokens"]) if "tokens" in hours else "no end is set:"
        lines.append(f"            at this speed the hours buy {bought} tokens")
    return lines


def _span(values: list[float]) -> str:
    low, high = map(format_count, values)
    return low if low == high else f"{low} to {high}"
