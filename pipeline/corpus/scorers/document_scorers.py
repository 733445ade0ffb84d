"""Quality scorers: documents in, numbers from 0 to 1 out. Linear ones of our own, and models that others have trained.

A scorer knows what it was trained on. The shipped one scores Python library text and leaves other sources alone, as
its number would mean nothing there; `sources` names those that are scored all the same. A fastText classifier (DCLM)
and a Hugging Face sequence classifier (FineWeb-Edu) score any source; how well they suit its text only labels can
tell, and `hornbook label` makes some.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from datatrove.data import Document

from pipeline.corpus.scorers.fasttext import LABEL_PREFIX, FastTextModel, read_fasttext
from pipeline.corpus.scorers.features import features
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
        """What the scores depend on besides the options, for the fingerprint. Raises `UserError` where a file is
        missing."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """`auc` on documents that it was not trained on (None: unknown), a `note`, and what else there is to know."""

    @abstractmethod
    def scores(self, documents: Sequence[Document]) -> np.ndarray:
        """float32, 0 to 1, for each document."""

    def store(self, folder: Path) -> None:  # noqa: B027 - nothing to put is the rule
        """Puts what `hornbook score` will need beside `scorer.json`; a large model stays where it lies."""


class Linear(DocumentScorer):
    """Hashed words and structure through one linear model."""

    def __init__(self, path: Path, sources: Sequence[str] | None = None):
        super().__init__(sources)
        self.path = path
        self._scorer: Scorer | None = None

    @property
    def scorer(self) -> Scorer:
        if self._scorer is None:
            self._scorer = load_scorer(self.path)
        return self._scorer

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
    """The scorer of this package, trained on rated documents of the Python library corpus (docs/data/labels.md). Scores
    sources of the type python_library, unless `sources` names others.
    """

    source_types = ("python_library",)
    unlike = (
        "the shipped scorer was trained on Python library code and manuals; `hornbook label <config>` trains one for "
        f"other text, {KEY}.sources=[...] names sources to score with it all the same"
    )

    def __init__(self, sources: Sequence[str] | None = None):
        super().__init__(SHIPPED, sources)


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
        self._model: FastTextModel | None = None

    @property
    def model(self) -> FastTextModel:
        if self._model is None:
            self._model = read_fasttext(self.path)
            if self.label not in self._model.labels:
                raise UserError(
                    f"{KEY}.label is '{self.label}', which {self.path} does not know; expected one of "
                    f"{', '.join(sorted(self._model.labels)[:20])}"
                )
        return self._model

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
        self._loaded: tuple[Any, Any] | None = None
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

        tokenizer, model = self._load()
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

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            from transformers import AutoModelForSequenceClassification, AutoTokenizer

            folder = local_folder(self.path, f"{KEY}.path", CLASSIFIER_FILES)
            try:
                tokenizer = AutoTokenizer.from_pretrained(folder)
                model = AutoModelForSequenceClassification.from_pretrained(folder, use_safetensors=True)
            except (OSError, ValueError) as error:
                raise UserError(
                    f"{KEY}.path: {folder} is no sequence classifier that transformers can load: {error}"
                ) from None
            if tokenizer.is_fast:
                clear_state(tokenizer.backend_tokenizer)
            self._loaded = tokenizer, model.eval().to(self.device)
        return self._loaded


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
