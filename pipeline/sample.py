"""`hornbook sample`: text from a trained model, printed while it is generated.

In: a config whose pretraining is finished (or `sample.model`), a prompt; `--chat`: a message to a tuned model. Out: the
text on standard output.
"""

import sys
from typing import TYPE_CHECKING

from pipeline.config import Config
from pipeline.corpus.text.tokenizer import load_tokenizer
from pipeline.evaluation.model_input import ModelInput, check_model, find_model

if TYPE_CHECKING:
    from pipeline.training.finish import Writer


def run(config: Config, command: str, prompt: str | None = None, chat: bool = False) -> None:
    """Streams continuations of `prompt`, or of `sample.prompts`. Raises `UserError` where there is no model yet."""
    model = find_model("sample", config, command)
    check_model(model, "sample")
    if chat:
        _talk(config, model, prompt)
        return
    writer = _writer(config, model)
    for text in [prompt] if prompt is not None else config.sample.prompts:
        print(text, end="", flush=True)
        _answer(writer, text, config.sample.max_new_tokens)


def _talk(config: Config, model: ModelInput, prompt: str | None) -> None:
    """One answer to `prompt`; without one a conversation, line by line, until the input ends."""
    from pipeline.tuning.data import render, require_our_template

    require_our_template(model.folder)
    writer, end = _writer(config, model), model.special_tokens().eos_token or ""
    if prompt is not None:
        text = render([{"role": "user", "content": prompt}], end, answer=True)
        _answer(writer, text, config.sample.max_new_tokens, chat=True)
        return
    messages: list[dict[str, str]] = []
    while (line := _line()) is not None:
        messages.append({"role": "user", "content": line})
        said = _answer(writer, render(messages, end, answer=True), config.sample.max_new_tokens, chat=True)
        messages.append({"role": "assistant", "content": said})


def _line() -> str | None:
    """One line of the user; None at the end of the input."""
    if sys.stdin.isatty():
        print("> ", end="", flush=True)
    line = sys.stdin.readline()
    return line.rstrip("\n") if line else None


def _answer(writer: "Writer", text: str, max_new_tokens: int, chat: bool = False) -> str:
    """Streams what follows `text` and returns it. `chat`: the text has its special tokens already."""
    said = ""
    for piece in writer.stream(text, max_new_tokens, add_special_tokens=not chat):
        said += piece
        print(piece, end="", flush=True)
    print(flush=True)
    return said


def _writer(config: Config, model: ModelInput) -> "Writer":
    from model.hf import load_network
    from pipeline.training.finish import Writer

    special = model.special_tokens()
    return Writer(
        load_network(model.folder),
        load_tokenizer(model.tokenizer_json),
        special.eos_token_id,
        stop_ids=special.stop_ids,
        temperature=config.sample.temperature,
        top_k=config.sample.top_k,
        seed=config.seed,
    )
