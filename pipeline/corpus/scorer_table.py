"""The scorers that a config may name under `data.scorer.type`."""

from pipeline.corpus.model_scorers import Classifier, FastText
from pipeline.corpus.scorers import DocumentScorer, Shipped, Trained

SCORERS: dict[str, type[DocumentScorer]] = {
    "shipped": Shipped,
    "trained": Trained,
    "fasttext": FastText,
    "classifier": Classifier,
}
