"""Encoding into shards: datatrove's DocumentTokenizer beside ours, and every document's ids against `tokenizers`."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.corpus.text.tokenizer import Encoder, load_tokenizer
from pipeline.corpus.tokenizing import END_OF_TEXT, Encode, _train, open_ids, token_dtype
from scripts.bench_rows import at_least, row
from scripts.data_bench.corpus import Sample, paired, sample

VOCAB_SIZE = 16_384


def run(megabytes: float, quick: bool) -> list[dict[str, Any]]:
    text = sample(megabytes)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        _train(text.texts[: len(text.texts) // 3], VOCAB_SIZE, folder / "tokenizer.json")
        lines = text.write(folder / "text", files=1)
        stock_runs, our_runs = (1, 3) if quick else (3, 5)
        stock, ours, _, written = paired(
            lambda: _stock(lines, folder), lambda: _ours(text, folder), stock_runs, our_runs
        )
        rows = [
            at_least("tokenize into shards against datatrove's", stock / ours, "x", 4),
            row("tokenize, stock", round(text.megabytes / stock, 2), "MB/s"),
            row("tokenize, ours", round(text.megabytes / ours, 1), "MB/s"),
            *_identical("ours, 16k", text, folder / "tokenizer.json", written),
        ]
        gpt2 = _gpt2_like(text, folder / "gpt2.json")
        return rows + _identical("GPT-2's cutting with runs of spaces added, as Phi's", text, gpt2, None)


def _stock(lines: Path, folder: Path) -> None:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    shutil.rmtree(folder / "stock", ignore_errors=True)
    step = DocumentTokenizer(
        str(folder / "stock" / "tokens"), tokenizer_name_or_path=str(folder / "tokenizer.json"), eos_token=END_OF_TEXT,
        shuffle_documents=False,
    )  # fmt: skip
    LocalPipelineExecutor([JsonlReader(str(lines)), step], tasks=1, logging_dir=str(folder / "stock" / "logs")).run()


def _ours(text: Sample, folder: Path) -> list[bytes]:
    """From the same file to ids on disk; a fresh encoder every time, which remembers nothing yet."""
    from datatrove.pipeline.readers import JsonlReader

    from pipeline.corpus.text import tokenizer as encoder

    encoder.encoder.cache_clear()
    step = Encode(folder / "tokenizer.json", folder / "ours", token_dtype(VOCAB_SIZE), 0)

    def documents() -> Any:
        for at, doc in enumerate(JsonlReader(str(folder / "text")).run()):
            doc.metadata["at"] = at
            yield doc

    list(step.run(documents()))
    ids, index = open_ids(folder / "ours", 0, token_dtype(VOCAB_SIZE))
    ends = np.cumsum(index["length"], dtype=np.int64)
    return [ids[end - length : end - 1].tobytes() for end, length in zip(ends, index["length"], strict=True)]


def _identical(name: str, text: Sample, path: Path, written: list[bytes] | None) -> list[dict[str, Any]]:
    tokenizer = load_tokenizer(path)
    dtype = token_dtype(VOCAB_SIZE)
    if written is None:
        encoder = Encoder(tokenizer, dtype)
        assert encoder.remembers
        written = [encoder.encode(t) for t in text.texts]
    same = 0
    for start in range(0, len(text.texts), 64):
        part = tokenizer.encode_batch(text.texts[start : start + 64], add_special_tokens=False)
        same += sum(np.array(e.ids, dtype=dtype).tobytes() == w for e, w in zip(part, written[start:], strict=False))
    return [at_least(f"documents with the ids of `tokenizers` ({name})", same / len(text.texts), "share", 1.0)]


def _gpt2_like(text: Sample, path: Path) -> Path:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=8_192, special_tokens=[END_OF_TEXT], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(text.texts[: len(text.texts) // 4], trainer)
    tokenizer.add_tokens([AddedToken(" " * n, normalized=True) for n in range(31, 1, -1)])
    tokenizer.add_tokens([AddedToken("\t" * n, normalized=True) for n in range(9, 1, -1)])
    tokenizer.save(str(path))
    return path
