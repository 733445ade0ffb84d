"""The config sections of the stages after pretraining, and what their values may be. Fine-tuning's section stands in
config.py: it has a `train` and a `budget` like pretraining's."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from pipeline.config.keys import RUNTIME
from pipeline.config.keys import key as _key


@dataclass
class SampleConfig:
    model: str | None = _key(None, "experiment config or model folder; null: this experiment's model", RUNTIME)
    prompts: list[str] = _key(["def fibonacci(n):"], "continued at the end of pretraining", RUNTIME)
    max_new_tokens: int = _key(96, "length of a sample", RUNTIME)
    temperature: float = _key(0.7, "0 = always the likeliest token", RUNTIME)
    top_k: int = _key(50, "choose among this many likeliest tokens; 0 = all", RUNTIME)


@dataclass
class ExportConfig:
    model: str | None = _key(None, "experiment config or model folder; null: this experiment's model", RUNTIME)
    dtype: str = _key("as_stored", "as_stored | float32 | float16 | bfloat16: of the exported weights")
    gguf: list[str] = _key([], "GGUF files besides, for llama.cpp: f16, q8_0, q4_0 (needs the extra `gguf`)")
    license: str | None = _key(None, "of the model, for its card")


@dataclass
class EvaluateConfig:
    model: str | None = _key(None, "experiment config or model folder; null: this experiment's model", RUNTIME)
    tasks: list[str] = _key(["bits_per_byte", "cloze", "arithmetic", "exercises"], "`hornbook list tasks`")
    items: int = _key(200, "most items of a task; standard errors say what that is good for")
    sets: dict[str, str] = _key({}, "public multiple-choice sets: name -> .jsonl or .parquet file on this machine")
    every_tokens: int | None = _key(None, "while pretraining, every so many tokens; null: never", RUNTIME)
    during: list[str] = _key(["cloze"], "tasks scored then, besides `sets` and `sample.prompts`", RUNTIME)
    during_items: int = _key(40, "most items of a task then", RUNTIME)
    lm_eval: list[str] = _key([], "tasks of lm-eval, run on the model's folder (needs the extra `eval`)")
    lm_eval_path: str | None = _key(None, "folder with further lm-eval tasks in YAML; its own are then left out")


@dataclass
class QuantizeConfig:
    model: str | None = _key(None, "experiment config or model folder; null: this experiment's model", RUNTIME)
    kinds: list[str] = _key(["bf16", "int8", "int8-dynamic", "int4", "gguf-q8_0", "gguf-q4_0"], "`hornbook list kinds`")
    group_size: int = _key(32, "weights that share a scale in int4")
    tasks: list[str] = _key(["bits_per_byte", "cloze"], "measured before and after; `hornbook list tasks`")
    items: int = _key(100, "most items of a task")


# key -> (least, most), as in config.RANGES
AFTER_RANGES: dict[str, tuple[float, float]] = {
    "evaluate.items": (2, 1e6),
    "evaluate.during_items": (2, 1e6),
    "quantize.items": (2, 1e6),
    "quantize.group_size": (32, 256),
    "finetune.rank": (1, 4096),
    "finetune.alpha": (1e-6, 1e6),
    "finetune.dropout": (0, 0.99),
    "finetune.examples": (1, 1e7),
    "finetune.items": (2, 1e6),
    "finetune.validation_share": (0.001, 0.5),
}


def choices_problems(config: Any, nearest: Callable[[str, Iterable[str]], str]) -> Iterable[str]:
    for key, found, allowed in (
        ("export.dtype", [config.export.dtype], ("as_stored", "float32", "float16", "bfloat16")),
        ("export.gguf", config.export.gguf, ("f16", "q8_0", "q4_0")),
        ("quantize.group_size", [config.quantize.group_size], (32, 64, 128, 256)),
        ("finetune.method", [config.finetune.method], ("lora", "qlora", "full")),
        ("finetune.targets", config.finetune.targets, ("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2")),
    ):
        for value in found:
            if value not in allowed:
                hint = nearest(str(value), map(str, allowed))
                yield f"{key} has '{value}'{hint}; expected of {', '.join(map(str, allowed))}"
