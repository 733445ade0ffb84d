"""How well the quality scorer agrees with the rated documents, and how fast it is; `--write` trains the shipped one.

    python scripts/bench_scorer.py --json docs/data/bench_scorer.json
    python scripts/bench_scorer.py --write       after new labels or a new version of the features

In: the labels in pipeline/corpus/gold and the distributions they name, as installed here. AUC is over documents of
packages that the scorer did not see (10 folds, packages whole), with an interval from resampling packages.
"""

RATER = "a language model with this rubric"
REPEATS = 5


def main() -> None:
    pass


if __name__ == "__main__":
    main()
