"""What of a member is measured: its name, unit, and which way is better."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config.keys import nearest
from pipeline.system.errors import UserError
from pipeline.system.progress import format_bytes


@dataclass(frozen=True)
class Measure:
    """`key`: of a member's row. `show`: a value, or a difference of two, for a person."""

    key: str
    label: str
    lower_is_better: bool
    show: Callable[[float], str]


def _bytes(value: float) -> str:
    return ("-" if value < 0 else "") + format_bytes(abs(value))


_PERCENT = "{:.1%}".format
QUALITY = "bits_per_byte"
TARGET = "target"
MEASURES: dict[str, Measure] = {
    m.key: m
    for m in (
        Measure(QUALITY, "bits per byte", True, "{:.4f}".format),
        Measure(TARGET, "accuracy on the tuned task", False, _PERCENT),
        Measure("peak_memory_bytes", "peak memory of training", True, _bytes),
        Measure("train_tokens_per_second", "tokens per second of training", False, "{:,.0f}".format),
        Measure("inference_bytes", "memory at inference", True, _bytes),
        Measure("inference_tokens_per_second", "tokens per second at inference", False, "{:,.0f}".format),
        Measure("cloze", "cloze accuracy", False, _PERCENT),
        Measure("arithmetic", "arithmetic accuracy", False, _PERCENT),
        Measure("exercises", "exercises passed", False, _PERCENT),
    )
}
TASKS = (QUALITY, "cloze", "arithmetic", "exercises")  # of the measures: what the quantize stage scores in every form


def check_measures(found: Any, where: str) -> tuple[str, ...]:
    """Raises `UserError` for a name that is no measure."""
    if not isinstance(found, list) or not found:
        raise UserError(f"{where}: measures is {found!r}; expected a list of {', '.join(MEASURES)}")
    for name in found:
        if not isinstance(name, str) or name not in MEASURES:
            hint = nearest(str(name), MEASURES)
            raise UserError(f"{where}: measures has '{name}'{hint}; expected of {', '.join(MEASURES)}")
    return tuple(dict.fromkeys(found))


def tasks_of(measures: Sequence[str]) -> list[str]:
    """What the quantize stage is to score: bits per byte always."""
    return [QUALITY, *(name for name in measures if name in TASKS and name != QUALITY)]
