"""The one chat form that hornbook tunes on and talks in.

In: messages `{role, content}`. Out: text, and where in it an answer begins and ends. The same form stands as a Jinja
template in the model folder, for transformers and llama.cpp; here it is rendered by this module and never by a
template that came with a model folder, because a template is a program.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from model.special_tokens import DEFAULT, write_chat_templates
from pipeline.corpus.text.tokenizer import special_tokens
from pipeline.system.errors import UserError

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
    """Puts the template in place of whatever chat templates the model folder has."""
    write_chat_templates(folder, {DEFAULT: template})


def require_our_template(folder: Path) -> None:
    """Raises `UserError` unless the model was tuned on the form above."""
    templates = special_tokens(folder / "tokenizer.json").chat_templates
    if templates.get(DEFAULT, "").strip() == TEMPLATE:
        return
    found = "has a chat template that is not ours" if templates else "has no chat template: it is a base model"
    raise UserError(
        f"{folder} {found}; expected a model that `hornbook finetune` tuned on chat examples (templates of a model "
        "folder are programs, and hornbook runs none); leave --chat out to continue plain text"
    )
