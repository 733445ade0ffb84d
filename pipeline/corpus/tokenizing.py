"""The tokenizer (trained, or loaded) and the encoding of every document that is left.

Trained: byte-level BPE with `tokenizers`, on train documents from before the quality cut, so that moving the cut moves
neither tokenizer nor yardstick. Every digit is its own token: a small vocabulary would otherwise cut numbers at
arbitrary places, and arithmetic on them could not be learned. White space runs stay together: indentation is cheap.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from pipeline.artifacts import Folder
from pipeline.corpus.documents import DocumentReader, load_table, survivors
from pipeline.corpus.duplicates import validation_places
from pipeline.corpus.encoder import WORD_PATTERN, Encoder
from pipeline.corpus.execute import map_processes, run_tasks
from pipeline.corpus.splitting import hash_key
from pipeline.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END_OF_TEXT = "<|endoftext|>"
IDS_INDEX = np.dtype([("at", "<u4"), ("offset", "<u8"), ("length", "<u4"), ("bytes", "<u4")])


def train_tokenizer(folder: Folder, vocab_size: int, train_bytes: int, seed: int, tasks: int) -> dict[str, Any]:
    """Trains `tokenizer.json` on about `train_bytes` of train text, spread evenly over the corpus."""
    texts = _sample(folder, train_bytes, seed, tasks)
    map_processes(lambda _: _train(texts, vocab_size, folder.path / "tokenizer.json"), [0], workers=1)
    facts = _facts(load_tokenizer(folder.path / "tokenizer.json"), folder.path / "tokenizer.json")
    return {**facts, "train_documents": len(texts), "train_bytes": sum(len(t.encode()) for t in texts)}


def _sample(folder: Folder, train_bytes: int, seed: int, tasks: int) -> list[str]:
    """Train documents chosen by hash, so that a new source changes the choice little."""
    repaired = folder.input("repair")
    decided = [repaired, *(folder.input(n) for n in ("rules", "exact_dedup", "near_dedup"))]
    validation = validation_places(folder.input("split"), tasks)
    rows = [(p, r) for p, r in survivors(load_table(repaired, tasks), decided) if p not in validation]
    if not rows:
        raise nothing_left(folder, tasks)
    share = min(1.0, train_bytes / max(1, sum(row.bytes for _, row in rows)))
    chosen = {p for p, row in rows if hash_key(seed, "tokenizer", row.source, row.path) < share * 2**64}
    chosen = chosen or {rows[0][0]}
    texts: list[str] = []
    for shard in range(tasks):
        for doc in DocumentReader(repaired, decided).run(rank=shard):
            if (shard, doc.metadata["at"]) in chosen:
                texts.append(doc.text)
    return texts


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
    tokenizer.train_from_iterator(texts, trainer, length=len(texts))
    temporary = path.with_name(f".{path.name}.part")
    tokenizer.save(str(temporary))
    temporary.replace(path)


def copy_tokenizer(folder: Folder, given: Path) -> dict[str, Any]:
    """Takes over the `tokenizer.json` that the config names."""
    path = tokenizer_file(given)
    (folder.path / "tokenizer.json").write_bytes(path.read_bytes())
    return _facts(load_tokenizer(path), path)


def tokenizer_file(given: Path) -> Path:
    """The `tokenizer.json` behind `tokenizer.path`: itself, or in the folder. `UserError` where there is none."""
    path = given.expanduser()
    path = path / "tokenizer.json" if path.is_dir() else path
    if not path.is_file():
        raise UserError(
            f"tokenizer.path: there is no file {path}; expected a tokenizer.json or a folder that holds one "
            "(tokenizer.path=null trains one)"
        )
    return path


def load_tokenizer(path: Path) -> "Tokenizer":
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust side raises plain Exception
        raise UserError(f"tokenizer.path: {path} is not a tokenizer.json ({error})") from None


def check_given_tokenizer(given: Path, vocab_size: int) -> None:
    """`UserError` where a named tokenizer does not fit the model or has no end-of-text."""
    path = tokenizer_file(given)
    size = len_tokenizer(load_tokenizer(path))
    if size > vocab_size:
        raise UserError(
            f"tokenizer.path: {path} has {size:,} entries, model.vocab_size is {vocab_size:,}: the model would have no "
            f"row for some tokens; set model.vocab_size to at least {size:,} or name a smaller tokenizer"
        )
    end_of_text_id(load_tokenizer(path), path)


def len_tokenizer(tokenizer: "Tokenizer") -> int:
    """Rows that ids need: like `len(tokenizer)` of transformers, with added tokens and gaps."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def end_of_text_id(tokenizer: "Tokenizer", path: Path) -> int:
    """The id that ends a document: `<|endoftext|>`, else `eos_token` of the tokenizer_config.json beside it."""
    config = path.with_name("tokenizer_config.json")
    named = None
    if config.is_file():
        named = json.loads(config.read_text(encoding="utf-8")).get("eos_token")
        named = named.get("content") if isinstance(named, dict) else named
    for token in (END_OF_TEXT, named):
        found = tokenizer.token_to_id(token) if token else None
        if found is not None:
            return found
    raise UserError(
        f"tokenizer.path: {path} has no {END_OF_TEXT} and no eos_token in {config.name} beside it; documents could "
        "not be told apart. Add one to the tokenizer, or tokenizer.path=null trains one"
    )


