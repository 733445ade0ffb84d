"""`report.html`: one self-contained page per experiment, written again after every stage.

In: the manifests, `metrics.jsonl`, the decisions and the ledger of one experiment. Out: `runs/<name>/report.html`
and a copy in the folder of the newest stage. No network, no script; light and dark; reads on a phone and on paper.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from pipeline import ledger
from pipeline.artifacts import MANIFEST, read_json_lines, read_manifest, write_text
from pipeline.charts import COLOURS, Line, bar, line_chart
from pipeline.config import Config
from pipeline.data_report import data_section
from pipeline.errors import UserError
from pipeline.experiment import Experiment
from pipeline.growth_report import growth_pictures
from pipeline.pretrain_report import cards_section, forecast_section
from pipeline.progress import format_count, format_seconds
from pipeline.training.replay import in_words

SMOOTH_ROWS = 9
STAGES = ("data", "init", "pretrain")


def write(config: Config) -> Path:
    """Writes the page of what is finished so far and returns its path."""
    experiment = Experiment(config)
    folders = _consistent_folders(experiment)
    if not folders:
        raise UserError(f"nothing is finished under {experiment.folder} yet; run: hornbook data <config>")
    page = render(config, folders, experiment.ledger_path)
    for folder in (experiment.folder, *list(folders.values())[-1:]):
        write_text(folder / "report.html", page)
    return experiment.folder / "report.html"


def _consistent_folders(experiment: Experiment) -> dict[str, Path]:
    """The linked folders of finished stages, as far as each was made from the ones before it."""
    folders: dict[str, Path] = {}
    for stage in STAGES:
        folder = experiment.stage_folder(stage)
        if folder is None or not (folder / MANIFEST).is_file():
            continue
        inputs = read_manifest(folder)["inputs"]
        if all(inputs.get(name, {}).get("fingerprint", made.name) == made.name for name, made in folders.items()):
            folders[stage] = folder
    return folders


def render(config: Config, folders: Mapping[str, Path], ledger_path: Path) -> str:
    """The whole page as HTML, from the folders of the finished stages."""
    manifests = {stage: read_manifest(folder) for stage, folder in folders.items()}
    data, init, pretrain = (manifests.get(stage) for stage in STAGES)
    metrics = read_json_lines(folders["pretrain"] / "metrics.jsonl") if pretrain else []
    sections = [
        _summary(data, init, pretrain),
        _curves(metrics, pretrain) + _text_read(pretrain) if pretrain else "",
        _replay(pretrain) if pretrain else "",
        _growth(init, pretrain) + growth_pictures(config, init, metrics) if init else "",
        data_section(data, folders["data"]) if data else "",
        _hours(config, ledger_path, init, pretrain),
        cards_section(pretrain) + forecast_section(pretrain) if pretrain else "",
        _samples(pretrain) if pretrain else "",
        _identity(manifests),
    ]
    title = escape(config.name)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>hornbook: {title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>'
        f"<body><main><h1>{title}</h1>{''.join(sections)}</main></body></html>\n"
    )


def _summary(data: dict | None, init: dict | None, pretrain: dict | None) -> str:
    tiles = []
    if pretrain:
        before, after = pretrain["initial_val_bits_per_byte"], pretrain["val_bits_per_byte"]
        start = "" if before is None else f", from {before:.3f} at the start"
        tiles.append(("not measured" if after is None else f"{after:.3f}", f"bits per byte on held-out text{start}"))
        cap = pretrain["max_gpu_hours"]
        of_cap = f" of {cap:g} ({100 * pretrain['gpu_hours_total'] / cap:.1f}%)" if cap else ""
        tiles.append((f"{pretrain['gpu_hours_total']:.4f}", f"device-hours used{of_cap}"))
        tiles.append(
            (format_count(pretrain["tokens_seen"]), f"tokens at {pretrain['tokens_per_second']:,.0f} per second")
        )
        if pretrain["annealed"]:
            tiles.append(("annealed", f"the learning rate fell to its end; stopped by {pretrain['stopped_by']}"))
        elif pretrain.get("exported_step") not in (None, pretrain.get("steps")):
            tiles.append((f"step {pretrain['exported_step']:,}", "was the best on held-out text and is the model"))
        else:
            tiles.append(("NOT annealed", f"the cap ended before the decay; stopped by {pretrain['stopped_by']}"))
    elif init:
        tiles.append((f"{init['grown_bits_per_byte']:.3f}", "bits per byte before pretraining"))
    if data:
        tiles.append(
            (format_count(data["tokens"]["train"]), f"training tokens from {data['documents']['kept']:,} documents")
        )
    if init and init.get("max_rel_logit_diff") is not None:
        tiles.append((f"{init['max_rel_logit_diff']:.0e}", "largest change of a logit by growth, relative"))
    cells = "".join(f'<div class="tile"><b>{escape(a)}</b><span>{escape(b)}</span></div>' for a, b in tiles)
    return f'<div class="tiles">{cells}</div>'


def _curves(metrics: Sequence[Mapping[str, Any]], pretrain: Mapping[str, Any]) -> str:
    def curve(key: str, x: str) -> list[tuple[float, float]]:
        found = [(row.get(x), row.get(key)) for row in metrics]
        # A skipped step may have a loss that is not finite.
        return [(at, value) for at, value in found if at is not None and value is not None and math.isfinite(value)]

    sets = list(pretrain["bits_per_byte"])
    colours = ["--a", "--b", "--c", "--d"]
    validation = [Line("all", curve("val/bits_per_byte", "budget/tokens"), "--ink", marks=True)]
    validation += [
        Line(name, curve(f"val/{name}/bits_per_byte", "budget/tokens"), colours[i % len(colours)], marks=True)
        for i, name in enumerate(sets)
    ]
    train = [Line("train", _smooth(curve("train/loss", "budget/tokens")), "--a")]
    rate = [Line("rate", curve("train/lr", "budget/gpu_hours"), "--b")]
    charts = [
        (
            f"Training loss, mean of {SMOOTH_ROWS} rows",
            line_chart(train, x_name="tokens", y_name="nats per token", format_x=format_count),
        ),
        ("Held-out text", line_chart(validation, x_name="tokens", y_name="bits per byte", format_x=format_count)),
        ("Learning rate", line_chart(rate, x_name="device-hours", y_name="learning rate", format_x=lambda x: f"{x:g}")),
    ]
    return "<h2>Pretraining</h2>" + "".join(f"<figure><figcaption>{n}</figcaption>{c}</figure>" for n, c in charts if c)


def _text_read(pretrain: Mapping[str, Any]) -> str:
    """What each source gave, and how often it was repeated."""
    phases = [(phase, pretrain["mix"][phase]) for phase in ("stable", "decay") if pretrain["mix"].get(phase)]
    header = "".join(f"<th class=n>share, {phase} phase" for phase, _ in phases)
    body = "".join(
        f"<tr><td>{escape(name)}<td class=n>{epochs:.2f}"
        + "".join(f"<td class=n>{100 * shares.get(name, 0.0):.1f}%" for _, shares in phases)
        for name, epochs in pretrain["epochs"].items()
    )
    return f"<table><tr><th>source<th class=n>epochs read{header}{body}</table>"


def _replay(pretrain: Mapping[str, Any]) -> str:
    """What was lost on the text that a replay source stands for."""
    facts = pretrain.get("replay")
    if not facts:
        return ""
    shares = pretrain["mix"].get("stable") or pretrain["mix"].get("decay") or {}
    rows = "".join(
        f"<tr><td>{escape(name)}<td class=n>{100 * shares.get(name, 0):.0f}%<td>{escape(in_words(values))}"
        for name, values in facts.items()
    )
    return (
        f"<h2>Kept and lost</h2><table><tr><th>replay source<th class=n>share<th>on its held-out text{rows}</table>"
        "<p class=note>General text, held out: before is right after initialization, which grew or took over what the "
        "source model knew.</p>"
    )


def _smooth(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """A running mean: the loss of one small step says little."""
    half = SMOOTH_ROWS // 2
    windows = [points[max(0, i - half) : i + half + 1] for i in range(len(points))]
    return [(x, sum(y for _, y in w) / len(w)) for (x, _), w in zip(points, windows, strict=True)]


def _growth(init: Mapping[str, Any], pretrain: Mapping[str, Any] | None) -> str:
    parameters = init["parameters"]
    rows = []
    if parameters["source"]:
        rows.append(("source", parameters["source"], init["source_bits_per_byte"], "trained earlier"))
    rows.append(("after init", parameters["grown"], init["grown_bits_per_byte"], _kept(init)))
    if pretrain and pretrain["val_bits_per_byte"] is not None:
        rows.append(("after pretraining", parameters["grown"], pretrain["val_bits_per_byte"], ""))
    worst = max(row[2] for row in rows)
    body = "".join(
        f"<tr><td>{escape(name)}<td class=n>{count:,}<td class=n>{bits:.4f}<td>{bar(bits / worst)}<td>{escape(note)}"
        for name, count, bits, note in rows
    )
    note = "The first two are measured on the same few held-out windows, the last one on all held-out text."
    return (
        f"<h2>Initialization: {escape(init['method'])}</h2><table><tr><th>model<th class=n>parameters"
        f"<th class=n>bits per byte<th><th>{body}</table><p class=note>{note}</p>"
    )


def _kept(init: Mapping[str, Any]) -> str:
    if init["max_abs_logit_diff"] is None:
        return "fresh weights"
    return f"largest logit difference {init['max_abs_logit_diff']:.1e}"


def _hours(config: Config, ledger_path: Path, init: dict | None, pretrain: dict | None) -> str:
    hours = ledger.spent_hours(ledger_path)
    if not hours:
        return ""
    rows = [(stage, hours[stage]) for stage in STAGES if stage in hours]
    if init and init.get("source_gpu_hours"):
        rows.insert(0, ("source, pretrain", init["source_gpu_hours"]))
    price, total = config.budget.gpu_hour_price, sum(h for _, h in rows)
    body = "".join(
        f"<tr><td>{escape(stage)}<td class=n>{h:.4f}<td class=n>{format_seconds(3600 * h)}<td>{bar(h / total)}"
        for stage, h in rows
    )
    cost = f", {total * price:,.2f} at {price:g} an hour" if price else ""
    lives = f" Pretraining took {pretrain['lives']} process(es)." if pretrain else ""
    return (
        f"<h2>Hours</h2><table><tr><th>stage<th class=n>device-hours<th class=n>time<th>{body}</table>"
        f"<p class=note>{total:.4f} device-hours in all{cost}.{lives} Every second of every process is counted, "
        "imports included.</p>"
    )


def _samples(pretrain: Mapping[str, Any]) -> str:
    blocks = "".join(f"<pre><b>{escape(s['prompt'])}</b>{escape(s['text'])}</pre>" for s in pretrain.get("samples", []))
    return f"<h2>Samples</h2>{blocks}" if blocks else ""


def _identity(manifests: Mapping[str, Mapping[str, Any]]) -> str:
    rows = "".join(
        f"<tr><td>{escape(stage)}<td><code>{m['fingerprint']}</code><td><code>{m['content_hash'][:12]}</code>"
        f"<td>{escape(m['finished'])}"
        f"<td><code>{escape((m['commit'] or 'no git')[:10])}{'+' if m['dirty'] else ''}</code>"
        for stage, m in manifests.items()
    )
    return f"<h2>Identity</h2><table><tr><th>stage<th>fingerprint<th>content<th>finished<th>commit{rows}</table>"


STYLE = (
    COLOURS
    + """
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:760px;margin:0 auto;padding:24px 20px 64px}
h1{font-size:30px;margin:8px 0 16px}h2{font-size:20px;margin:36px 0 8px;border-bottom:1px solid var(--rule)}
h3{font-size:16px;margin:20px 0 4px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(210px,1fr));gap:12px}
.tile{border:1px solid var(--rule);border-radius:8px;padding:12px 14px}
.tile b{display:block;font-size:24px}.tile span,.note{color:var(--dim);font-size:14px}
table{border-collapse:collapse;width:100%;font-size:14px}th{text-align:left;font-weight:600;color:var(--dim)}
td,th{padding:4px 8px 4px 0;border-bottom:1px solid var(--rule);vertical-align:baseline}.n{text-align:right}
td.n{font-variant-numeric:tabular-nums}
.bar{display:inline-block;width:150px;height:9px;background:var(--rule);border-radius:4px;overflow:hidden}
.bar span{display:block;height:100%}
figure{margin:12px 0}figcaption{font-weight:600}svg{width:100%;height:auto}
details{border-bottom:1px solid var(--rule);padding:4px 0}summary{cursor:pointer;font-size:14px}
pre{white-space:pre-wrap;overflow-wrap:anywhere;border:1px solid var(--rule);border-radius:8px;padding:12px;
font-size:13px}pre b{color:var(--a)}code{font-size:13px}
@media(max-width:520px){.bar{width:70px}td,th{padding-right:5px;font-size:13px}}
@media print{.tile,pre{break-inside:avoid}}
"""
)
