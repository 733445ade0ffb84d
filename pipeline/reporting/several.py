"""Several runs on one page: their curves in the same charts, a row of figures each, and what differs in their configs.

In: the reports of the runs as `page.collect` makes them, of unfinished ones too. Out: HTML.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline import config as configs
from pipeline.config import Config
from pipeline.pages import html
from pipeline.reporting.curves import HELD_OUT, curves


def render(
    runs: Sequence[tuple[Config, Mapping[str, Any]]], heading: str, links: Mapping[str, str], **more: Any
) -> str:
    """The page. `runs`: config and report of each; `links`: run -> address of its own report; `more`: `live` for a page
    that is refreshed, `others`: rows (name, state) of runs that are not drawn."""
    values = [configs.flat(configs.to_values(config)) for config, _ in runs]
    keys = [key for key in dict.fromkeys(key for flat in values for key in flat) if key != "name"]
    differing = [key for key in keys if len({repr(flat.get(key)) for flat in values}) > 1]
    names = [report["name"] for _, report in runs]
    return html.render(
        "several.html",
        heading=heading,
        links=links,
        rows=[_figures(report) for _, report in runs],
        curves=curves({report["name"]: report["metrics"] for _, report in runs if report["metrics"]}),
        heads=["", *(f"#{name}" for name in names)],
        differing=[
            (key, ["null" if flat.get(key) is None else str(flat.get(key)) for flat in values]) for key in differing
        ],
        **{"live": False, "others": [], **more},
    )


def _plain(value: Any) -> str:
    return "null" if value is None else str(value)


def _figures(report: Mapping[str, Any]) -> dict[str, Any]:
    """A run's row: of its manifest where it is finished, of its newest rows of metrics where it is not."""
    pretrain, metrics = report.get("pretrain") or {}, report["metrics"]

    def newest(key: str) -> Any:
        return next((row[key] for row in reversed(metrics) if row.get(key) is not None), None)

    interval = pretrain.get("val_bits_per_byte_interval")
    state = "under way" if not pretrain else "annealed" if pretrain["annealed"] else "not annealed"
    return {
        "name": report["name"],
        "state": state if pretrain or metrics else "not trained yet",
        "bits_per_byte": pretrain.get("val_bits_per_byte", newest(HELD_OUT)),
        "interval": f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else "",
        "tokens": pretrain.get("tokens_seen", newest("budget/tokens")),
        "tokens_per_second": pretrain.get("tokens_per_second", newest("perf/tokens_per_second")),
        "gpu_hours": sum(row["gpu_hours"] for row in report["hours"]["stages"]),
    }
