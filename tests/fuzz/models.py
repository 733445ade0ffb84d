"""Cases of model folders: tokenizer.json, config.json and its neighbours, safetensors, and GGUF files made of them.

A damaged folder goes to the commands that take one. What they accept must hold: ids within the vocabulary, tensors of
the shape that the config says, a GGUF file that its own package reads.
"""

import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fuzz import experiments
from tests.fuzz.damage import dumped, mutate, mutate_value, odd
from tests.fuzz.judging import Outcome, Wrong, command, equal, run, texts, write

BESIDE = ("config.json", "generation_config.json", "tokenizer_config.json", "chat_template.jinja")


def prepare(folder: Path) -> None:
    """Tokenizers of four kinds beside the one of the prepared run."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    words = texts(random.Random(0), 50)
    special = ["<|endoftext|>", "[UNK]"]
    made: dict[str, tuple[Any, Any]] = {
        "words": (models.WordLevel(unk_token="[UNK]"), trainers.WordLevelTrainer),
        "pieces": (models.WordPiece(unk_token="[UNK]"), trainers.WordPieceTrainer),
        "unigram": (models.Unigram(), trainers.UnigramTrainer),
        "characters": (models.BPE(unk_token="[UNK]"), trainers.BpeTrainer),
    }
    folder.mkdir()
    for name, (model, trainer) in made.items():
        tokenizer = Tokenizer(model)
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
        tokenizer.normalizer = normalizers.Lowercase() if name == "pieces" else normalizers.NFKC()  # type: ignore[assignment]
        tokenizer.train_from_iterator(words, trainer(vocab_size=300, special_tokens=special, show_progress=False))
        tokenizer.save(str(folder / f"{name}.json"))
    shutil.copy(experiments.model_folder() / "tokenizer.json", folder / "ours.json")


def tokenizer(draw: random.Random, folder: Path) -> None:
    base = experiments.PREPARED / "tokenizers" / draw.choice(("ours.json", "ours.json", "ours.json", "words.json",
                                                         "pieces.json", "unigram.json", "characters.json"))  # fmt: skip
    model = _copy_model(folder)
    path = write(model / "tokenizer.json", _damaged_json(base.read_bytes(), draw, _tokenizer_keys))
    if draw.random() < 0.3:
        _damage(model / "tokenizer_config.json", draw)
    way = draw.random()
    if way < 0.5:
        asked = _command("data", "--dry-run", f"tokenizer.path={model}")
        if asked.code == 0:
            _encodes(path, draw)
    elif way < 0.6:
        _command("data", f"tokenizer.path={model}", "model.vocab_size=600")
    else:
        _take(model, folder, draw)


def _tokenizer_keys(value: Any, draw: random.Random) -> Any:
    """What other programs leave in a tokenizer.json, and what they forget."""
    if not isinstance(value, dict):
        return value
    changes: dict[str, Any] = {
        "truncation": {"direction": "Right", "max_length": draw.choice((0, 1, 8)), "strategy": "LongestFirst",
                       "stride": 0},
        "padding": {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                    "pad_type_id": 0, "pad_token": "<|endoftext|>"},
        "normalizer": draw.choice(({"type": "Lowercase"}, {"type": "NFKC"}, {"type": "Prepend", "prepend": "▁"})),
        "pre_tokenizer": draw.choice((None, {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True,
                                             "use_regex": True}, {"type": "WhitespaceSplit"})),
        "post_processor": None, "decoder": None, "added_tokens": [],
    }  # fmt: skip
    key = draw.choice(list(changes))
    return {**value, key: changes[key]}


def _encodes(path: Path, draw: random.Random) -> None:
    """What was accepted encodes any text, into ids that the model has rows for, and does not cut it."""
    from pipeline.corpus.text.tokenizer import encoder, len_tokenizer, load_tokenizer

    some = [
        *texts(draw, 1, 40),
        "",
        "ü\u2028\U0001f600 \x00\x01",
        str(odd(draw))[:5_000].encode("utf-8", "replace").decode(),
    ]

    def encode() -> tuple[int, int]:
        import numpy as np

        ids = [np.frombuffer(encoder(path, "<u4").encode(text), "<u4") for text in some]
        return max((int(i.max()) for i in ids if len(i)), default=0), len_tokenizer(load_tokenizer(path))

    made = run(encode)
    if made.code == 0 and made.value[0] >= made.value[1]:
        raise Wrong("ids outside the vocabulary", str(made.value))


def config_json(draw: random.Random, folder: Path) -> None:
    model = _copy_model(folder)
    name = draw.choice(("config.json", "config.json", "config.json", *BESIDE))
    if (model / name).exists():
        _damage(model / name, draw)
    else:
        write(model / name, mutate(b"{% for m in messages %}{{ m['content'] }}{% endfor %}", draw))
    _take(model, folder, draw)


def safetensors(draw: random.Random, folder: Path) -> None:
    model = _copy_model(folder)
    path, data = model / "model.safetensors", (model / "model.safetensors").read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    way = draw.random()
    if way < 0.5:
        header = mutate_value(json.loads(data[8 : 8 + size]), draw)
        head = dumped(header)
        path.write_bytes(struct.pack("<Q", len(head)) + head + data[8 + size :])
    elif way < 0.8:
        path.write_bytes(mutate(data, draw))
    else:  # shards with an index
        path.rename(model / "model-00001-of-00001.safetensors")
        names = [name for name in json.loads(data[8 : 8 + size]) if name != "__metadata__"]
        index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
        write(model / "model.safetensors.index.json", _damaged_json(dumped(index), draw))
    _take(model, folder, draw)


def gguf(draw: random.Random, folder: Path) -> None:
    """GGUF files out of a folder with odd values that it may well have; and a GGUF file where a folder is expected."""
    from gguf import GGUFReader

    from pipeline.release.gguf import write_gguf

    model = _copy_model(folder)
    if draw.random() < 0.85:
        name = draw.choice(("tokenizer.json", "tokenizer.json", *BESIDE[:3]))
        path = model / name
        path.write_bytes(_damaged_json(path.read_bytes(), draw, _tokenizer_keys if name == "tokenizer.json" else None))
    target, kind = folder / "out.gguf", draw.choice(("f16", "q8_0", "q4_0"))
    made = run(lambda: write_gguf(model, target, kind, "fuzz"))
    if made.code != 0:
        return
    tensors = GGUFReader(target).tensors
    equal(len(tensors) >= 14, True, "a GGUF file without its tensors")
    if draw.random() < 0.3:
        odd_file = write(folder / "odd.gguf", mutate(target.read_bytes(), draw))
        verb, key = draw.choice((("evaluate", "evaluate.model"), ("export", "export.model"), ("init", "init.source")))
        _command(verb, f"{key}={odd_file}", "--dry-run", codes=(0, 2))


def scorer(draw: random.Random, folder: Path) -> None:
    """A file of a scorer, as `data.scorer.path` names it: loaded and used, or refused."""
    from datatrove.data import Document

    from pipeline.corpus.scorers.document_scorers import SHIPPED, Linear

    data = SHIPPED.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    if draw.random() < 0.7:
        stored = json.loads(header["__metadata__"]["scorer"])
        header["__metadata__"]["scorer"] = dumped(mutate_value(stored, draw)).decode()
        header = header if draw.random() < 0.8 else mutate_value(header, draw)
        head = dumped(header)
        data = struct.pack("<Q", len(head)) + head + data[8 + size :]
    else:
        data = mutate(data, draw)
    path = write(folder / "scorer.safetensors", data)
    documents = [
        Document(text, str(i), metadata={"kind": "prose", "path": "a.txt"}) for i, text in enumerate(texts(draw, 2))
    ]
    made = run(lambda: Linear(path).scores(documents).tolist())
    if made.code == 0:
        equal([0 <= score <= 1 for score in made.value], [True] * 2, "scores outside of 0 to 1")


# What takes a model folder


def _take(model: Path, folder: Path, draw: random.Random) -> None:
    """One of the commands and functions that take a model folder."""
    ways: list[tuple[float, Callable[[], Any]]] = [
        (6, lambda: _loads(model)),
        (3, lambda: _grows(model, folder, draw)),
        (2, lambda: _command("init", "--dry-run", f"init.source={model}", "init.method=exact")),
        (1, lambda: _command("init", f"init.source={model}", "init.method=exact")),
        (2, lambda: _command("export", f"export.model={model}")),
        (1, lambda: _command("export", f"export.model={model}", "export.gguf=[q8_0]")),
        (2, lambda: _command("sample", f"sample.model={model}", "--prompt", "The", "--max-new-tokens", "2")),
        (1, lambda: _command("sample", f"sample.model={model}", "--chat", "--prompt", "Hi", "--max-new-tokens", "2")),
        (2, lambda: _command(draw.choice(("evaluate", "quantize", "finetune")), "--dry-run", *_model_keys(model))),
        (0.3, lambda: _command("evaluate", *_model_keys(model), "evaluate.items=2", "evaluate.tasks=[bits_per_byte]")),
    ]
    draw.choices([way for _, way in ways], [share for share, _ in ways])[0]()


def _model_keys(model: Path) -> list[str]:
    return [
        *(f"{verb}.model={model}" for verb in ("evaluate", "quantize", "finetune")),
        "finetune.budget.max_tokens=99",
    ]


def _loads(model: Path) -> None:
    from model.hf import load_network

    def load() -> bool:
        network = load_network(model)
        shapes = network.config.tensor_shapes()
        return all(tuple(p.shape) == shapes[name] for name, p in network.state_dict().items() if name in shapes)

    made = run(load)
    if made.code == 0:
        equal(made.value, True, "tensors of another shape than the config's")


def _grows(model: Path, folder: Path, draw: random.Random) -> None:
    words = ["model.hidden_size=32", "model.num_attention_heads=4"] if draw.random() < 0.5 else []
    words += ["model.num_hidden_layers=2"]
    if draw.random() < 0.3:
        write(folder / "text.txt", " ".join(texts(draw, 3, 20)).encode())
        words += ["--text", str(folder / "text.txt")]
    made = command("grow", str(model), str(folder / "grown"), *words)
    if made.code == 0:
        run(lambda: __import__("model.hf").hf.load_network(folder / "grown")).must_succeed("the grown model")
    elif os.path.exists(folder / "grown"):
        raise Wrong("a refused growth left a folder")


def _command(verb: str, *words: str, codes: tuple[int, ...] = (0, 1, 2)) -> Outcome:
    """A stage's verb with the prepared config, under a copy of the prepared root."""
    experiments.copy_root(Path(os.environ["HORNBOOK_ROOT"]))
    flags = [w for w in words if w.startswith("-") or "=" not in w]
    overrides = [w for w in words if w not in flags]
    return command(verb, str(experiments.PREPARED / "fuzz.yaml"), *overrides, *flags, codes=codes)


def _copy_model(folder: Path) -> Path:
    return Path(shutil.copytree(experiments.model_folder(), folder / "model"))


def _damage(path: Path, draw: random.Random) -> None:
    path.write_bytes(_damaged_json(path.read_bytes(), draw))


def _damaged_json(data: bytes, draw: random.Random, likely: Callable[[Any, random.Random], Any] | None = None) -> bytes:
    """Values of other types for the most part, bytes for the rest."""
    if likely is not None and draw.random() < 0.3:
        return dumped(likely(json.loads(data), draw))
    return dumped(mutate_value(json.loads(data), draw)) if draw.random() < 0.7 else mutate(data, draw)
