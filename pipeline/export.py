"""The export stage: a model as others can use it, with a card that says how it was made.

In: a finished pretraining, a fine-tuned model or any Phi folder. Out: `model/` (a Hugging Face folder that
`AutoModelForCausalLM` loads without our code, with its model card), `dataset/` (the data stage's card and attribution)
and, where `export.gguf` asks for them, GGUF files for llama.cpp.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import config as configs
from pipeline.config import Config
from pipeline.evaluation.model_input import TakenModel, check_readable, refuse_quantized, taken_model
from pipeline.evaluation.stage import run_step
from pipeline.pages.data_card import ATTRIBUTION, CARD, REPORT
from pipeline.release.model_card import Lineage, model_card
from pipeline.storage.experiment import Experiment
from pipeline.storage.files import root
from pipeline.storage.ledger import spent_hours
from pipeline.storage.steps import MANIFEST, Folder, Step, read_manifest, read_output
from pipeline.storage.store import Command

VERSION = 4


def run(config: Config, step: Step, command: Command) -> None:
    """Writes the folder and says what is in it. Raises `UserError` where there is no model that can be read."""
    model = taken_model(config, config.export.model, command.words, "export.model")
    check_readable(model, "export.model")
    refuse_quantized(model, "export.model", "export")
    _check_gguf(config, model)
    run_step(config, "export", step, lambda folder: _make(config, model, folder), _last_lines, command)


def export_step(config: Config, command: str) -> Step:
    """The export as a cached step; imports no torch."""
    model = taken_model(config, config.export.model, command, "export.model")
    return Step(
        "export",
        VERSION,
        {"export": configs.identity(config.export), "name": config.name},
        {"model": model.content},
        ("safetensors", *(["gguf"] if config.export.gguf else [])),
        reports=(*Step.reports, "README.md", ATTRIBUTION),
    )


def check_options(config: Config) -> None:
    """Raises `UserError` where a package is missing that the forms ask for."""
    if config.export.gguf:
        from pipeline.release.gguf import require_gguf

        require_gguf()


def _check_gguf(config: Config, model: TakenModel) -> None:
    if config.export.gguf:
        from model.hf import load_config
        from pipeline.release.gguf_limits import check_shape, check_special, check_tokenizer

        shape = load_config(model.folder)
        check_shape(shape, "export.gguf")
        check_tokenizer(model.tokenizer_json, shape.vocab_size, "export.gguf")
        check_special(model.tokenizer_json, "export.gguf")


def _make(config: Config, model: TakenModel, folder: Folder) -> dict[str, Any]:
    from pipeline.release.gguf import write_gguf

    copy_model(model, folder.path / "model", config.export.dtype)
    files = []
    for kind in config.export.gguf:
        path = folder.path / "gguf" / f"{Path(config.name).name}-{kind}.gguf"
        files.append(
            {
                "path": path.relative_to(folder.path).as_posix(),
                "kind": kind,
                **write_gguf(model.folder, path, kind, config.name),
            }
        )
    lineage = lineage_of(config, model)
    (folder.path / "model" / "README.md").write_text(model_card(lineage, files), encoding="utf-8")
    _copy_data_card(lineage, folder.path)
    return {
        "model": "model",
        "context_tokens": model.context_tokens,
        "parameters": lineage.parameters,
        "gguf": files,
        "lineage": _fingerprints(lineage),
    }


def _copy_data_card(lineage: Lineage, target: Path) -> None:
    """The data stage's own card, and who wrote the text beside both it and the model."""
    source = _data_folder(lineage.data)
    for name, copies in {CARD: ["dataset/README.md"], ATTRIBUTION: ["dataset", "model"]}.items():
        if source is None or not (source / name).is_file():
            continue
        for copy in copies:
            path = target / copy if copy.endswith(".md") else target / copy / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes((source / name).read_bytes())


def _data_folder(data: Mapping[str, Any] | None) -> Path | None:
    return root() / "artifacts" / "data" / data["fingerprint"] if data else None


def copy_model(model: TakenModel, target: Path, dtype: str) -> None:
    """Config, tokenizer and weights anew, so that what is exported is what this program can vouch for: no file of the
    source folder is taken over that was not read."""
    from model.hf import open_model, save_folder

    shape, state = open_model(model.folder)
    stored = str(state["model.embed_tokens.weight"].dtype).removeprefix("torch.")
    stored = stored if dtype == "as_stored" else dtype
    save_folder(target, state, shape, model.tokenizer_json, model.special_tokens(), stored)


def lineage_of(config: Config, model: TakenModel) -> Lineage:
    """Everything on disk that says how the model was made."""
    from model.hf import load_config

    shape = load_config(model.folder)
    own, pretrain, finetune = model.config, None, None
    stage = (model.manifest or {}).get("stage")
    if stage == "pretrain":
        pretrain = model.manifest
    elif stage == "finetune":
        finetune, pretrain = model.manifest, _manifest_at((model.manifest or {}).get("base_folder"))
        own = config if pretrain else None
    inputs = (pretrain or {}).get("inputs", {})
    experiment = Experiment(own) if own else None
    price = config.budget.gpu_hour_price
    init, data = (_manifest_at(inputs.get(stage, {}).get("path")) for stage in ("init", "data"))
    return Lineage(
        name=config.name,
        parameters=shape.parameters,
        context_tokens=model.context_tokens,
        data=data,
        account=_account(data),
        init=init,
        pretrain=pretrain,
        finetune=finetune,
        hours=spent_hours(experiment.ledger_path) if experiment else {},
        price=price,
        license=config.export.license,
        base_model=_base_model(config, init),
    )


def _account(data: dict[str, Any] | None) -> dict[str, Any] | None:
    folder = _data_folder(data)
    return read_output(folder, REPORT) if folder else None


def _base_model(config: Config, init: dict[str, Any] | None) -> str | None:
    """A hub name, where these weights began as one."""
    from pipeline.storage.hub import is_hub_name

    for name in ((init or {}).get("source"), config.export.model, config.finetune.model):
        if name and is_hub_name(name):
            return name.partition("@")[0]
    return None


def _manifest_at(path: str | None) -> dict[str, Any] | None:
    """Of a folder given relative to the root; None where it is not there (any more)."""
    folder = root() / path if path else None
    return read_manifest(folder) if folder and (folder / MANIFEST).is_file() else None


def _fingerprints(lineage: Lineage) -> dict[str, str]:
    stages = {"data": lineage.data, "init": lineage.init, "pretrain": lineage.pretrain, "finetune": lineage.finetune}
    return {name: manifest["fingerprint"] for name, manifest in stages.items() if manifest}


def _last_lines(manifest: dict[str, Any]) -> str:
    folder = root() / "artifacts" / "export" / manifest["fingerprint"]
    lines = [f"  {manifest['parameters']:,} parameters", f"  model: {folder / 'model'} (with its card, README.md)"]
    if (folder / "dataset").is_dir():
        lines.append(f"  dataset card: {folder / 'dataset' / 'README.md'}")
    for file in manifest["gguf"]:
        share = f", {100 * file['quantized_share']:.0f}% of the parameters in it" if file["kind"] != "f16" else ""
        lines.append(f"  gguf: {folder / file['path']} ({file['kind']}{share}, {file['bytes'] / 1e6:.2f} MB)")
    return "\n".join(lines)
