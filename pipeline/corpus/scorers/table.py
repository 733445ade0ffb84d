"""The scorers that a config may name under `data.scorer.type`."""

from pipeline.corpus.scorers.base import DocumentScorer, Shipped, Trained
from pipeline.corpus.scorers.models import Classifier, FastText

SCORERS: dict[str, type[DocumentScorer]] = {
    "shipped": Shipped,
    "trained": Trained,
    "fasttext": FastText,
    "classifier": Classifier,
}
