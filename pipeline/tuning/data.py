"""What a model is tuned on: text, prompts with completions, conversations in hornbook's chat form, or a ready task.

In: `finetune.sources`, a tokenizer. Out: training and held-out sets for the batches that pretraining uses. Every line
is read before a model is loaded. A line that is not an example is set aside, and the first one is named with its place.
The format of each record is told from its fields (`FORMATS`): files of several formats, and mixed ones, can be read.

A model is tuned on one chat form (`render`), and `hornbook sample --chat` uses the same. It is also written into the
model folder as a Jinja template, for transformers and llama.cpp. hornbook never runs a template that comes with a model
folder, because a template is a program.

The ready tasks (`TARGETS`) classify a short text, offline, on examples made by programs from a seed. They are scored as
the built-in tasks are, by the likeliest label. No pretraining text here teaches `sentiment` and `topic`. All code
teaches `bracket`, so that a base model starts high and can gain little.
"""

import glob
import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from model.special_tokens import DEFAULT, write_chat_templates
from pipeline.config import FinetuneConfig, nearest, yaml_values
from pipeline.corpus.sources.records import shown
from pipeline.corpus.text.shards import INDEX_DTYPE, TokenSet
from pipeline.corpus.text.tokenizer import ids_around, special_tokens
from pipeline.corpus.text.user_files import (
    Found,
    Unreadable,
    decode_utf8,
    plain_ending,
    read_bytes,
    read_files,
)  # fmt: skip
from pipeline.system.errors import UserError
from pipeline.training.packing import Examples

if TYPE_CHECKING:
    from pipeline.evaluation.tasks import Question

TYPES = ("auto", "text", "completion", "chat")
FORMATS = (
    "{messages: [{role, content}]}, {conversations: [{from, value}]} (ShareGPT), "
    "{instruction, input, output} (Alpaca), {prompt, completion}, {text}"
)
RECORD_ENDINGS = (".jsonl", ".ndjson", ".json")
ROUND_TO = 8  # windows are as long as the longest example, rounded up to this
Pieces = list[tuple[str, bool]]  # text, and whether it is learnt
ROLES = ("system", "user", "assistant")
OTHER_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant"}
TEMPLATE = (
    "{% for message in messages %}{{ '### ' + message['role'] + '\\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### assistant\\n' }}{% endif %}"
)
WORDS = yaml_values.load(Path(__file__).with_name("targets.yaml").read_text(encoding="utf-8"))  # of the ready tasks
DEFAULT_TARGET = "sentiment"  # where the config names neither a task nor sources
LIKELY_BELOW = 0.5  # tuning pays most where the base model is below 50% on the task
TEST_SHARE = 0.3  # of the texts that a task can make
Texts = tuple[tuple[str, ...], list[tuple[str, str]]]  # labels, and (prompt, label) pairs


@dataclass(frozen=True)
class TuningData:
    """`length`: tokens of a window; `chat`: whether any example is a conversation; `examples`: by source, how many are
    learnt and how many held out."""

    train: dict[str, Any]
    val: dict[str, Any]
    length: int
    cut: int  # examples that were longer than a window
    chat: bool
    examples: dict[str, tuple[int, int]]


def read_sources(sources: Mapping[str, Any], max_unreadable: float = 1.0) -> dict[str, list[Pieces]]:
    """Examples by source; "\\0" or "" stands for the tokenizer's end of text. A line that is not an example is set
    aside and counted. Raises `UserError` for an unknown type, a missing file, too few examples, and where all of a
    source, or more than the share `max_unreadable` of it, is set aside."""
    found = {}
    for name, options in sources.items():
        key, paths = f"finetune.sources.{name}", source_files(name, options)
        found[name] = _read(paths, options.get("type", "auto"), key).check(max_unreadable).made
        if len(found[name]) < 2:
            raise UserError(f"{key}: {len(found[name])} examples; expected at least 2 (one is held out)")
    return found


