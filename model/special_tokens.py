"""The one rule for a model's special tokens: what ends a text, stops a generation, begins, pads, and the chat form.

In: the files beside a `tokenizer.json`, as transformers 4 and 5 write them. Out: `SpecialTokens`, and the same facts
written so that transformers, llama.cpp's converter and we ourselves read them again. Several files may name a token;
transformers' own order decides (`PreTrainedTokenizerBase._from_pretrained`, `GenerationConfig.from_pretrained`): tokens
come from `tokenizer_config.json` (`special_tokens_map.json` wins in folders of old), stop ids from
`generation_config.json` before `config.json`, chat templates from `.jinja` files before `tokenizer_config.json`.
Templates are programs: they are carried as text and never run. Imports no torch.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model.config import UnreadableModel, read_object

TEMPLATE_FILE, TEMPLATE_FOLDER, DEFAULT = "chat_template.jinja", "additional_chat_templates", "default"
FILES = (
    "tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "config.json", TEMPLATE_FILE,
    f"{TEMPLATE_FOLDER}/*.jinja",
)  # fmt: skip
KNOWN_ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>")  # where no file names one, in this order
MAX_TOKENIZER_BYTES, MAX_BYTES = 300_000_000, 64_000_000  # of a tokenizer.json, and of a file beside it
_TEMPLATE_NAME, _NO_TEXT = re.compile(r"\w[\w .-]{0,99}"), re.compile("[\ud800-\udfff]")


class UnreadableTokenizer(UnreadableModel):
    """Files of a tokenizer that say nothing usable; the message says which one and what was expected."""


@dataclass(frozen=True)
class SpecialTokens:
    """`eos_token` ends every document and every answer. `stop_ids`: what generation stops at, `eos_token_id` among
    them. A token may lack its text where a folder names ids alone. `chat_templates`: Jinja by name, the usual one under
    "default"."""

    eos_token: str | None = None
    eos_token_id: int | None = None
    stop_ids: tuple[int, ...] = ()
    bos_token: str | None = None
    bos_token_id: int | None = None
    pad_token: str | None = None
    pad_token_id: int | None = None
    unk_token: str | None = None
    chat_templates: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def only(cls, token: str, id_: int | None) -> "SpecialTokens":
        """One token for every purpose, as in Phi."""
        return cls(token, id_, () if id_ is None else (id_,), token, id_, token, id_, token)

    def within(self, rows: int) -> "SpecialTokens":
        """Without those that a model of so many rows could never read or say; its end of text pads in their place."""
        bos = (self.bos_token, self.bos_token_id) if (self.bos_token_id or 0) < rows else (None, None)
        fits = (self.pad_token_id or 0) < rows
        pad = (self.pad_token, self.pad_token_id) if fits else (self.eos_token, self.eos_token_id)
        stop = tuple(i for i in self.stop_ids if i < rows)
        return SpecialTokens(self.eos_token, self.eos_token_id, stop, *bos, *pad, self.unk_token, self.chat_templates)

    def model_ids(self) -> dict[str, Any]:
        """The entries of `generation_config.json`. One stop id is a number, several are a list."""
        stop = list(self.stop_ids) if len(self.stop_ids) > 1 else self.eos_token_id
        return {"bos_token_id": self.bos_token_id, "eos_token_id": stop, "pad_token_id": self.pad_token_id}

    def write(self, folder: Path, max_length: int | None = None) -> None:
        """`generation_config.json` and, beside a `tokenizer.json`, `tokenizer_config.json` and the chat templates.
        `max_length`: tokens of a context."""
        write_json(folder / "generation_config.json", self.model_ids())
        if not (folder / "tokenizer.json").is_file():
            return
        # Not transformers 5's own "TokenizersBackend", which transformers 4 and llama.cpp's converter cannot load.
        content: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
        content |= {} if max_length is None else {"model_max_length": max_length}
        content |= {"bos_token": self.bos_token, "eos_token": self.eos_token, "pad_token": self.pad_token}
        content |= {"unk_token": self.unk_token, "clean_up_tokenization_spaces": False}
        write_json(folder / "tokenizer_config.json", content)
        write_chat_templates(folder, self.chat_templates)


def write_chat_templates(folder: Path, templates: Mapping[str, str]) -> None:
    """Puts `templates` in place of those in the folder: as files, which transformers 5 reads and prefers, and in
    `tokenizer_config.json`, where all others look."""
    path = folder / "tokenizer_config.json"
    content = _read_json(path)
    content.pop("chat_template", None)
    if set(templates) == {DEFAULT}:
        content["chat_template"] = templates[DEFAULT]
    elif templates:
        content["chat_template"] = [{"name": name, "template": text} for name, text in templates.items()]
    write_json(path, content)
    for old in (folder / TEMPLATE_FILE, *(folder / TEMPLATE_FOLDER).glob("*.jinja")):
        old.unlink(missing_ok=True)
    for name, text in templates.items():
        target = folder / TEMPLATE_FILE if name == DEFAULT else folder / TEMPLATE_FOLDER / f"{name}.jinja"
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(text.encode())


def read_special_tokens(tokenizer_json: Path) -> SpecialTokens:
    """What the files beside `tokenizer_json` say; of a folder without that file, the ids alone.

    Tokens that the tokenizer does not have count as not named. Where no file names an end of text, it is the first of
    `KNOWN_ENDS` that the tokenizer has; a pad that nobody names is the end of text. `eos_token_id` is None where there
    is no end of text at all. Raises `UnreadableTokenizer` for files that hold something else than they should.
    """
    folder, has_tokenizer = tokenizer_json.parent, tokenizer_json.is_file()
    ids = token_ids(tokenizer_json) if has_tokenizer else {}
    texts = {id_: token for token, id_ in ids.items()}
    named = _named_tokens(folder)
    configs = [_read_json(folder / name) for name in ("generation_config.json", "config.json")]
    declared = {kind: _declared(configs, f"{kind}_token_id", folder) for kind in ("eos", "bos", "pad")}
    nothing_named = not named and not declared["bos"]
    if has_tokenizer:
        declared = {kind: tuple(i for i in found if i in texts) for kind, found in declared.items()}
        named = {kind: token for kind, token in named.items() if token in ids}
    known = next((name for name in KNOWN_ENDS if name in ids), None)
    eos = named.get("eos") or next((texts[i] for i in declared["eos"] if i in texts), known)
    if nothing_named and has_tokenizer and eos is not None:
        named = {"bos": eos, "unk": eos}  # as in Phi

    def chosen(kind: str, token: str | None) -> int | None:
        return ids[token] if token in ids else next(iter(declared[kind]), None)

    end, bos, pad = chosen("eos", eos), chosen("bos", named.get("bos")), chosen("pad", named.get("pad"))
    stop = declared["eos"] if end is None or end in declared["eos"] else (*declared["eos"], end)
    pad = end if pad is None else pad
    pad_text = named.get("pad") or (eos if pad == end else texts.get(pad or 0))
    return SpecialTokens(
        eos, end, stop, named.get("bos"), bos, pad_text, pad, named.get("unk"), _chat_templates(folder)
    )


def token_ids(tokenizer_json: Path) -> dict[str, int]:
    """The id of every token, the added ones included. Raises `UnreadableTokenizer`."""
    content = _read_json(tokenizer_json, MAX_TOKENIZER_BYTES)
    model, added = content.get("model"), content.get("added_tokens") or []
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    try:
        if isinstance(vocabulary, list):  # of Unigram: (token, score) by id
            vocabulary = {entry[0]: i for i, entry in enumerate(vocabulary)}
        found = {**(vocabulary or {}), **{entry["content"]: entry["id"] for entry in added}}
        return {token: id_ for token, id_ in found.items() if isinstance(token, str) and _is_id(id_)}
    except (TypeError, KeyError, IndexError) as error:
        raise UnreadableTokenizer(f"{tokenizer_json} is no tokenizer.json ({error!r:.200}); save it again.") from None


def token_id(tokenizer_json: Path, token: str) -> int:
    """The id of `token` in a tokenizer.json. Raises `UnreadableTokenizer` if it has none."""
    found = token_ids(Path(tokenizer_json)).get(token)
    if found is None:
        raise UnreadableTokenizer(
            f"{tokenizer_json} has no token {token!r}; name the tokenizer's own end-of-text token."
        )
    return found


def _named_tokens(folder: Path) -> dict[str, str]:
    """Texts by kind. Where some are named, the others are not there."""
    config, legacy = (_read_json(folder / name) for name in ("tokenizer_config.json", "special_tokens_map.json"))
    merged = config if "added_tokens_decoder" in config else {**config, **legacy}
    found = {}
    for kind in ("eos", "bos", "pad", "unk"):
        token = merged.get(f"{kind}_token")
        text = token.get("content") if isinstance(token, dict) else token  # with its flags, or alone
        if not isinstance(text, str | None):
            raise UnreadableTokenizer(
                f"{folder / 'tokenizer_config.json'}: {kind}_token is {token!r:.80}; expected a text, or an object "
                "that has it as 'content'."
            )
        found |= {kind: text} if text else {}
    return found


def _declared(configs: list[dict[str, Any]], key: str, folder: Path) -> tuple[int, ...]:
    """The ids of the first of `configs` that has `key`."""
    value = next((c[key] for c in configs if c.get(key) is not None), None)
    values = value if isinstance(value, list) else [] if value is None else [value]
    for id_ in values:
        if not isinstance(id_, int) or isinstance(id_, bool):
            raise UnreadableTokenizer(
                f"{folder}: {key} is {value!r:.80} in generation_config.json or config.json; expected a number or a "
                "list of numbers."
            )
    return tuple(dict.fromkeys(id_ for id_ in values if _is_id(id_)))  # -1 stands for none


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _chat_templates(folder: Path) -> dict[str, str]:
    files = {path.stem: path for path in sorted((folder / TEMPLATE_FOLDER).glob("*.jinja"))}
    if (folder / TEMPLATE_FILE).is_file():
        files = {DEFAULT: folder / TEMPLATE_FILE} | files
    if files:
        return {name: _read_text(path, MAX_BYTES) for name, path in files.items()}
    path = folder / "tokenizer_config.json"
    value = _read_json(path).get("chat_template")
    found: Any = value or {}
    if isinstance(value, str):
        found = {DEFAULT: value}
    elif isinstance(value, list):
        entries = [entry if isinstance(entry, dict) else {} for entry in value]
        found = {str(entry.get("name", "")): entry.get("template") for entry in entries}
    if not isinstance(found, dict) or not all(_is_template(name, text) for name, text in found.items()):
        raise UnreadableTokenizer(
            f"{path}: chat_template is {value!r:.80}; expected a text, or a list of objects with 'name' and 'template'."
        )
    return found


def _is_template(name: Any, text: Any) -> bool:
    """Names become names of files."""
    return (
        isinstance(text, str)
        and isinstance(name, str)
        and not _NO_TEXT.search(text)
        and bool(_TEMPLATE_NAME.fullmatch(name))
    )


def _read_json(path: Path, limit: int = MAX_BYTES) -> dict[str, Any]:
    """The object in a file; nothing where there is no file."""
    if not path.is_file():
        return {}
    _check_size(path, limit)
    try:
        return read_object(path)
    except UnreadableModel as error:
        raise UnreadableTokenizer(str(error)) from None


def _check_size(path: Path, limit: int) -> None:
    if path.stat().st_size > limit:
        raise UnreadableTokenizer(f"{path} has {path.stat().st_size:,} bytes; expected at most {limit:,}.")


def _read_text(path: Path, limit: int) -> str:
    try:
        _check_size(path, limit)
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableTokenizer(f"{path} is not readable as UTF-8 text ({error}); write it again.") from None


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Indented, as transformers writes its configs."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
