"""The quantize stage: a model in smaller formats, and what each costs in quality and gains in size and speed.

In: a model, this experiment's held-out text, `quantize.kinds`. Out: one folder (or GGUF file) per format and a report:
measured bytes on disk and in memory, tokens per second, cost of a million tokens, bits per byte and task scores, before
and after. A format that this machine cannot run is in the report with the reason.
"""

import platform
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline import config as configs
from pipeline import stages
from pipeline.config import Config
from pipeline.corpus.text.shards import TokenShards
from pipeline.evaluation.language_model import HeldOutText, LanguageModel, load_model
from pipeline.evaluation.model_input import ModelInput, copy_model, find_model, run_step
from pipeline.evaluation.tasks import check_tasks, run_tasks
from pipeline.pages.data_card import table
from pipeline.release import formats
from pipeline.release.formats import FORMATS
from pipeline.storage.files import write_json
from pipeline.storage.steps import Folder, Step
from pipeline.storage.store import Command
from pipeline.system.errors import UserError
from pipeline.system.progress import progress

VERSION = 5
OPTIONAL = ("torchao", "gguf", "llama-cpp-python")  # each makes more formats possible, or measures more
BASE = "as stored"
SPEED_PROMPT_TOKENS, SPEED_NEW_TOKENS, SPEED_TRIALS = 32, 48, 3


def run(config: Config, step: Step, command: Command) -> None:
    """Makes and measures every format. Raises `UserError` for an unknown format or a model that cannot be read."""
    run_step(config, step, _make, _last_lines, command, device=config.train.device)


def quantize_step(config: Config, command: str) -> Step:
    """The quantization as a cached step. The machine is part of it, because speeds are measured."""
    model = find_model("quantize", config, command)
    return Step(
        "quantize",
        VERSION,
        {
            "quantize": configs.identity(config.quantize),
            "seed": config.seed,
            "machine": [config.train.device, platform.node()],
        },
        {"model": model.content, "data": stages.data_step(config)},
        ("torch", *(name for name in OPTIONAL if find_spec(name.replace("-python", "").replace("-", "_")))),
    )


def check_options(config: Config) -> None:
    """Raises `UserError` for an unknown task or format."""
    check_tasks(config.quantize.tasks, "quantize.tasks")
    formats.check_formats(config.quantize.kinds)


def _make(config: Config, model: ModelInput, folder: Folder) -> dict[str, Any]:
    options = config.quantize
    text = HeldOutText(TokenShards.open(folder.input("data")))
    price, price_source = _price(config)
    base = load_model(config, model)
    stored_bytes = sum(path.stat().st_size for path in model.folder.glob("*.safetensors"))
    rows: list[dict[str, Any]] = [
        {
            "kind": BASE,
            "dtype": str(base.network.lm_head.weight.dtype),
            "disk_bytes": stored_bytes,
            **_measured(base.network),
            "scores": run_tasks(options.tasks, base, text, options.items, config.seed),
        }
    ]
    for name in options.kinds:
        with progress(name):
            rows.append({"kind": name, **_one_format(config, model, name, folder.path, text)})
        print(f"  {_row_line(rows[-1])}", flush=True)
    for row in rows:
        speed = row.get("tokens_per_second")
        row["cost_per_million_tokens"] = round(1e6 / speed / 3600 * price, 4) if speed and price else None
    for row in rows[1:]:
        row["no_better_than"] = formats.no_better_than(row, rows)
    report = {"rows": rows, "price_per_hour": price, "price_source": price_source, "device": str(base.device)}
    write_json(folder.path / "quantize.report.json", report)
    (folder.path / "report.md").write_text(markdown(report), encoding="utf-8")
    return {**report, "on_device": str(base.device), "context_tokens": model.context_tokens}


def _one_format(config: Config, model: ModelInput, name: str, target: Path, text: HeldOutText) -> dict[str, Any]:
    """Makes, saves and measures one format; `{unavailable: why}` where this machine cannot."""
    form, options = FORMATS[name], config.quantize
    subject = load_model(config, model)
    reason = form.why_not(subject.device)
    if reason is not None:
        return {"unavailable": reason}
    if form.gguf is None:
        row = _folder(config, model, name, target / name, subject)
    else:
        try:
            row = _gguf_file(config, model, form.gguf, target / name, subject)
        except UserError as error:  # what a GGUF file cannot express of this model
            return {"unavailable": str(error)}
    return {**row, "scores": run_tasks(options.tasks, subject, text, options.items, config.seed)}


def _folder(config: Config, model: ModelInput, name: str, target: Path, subject: LanguageModel) -> dict[str, Any]:
    """A Hugging Face folder; the network of `subject` is changed in place."""
    import torch

    form, group_size, network = FORMATS[name], config.quantize.group_size, subject.network
    form.apply(network, group_size)
    copy_model(model, target, str(network.lm_head.weight.dtype).removeprefix("torch."))  # the weights follow
    row = {"disk_bytes": formats.save(network, target, form, group_size)}
    row |= {"quantized_share": round(formats.quantized_share(network), 4), **_measured(network)}
    if form.dtype is not None and not _multiplies_fast(form.dtype, subject.device):
        network.to(torch.float32)  # scores in 16 bits would take sixteen times as long
        row["quality_from"] = f"weights rounded to {name}, products in fp32: no fast {name} here"
    return row


