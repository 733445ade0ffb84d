"""Token sets on disk: what the data stage writes and the trainer reads, and nothing else passes between them.

In: a finished data folder. Out: per source and split one flat array of token ids, memory-mapped, and an index with
one row per document. Windows, mixing and packing are the trainer's: a new mix then costs seconds. Flat binary
files, because a trainer that starts a hundred times must not decompress or parse anything.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline.storage.steps import MANIFEST, read_manifest
from pipeline.system.errors import UserError

TEXTBOOK = "textbook"  # name of the second validation set
TOKENS_FOLDER = "tokens"
SAMPLES = ("kept/*.zst", "dropped/*/*.zst")  # globs of the samples, which are for reading only
# Of a held-out document only the beginning counts, or a few long ones would be all of a set: at most so many tokens,
# end-of-text included, and `head_bytes`, which are known before there is a tokenizer.
HEAD_TOKENS = 2_048

INDEX_DTYPE = np.dtype(
    [
        ("offset", "<u8"),  # first token of the document in tokens.bin
        ("length", "<u4"),  # tokens, the end-of-text included
        ("bytes", "<u4"),  # UTF-8 bytes of the text: bits per byte need it
        ("score", "<f4"),  # quality, 0 to 1
    ]
)


def head_bytes(max_bytes: int) -> int:
    """How much of a held-out document counts at most where a set has `max_bytes`: a 64th, so that it spans as many
    documents, within 1,024 bytes (a window or two) and 8,192 (2,048 tokens at four bytes)."""
    return min(max(max_bytes // 64, 1_024), 8_192)


@dataclass(frozen=True)
class TokenSet:
    """One split of one source. `tokens` is 1-D; document i is `tokens[offset:offset + length]` of `index[i]`."""

    name: str
    tokens: np.ndarray
    index: np.ndarray

    @property
    def n_tokens(self) -> int:
        return len(self.tokens)

    @property
    def n_bytes(self) -> int:
        """UTF-8 bytes of the texts behind the tokens."""
        return int(self.index["bytes"].sum(dtype=np.int64))

    @property
    def n_documents(self) -> int:
        return len(self.index)


@dataclass(frozen=True)
class TokenShards:
    """All token sets of a data folder. Keys: source names; `val` also has "textbook" where any text is that good.
    `groups`: of how many groups (packages, domains) the documents of each validation set are, where that is known."""

    folder: Path
    train: dict[str, TokenSet]
    val: dict[str, TokenSet]
    vocab_size: int
    eos_token_id: int
    groups: dict[str, int] = field(default_factory=dict)

    @property
    def tokenizer_path(self) -> Path:
        return self.folder / "tokenizer.json"

    @classmethod
    def open(cls, folder: Path) -> "TokenShards":
        """Maps what the manifest names; raises `UserError` where a file is missing or short."""
        if not (folder / MANIFEST).is_file():
            raise UserError(f"{folder} holds no finished data (no {MANIFEST}); run `hornbook data <config>`")
        manifest = read_manifest(folder)
        dtype = np.dtype(manifest["token_dtype"])
        sets: dict[str, dict[str, TokenSet]] = {"train": {}, "val": {}}
        for path, output in manifest["outputs"].items():
            top, _, rest = path.partition("/")
            if top in (TOKENS_FOLDER, "tokenizer.json"):  # samples for reading may be deleted
                _check_size(folder / path, output["bytes"])
            if top == TOKENS_FOLDER and rest.endswith("/tokens.bin"):
                split, _, name = rest.removesuffix("/tokens.bin").partition("-")
                sets[split][name] = _open_set(name, folder / path, dtype)
        named = {name: source.get("val", {}) for name, source in manifest.get("sources", {}).items()}
        named[TEXTBOOK] = manifest.get("textbook", {})
        groups = {name: named[name]["groups"] for name in sets["val"] if "groups" in named.get(name, {})}
        return cls(folder, sets["train"], sets["val"], manifest["vocab_size"], manifest["eos_token_id"], groups)


def write_token_set(
    folder: Path, documents: Iterable[tuple[np.ndarray, int, float]], dtype: np.dtype
) -> tuple[int, int, int]:
    """Writes `folder/tokens.bin` and `folder/index.npy` from `(ids, text bytes, score)` in the order given.

    Returns (documents, tokens, bytes). Memory: one document and 20 bytes per row.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts, rows, offset = [], [], 0
    with open(folder / "tokens.bin", "wb") as file:
        for ids, n_bytes, score in documents:
            file.write(np.ascontiguousarray(ids, dtype=dtype).tobytes())
            rows.append((offset, len(ids), n_bytes, score))
            offset += len(ids)
            if len(rows) == 4_096:  # rows as Python objects would take ten times the memory
                parts.append(np.array(rows, dtype=INDEX_DTYPE))
                rows = []
    index = np.concatenate([*parts, np.array(rows, dtype=INDEX_DTYPE)])
    np.save(folder / "index.npy", index, allow_pickle=False)
    return len(index), offset, int(index["bytes"].sum(dtype=np.int64))


def _open_set(name: str, path: Path, dtype: np.dtype) -> TokenSet:
    index = np.load(path.with_name("index.npy"), allow_pickle=False)
    tokens = np.memmap(path, dtype=dtype, mode="r")
    expected = int(index["length"].sum(dtype=np.int64))
    if len(tokens) != expected:
        raise UserError(
            f"{path} holds {len(tokens):,} tokens, its index {expected:,}; delete {path.parent.parent.parent} "
            "and run `hornbook data <config>` again"
        )
    return TokenSet(name, tokens, index)


def _check_size(path: Path, expected_bytes: int) -> None:
    found = path.stat().st_size if path.is_file() else None
    if found != expected_bytes:
        what = "is missing" if found is None else f"has {found:,} bytes"
        raise UserError(
            f"{path} {what}, its manifest says {expected_bytes:,} bytes; delete the folder it belongs to "
            "and run `hornbook data <config>` again"
        )
