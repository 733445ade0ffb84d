"""The tokenizer (trained, or loaded) and the encoding of every document that is left.

Trained: byte-level BPE with `tokenizers`, on train documents from before the quality cut, so that moving the cut moves
neither tokenizer nor yardstick. Every digit is its own token: a small vocabulary would otherwise cut numbers at
arbitrary places, and arithmetic on them could not be learned. White space runs stay together: indentation is cheap.
"""

import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datatrove.data import Document

from model.special_tokens import KNOWN_ENDS
from pipeline.corpus.execute import Executor, map_processes
from pipeline.corpus.text.documents import (
    DocumentReader,
    RowWriter,
    ShardStep,
    Table,
    draw,
    filtered,
    read_all_alive,
    read_rows,
    read_validation,
    sum_mappings,
    write_masks,
)
from pipeline.corpus.text.tokenizer import (
    PROBE,
    WORD_PATTERN,
    encoder,
    len_tokenizer,
    load_tokenizer,
    special_tokens,
    tokenizer_file,
)
from pipeline.storage.steps import Folder, read_manifest
from pipeline.system.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_LONG_RUN = re.compile(r"[^\W\d_]{1000,}|(?:[^\w\s]|_){1000,}|\s{1000,}")
END_OF_TEXT = KNOWN_ENDS[0]
IDS_INDEX = np.dtype([("at", "<u4"), ("offset", "<u8"), ("length", "<u4"), ("bytes", "<u4")])


def train_tokenizer(folder: Folder, vocab_size: int, train_bytes: int, seed: int) -> dict[str, Any]:
    """Trains `tokenizer.json` on about `train_bytes` of train text, spread evenly over the corpus."""
    texts = _sample(folder, train_bytes, seed)
    map_processes(lambda _: _train(texts, vocab_size, folder.path / "tokenizer.json"), [0], workers=1)
    facts = _facts(load_tokenizer(folder.path / "tokenizer.json"), folder.path / "tokenizer.json")
    return {**facts, "train_documents": len(texts), "train_bytes": sum(len(t.encode()) for t in texts)}


def _sample(folder: Folder, train_bytes: int, seed: int) -> list[str]:
    """Train documents chosen by hash, so that a new source changes the choice little."""
    repaired = folder.input("repair")
    table = Table.load(repaired)
    train = read_all_alive(filtered(folder), table.tasks) & ~read_validation(folder.input("split"), table.tasks)
    if not train.any():
        dropped = [read_manifest(path).get("dropped", {}) for path in folder.inputs.values()]
        raise empty_corpus(sum_mappings(dropped))
    share = min(1.0, train_bytes / max(1, int(table.rows["bytes"][train].sum(dtype=np.int64))))
    lots = draw(table.rows["digest"][:, 0], seed, "tokenizer")
    chosen = train if share == 1.0 else train & (lots < np.uint64(int(share * 2**64)))
    if not chosen.any():
        chosen[np.flatnonzero(train)[0]] = True
    write_masks(folder.logs / "sample", table, chosen)
    reader = DocumentReader(repaired, only=folder.logs / "sample")
    return [doc.text for shard in range(table.tasks) for doc in reader.run(rank=shard)]


def _train(texts: list[str], vocab_size: int, path: Path) -> None:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [
            pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # any text can be encoded
        show_progress=False,
    )
    # No word that is worth a token has a thousand letters, and the trainer's time grows with the square of a word.
    tokenizer.train_from_iterator((_LONG_RUN.sub(" ", text) for text in texts), trainer, length=len(texts))
    temporary = path.with_name(f".{path.name}.part")
    tokenizer.save(str(temporary))
    temporary.replace(path)


def copy_tokenizer(folder: Folder, given: Path) -> dict[str, Any]:
    """Takes over the `tokenizer.json` that the config names."""
    path = tokenizer_file(given)
    (folder.path / "tokenizer.json").write_bytes(path.read_bytes())
    special_tokens(path).write(folder.path)
    tokenizer = load_tokenizer(path)
    lost = [c for c in PROBE if c.isprintable() and not tokenizer.encode(c, add_special_tokens=False).ids]
    if lost:
        print(
            f"  WARNING: {path} has no token for characters outside its vocabulary (such as {' '.join(lost[:3])}): "
            "they are dropped from the text, and bits per byte come out too low",
            flush=True,
        )
    return _facts(tokenizer, path)


