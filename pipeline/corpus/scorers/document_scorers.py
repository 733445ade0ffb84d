"""Quality scorers: documents in, numbers from 0 to 1 out. Linear ones of our own, and models that others have trained.

A scorer knows what it was trained on. The shipped one scores English prose and code and has no opinion of text in
another language, as its number would mean nothing there; `sources` names what is scored. A fastText classifier (DCLM)
and a Hugging Face sequence classifier (FineWeb-Edu) score any source; how well they suit its text only labels can
tell, and `hornbook label` makes some.

fastText's files are read and applied with numpy alone. Training is left out on purpose, as it differs from run to run.
Format and arithmetic are those of fastText 0.9 (Joulin et al. 2016, arXiv 1607.01759): words and hashed word n-grams,
optional character n-grams, a mean of rows, softmax or one-against-all.
"""

import ctypes
import json
import re
import struct
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
from datatrove.data import Document

from pipeline.corpus.scorers.features import features, in_english
from pipeline.corpus.scorers.linear import Scorer, load_scorer
from pipeline.corpus.text.source import look_up, make
from pipeline.corpus.text.tokenizer import clear_state
from pipeline.storage.files import hash_files, write_json
from pipeline.storage.hub import MODEL_FILES, content_of_model, local_folder
from pipeline.system.errors import UserError

SHIPPED = Path(__file__).with_name("gold") / "scorer.safetensors"
KEY = "data.scorer"

