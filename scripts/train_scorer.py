"""Trains the shipped scorer from the shipped labels: after new labels, or a new version of the features.

    python scripts/train_scorer.py

Needs the distributions that the labels name, in the versions of constraints.txt; a label whose text is not installed
here stops it, since a scorer trained on fewer labels would not be the one that docs/data/labels.md describes.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.corpus.scorers.document_scorers import SHIPPED
from pipeline.corpus.scorers.labels import learn_shipped

if __name__ == "__main__":
    scorer, missing = learn_shipped()
    if missing:
        raise SystemExit(f"labels without their text here: {missing}; install the versions of constraints.txt")
    scorer.save(SHIPPED)
    print(json.dumps(scorer.facts, indent=1))
