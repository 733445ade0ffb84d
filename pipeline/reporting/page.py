"""`report.html`: one self-contained page per experiment, written again after every stage, and its figures as JSON.

In: the manifests, the data stage's account, `metrics.jsonl` and the ledger of one experiment. Out: `report.json` (its
schema is `report_schema.json`) and `report.html`, which shows nothing that is not in it; under `runs/<name>/`, with a
copy in the folder of the newest stage. The page's text is in pipeline/pages/templates/report.html.
"""

import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline.config import PRETRAINING, STAGES, Config
from pipeline.corpus.text.intervals import beside, over_documents, replay_in_words, shown
from pipeline.pages import html
from pipeline.pages.data_card import REPORT as DATA_REPORT
from pipeline.pages.private import shared_report
from pipeline.release.formats import no_memory_saved, no_saving_lines
from pipeline.reporting import several
from pipeline.reporting.curves import curves
from pipeline.reporting.data import data_view
from pipeline.reporting.growth import growth_facts, growth_view, thin
from pipeline.storage import ledger
from pipeline.storage.experiment import Experiment
from pipeline.storage.files import read_metrics, root, write_json, write_text
from pipeline.storage.steps import MANIFEST, read_manifest, read_output
from pipeline.system.errors import UserError

MOST_CHARACTERS = 80  # of the other runs' names in a file's name
SHARED = "shared"  # the folder under runs/<name>/ of the page to pass on
FORMAT = 1  # of report.json; raised when a key changes its meaning or goes away
SECTIONS = tuple(stage for stage in STAGES if stage != "export")  # in the page's order; an export has its own card
AFTER = SECTIONS[len(PRETRAINING) :]
# What report.json takes from each manifest, as far as the manifest has it.
KEYS = {
    "identity": ("fingerprint", "content_hash", "finished", "commit", "dirty"),
    "init": (
        "method", "parameters", "source_bits_per_byte", "grown_bits_per_byte", "max_abs_logit_diff",
        "max_rel_logit_diff", "source_gpu_hours", "blocks", "source_model",
    ),
    "pretrain": (
        "initial_val_bits_per_byte", "val_bits_per_byte", "val_bits_per_byte_interval", "initial_bits_per_byte",
        "bits_per_byte", "bits_per_byte_interval", "validation_documents", "validation_groups", "validated_share",
        "max_gpu_hours", "gpu_hours_total", "tokens_seen", "tokens_per_second", "annealed", "stopped_by",
        "exported_step", "steps", "epochs", "mix", "replay", "cards", "forecast", "samples", "lives",
    ),
    "evaluate": ("scores",),
    "quantize": ("rows", "price_per_hour", "price_source", "on_device"),
    "finetune": (
        "method", "parameters", "trainable_parameters", "trainable_share", "initial_bits_per_byte", "bits_per_byte",
        "bits_per_byte_interval", "validation_documents", "target", "memory_bytes", "tokens_per_second", "gpu_hours",
        "max_gpu_hours", "steps", "annealed",
    ),
}  # fmt: skip


def write(config: Config, *, unfinished: bool = False) -> Path:
    """Writes the page and its figures as they stand and returns the page's path. `unfinished`: the curves of a
    pretraining that is not finished, too (a training that begins writes its page without: it costs time of the cap).
    Raises `UserError`."""
    experiment = Experiment(config)
    folders, report = _report_of(config, experiment, unfinished)
    for folder in (experiment.folder, *list(folders.values())[-1:]):
        _write_into(folder, report)
    return experiment.folder / "report.html"


def write_shared(config: Config) -> Path:
    """The same under `shared/`, without private text and names (pipeline/pages/private.py). Raises `UserError`."""
    experiment = Experiment(config)
    _, report = _report_of(config, experiment)
    return _write_into(experiment.folder / SHARED, shared_report(report))


def write_several(configs: Sequence[Config]) -> Path:
    """Writes several runs on one page, into the folder of the first, and returns its path. Raises `UserError`."""
    runs = [(config, _report_of(config, Experiment(config), unfinished=True)[1]) for config in configs]
    names = [config.name for config in configs]
    first = Experiment(configs[0]).folder
    links = {name: Path(os.path.relpath(root() / "runs" / name / "report.html", first)).as_posix() for name in names}
    path = first / f"report-with-{'-'.join(names[1:]).replace('/', '-')[:MOST_CHARACTERS]}.html"
    write_text(path, several.render(runs, heading=" and ".join(names), links=links))
    return path


def so_far(config: Config) -> dict[str, Any]:
    """What is there of an experiment under way, as `report.json` has it, the rows of an unfinished pretraining too;
    there may be nothing yet. Raises `UserError`."""
    experiment = Experiment(config)
    folders = _consistent_folders(experiment)
    return collect(config, folders, experiment.ledger_path, experiment.stage_folder("pretrain"))


def _report_of(
    config: Config, experiment: Experiment, unfinished: bool = False
) -> tuple[dict[str, Path], dict[str, Any]]:
    folders = _consistent_folders(experiment)
    if not folders:
        raise UserError(f"nothing is finished under {experiment.folder} yet; run: hornbook data <config>")
    training = experiment.stage_folder("pretrain") if unfinished else None
    return folders, collect(config, folders, experiment.ledger_path, training)