CLASSIFIER_FILES = [*MODEL_FILES, "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "*.model"]
_UNKNOWN = "no rated documents of these sources: how well it ranks them is unknown"

MAGIC, FILE_VERSION = 793712314, 12
SUPERVISED = 3
HIERARCHICAL, SOFTMAX = 1, 3  # of its losses; the others give each label a probability of its own
LABEL_PREFIX, END_OF_LINE = "__label__", "</s>"
_WHITE_SPACE = re.compile("[ \\t\\n\\v\\f\\r\\0]+")
_NGRAM_FACTOR = 116049371
_MASK = (1 << 64) - 1


class DocumentScorer(ABC):
    """Options are the keywords of `__init__`; `sources`: names of the sources that are scored, null for those that
    are like what it was trained on."""

    libraries: ClassVar[tuple[str, ...]] = ("numpy",)
    source_types: ClassVar[tuple[str, ...] | None] = None
    """Types of source that are like what it was trained on; None: it is for any text."""
    unlike: ClassVar[str] = ""
    """Why other sources are not scored."""

    def __init__(self, sources: Sequence[str] | None = None):
        if isinstance(sources, str):
            raise ValueError(f"sources is '{sources}'; expected a list of names, or null")
        self.sources = None if sources is None else sorted(set(sources))

    def chosen(self, types: dict[str, str]) -> list[str]:
        """Which of the sources (name -> type) it scores. Raises `UserError` for a name that is no source."""
        for name in self.sources or ():
            if name not in types:
                raise UserError(f"{KEY}.sources names '{name}'; expected some of {', '.join(types)}")
        if self.sources is not None:
            return self.sources
        return [n for n, kind in types.items() if self.source_types is None or kind in self.source_types]

    @abstractmethod
    def content(self) -> str:
        """What the scores depend on beyond the options, for the fingerprint. Raises `UserError` where a file is
        missing."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """`auc` on documents that it was not trained on (None: unknown), a `note`, and what else there is to know."""

    @abstractmethod
    def scores(self, documents: Sequence[Document]) -> np.ndarray:
        """float32, 0 to 1, for each document; NaN where the scorer has no opinion."""

    def store(self, folder: Path) -> None:  # noqa: B027 - nothing to put is the rule
        """Puts what `hornbook score` will need beside `scorer.json`; a large model stays where it lies."""


class Linear(DocumentScorer):
    """Hashed words and structure through one linear model."""

    def __init__(self, path: Path, sources: Sequence[str] | None = None):
        super().__init__(sources)
        self.path = path

    @cached_property
    def scorer(self) -> Scorer:
        return load_scorer(self.path)

    def content(self) -> str:
        if not self.path.is_file():
            raise UserError(f"{KEY}: there is no scorer at {self.path}; `hornbook label <config>` trains one")
        return hash_files([self.path], self.path.parent)

    def facts(self) -> dict[str, Any]:
        return dict(self.scorer.facts)

    def scores(self, documents: Sequence[Document]) -> np.ndarray:
        return self.scorer.scores(features(documents)) if documents else np.zeros(0, dtype=np.float32)

    def store(self, folder: Path) -> None:
        self.scorer.save(folder / SHIPPED.name)


class Shipped(Linear):
    """The scorer of this package, trained on rated English prose and code in many languages (docs/data/labels.md).
    Scores every source, or those that `sources` names; has no opinion of text in another language than English."""

    def __init__(self, sources: Sequence[str] | None = None):
        super().__init__(SHIPPED, sources)

    def scores(self, documents: Sequence[Document]) -> np.ndarray:
        if not documents:
            return np.zeros(0, dtype=np.float32)
        rows = features(documents)
        return np.where(in_english(rows), self.scorer.scores(rows), np.float32(np.nan))


class Trained(Linear):
    """A scorer that `hornbook label` trained, for any source. `path`: its file; null: the one of this experiment."""

    def __init__(self, path: str | None = None, sources: Sequence[str] | None = None):
        super().__init__(Path(path or SHIPPED.name).expanduser(), sources)


class FastText(DocumentScorer):
    """A fastText classifier; `path`: its .bin file, `label`: the label whose probability is the score."""

    def __init__(self, path: str, label: str, sources: Sequence[str] | None = None):
        super().__init__(sources)
        self.path = Path(path).expanduser()
        self.label = label if label.startswith(LABEL_PREFIX) else LABEL_PREFIX + label

    @cached_property
    def model(self) -> "FastTextModel":
        model = read_fasttext(self.path)
        if self.label not in model.labels:
            raise UserError(
                f"{KEY}.label is '{self.label}', which {self.path} does not know; expected one of "
                f"{', '.join(sorted(model.labels)[:20])}"
            )
        return model

    def content(self) -> str:
        if not self.path.is_file():
            raise UserError(f"{KEY}.path: there is no file {self.path}; expected a fastText model (.bin)")
        return hash_files([self.path], self.path.parent)

    def facts(self) -> dict[str, Any]:
        return {"auc": None, "note": f"probability of {self.label}; {_UNKNOWN}"}

    def scores(self, documents: Sequence[Document]) -> np.ndarray:
        found = [self.model.probability(document.text, self.label) for document in documents]
        return np.round(np.array(found, dtype=np.float64), 4).astype(np.float32)


class Classifier(DocumentScorer):
    """A Hugging Face sequence classifier; `path`: folder or hub name. With one output (FineWeb-Edu) the score is that
    number over `most`; else it is the probability of `label` (a name or number; null: the last).
    """

    libraries = ("numpy", "transformers", "torch")

    def __init__(
        self, path: str, most: float = 5.0, label: str | None = None, max_tokens: int = 512, batch: int = 16,
        device: str = "cpu", sources: Sequence[str] | None = None,
    ):  # fmt: skip
        super().__init__(sources)
        if most <= 0 or max_tokens < 1 or batch < 1:
            raise ValueError("most, max_tokens and batch: expected more than 0")
        self.path, self.most, self.label, self.max_tokens = path, most, label, max_tokens
        self.batch, self.device = batch, device
        try:
            import transformers  # noqa: F401
        except ImportError:
            raise ValueError(
                "type classifier needs transformers, which is not installed: pip install transformers"
            ) from None

    def content(self) -> str:
        if not Path(self.path).expanduser().exists() and "/" not in self.path:
            raise UserError(f"{KEY}.path is '{self.path}'; expected a folder or a hub name such as org/model@revision")
        return content_of_model(self.path, f"{KEY}.path")

    def facts(self) -> dict[str, Any]:
        return {"auc": None, "note": f"output of {Path(self.path).name}; {_UNKNOWN}"}

    def scores(self, documents: Sequence[Document]) -> np.ndarray:
        import torch

        tokenizer, model = self._loaded
        filled = [i for i, document in enumerate(documents) if document.text.strip()]  # an empty text has score 0
        scores = np.zeros(len(documents), dtype=np.float32)
        for start in range(0, len(filled), self.batch):
            chosen = filled[start : start + self.batch]
            texts = [documents[i].text for i in chosen]
            inputs = tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=self.max_tokens)
            with torch.inference_mode():
                logits = model(**inputs.to(self.device)).logits.float().cpu()
            if logits.shape[1] == 1:
                values = logits[:, 0].clamp(0, self.most) / self.most
            else:
                values = logits.softmax(dim=1)[:, self._column(model.config)]
            scores[chosen] = values.numpy()
        return np.round(scores, 4)

    def _column(self, config: Any) -> int:
        names = {str(name): int(number) for name, number in (config.label2id or {}).items()}
        names |= {str(number): number for number in range(config.num_labels)}
        if self.label is not None and str(self.label) not in names:
            raise UserError(f"{KEY}.label is '{self.label}'; {self.path} has {', '.join(names)}")
        return config.num_labels - 1 if self.label is None else names[str(self.label)]

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        """Tokenizer and model."""
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        folder = local_folder(self.path, f"{KEY}.path", CLASSIFIER_FILES, classifier=True)
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder)
            model = AutoModelForSequenceClassification.from_pretrained(folder, use_safetensors=True)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{KEY}.path: {folder} is no sequence classifier that transformers can load: {error}"
            ) from None
        if tokenizer.is_fast:
            clear_state(tokenizer.backend_tokenizer)
        return tokenizer, model.eval().to(self.device)


# The scorers that a config may name under `data.scorer.type`.
SCORERS: dict[str, type[DocumentScorer]] = {
    "shipped": Shipped,
    "trained": Trained,
    "fasttext": FastText,
    "classifier": Classifier,
}


def make_scorer(options: Mapping[str, Any] | None) -> DocumentScorer | None:
    """The scorer behind the section `data.scorer`; None for null. `UserError` for an unknown type or option."""
    if options is None:
        return None
    if "type" not in options:
        raise UserError(f"{KEY} is {dict(options)!r}; expected a section such as {{type: shipped}}, or null")
    cls = look_up(SCORERS, options["type"], f"{KEY}.type", "scorers")
    return make(cls, {name: value for name, value in options.items() if name != "type"}, KEY)


def save_scorer(scorer: DocumentScorer, options: Mapping[str, Any], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    scorer.store(folder)
    write_json(folder / "scorer.json", dict(options))


def stored_scorer(folder: Path) -> DocumentScorer:
    """The scorer that `save_scorer` has left in a folder."""
    if (folder / SHIPPED.name).is_file():
        return Linear(folder / SHIPPED.name)
    scorer = make_scorer(json.loads((folder / "scorer.json").read_text(encoding="utf-8")))
    assert scorer is not None
    scorer.content()  # says so where the model has gone
    return scorer


@dataclass
class FastTextModel:
    """`words`: word -> row of `rows`; buckets of n-grams follow the words. `output`: one row a label."""

    words: dict[str, int]
    labels: list[str]
    rows: np.ndarray
    output: np.ndarray
    loss: int
    word_ngrams: int
    buckets: int
    min_characters: int
    max_characters: int

    def probability(self, text: str, label: str) -> float:
        """Of one label; newlines count as spaces. 0 for a text without a single known word or n-gram."""
        ids = self._ids(text)
        if not ids:
            return 0.0
        logits = self.output @ self.rows[ids].mean(axis=0, dtype=np.float64)
        at = self.labels.index(label)
        if self.loss == SOFTMAX:
            odds = np.exp(logits - logits.max())
            return float(odds[at] / odds.sum())
        return float(1 / (1 + np.exp(-logits[at])))

    def _ids(self, text: str) -> list[int]:
        tokens = _tokens(text)
        ids: list[int] = []
        for token in tokens:
            known = self.words.get(token)
            if known is not None:
                ids.append(known)
            if self.max_characters > 0 and token != END_OF_LINE:
                ids.extend(self._character_ngrams(f"<{token}>"))
        if self.word_ngrams > 1 and self.buckets:
            # C++ keeps a 32-bit hash as a signed number, and widens it so.
            hashes = [ctypes.c_int32(hash_bytes(token.encode("utf-8", "replace"))).value for token in tokens]
            for start, value in enumerate(hashes):
                for other in hashes[start + 1 : start + self.word_ngrams]:
                    value = (value * _NGRAM_FACTOR + other) & _MASK
                    ids.append(len(self.words) + value % self.buckets)
        return ids

    def _character_ngrams(self, word: str) -> list[int]:
        found = []
        for start in range(len(word)):
            for length in range(max(1, self.min_characters), self.max_characters + 1):
                piece = word[start : start + length]
                at_an_end = start == 0 or start + length == len(word)
                if len(piece) == length and not (length == 1 and at_an_end):
                    found.append(len(self.words) + hash_bytes(piece.encode("utf-8", "replace")) % self.buckets)
        return found


def _tokens(text: str) -> list[str]:
    """Words as fastText's `readWord` cuts them: at ASCII white space and NUL, never at the spaces of Unicode. An end of
    line that is written out ends the text; a word that begins like a label is left out."""
    words = list(filter(None, _WHITE_SPACE.split(text)))
    if END_OF_LINE in words:
        del words[words.index(END_OF_LINE) :]
    return [word for word in words if not word.startswith(LABEL_PREFIX)] + [END_OF_LINE]


def hash_bytes(word: bytes) -> int:
    """fastText's 32-bit FNV-1a, which takes bytes as signed numbers."""
    value = 2166136261
    for byte in word:
        value = ((value ^ (byte if byte < 128 else byte | 0xFFFFFF00)) * 16777619) & 0xFFFFFFFF
    return value


def read_fasttext(path: Path) -> FastTextModel:
    """Raises `UserError` for another kind of file, one that is cut off, or a model that is not supported."""
    try:
        with open(path, "rb") as file:
            return _read_model(file, path)
    except (struct.error, ValueError, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no fastText model or is cut off ({error}); expected a .bin file") from None


def _read_model(file: BinaryIO, path: Path) -> FastTextModel:
    magic, version = _numbers(file, "ii")
    if (magic, version) != (MAGIC, FILE_VERSION):
        raise UserError(f"{path} is no fastText model of version {FILE_VERSION} (its head is {magic}, {version})")
    dim, _, _, _, _, word_ngrams, loss, kind, buckets, least, most, _ = _numbers(file, "12i")
    _numbers(file, "d")
    if kind != SUPERVISED:
        raise UserError(f"{path} holds word vectors; expected a classifier (`fasttext supervised`)")
    if loss == HIERARCHICAL:
        raise UserError(f"{path} was trained with loss hs, which is not supported; expected softmax, ova or ns")
    size, n_words, n_labels = _numbers(file, "iii")
    _, pruned = _numbers(file, "qq")
    words, labels = {}, []
    for number in range(size):
        name = _text(file)
        _, is_label = _numbers(file, "qb")
        if is_label:
            labels.append(name)
        else:
            words[name] = number
    if (len(words), len(labels)) != (n_words, n_labels) or pruned >= 0:
        raise UserError(f"{path} has a pruned or inconsistent dictionary, which is not supported; expected a .bin file")
    rows, output = _matrix(file, path), _matrix(file, path)
    if rows.shape != (n_words + buckets, dim) or output.shape != (n_labels, dim):
        raise ValueError(f"its tables are {rows.shape} and {output.shape}")
    return FastTextModel(words, labels, rows, output, loss, word_ngrams, buckets, least, most)


def _matrix(file: BinaryIO, path: Path) -> np.ndarray:
    if _numbers(file, "?")[0]:
        raise UserError(f"{path} is quantized (.ftz), which is not supported; expected a .bin file")
    m, n = _numbers(file, "qq")
    if m < 0 or n < 0:
        raise ValueError(f"a table of {m} x {n}")
    values = np.fromfile(file, dtype="<f4", count=m * n)
    return values.reshape(m, n)


def _numbers(file: BinaryIO, form: str) -> tuple:
    return struct.unpack(f"<{form}", file.read(struct.calcsize(f"<{form}")))


def _text(file: BinaryIO) -> str:
    found = bytearray()
    while (byte := file.read(1)) != b"\0":
        if not byte:
            raise ValueError("its dictionary has no end")
        found += byte
    return found.decode("utf-8", "replace")
