"""Two tables of a pretraining for its report: forecast against fact, and the cards it ran on.

In: the manifest. Out: HTML, empty where there is nothing to say.
"""

from collections.abc import Mapping
from html import escape
from typing import Any

from pipeline.system.progress import format_seconds


def forecast_section(pretrain: Mapping[str, Any]) -> str:
    """What was said beforehand of memory, steps, time and the decay's end, beside what happened."""
    forecast = pretrain.get("forecast") or {}
    rows = [*_memory(forecast.get("memory") or {}), *_time(forecast.get("time") or {}), *_end(forecast)]
    if not rows:
        return ""
    body = "".join(
        f"<tr><td>{escape(name)}<td class=n>{escape(said)}<td class=n>{escape(fact)}<td class=n>{off}"
        for name, said, fact, off in rows
    )
    head = "<tr><th>what<th class=n>forecast<th class=n>fact<th class=n>forecast / fact"
    return f"<h2>Forecast against fact</h2><table>{head}{body}</table>"


def cards_section(pretrain: Mapping[str, Any]) -> str:
    """Hours, speed, micro-batch and price of each device."""
    cards = pretrain.get("cards") or []
    if not cards:
        return ""
    body = "".join(
        f"<tr><td>{escape(card['device'])}<td class=n>{card['lives']}<td class=n>{card['gpu_hours']:.4f}"
        f"<td class=n>{_number(card.get('tokens_per_second'))}<td class=n>{card.get('micro_batch', '')}"
        f"<td class=n>{_number(card.get('price_per_hour'), 2)}<td class=n>{_number(card.get('cost'), 2)}"
        for card in cards
    )
    head = (
        "<tr><th>device<th class=n>processes<th class=n>device-hours<th class=n>tokens/s<th class=n>micro-batch"
        "<th class=n>price/hour<th class=n>cost"
    )
    return f"<h3>Devices of the pretraining</h3><table>{head}{body}</table>"


def _memory(memory: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    if not memory.get("measured_bytes"):
        return []
    said, fact = (f"{memory[key] / 1e9:.2f} GB" for key in ("predicted_bytes", "measured_bytes"))
    return [("memory of a step", said, fact, f"{memory['ratio']:.3f}")]


def _time(time: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    if not time:
        return []
    at, steps, seconds = time["at_step"], "predicted_steps", "predicted_seconds"
    return [
        (f"steps, said at step {at:,}", f"{time[steps]:,}", f"{time['steps']:,}", f"{time[steps] / time['steps']:.3f}"),
        (
            f"device-time, said at step {at:,}",
            format_seconds(time[seconds]),
            format_seconds(time["seconds"]),
            f"{time[seconds] / time['seconds']:.3f}",
        ),
    ]


def _end(forecast: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    actual = forecast.get("actual") or {}
    if actual.get("end_seconds") is None:
        return []
    said, fact = forecast["predicted"]["reserve_seconds"], actual["end_seconds"]
    return [("the end after the last step, kept back for it", f"{said:.1f} s", f"{fact:.1f} s", "")]


def _number(value: float | None, digits: int = 0) -> str:
    return "" if value is None else f"{value:,.{digits}f}"
