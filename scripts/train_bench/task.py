"""The text of the fixed-budget task: the standard library's sources, cut by file into train and held-out text."""

import random
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.corpus.text.shards import INDEX_DTYPE, TokenSet
from pipeline.corpus.text.tokenizer import load_tokenizer

VOCAB_SIZE = 8192
HELD_OUT_SHARE, SEED = 0.05, 0


@dataclass(frozen=True)
class Task:
    """`train` and `held_out`: flat ids with the bytes behind them, every file ended by id 0."""

    train: TokenSet
    held_out: TokenSet

    @property
    def bytes_per_token(self) -> float:
        return self.held_out.n_bytes / (self.held_out.n_tokens - 1)


def load(vocab_size: int = VOCAB_SIZE) -> Task:
    """Trains a byte-level BPE on the train files and encodes both parts: some 20 seconds."""
    from pipeline.corpus.tokenizing import _train

    texts = _texts()
    cut = max(20, round(HELD_OUT_SHARE * len(texts)))
    held_out, train = texts[:cut], texts[cut:]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        _train(train, vocab_size, path)
        return Task(_encode(path, "train", train), _encode(path, "held_out", held_out))


def _texts() -> list[str]:
    root = Path(sysconfig.get_paths()["stdlib"])
    skipped = {"site-packages", "test", "tests", "__pycache__"}
    files = [f for f in sorted(root.rglob("*.py")) if not skipped & set(f.relative_to(root).parts)]
    texts = [text for f in files if 200 < len(text := f.read_text("utf-8", "replace")) < 400_000]
    random.Random(SEED).shuffle(texts)
    return texts


def _encode(path: Path, name: str, texts: list[str]) -> TokenSet:
    tokenizer = load_tokenizer(path)
    ids = [np.array([*encoding.ids, 0]) for encoding in tokenizer.encode_batch(texts)]
    rows, offset = [], 0
    for document, text in zip(ids, texts, strict=True):
        rows.append((offset, len(document), len(text.encode()), 0.5))
        offset += len(document)
    return TokenSet(name, np.concatenate(ids).astype(np.uint16), np.array(rows, dtype=INDEX_DTYPE))