def _facts(tokenizer: "Tokenizer", path: Path) -> dict[str, Any]:
    return {"vocab_size": len_tokenizer(tokenizer), "eos_token_id": end_of_text_id(tokenizer, path)}


def token_dtype(vocab_size: int) -> np.dtype:
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def encode_documents(folder: Folder, vocab_size: int, eos_token_id: int, tasks: int, workers: int) -> dict[str, Any]:
    """Writes `ids/00003.bin` and `ids/00003.npy` (where each document starts) for everything that is left."""
    repaired = folder.input("repair")
    decided = [repaired, *(folder.input(n) for n in ("rules", "exact_dedup", "near_dedup"))]
    encode = Encode(folder.input("tokenizer") / "tokenizer.json", folder.path, token_dtype(vocab_size), eos_token_id)
    run_tasks(folder, [DocumentReader(repaired, decided), encode], tasks=tasks, workers=workers, description="encode")
    tokens: dict[str, int] = {}
    table = load_table(repaired, tasks)
    for shard in range(tasks):
        for row in np.load(folder.path / "ids" / f"{shard:05d}.npy"):
            source = table[shard][row["at"]].source
            tokens[source] = tokens.get(source, 0) + int(row["length"])
    return {"tokens": sum(tokens.values()), "source_tokens": dict(sorted(tokens.items()))}


class Encode(PipelineStep):
    """Token ids of one shard's documents, the end-of-text id after each; memory of one document."""

    name, type = "encode", "🔢 - TOKENIZER"

    def __init__(self, tokenizer: Path, folder: Path, dtype: np.dtype, eos_token_id: int):
        super().__init__()
        self.tokenizer, self.folder, self.dtype, self.eos = tokenizer, folder, dtype, eos_token_id

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:  # type: ignore[override]
        encoder = Encoder(load_tokenizer(self.tokenizer), self.dtype)
        end = np.array([self.eos], dtype=self.dtype).tobytes()
        (self.folder / "ids").mkdir(parents=True, exist_ok=True)
        rows, offset = [], 0
        with open(self.folder / "ids" / f"{rank:05d}.bin", "wb") as file:
            for doc in data or ():
                ids = encoder.encode(doc.text) + end
                file.write(ids)
                length = len(ids) // self.dtype.itemsize
                rows.append((doc.metadata["at"], offset, length, len(doc.text.encode())))
                offset += length
        np.save(self.folder / "ids" / f"{rank:05d}.npy", np.array(rows, dtype=IDS_INDEX), allow_pickle=False)
        yield from ()


def open_ids(encoded: Path, shard: int, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """(ids, index) of one shard, the ids mapped and not read."""
    index = np.load(encoded / "ids" / f"{shard:05d}.npy", allow_pickle=False)
    path = encoded / "ids" / f"{shard:05d}.bin"
    ids = np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.zeros(0, dtype=dtype)
    return ids, index


def nothing_left(folder: Folder, tasks: int) -> UserError:
    """Which step dropped most, for the message that nothing came through."""
    from pipeline.corpus.documents import count_decisions

    counts: dict[str, int] = {}
    for name in ("repair", "rules", "exact_dedup", "near_dedup"):
        counts.update(count_decisions(folder.input(name), tasks))
    return empty_corpus(counts)


def empty_corpus(dropped: dict[str, int]) -> UserError:
    """No train document is left: names the filter that dropped most and the key that loosens it."""
    worst = max(dropped, key=lambda n: dropped[n], default=None)
    if worst is None:
        return UserError("no train document is left: the corpus has too few documents; add to data.sources")
    keys = {
        "near_dedup": "raise data.near_dedup_similarity",
        "exact_dedup": "the sources repeat each other, add another under data.sources",
        "empty": "the documents are empty, see data.sources",
    }
    mend = keys.get(worst, f"loosen data.filters.{worst}, or take it out with data.filters.{worst}=null")
    listed = ", ".join(f"{name} {n:,}" for name, n in sorted(dropped.items(), key=lambda x: -x[1]))
    return UserError(f"no train document is left after filtering; dropped: {listed}. Most by '{worst}': {mend}")