def _write_into(folder: Path, report: Mapping[str, Any]) -> Path:
    write_json(folder / "report.json", report)
    write_text(folder / "report.html", render(report))
    return folder / "report.html"


def _consistent_folders(experiment: Experiment) -> dict[str, Path]:
    """The linked folders of finished stages, as far as each was made from the ones before it."""
    folders: dict[str, Path] = {}
    for stage in SECTIONS:
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
    """Whether a stage after pretraining ran before this pretraining ended: then it was on another model."""
    return datetime.fromisoformat(manifest["finished"]) < datetime.fromisoformat(pretrain["finished"])


def collect(
    config: Config, folders: Mapping[str, Path], ledger_path: Path, training: Path | None = None
) -> dict[str, Any]:
    """Every figure of the page, from the folders of the finished stages: `report.json` (report_schema.json).
    `training`: of a pretraining whose rows are shown where it is not among them."""
    manifests = {stage: read_manifest(folder) for stage, folder in folders.items()}
    init, pretrain = manifests.get("init"), manifests.get("pretrain")
    trained = folders.get("pretrain", training)
    metrics = read_metrics(trained / "metrics.jsonl") if trained else []
    found = {
        "format": FORMAT,
        "name": config.name,
        "identity": [{"stage": stage, **_chosen("identity", made)} for stage, made in manifests.items()],
        "data": read_output(folders["data"], DATA_REPORT) if "data" in folders else None,
        "init": _chosen("init", init) if init else None,
        "growth": growth_facts(config, init) if init else None,
        "pretrain": _chosen("pretrain", pretrain) if pretrain else None,
        "metrics": thin(metrics),
        "hours": _hours(config, ledger_path, init, pretrain),
        **{stage: _chosen(stage, manifests[stage]) for stage in AFTER if stage in manifests},
    }
    return {key: value for key, value in found.items() if value is not None}


def _chosen(part: str, manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {key: manifest[key] for key in KEYS[part] if key in manifest}


def _hours(
    config: Config, ledger_path: Path, init: Mapping[str, Any] | None, pretrain: Mapping[str, Any] | None
) -> dict[str, Any]:
    hours = ledger.spent_hours(ledger_path)
    rows = [{"stage": stage, "gpu_hours": hours[stage]} for stage in SECTIONS if stage in hours]
    if rows and init and init.get("source_gpu_hours"):
        rows.insert(0, {"stage": "source, pretrain", "gpu_hours": init["source_gpu_hours"]})
    lives = pretrain["lives"] if pretrain else None
    return {"stages": rows, "price_per_hour": config.budget.gpu_hour_price, "pretrain_lives": lives}


def render(report: Mapping[str, Any], live: Sequence[str] = ()) -> str:
    """The whole page as HTML. `live`: of a run under way, whose page is served and fetched again: what it does now."""
    data, init, pretrain = (report.get(stage) for stage in PRETRAINING)
    metrics, quantize = report["metrics"], report.get("quantize")
    mix = pretrain["mix"] if pretrain else {}
    return html.render(
        "report.html",
        heading=report["name"],
        live=live,
        shared=report.get("shared", False),
        identity=report["identity"],
        hours=report["hours"],
        total_hours=sum(row["gpu_hours"] for row in report["hours"]["stages"]),
        init=init,
        models=_models(init, pretrain) if init else [],
        growth=growth_view(report.get("growth"), init, metrics) if init else None,
        pretrain=pretrain,
        curves=curves({report["name"]: metrics}, list(pretrain["bits_per_byte"] if pretrain else ())),
        phases={f"#share, {name} phase": mix[name] for name in ("stable", "decay") if mix.get(name)},
        evaluate=report.get("evaluate"),
        quantize=_quantize_view(quantize) if quantize else None,
        finetune=report.get("finetune"),
        between=shown,
        beside=beside,
        over_documents=over_documents,
        in_words=replay_in_words,
        no_memory_saved=no_memory_saved,
        **(data_view(data) if data else {"data": None}),
    )


def _models(init: Mapping[str, Any], pretrain: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The model before and after initialization, and after pretraining, by their bits per byte."""
    parameters, change = init["parameters"], init["max_abs_logit_diff"]
    kept = "fresh weights" if change is None else f"largest logit difference {change:.1e}"
    rows = [
        ("source", parameters["source"], init.get("source_bits_per_byte"), "trained earlier"),
        ("after init", parameters["grown"], init["grown_bits_per_byte"], kept),
        ("after pretraining", parameters["grown"], pretrain["val_bits_per_byte"] if pretrain else None, ""),
    ]
    keys = ("name", "parameters", "bits_per_byte", "note")
    return [dict(zip(keys, row, strict=True)) for row in rows if row[1] is not None and row[2] is not None]


def _quantize_view(facts: Mapping[str, Any]) -> dict[str, Any]:
    ran = [row for row in facts["rows"] if "unavailable" not in row]
    notes = [
        [f"{row['kind']}: {row['speed_why']}" for row in ran if row.get("speed_why")],
        [f"{row['kind']}: {row['unavailable']}" for row in facts["rows"] if "unavailable" in row],
        no_saving_lines(ran),
    ]
    return {
        "on_device": facts["on_device"],
        "ran": ran,
        "score_heads": ["kind", *(f"#{name}" for name in ran[0]["scores"])],
        "notes": ["; ".join(each) for each in notes if each],
    }
