"""`report.html`: one self-contained page per experiment, written again after every stage, and its figures as JSON.

In: the manifests, the data stage's account, `metrics.jsonl` and the ledger of one experiment. Out: `report.json` (its
schema is `report_schema.json`) and `report.html`, which shows nothing that is not in it; under `runs/<name>/`, with a
copy in the folder of the newest stage. No network, no script; light and dark; reads on a phone and on paper.
"""

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.corpus.text.intervals import replay_in_words, shown
from pipeline.pages.charts import Line, bar, line_chart
from pipeline.pages.data_card import REPORT as DATA_REPORT
from pipeline.pages.html import STYLE, table
from pipeline.reporting.after import AFTER, after_facts, after_section
from pipeline.reporting.data import data_section
from pipeline.reporting.growth import growth_facts, growth_pictures, thin
from pipeline.reporting.pretrain import cards_section, forecast_section
from pipeline.storage import ledger
from pipeline.storage.experiment import Experiment
from pipeline.storage.files import read_metrics, write_json, write_text
from pipeline.storage.steps import MANIFEST, read_manifest, read_output
from pipeline.system.errors import UserError
from pipeline.system.progress import format_count, format_seconds

FORMAT = 1  # of report.json; raised when a key changes its meaning or goes away
SMOOTH_ROWS = 9
STAGES = ("data", "init", "pretrain")
IDENTITY_KEYS = ("fingerprint", "content_hash", "finished", "commit", "dirty")
INIT_KEYS = (
    "method", "parameters", "source_bits_per_byte", "grown_bits_per_byte", "max_abs_logit_diff", "max_rel_logit_diff",
    "source_gpu_hours", "blocks", "source_model",
)  # fmt: skip
PRETRAIN_KEYS = (
    "initial_val_bits_per_byte", "val_bits_per_byte", "val_bits_per_byte_interval", "initial_bits_per_byte",
    "bits_per_byte", "bits_per_byte_interval", "validation_documents", "validation_groups", "validated_share",
    "max_gpu_hours", "gpu_hours_total", "tokens_seen",
    "tokens_per_second", "annealed", "stopped_by", "exported_step", "steps", "epochs", "mix",
    "replay", "cards", "forecast", "samples", "lives",
)  # fmt: skip


def write(config: Config) -> Path:
    """Writes the page and its figures as they stand and returns the page's path."""
    experiment = Experiment(config)
    folders = _consistent_folders(experiment)
    if not folders:
        raise UserError(f"nothing is finished under {experiment.folder} yet; run: hornbook data <config>")
    report = collect(config, folders, experiment.ledger_path)
    page = render(report)
    for folder in (experiment.folder, *list(folders.values())[-1:]):
        write_json(folder / "report.json", report)
        write_text(folder / "report.html", page)
    return experiment.folder / "report.html"


def _consistent_folders(experiment: Experiment) -> dict[str, Path]:
    """The linked folders of finished stages, as far as each was made from the ones before it."""
    folders: dict[str, Path] = {}
    for stage in (*STAGES, *AFTER):
        folder = experiment.stage_folder(stage)
        if folder is None or not (folder / MANIFEST).is_file():
            continue
        manifest = read_manifest(folder)
        inputs = manifest["inputs"]
        if stage in AFTER and "pretrain" in folders and _older(manifest, read_manifest(folders["pretrain"])):
            continue
        if all(inputs.get(name, {}).get("fingerprint", made.name) == made.name for name, made in folders.items()):
            folders[stage] = folder
    return folders


def _older(manifest: Mapping[str, Any], pretrain: Mapping[str, Any]) -> bool:
    """Whether a stage after pretraining was done before it: then it was on another model."""
    return datetime.fromisoformat(manifest["finished"]) < datetime.fromisoformat(pretrain["finished"])


def collect(config: Config, folders: Mapping[str, Path], ledger_path: Path) -> dict[str, Any]:
    """Every figure of the page, from the folders of the finished stages: `report.json` (report_schema.json)."""
    manifests = {stage: read_manifest(folder) for stage, folder in folders.items()}
    data, init, pretrain = (manifests.get(stage) for stage in STAGES)
    metrics = read_metrics(folders["pretrain"] / "metrics.jsonl") if pretrain else []
    found = {
        "format": FORMAT,
        "name": config.name,
        "identity": [_identity_of(stage, manifest) for stage, manifest in manifests.items()],
        "data": read_output(folders["data"], DATA_REPORT) if data else None,
        "init": _chosen(init, INIT_KEYS),
        "growth": growth_facts(config, init) if init else None,
        "pretrain": _chosen(pretrain, PRETRAIN_KEYS),
        "metrics": thin(metrics),
        "hours": _hours_of(config, ledger_path, init, pretrain),
        **{stage: after_facts(stage, manifests.get(stage)) for stage in AFTER},
    }
    return {key: value for key, value in found.items() if value is not None}


def render(report: Mapping[str, Any]) -> str:
    """The whole page as HTML."""
    data, init, pretrain = (report.get(stage) for stage in STAGES)
    metrics = report["metrics"]
    sections = [
        _summary(data, init, pretrain),
        _curves(metrics, pretrain) + _held_out(pretrain) + _text_read(pretrain) if pretrain else "",
        _replay(pretrain) if pretrain else "",
        _growth(init, pretrain) + growth_pictures(report.get("growth"), init, metrics) if init else "",
        *(after_section(stage, report[stage]) for stage in AFTER if stage in report),
        data_section(data) if data else _no_account(report),
        _hours(report["hours"]),
        cards_section(pretrain) + forecast_section(pretrain) if pretrain else "",
        _samples(pretrain) if pretrain else "",
        _identity(report["identity"]),
    ]
    title = escape(report["name"])
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>hornbook: {title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>'
        f"<body><main><h1>{title}</h1>{''.join(sections)}</main></body></html>\n"
    )


