"""One small model, really pretrained in seconds on exercises and library code, that the tests of later stages take."""

import random
from pathlib import Path

import numpy as np

CONFIG = """
name: small
seed: 3
model: {vocab_size: 640, hidden_size: 64, intermediate_size: 128, num_hidden_layers: 2, num_attention_heads: 4,
        max_position_embeddings: 256}
train: {sequence_length: 128, global_batch_tokens: 1024, warmup_steps: 5, log_every_steps: 10, device: cpu,
        learning_rate: 5.0e-3, validate_every_share: 0.9, precision: 32-true}
budget: {max_tokens: 50_000, gpu_hour_price: 2.0}
tracking: {to: none}
sample: {prompts: ["def "], max_new_tokens: 8}
evaluate: {items: 12}
quantize: {items: 4, tasks: [bits_per_byte]}
"""
MODULES = ("json.decoder", "textwrap", "heapq", "bisect", "shlex", "fnmatch")
CARDS = ("data_card.md", "ATTRIBUTION.md")  # what a real data stage writes is tested with it
END = "<|endoftext|>"


def write_config(folder: Path) -> Path:
    path = folder / "small.yaml"
    path.write_text(CONFIG, encoding="utf-8")
    return path


def input_steps(config):
    from making import small_inputs

    return small_inputs(config, make_data)


def model_of(config, stage="evaluate"):
    """The model that a stage of this config starts from."""
    from pipeline.evaluation.model_input import find_model

    return find_model(stage, config, "small.yaml")


def texts() -> dict[str, list[str]]:
    import importlib
    import inspect

    from pipeline.corpus.exercises.exercise import DIFFICULTIES
    from pipeline.corpus.exercises.source import TEMPLATES

    exercises = [
        TEMPLATES[name](random.Random(f"{name}{i}"), DIFFICULTIES[i % 3]).text
        for i in range(3)
        for name in sorted(TEMPLATES)
    ]
    code = [inspect.getsource(importlib.import_module(name)) for name in MODULES]
    code += [inspect.cleandoc(getattr(np, name).__doc__) for name in ("ndarray", "linspace", "dot", "argsort", "where")]
    return {"exercises": exercises, "code": code}


def make_data(folder) -> dict:
    from pipeline.corpus.text.shards import write_token_set
    from pipeline.corpus.text.tokenizer import load_tokenizer
    from pipeline.corpus.tokenizing import _train

    documents = texts()
    _train([t for ts in documents.values() for t in ts], 512, folder.path / "tokenizer.json")
    tokenizer = load_tokenizer(folder.path / "tokenizer.json")
    end, dtype = tokenizer.token_to_id(END), np.dtype("<u2")
    sources, totals = {}, {"train": 0, "val": 0}
    for name, all_texts in documents.items():
        held_out = max(3, len(all_texts) // 6)
        source = {"documents": len(all_texts), "licenses": {"PSF-2.0": len(all_texts)}, "license": "PSF-2.0"}
        for split, part in (("val", all_texts[-held_out:]), ("train", all_texts[:-held_out])):
            rows = [(np.array([*tokenizer.encode(t).ids, end]), len(t.encode()), 0.5) for t in part]
            tokens = write_token_set(folder.path / f"tokens/{split}-{name}", rows, dtype)[1]
            source[split] = {"tokens": tokens, "groups": len(part)}
            totals[split] += tokens
        sources[name] = source
    kept = sum(source["documents"] for source in sources.values())
    for name in CARDS:
        (folder.path / name).write_text(f"# {name} of {folder.path.name}\n", encoding="utf-8")
    return {
        "token_dtype": "<u2",
        "vocab_size": tokenizer.get_vocab_size(),
        "eos_token_id": end,
        "sources": sources,
        "tokens": totals,
        "documents": {"read": kept + 5, "kept": kept, "dropped": {"length": 3, "gopher_quality": 1}, "unreadable": 1},
    }
