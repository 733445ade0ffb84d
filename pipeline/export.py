"""The export stage: a model that others can use, with a card that says how it was made.

In: a finished pretraining, a fine-tuned model or any model folder. Out: `model/` (a Hugging Face folder that
`AutoModelForCausalLM` loads without our code, with its model card), `dataset/` (the data stage's card and attribution)
and, where `export.gguf` asks for them, GGUF files for llama.cpp.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.special_tokens import DEFAULT
from pipeline import config as configs
from pipeline.config import Config
from pipeline.evaluation.model_input import ModelInput, copy_model, find_model, run_step
from pipeline.pages.data_card import ATTRIBUTION, CARD, REPORT
from pipeline.release.model_card import MODELFILE, Lineage, chosen_gguf, model_card, modelfile
from pipeline.storage.experiment import Experiment
from pipeline.storage.files import root
from pipeline.storage.hub import is_hub_name
from pipeline.storage.ledger import spent_hours
from pipeline.storage.steps import MANIFEST, Folder, Step, read_manifest, read_output
from pipeline.storage.store import Command
from pipeline.system.errors import UserError

VERSION = 5


def run(config: Config, step: Step, command: Command) -> None:
    """Writes the folder and prints what is in it. Raises `UserError` where there is no model that can be read."""
    run_step(config, step, _make, _last_lines, command, check=_check_gguf)


def export_step(config: Config, command: str) -> Step:
    """The export as a cached step; imports no torch."""
    model = find_model("export", config, command)
    return Step(
        "export",
        VERSION,
        {"export": configs.identity(config.export), "name": config.name},
        {"model": model.content},
        ("safetensors", *(["gguf"] if config.export.gguf else [])),
        reports=(*Step.reports, "README.md", ATTRIBUTION),
    )


def check_options(config: Config) -> None:
    """Raises `UserError` where a package is missing that `export.gguf` needs."""
    if config.export.gguf:
        from pipeline.release.gguf import require_gguf

        require_gguf()


def _check_gguf(config: Config, model: ModelInput) -> None:
    if config.export.gguf:
        from model.hf import load_config
        from pipeline.release.gguf import check_shape, check_special, check_tokenizer

        shape = load_config(model.folder)
        check_shape(shape, "export.gguf")
        check_tokenizer(model.tokenizer_json, shape.vocab_size, "export.gguf")
        check_special(model.tokenizer_json, "export.gguf")


def _make(config: Config, model: ModelInput, folder: Folder) -> dict[str, Any]:
    from pipeline.release.gguf import write_gguf

    copy_model(model, folder.path / "model", config.export.dtype)
    files = []
    for kind in config.export.gguf:
        path = folder.path / "gguf" / f"{Path(config.name).name}-{kind}.gguf"
        facts = write_gguf(model.folder, path, kind, config.name)
        files.append({"path": path.relative_to(folder.path).as_posix(), "kind": kind, **facts})
    lineage = lineage_of(config, model)
    if files:
        path = folder.path / "gguf" / MODELFILE
        path.write_text(_modelfile(model, lineage, chosen_gguf(files)), encoding="utf-8")
    (folder.path / "model" / "README.md").write_text(model_card(lineage, files), encoding="utf-8")
    _copy_data_card(lineage, folder.path)
    stages = {"data": lineage.data, "init": lineage.init, "pretrain": lineage.pretrain, "finetune": lineage.finetune}
    return {
        "model": "model",
        "context_tokens": model.context_tokens,
        "parameters": lineage.parameters,
        "gguf": files,
        "lineage": {name: manifest["fingerprint"] for name, manifest in stages.items() if manifest},
    }


def _modelfile(model: ModelInput, lineage: Lineage, gguf: str) -> str:
    from pipeline.tuning.data import has_our_template

    template = "none" if not lineage.chat else "ours" if has_our_template(model.folder) else "other"
    return modelfile(gguf, lineage.context_tokens, model.special_tokens().eos_token, template)


def _copy_data_card(lineage: Lineage, target: Path) -> None:
    """The data stage's own card, and the attribution of the text beside both that card and the model."""
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


def lineage_of(config: Config, model: ModelInput) -> Lineage:
    """Everything on disk that says how the model was made."""
    from model.hf import load_config

    shape, manifest = load_config(model.folder), model.manifest or {}
    own, pretrain, finetune = model.config, None, None
    if manifest.get("stage") == "pretrain":
        pretrain = manifest
    elif manifest.get("stage") == "finetune":
        finetune, pretrain = manifest, _manifest_at(manifest.get("base_folder"))
        own = config if pretrain else None
    inputs = (pretrain or {}).get("inputs", {})
    init, data = (_manifest_at(inputs.get(stage, {}).get("path")) for stage in ("init", "data"))
    folder = _data_folder(data)
    return Lineage(
        name=config.name,
        parameters=shape.parameters,
        context_tokens=model.context_tokens,
        data=data,
        account=read_output(folder, REPORT) if folder else None,
        init=init,
        pretrain=pretrain,
        finetune=finetune,
        hours=spent_hours(Experiment(own).ledger_path) if own else {},
        price=config.budget.gpu_hour_price,
        license=config.export.license,
        base_model=_base_model(config, init),
        family=shape.family,
        chat=_has_chat_template(model),
    )


def _has_chat_template(model: ModelInput) -> bool:
    try:
        return DEFAULT in model.special_tokens().chat_templates
    except UserError:  # its folder names no end of text
        return False


def _base_model(config: Config, init: dict[str, Any] | None) -> str | None:
    """The name of the hub model that these weights started from; None where there is none."""
    for name in ((init or {}).get("source"), config.export.model, config.finetune.model):
        if name and is_hub_name(name):
            return name.partition("@")[0]
    return None


def _manifest_at(path: str | None) -> dict[str, Any] | None:
    """Of a folder given relative to the root; None where it does not exist."""
    folder = root() / path if path else None
    return read_manifest(folder) if folder and (folder / MANIFEST).is_file() else None


def _last_lines(manifest: dict[str, Any]) -> str:
    folder = root() / "artifacts" / "export" / manifest["fingerprint"]
    lines = [f"  {manifest['parameters']:,} parameters", f"  model: {folder / 'model'} (with its card, README.md)"]
    if (folder / "dataset").is_dir():
        lines.append(f"  dataset card: {folder / 'dataset' / 'README.md'}")
    for file in manifest["gguf"]:
        share = f", {100 * file['quantized_share']:.0f}% of the parameters in it" if file["kind"] != "f16" else ""
        lines.append(f"  gguf: {folder / file['path']} ({file['kind']}{share}, {file['bytes'] / 1e6:.2f} MB)")
    if manifest["gguf"]:
        lines.append(f"  for Ollama: {folder / 'gguf' / MODELFILE}")
    return "\n".join(lines)
