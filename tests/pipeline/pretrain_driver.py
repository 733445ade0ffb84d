"""The `hornbook` command over small real inputs: token shards of a few standard-library modules and a tiny network.

`python pretrain_driver.py CONFIG [key=value ...]` is `hornbook pretrain` with its inputs replaced by steps that make
such folders in a second: the data by the same writers, the network by the init stage's own code. Tests import
`config_file` and `install` from here, and run it as a process where signals and exit codes matter.
"""

import os
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))  # `making`, where this file runs as a process

CONFIG = """
name: small
seed: 3
model: {vocab_size: 512, hidden_size: 64, intermediate_size: 128, num_hidden_layers: 2, num_attention_heads: 4,
        max_position_embeddings: 128}
train: {sequence_length: 64, global_batch_tokens: 512, warmup_steps: 5, log_every_steps: 1, device: cpu,
        learning_rate: 2.0e-3, validate_every_share: 0.25, checkpoint_every_seconds: 3}
tracking: {to: none}
sample: {prompts: ["def "], max_new_tokens: 8}
"""
MODULES = {"code": ("json.decoder", "textwrap", "heapq", "bisect"), "more": ("shlex", "fnmatch")}


def config_file(folder: Path) -> Path:
    path = folder / "small.yaml"
    path.write_text(CONFIG, encoding="utf-8")
    return path


def install() -> None:
    """From here on `pretrain_step` reads the small inputs."""
    from pipeline import stages

    stages.input_steps = input_steps


def input_steps(config):
    from making import small_inputs

    return small_inputs(config, make_data)


def make_inputs(config) -> None:
    from making import build

    from pipeline.remote.store import connect

    store = connect()
    with store.copied(lambda: 5.0):
        build(input_steps(config)["init"], experiment=config.name, store=store)


def make_data(folder) -> dict:
    import importlib
    import inspect

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    from pipeline.corpus.text.shards import write_token_set

    texts = {name: [inspect.getsource(importlib.import_module(m)) for m in names] for name, names in MODULES.items()}
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=512, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator([t for ts in texts.values() for t in ts], trainer)
    tokenizer.save(str(folder.path / "tokenizer.json"))
    dtype = np.dtype("<u2")
    for name, documents in texts.items():
        rows = [(np.array([*tokenizer.encode(t).ids, 0]), len(t.encode()), 0.5) for t in documents]
        write_token_set(folder.path / f"tokens/train-{name}", rows, dtype)
        short = documents[-1][:2000]
        row = (np.array([*tokenizer.encode(short).ids, 0]), len(short.encode()), 0.9)
        write_token_set(folder.path / f"tokens/val-{name}", [row], dtype)
    return {"token_dtype": "<u2", "vocab_size": 512, "eos_token_id": 0}


def main(config_path: str, *overrides: str) -> int:
    """`hornbook pretrain` with its exit codes and messages."""
    from pipeline.__main__ import parse, run_guarded

    install()
    time.sleep(float(os.environ.get("START_SECONDS", "0")))  # as on a machine where a start takes long
    if look := os.environ.get("REMOTE_LOOK_SECONDS"):
        from pipeline.remote import upload

        upload.LOOK_SECONDS = float(look)
    if os.environ.get("WITHOUT_TORCH"):
        sys.modules["torch"] = None  # type: ignore[assignment]  # importing it is now an error
    return run_guarded(parse(["pretrain", config_path, *overrides]))


if __name__ == "__main__":
    code = main(*sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