def _facts(tokenizer: "Tokenizer", path: Path) -> dict[str, Any]:
    return {"vocab_size": len_tokenizer(tokenizer), "eos_token_id": special_tokens(path).eos_token_id}


def token_dtype(vocab_size: int) -> np.dtype:
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def encode_documents(folder: Folder, executor: Executor) -> dict[str, Any]:
    """Writes `ids/00003.bin` and `ids/00003.index` (where each document starts) for everything that is left."""
    repaired, tokenizer = folder.input("repair"), folder.input("tokenizer")
    facts = read_manifest(tokenizer)
    dtype = token_dtype(facts["vocab_size"])
    work = partial(encode_shard, tokenizer / "tokenizer.json", folder.path, dtype, facts["eos_token_id"])
    pipeline = [DocumentReader(repaired, filtered(folder)), ShardStep("encode", work)]
    executor.run(folder, pipeline, description="encode")
    table = Table.load(repaired)
    tokens = np.zeros(len(table.sources), dtype=np.int64)
    for shard in range(table.tasks):
        index = read_index(folder.path, shard)
        sources = table.rows["source"][table.shard(shard)][index["at"]]
        tokens += np.bincount(sources, weights=index["length"], minlength=len(tokens)).astype(np.int64)
    return {
        "tokens": int(tokens.sum()),
        "source_tokens": {name: int(n) for name, n in zip(table.sources, tokens, strict=True) if n},
    }


def encode_shard(
    tokenizer: Path, folder: Path, dtype: np.dtype, eos_token_id: int, documents: Iterable[Document], shard: int
) -> None:
    """Token ids of one shard's documents: what the tokenizer puts before a text, the text, the end-of-text id. Memory
    of one document."""
    own = encoder(tokenizer, dtype.str)
    end = np.array([eos_token_id], dtype=dtype).tobytes()
    offset = 0
    with (
        RowWriter(folder / "ids" / f"{shard:05d}.index", IDS_INDEX) as index,
        open(folder / "ids" / f"{shard:05d}.bin", "wb", buffering=1 << 20) as file,
    ):
        for doc in documents:
            ids = own.begin + own.encode(doc.text) + end
            file.write(ids)
            length = len(ids) // dtype.itemsize
            index.add((doc.metadata["at"], offset, length, len(doc.text.encode())))
            offset += length


def read_index(encoded: Path, shard: int) -> np.ndarray:
    """One row of `IDS_INDEX` for each document of a shard that was encoded, in order."""
    return read_rows(encoded / "ids" / f"{shard:05d}.index", IDS_INDEX)


def open_ids(encoded: Path, shard: int, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """(ids, index) of one shard, both mapped and not read."""
    return read_rows(encoded / "ids" / f"{shard:05d}.bin", dtype), read_index(encoded, shard)


def empty_corpus(dropped: dict[str, int]) -> UserError:
    """No train document is left: names the filter that dropped most and the key that loosens it."""
    worst = max(dropped, key=lambda n: dropped[n], default=None)
    if worst is None:
        return UserError("no train document is left: the corpus has too few documents; add to data.sources")
    keys = {
        "near_dedup": "raise data.near_dedup_similarity; texts that differ by their numbers alone are kept where their "
        "source says `kind: exercise`",
        "exact_dedup": "the sources repeat each other, add another under data.sources",
        "licence": "set `license` of the source (`own` for private text), or widen data.filters.licence.allow",
        "where": "loosen `where` of the sources",
        "empty": "the documents are empty, see data.sources",
    }
    fix = keys.get(worst, f"loosen data.filters.{worst}, or take it out with data.filters.{worst}=null")
    listed = ", ".join(f"{name} {n:,}" for name, n in sorted(dropped.items(), key=lambda x: -x[1]))
    return UserError(f"no train document is left after filtering; dropped: {listed}. Most by '{worst}': {fix}")
