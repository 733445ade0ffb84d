"""Trains the shipped scorer from the shipped labels: after new labels, or a new version of the features.

    python scripts/rated_texts.py phrases FOLDER    # only after a new version of the words: the table of known phrases
    python scripts/train_scorer.py FOLDER

Needs the distributions that the labels of the Python library name, in the versions of constraints.txt, and in FOLDER
the texts of the others, which are fetched where `rated_texts.py draw` did not leave them. A label whose text is not
found stops it, since a scorer trained on fewer labels would not be the one that docs/data/labels.md describes.
"""

import json
import sys
from pathlib import Path

from datatrove.data import Document

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.corpus.scorers.document_scorers import SHIPPED
from pipeline.corpus.scorers.labels import Label, find_documents, learn, read_labels, repaired
from scripts.rated_texts import find

ATTACKS = 2


def rated_documents(folder: Path) -> tuple[list[Label], list[Document]]:
    """The shipped labels and their texts. Exits where one is missing."""
    labels = read_labels()
    fetched, missing = find(labels, folder)
    installed, not_installed = find_documents(labels)
    if missing or not_installed:
        print(f"labels without their text here: {missing}, {not_installed}", file=sys.stderr)
    pairs = [(label, fetched.get(label.sha256) or installed.get(label.path)) for label in labels]
    found = [(label, repaired(document)) for label, document in pairs if document is not None]
    return [label for label, _ in found], [document for _, document in found]


if __name__ == "__main__":
    labels, documents = rated_documents(Path(sys.argv[1]))
    raters = ", ".join(sorted({label.rater for label in labels}))
    groups = [label.group for label in labels]
    scorer = learn(documents, [label.score for label in labels], groups, raters, attacks=ATTACKS)
    scorer.save(SHIPPED)
    print(json.dumps(scorer.facts, indent=1))