def source_files(name: str, options: Any) -> list[Path]:
    """The files of one of `finetune.sources`. Raises `UserError` for options of another form, and for no file."""
    key = f"finetune.sources.{name}"
    if not isinstance(options, Mapping) or "path" not in options or set(options) - {"type", "path"}:
        raise UserError(f"{key} is {options!r}; expected {{type: {' | '.join(TYPES)}, path: file or glob}}")
    kind, pattern = options.get("type", "auto"), options["path"]
    if kind not in TYPES:
        raise UserError(f"{key}.type is '{kind}'{nearest(str(kind), TYPES)}; expected of {', '.join(TYPES)}")
    if not isinstance(pattern, str):
        raise UserError(f"{key}.path is {pattern!r}; expected the text of a file's path or a glob")
    found = [Path(path) for path in sorted(glob.glob(str(Path(pattern).expanduser()), recursive=True))]
    paths = [path for path in found if path.is_file()]
    if not paths:
        hint = f"; it is a folder: write {pattern.rstrip('/')}/*.jsonl" if found else ""
        raise UserError(f"{key}.path: no file matches '{pattern}'{hint}")
    return paths


def are_texts(name: str, options: Mapping[str, Any]) -> bool:
    """Whether a source is running text, to be cut into windows: by its type, or because its files are no records."""
    kind = options.get("type", "auto")
    plain = kind == "auto" and all(plain_ending(p) not in RECORD_ENDINGS for p in source_files(name, options))
    return kind == "text" or plain


def is_chat(example: Pieces) -> bool:
    """Whether it is in the chat form below."""
    return example[0] in {(f"### {role}\n", False) for role in ROLES}