def _multiplies_fast(dtype: str, device: Any) -> bool:
    """Whether products in 16 bits are no slower than in fp32: on GPUs, and on CPUs that have instructions for bf16."""
    from pipeline.training.devices import BF16_FLAGS, cpu_flags

    return device.type != "cpu" or (dtype == "bfloat16" and bool(cpu_flags() & BF16_FLAGS))


def _gguf_file(config: Config, model: ModelInput, kind: str, target: Path, subject: Any) -> dict[str, Any]:
    """A GGUF file: quality from its dequantized weights in our network, speed from llama.cpp where it is installed."""
    from pipeline.release.gguf import dequantized, tensor_bytes, write_gguf

    path = target / f"{Path(config.name).name}-{kind}.gguf"
    facts = write_gguf(model.folder, path, kind, config.name)
    subject.network.load_state_dict(dict(dequantized(path, subject.network.config)))
    row = {
        "disk_bytes": facts["bytes"],
        "memory_bytes": tensor_bytes(path),
        "quantized_share": facts["quantized_share"],
        "quality_from": "dequantized weights in our network",
    }
    return {**row, **_llama_cpp_speed(path)}


def _llama_cpp_speed(path: Path) -> dict[str, Any]:
    try:
        import llama_cpp  # pyright: ignore[reportMissingImports]
    except ImportError:
        return {"tokens_per_second": None, "speed_why": "llama-cpp-python is not installed"}
    llama = llama_cpp.Llama(str(path), n_ctx=SPEED_PROMPT_TOKENS + SPEED_NEW_TOKENS + 1, verbose=False)
    seconds = []
    for _ in range(SPEED_TRIALS):
        llama.reset()
        llama.eval(list(range(1, SPEED_PROMPT_TOKENS + 1)))
        started = time.perf_counter()
        for _ in range(SPEED_NEW_TOKENS):
            llama.eval([llama.sample(temp=0.0)])
        seconds.append(time.perf_counter() - started)
    return {"tokens_per_second": round(SPEED_NEW_TOKENS / min(seconds), 1), "speed_from": "llama.cpp"}


def _measured(network: Any) -> dict[str, Any]:
    """Bytes of its tensors, and tokens per second of one greedy continuation (the best of three, after a warm-up)."""
    import torch

    device = network.lm_head.weight.device
    ids = torch.arange(1, SPEED_PROMPT_TOKENS + 1)
    seconds = []
    for _ in range(SPEED_TRIALS + 1):
        stream = network.generate(ids, SPEED_NEW_TOKENS, temperature=0)
        next(stream)  # the prompt
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        count = sum(1 for _ in stream)
        seconds.append((time.perf_counter() - started) / max(1, count))
    return {"memory_bytes": formats.memory_bytes(network), "tokens_per_second": round(1 / min(seconds[1:]), 1)}


def _price(config: Config) -> tuple[float | None, str]:
    """Of one device-hour: the config's, else the GPU's in configs/gpus.yaml."""
    if config.budget.gpu_hour_price:
        return config.budget.gpu_hour_price, "budget.gpu_hour_price"
    import torch

    from pipeline.training.devices import find_card

    card = find_card(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    return (card["price_per_hour"], "configs/gpus.yaml") if card else (None, "set budget.gpu_hour_price for a cost")


def markdown(report: dict[str, Any]) -> str:
    """The report as a table, and what could not be run."""
    names = list(report["rows"][0]["scores"])
    head = ["kind", "MB on disk", "MB in memory", "tokens/s", "USD per million tokens", *names]
    rows = [
        [row["kind"], *(_cell(row.get(key), 1e6) for key in ("disk_bytes", "memory_bytes")),
         *(_cell(row.get(key)) for key in ("tokens_per_second", "cost_per_million_tokens")),
         *(_score(row["scores"][name]) for name in names)]
        for row in report["rows"] if "unavailable" not in row
    ]  # fmt: skip
    notes = [f"{row['kind']}: {row['unavailable']}" for row in report["rows"] if "unavailable" in row]
    notes += formats.no_saving_lines(report["rows"])
    notes.append(f"price of a device-hour: {report['price_per_hour']} ({report['price_source']})")
    return "\n".join([table(head, rows), "", *(f"- {note}" for note in notes)]) + "\n"


def _cell(value: float | None, unit: float = 1) -> str:
    return "not measured" if value is None else f"{value / unit:,.3f}" if unit > 1 else f"{value:,.4g}"


def _score(found: dict[str, Any]) -> str:
    error = found.get("standard_error")
    return "" if found["score"] is None else f"{found['score']:.4f}" + (f" ± {error:.4f}" if error is not None else "")


def _row_line(row: dict[str, Any]) -> str:
    if "unavailable" in row:
        return f"{row['kind']:<13} not here: {row['unavailable']}"
    speed = row.get("tokens_per_second")
    shown = f"{speed:,.0f} tokens/s" if speed else row.get("speed_why", "")
    bits = ", ".join(f"{name.split('/', 1)[1]} {_score(found)}" for name, found in row["scores"].items()
                     if name.startswith("bits_per_byte"))  # fmt: skip
    return (
        f"{row['kind']:<13} {row['disk_bytes'] / 1e6:9.3f} MB on disk {row['memory_bytes'] / 1e6:9.3f} MB in memory  "
        f"{shown}; bits per byte {bits}"
    )


def _last_lines(manifest: dict[str, Any]) -> str:
    lines = [f"  {_row_line(row)}" for row in manifest["rows"]]
    lines += [f"  {line}" for line in formats.no_saving_lines(manifest["rows"])]
    return "\n".join([*lines, f"  report: artifacts/quantize/{manifest['fingerprint']}/report.md"])
