"""`hornbook sample`: text from our own model, written while it is made.

In: a config whose pretraining is done (or `sample.model`), a prompt. Out: the text on standard output.
"""

import json
from pathlib import Path

from pipeline import config as configs
from pipeline.config import Config
from pipeline.errors import UserError


def run(config: Config, config_path: str, prompt: str | None = None) -> None:
    """Streams continuations of `prompt`, or of `sample.prompts`. Raises `UserError` where there is no model yet."""
    folder = model_folder(config, config_path)

    from tokenizers import Tokenizer

    from model.hf import load_network, token_id
    from pipeline.training.generation import Writer

    tokenizer_json = folder / "tokenizer.json"
    writer = Writer(
        load_network(folder),
        Tokenizer.from_file(str(tokenizer_json)),
        token_id(tokenizer_json, _end_of_text(folder)),
        temperature=config.sample.temperature,
        top_k=config.sample.top_k,
        seed=config.seed,
    )
    for text in [prompt] if prompt is not None else config.sample.prompts:
        print(text, end="", flush=True)
        for piece in writer.stream(text, config.sample.max_new_tokens):
            print(piece, end="", flush=True)
        print(flush=True)


def model_folder(config: Config, config_path: str) -> Path:
    """The folder of the model to sample from: `sample.model`, else what this config's pretraining made."""
    from pipeline.training.identity import pretrain_step

    wanted = config.sample.model
    if wanted is not None and not wanted.endswith((".yaml", ".yml")):
        folder, mend = Path(wanted), "expected a folder with config.json, model.safetensors and tokenizer.json"
    else:
        config_path = wanted or config_path
        folder = pretrain_step(configs.load(wanted) if wanted else config).path / "model"
        mend = f"run: hornbook pretrain {config_path}"
    if not (folder / "config.json").is_file() or not (folder / "tokenizer.json").is_file():
        raise UserError(f"there is no model at {folder} yet; {mend}")
    return folder


def _end_of_text(folder: Path) -> str:
    path = folder / "tokenizer_config.json"
    token = json.loads(path.read_text(encoding="utf-8")).get("eos_token") if path.is_file() else None
    if isinstance(token, dict):  # older exports write the token with its flags
        token = token.get("content")
    if not isinstance(token, str):
        raise UserError(f"{path} names no eos_token; expected the tokenizer's end-of-text token")
    return token
