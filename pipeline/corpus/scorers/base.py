"""What a quality scorer is: documents in, numbers from 0 to 1 out; and those that are linear.

A scorer knows what it was trained on. The shipped one scores Python library text and leaves other sources alone, as
its number would mean nothing there; `sources` names those that are scored all the same.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from datatrove.data import Document

from pipeline.corpus.scorers.features import features
from pipeline.corpus.scorers.gold import FOLDER
from pipeline.corpus.scorers.linear import Scorer, load_scorer
from pipeline.storage.files import hash_files
from pipeline.system.errors import UserError

SHIPPED = FOLDER / "scorer.safetensors"
KEY = "data.scorer"


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
