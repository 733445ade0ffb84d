"""Scorers that others have trained: a fastText classifier (DCLM), a Hugging Face sequence classifier (FineWeb-Edu).

Both score any source. How well they suit its text only labels can tell: `hornbook label` makes some.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document

from pipeline.corpus.scorers.base import KEY, DocumentScorer
from pipeline.corpus.scorers.fasttext import LABEL_PREFIX, FastTextModel, read_fasttext
from pipeline.corpus.text.tokenizer import clear_state
from pipeline.storage.files import hash_files
from pipeline.storage.hub import MODEL_FILES, content_of_model, local_folder
from pipeline.system.errors import UserError

CLASSIFIER_FILES = [*MODEL_FILES, "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "*.model"]
_UNKNOWN = "no rated documents of these sources: how well it ranks them is unknown"


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
