"""The data stage beside stock datatrove, on one core and on text that every Python environment has.

    scripts/with_env.sh scripts/bench_data.py --json docs/results/data/bench_data.json
    scripts/with_env.sh scripts/bench_data.py --quick --only rules,near

Stock datatrove splits English with spaCy and hashes with xxhash below 4: `pip install -e '.[bench]'` in an environment
of its own. CPU time, medians of paired runs; every part is a fresh process, so that memory and caches are its own.
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.bench_rows import Part, Rows, main

LIBRARIES = ("datatrove", "numpy", "rensa", "tokenizers", "spacy", "xxhash", "orjson")


def _near(quick: bool) -> Rows:
    from scripts.data_bench import near

    return near.run(4 if quick else 16, quick)


def _scale(quick: bool) -> Rows:
    from scripts.data_bench import near

    return near.run_scale(200_000 if quick else 10_000_000)


def _tokens(quick: bool) -> Rows:
    from scripts.data_bench import tokens

    return tokens.run(4 if quick else 40, quick)


def _rules(quick: bool) -> Rows:
    from scripts.data_bench import rules

    return rules.run(2 if quick else 20, quick)


def _chain(quick: bool) -> Rows:
    from scripts.data_bench import chain

    return chain.run(4 if quick else 24, quick)


def _memory(quick: bool) -> Rows:
    from scripts.data_bench import chain

    return chain.run_memory(4 if quick else 60)


def _decontaminate(quick: bool) -> Rows:
    from scripts.data_bench import decontaminate

    return decontaminate.run(6 if quick else 60, quick)


def _tiny(quick: bool) -> Rows:
    from scripts.data_bench import whole

    return whole.run_tiny()


def _determinism(quick: bool) -> Rows:
    from scripts.data_bench import whole

    return whole.run_determinism()


PARTS = {
    "rules": Part(_rules),
    "near": Part(_near),
    "tokens": Part(_tokens),
    "chain": Part(_chain),
    "decontaminate": Part(_decontaminate),
    "memory": Part(_memory),
    "scale": Part(_scale),
    "tiny": Part(_tiny, one_core=False, slow=True),
    "determinism": Part(_determinism, one_core=False, slow=True),
}


def _input() -> dict[str, Any]:
    from scripts.data_bench.corpus import sample

    return {"input_sha256": sample(20).sha256}


if __name__ == "__main__":
    main(__file__, __doc__ or "", "data", PARTS, LIBRARIES, _input)