def encode(
    sources: Mapping[str, Sequence[Pieces]], text_sources: Sequence[str], tokenizer: Tokenizer, end_id: int,
    most_tokens: int, validation_share: float, seed: int,
) -> TuningData:  # fmt: skip
    """Training and held-out sets. Each source of `text_sources` becomes one stream of windows; each example of another
    source is a window."""
    begin = ids_around(tokenizer)[0]
    rows = {n: [_ids(e, tokenizer, begin, end_id) for e in examples] for n, examples in sources.items()}
    longest = max((len(ids) for n, all_rows in rows.items() if n not in text_sources for ids, _ in all_rows), default=0)
    # Windows of text are filled whatever their length; windows of examples are no longer than the longest example.
    rounded = -(-(longest - 1) // ROUND_TO) * ROUND_TO
    length = most_tokens if set(rows) & set(text_sources) else min(most_tokens, rounded)
    train, val, cut, counts = {}, {}, 0, {}
    for name, examples in sources.items():
        held_out = max(1, round(validation_share * len(examples)))
        counts[name] = len(examples) - held_out, held_out
        order = random.Random(f"{seed}/{name}").sample(range(len(examples)), len(examples))
        for target, chosen in ((val, order[:held_out]), (train, order[held_out:])):
            part = [rows[name][i] for i in chosen]
            sizes = [sum(len(text.encode()) for text, learnt in examples[i] if learnt) for i in chosen]
            if name in text_sources:
                target[name] = _stream(name, [ids for ids, _ in part], sizes)
            else:
                cut += sum(len(ids) > length + 1 for ids, _ in part)
                target[name] = Examples.of(name, part, length, sum(sizes))
    chat = any(is_chat(example) for examples in sources.values() for example in examples)
    return TuningData(train, val, length, cut, chat, counts)


def render(messages: Sequence[Mapping[str, str]], end_of_text: str, answer: bool = False) -> str:
    """The conversation as text; `answer`: with the line after which the assistant answers."""
    text = "".join(piece for piece, _ in pieces(messages, end_of_text))
    return text + "### assistant\n" if answer else text


def pieces(messages: Sequence[Mapping[str, str]], end_of_text: str) -> Pieces:
    """Only the assistant's answers, each with its end of text, are learnt."""
    found = []
    for message in messages:
        found.append((f"### {message['role']}\n", False))
        if message["role"] == "assistant":
            found += [(message["content"] + end_of_text, True), ("\n", False)]
        else:
            found.append((message["content"] + "\n", False))
    return found


def add_template(folder: Path) -> None:
    """Replaces the chat templates of the model folder."""
    write_chat_templates(folder, {DEFAULT: TEMPLATE})


def has_our_template(folder: Path) -> bool:
    return special_tokens(folder / "tokenizer.json").chat_templates.get(DEFAULT, "").strip() == TEMPLATE


def require_our_template(folder: Path) -> None:
    """Raises `UserError` unless the model was tuned on the form above."""
    if has_our_template(folder):
        return
    templates = special_tokens(folder / "tokenizer.json").chat_templates
    found = "has a chat template that is not ours" if templates else "has no chat template: it is a base model"
    raise UserError(
        f"{folder} {found}; expected a model that `hornbook finetune` tuned on chat examples (templates of a model "
        "folder are programs, and hornbook runs none); leave --chat out to continue plain text"
    )


@dataclass(frozen=True)
class Target:
    """(prompt, label) pairs; no text of `test` is in `train`."""

    name: str
    labels: tuple[str, ...]
    train: tuple[tuple[str, str], ...]
    test: tuple[tuple[str, str], ...]

    def questions(self) -> list["Question"]:
        from pipeline.evaluation.tasks import Question  # loads torch

        return [Question(prompt, self.labels, self.labels.index(label)) for prompt, label in self.test]


def sentiment() -> Texts:
    """What a sentence about a product thinks of it: good, bad or mixed."""
    things, praise, blame = (WORDS["sentiment"][name] for name in ("things", "praise", "blame"))
    texts = []
    for thing, first, second in itertools.product(things, praise + blame, praise + blame):
        if first != second:
            kinds = {first in praise, second in praise}
            label = "mixed" if len(kinds) == 2 else "good" if True in kinds else "bad"
            texts.append((f"Review: The {thing} {first} and {second}.\nVerdict:", f" {label}"))
    return (" good", " bad", " mixed"), texts


def topic() -> Texts:
    """What a sentence is about: food, sport, weather or money."""
    words, forms = WORDS["topic"]["words"], WORDS["topic"]["forms"]
    texts = [
        (f"Text: {form.format(a=a, b=b)}\nTopic:", f" {label}")
        for label, own in words.items()
        for a, b in itertools.permutations(own, 2)
        for form in forms
    ]
    return tuple(f" {label}" for label in words), texts


def bracket() -> Texts:
    """Which bracket closes what a line of code opened."""
    pairs = {"(": ")", "[": "]", "{": "}"}
    names, calls, inside = (WORDS["bracket"][name] for name in ("names", "calls", "inside"))
    texts = [
        (f"{name} = {call}{opened}{content}", closed)
        for name in names
        for call in calls
        for content in inside
        for opened, closed in pairs.items()
        if not (opened == "{" and call)
    ]
    return tuple(pairs.values()), texts


TARGETS: Mapping[str, Callable[[], Texts]] = {"sentiment": sentiment, "topic": topic, "bracket": bracket}


def target_task(options: FinetuneConfig) -> str | None:
    """The ready task that a tuning is measured on; None where only its own held-out examples are."""
    if options.task == "auto":
        return None if options.sources else DEFAULT_TARGET
    return options.task


def make_target(name: str, examples: int, items: int, seed: int) -> Target:
    """At most so many training examples and test items, labels in equal shares among the test items as far as texts
    reach. Raises `UserError` for a task that does not exist."""
    if name not in TARGETS:
        raise UserError(
            f"finetune.task is '{name}'{nearest(name, TARGETS)}; expected of {', '.join(TARGETS)}, auto or null"
        )
    labels, texts = TARGETS[name]()
    random.Random(f"target/{seed}/{name}").shuffle(texts)
    held_out = round(TEST_SHARE * len(texts))
    by_label = [[text for text in texts[:held_out] if text[1] == label] for label in labels]
    most = min(len(own) for own in by_label)
    test = [text for turn in zip(*(own[:most] for own in by_label), strict=True) for text in turn]
    return Target(name, labels, tuple(texts[held_out:][:examples]), tuple(test[:items]))


def _read(paths: Sequence[Path], kind: str, key: str) -> Found[Pieces]:
    whole = [path for path in paths if kind in ("auto", "text") and plain_ending(path) not in RECORD_ENDINGS]
    found = read_files([path for path in paths if path not in whole], lambda record, _: _example(record, kind), key)
    for path in whole:
        found.total_bytes += path.stat().st_size
        found.add(path, "", path, lambda path, _: [(_clean(decode_utf8(read_bytes(path))), True)])
    return found


def _example(record: Any, kind: str) -> Pieces:
    """Raises `Unreadable` for a record that is no example, or not one of this type. A conversation may stand for any
    type of example: what is learnt of it is the same."""
    if not isinstance(record, dict):
        raise Unreadable("not_a_record", f"is {type(record).__name__}; expected an object with fields")
    if kind == "text":
        return [(_field(record, "text"), True)]
    talk = next((record[name] for name in ("messages", "conversations", "conversation") if name in record), None)
    if talk is not None:
        return _conversation(talk, record)
    if "instruction" in record:
        asked = [_field(record, "instruction"), *([_field(record, "input")] if record.get("input") else [])]
        answer = _field(record, "output" if "output" in record else "response")
        said = [{"role": "user", "content": "\n\n".join(asked)}, {"role": "assistant", "content": answer}]
        return pieces(said, "\0")
    if kind == "completion" or "prompt" in record or "completion" in record:
        return [(_field(record, "prompt"), False), (_field(record, "completion"), True), ("", True)]
    if kind == "auto" and "text" in record:
        return [(_field(record, "text"), True), ("", True)]
    raise Unreadable("unknown_format", f"has the fields {_names(record)}; expected one of {FORMATS}")


def _conversation(talk: Any, record: Mapping[str, Any]) -> Pieces:
    """Of `{role, content}` or `{from, value}`."""
    if not isinstance(talk, list) or not talk:
        raise Unreadable("no_messages", f"has no messages with entries; it has {_names(record)}")
    said = []
    for message in talk:
        role = (message.get("role") or message.get("from")) if isinstance(message, dict) else None
        role = OTHER_ROLES.get(role, role) if isinstance(role, str) else None
        if role not in ROLES:
            raise Unreadable("no_role", f"has a message whose role must be of {', '.join(ROLES)}: {shown(message, 80)}")
        said.append({"role": role, "content": _field(message, "content" if "content" in message else "value")})
    if not any(message["role"] == "assistant" for message in said):
        raise Unreadable("no_answer", "has no message of the assistant: there is nothing to learn in it")
    return pieces(said, "\0")


def _field(record: Mapping[str, Any], name: str) -> str:
    value = record.get(name)
    if not isinstance(value, str) or not _clean(value):
        raise Unreadable("no_text", f"has no text in '{name}'; it has {_names(record)}")
    return _clean(value)


def _clean(text: str) -> str:
    """Without NUL, which stands for the end of text here."""
    return text.replace("\0", "")


def _names(record: Mapping[str, Any]) -> str:
    return ", ".join(record)[:200] or "no fields"


def _ids(example: Pieces, tokenizer: Tokenizer, begin: Sequence[int], end_id: int) -> tuple[list[int], list[bool]]:
    """Ids and which of them are learnt: those that every text begins with (Llama's bos) are not. "" and "\\0" stand for
    the end of text."""
    ids, learnt = list(begin), [False] * len(begin)
    for text, mark in example:
        part = tokenizer.encode(text.rstrip("\0"), add_special_tokens=False).ids
        part += [end_id] if not text or text.endswith("\0") else []
        ids += part
        learnt += [mark] * len(part)
    return ids, learnt


def _stream(name: str, documents: Sequence[list[int]], sizes: Sequence[int]) -> TokenSet:
    tokens = np.array([i for ids in documents for i in ids], np.uint32)
    index = np.zeros(len(documents), INDEX_DTYPE)
    index["length"] = [len(ids) for ids in documents]
    index["offset"] = np.cumsum(index["length"]) - index["length"]
    index["bytes"] = sizes
    return TokenSet(name, tokens, index)