def _chosen(manifest: Mapping[str, Any] | None, keys: Sequence[str]) -> dict[str, Any] | None:
    return None if manifest is None else {key: manifest[key] for key in keys if key in manifest}


def _no_account(report: Mapping[str, Any]) -> str:
    """Of a data folder that an earlier version has made, or whose reports were deleted."""
    if not any(row["stage"] == "data" for row in report["identity"]):
        return ""
    return (
        "<h2>Data</h2><p class=note>The data folder holds no sound data.report.json: it was deleted, or an earlier "
        "version made the folder. Delete data/manifest.json and run hornbook data again; it takes seconds.</p>"
    )


def _summary(data: dict | None, init: dict | None, pretrain: dict | None) -> str:
    tiles = []
    if pretrain:
        before, after = pretrain["initial_val_bits_per_byte"], pretrain["val_bits_per_byte"]
        start = "" if before is None else f", from {before:.3f} at the start"
        between = pretrain.get("val_bits_per_byte_interval")
        span = f" (95% interval over documents: {between[0]:.3f} to {between[1]:.3f})" if between else ""
        name = f"bits per byte on held-out text{span}{start}"
        tiles.append(("not measured" if after is None else f"{after:.3f}", name))
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
        documents, tokens = data["documents"], format_count(data["tokens"]["train"])
        tiles.append((tokens, f"training tokens from {documents['kept']:,} of {documents['read']:,} documents"))
    if data and not pretrain:
        auc, headline = data["quality"]["rated"]["auc"], data["licence"]["headline"]
        if auc is not None:
            tiles.append((f"{auc:.3f}", "AUC of the quality scorer on rated documents"))
        tiles.append((data["licence"]["kind"], f"text: {headline[:1].lower()}{headline[1:]}"))
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


def _held_out(pretrain: Mapping[str, Any]) -> str:
    """Each validation set's figure, with what it rests on."""
    before, documents, groups = (
        pretrain.get(key) or {} for key in ("initial_bits_per_byte", "validation_documents", "validation_groups")
    )
    rows = [
        (escape(name), f"{before[name]:.4f}" if name in before else "", f"{value:.4f}",
         shown((pretrain.get("bits_per_byte_interval") or {}).get(name)),
         *(f"{counts[name]:,}" if name in counts else "" for counts in (documents, groups)))
        for name, value in pretrain["bits_per_byte"].items()
    ]  # fmt: skip
    heads = ("held-out set", "#before", "#bits per byte", "#95% interval", "#documents", "#groups")
    note = "<p class=note>The interval is over documents: what other text like this would give the same model.</p>"
    return table(heads, rows) + note if rows else ""


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
        f"<tr><td>{escape(name)}<td class=n>{100 * shares.get(name, 0):.0f}%<td>{escape(replay_in_words(values))}"
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


def _hours_of(config: Config, ledger_path: Path, init: dict | None, pretrain: dict | None) -> dict[str, Any]:
    hours = ledger.spent_hours(ledger_path)
    rows = [{"stage": stage, "gpu_hours": hours[stage]} for stage in (*STAGES, *AFTER) if stage in hours]
    if rows and init and init.get("source_gpu_hours"):
        rows.insert(0, {"stage": "source, pretrain", "gpu_hours": init["source_gpu_hours"]})
    lives = pretrain["lives"] if pretrain else None
    return {"stages": rows, "price_per_hour": config.budget.gpu_hour_price, "pretrain_lives": lives}


def _hours(hours: Mapping[str, Any]) -> str:
    rows, price = hours["stages"], hours["price_per_hour"]
    total = sum(row["gpu_hours"] for row in rows)
    if not total:
        return ""
    body = [
        (escape(row["stage"]), f"{row['gpu_hours']:.4f}", format_seconds(3600 * row["gpu_hours"]),
         bar(row["gpu_hours"] / total))
        for row in rows
    ]  # fmt: skip
    cost = f", {total * price:,.2f} at {price:g} an hour" if price else ""
    lives = f" Pretraining took {hours['pretrain_lives']} process(es)." if hours["pretrain_lives"] else ""
    return (
        f"<h2>Hours</h2>{table(('stage', '#device-hours', '#time', ''), body)}"
        f"<p class=note>{total:.4f} device-hours in all{cost}.{lives} Every second of every process is counted, "
        "imports included.</p>"
    )


def _samples(pretrain: Mapping[str, Any]) -> str:
    blocks = "".join(f"<pre><b>{escape(s['prompt'])}</b>{escape(s['text'])}</pre>" for s in pretrain.get("samples", []))
    return f"<h2>Samples</h2>{blocks}" if blocks else ""


def _identity_of(stage: str, manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {"stage": stage, **{key: manifest[key] for key in IDENTITY_KEYS}}


def _identity(rows: Sequence[Mapping[str, Any]]) -> str:
    body = [
        (escape(m["stage"]), f"<code>{m['fingerprint']}</code>", f"<code>{m['content_hash'][:12]}</code>",
         escape(m["finished"]), f"<code>{escape((m['commit'] or 'no git')[:10])}{'+' if m['dirty'] else ''}</code>")
        for m in rows
    ]  # fmt: skip
    return f"<h2>Identity</h2>{table(('stage', 'fingerprint', 'content', 'finished', 'commit'), body)}"
