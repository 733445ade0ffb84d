"""The one chat form that hornbook tunes on and talks in.

In: messages `{role, content}`. Out: text, and where in it an answer begins and ends. The same form stands as a Jinja
template in `tokenizer_config.json`, for transformers and llama.cpp; here it is rendered by this module and never by a
template that came with a model folder, because a template is a program.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.errors import UserError

ROLES = ("system", "user", "assistant")
TEMPLATE = (
    "{% for message in messages %}{{ '### ' + message['role'] + '\\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### assistant\\n' }}{% endif %}"
)


def render(messages: Sequence[Mapping[str, str]], end_of_text: str, answer: bool = False) -> str:
    """The conversation as text; `answer`: up to where the assistant begins to speak."""
    text = "".join(piece for piece, _ in pieces(messages, end_of_text))
    return text + "### assistant\n" if answer else text


def pieces(messages: Sequence[Mapping[str, str]], end_of_text: str) -> list[tuple[str, bool]]:
    """(text, whether the model is to learn to say it): an answer with its end of text, and what stands around it."""
    found = []
    for message in messages:
        found.append((f"### {message['role']}\n", False))
        if message["role"] == "assistant":
            found += [(message["content"] + end_of_text, True), ("\n", False)]
        else:
            found.append((message["content"] + "\n", False))
    return found


def add_template(folder: Path, template: str = TEMPLATE) -> None:
    """Writes the template into the folder's tokenizer_config.json."""
    path = folder / "tokenizer_config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, "chat_template": template}, indent=2) + "\n", encoding="utf-8")


def require_our_template(folder: Path) -> None:
    """Raises `UserError` unless the model was tuned on the form above."""
    path = folder / "tokenizer_config.json"
    template = json.loads(path.read_text(encoding="utf-8")).get("chat_template") if path.is_file() else None
    if template == TEMPLATE:
        return
    found = "has no chat template: it is a base model" if template is None else "has a chat template that is not ours"
    raise UserError(
        f"{folder} {found}; expected a model that `hornbook finetune` tuned on chat examples (templates of a model "
        "folder are programs, and hornbook runs none); leave --chat out to continue plain text"
    )
