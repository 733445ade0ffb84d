"""Tiny made-up corpora and configs of the data stage, shared by its tests and by the processes they start."""

import json
from pathlib import Path

import numpy as np
from datatrove.data import Document
from making import build_data

from pipeline import stages
from pipeline.config import from_values
from pipeline.corpus.text.documents import SetAside
from pipeline.corpus.text.user_files import MAX_SAMPLE

MODEL = {
    "vocab_size": 400,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
SUBJECTS = [
    "river",
    "stone",
    "garden",
    "window",
    "paper",
    "morning",
    "silver",
    "market",
    "forest",
    "bridge",
    "letter",
    "engine",
    "candle",
    "harbor",
]
VERBS = ["shows", "explains", "builds", "moves", "counts", "carries", "finds", "keeps", "turns", "holds"]


def prose(number: int, sentences: int = 14) -> str:
    """English-like text, different for every number, with the stop words that Gopher's rules ask for."""
    draw = np.random.default_rng(number)
    lines = []
    for _ in range(sentences):
        a, b, c = draw.choice(SUBJECTS, 3)
        lines.append(f"The {a} {draw.choice(VERBS)} that the {b} of day {draw.integers(999)} is with the {c} and more.")
    return "\n".join(lines)


def write_corpus(folder: Path, n: int = 60) -> Path:
    """Documents in ten groups, with one of each kind of broken line among them."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"text": prose(i), "domain": f"site{i % 10}"}).encode() for i in range(n)]
    lines += [
        b'{"text": "cut off',
        b'{"text": "' + b"\xff\xfe" + b'"}',
        b'{"text": 12}',
        b'{"body": "no text"}',
        b'{"text": "' + b"\\ud800 lone " * 40 + b'"}',
        json.dumps({"text": ""}).encode(),
        json.dumps({"text": prose(3), "domain": "copy"}).encode(),
        json.dumps({"text": "short"}).encode(),
    ]
    path = folder / "texts.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def make_config(corpus: Path, **changes):
    values = {
        "name": "test",
        "model": dict(MODEL),
        "data": {
            "sources": {
                "web": {"type": "jsonl", "path": str(corpus), "group_key": "domain", "license": "MIT"},
                "exercises": {"type": "exercises", "count": 24},
            },
            # Made-up sentences are no textbook: they are scored, and kept.
            "filters": {
                "licence": {},
                "length": {"min_characters": 50},
                "gopher_quality": {},
                "quality": {"min_score": 0.0},
            },
            "tasks": 3,
            "workers": 2,
            "tokenizer_train_bytes": 20_000,
        },
    }
    for key, value in changes.items():
        place = values
        *sections, last = key.split("__")
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    return from_values(values, "test")


def made(config) -> dict:
    return build_data(config)


def fingerprints(config) -> dict[str, str]:
    return {f"{s.name}/{s.config.get('source', '')}": s.fingerprint for s in stages.data_step(config).chain()}


def items(source, tasks: int = 2) -> tuple[list[Document], list[str]]:
    """What a source gives over all shards: its documents, and the causes of what was set aside, sorted."""
    found = [item for task in range(tasks) for item in source.documents(task, tasks)]
    aside = [i for i in found if isinstance(i, SetAside)]
    assert all(len(i.sample) <= MAX_SAMPLE for i in aside)
    return [i for i in found if isinstance(i, Document)], sorted(i.cause for i in aside)
