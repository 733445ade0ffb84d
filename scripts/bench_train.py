"""Our engine beside litgpt, transformers and a nanoGPT-style loop on a CPU: speed, cost of Lightning, loss per hour.

    scripts/with_env.sh scripts/bench_train.py --json docs/results/training/bench_train.json
    scripts/with_env.sh scripts/bench_train.py --quick --only small

The peers, in an environment of their own that has hornbook's packages too: `pip install -e '.[dev]' accelerate
'jsonargparse[signatures]<=4.41' psutil`, then `pip install --no-deps litgpt==0.5.13` (it asks for a huggingface-hub
that transformers 5 is too new for, and that nothing used here needs).
Every arm is a process; the arms of a race take turns of a few steps; figures are medians of CPU time per step.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.bench_rows import Part, Rows, main

LIBRARIES = ("torch", "lightning", "litgpt", "transformers", "accelerate", "numpy")


def _small(quick: bool) -> Rows:
    from scripts.train_bench import speed

    return speed.run("S", quick)


def _medium(quick: bool) -> Rows:
    from scripts.train_bench import speed

    return speed.run("M", quick)


def _threads(quick: bool) -> Rows:
    from scripts.train_bench import speed

    return speed.run_two_threads(quick)


def _huge_pages(quick: bool) -> Rows:
    from scripts.train_bench import speed

    return speed.run_huge_pages(quick)


def _compiled(quick: bool) -> Rows:
    from scripts.train_bench import speed

    return speed.run_compiled(quick)


def _lightning(quick: bool) -> Rows:
    from scripts.train_bench import lightning_cost

    return lightning_cost.run(quick)


def _quality(quick: bool) -> Rows:
    from scripts.train_bench import quality

    return quality.run(10.0 if quick else 200.0)


def _sweeps(quick: bool) -> Rows:
    from scripts.train_bench import sweeps

    return sweeps.run(quick)


def _widths(quick: bool) -> Rows:
    from scripts.train_bench import sweeps

    return sweeps.run_widths(quick)


PARTS = {
    "small": Part(_small),
    "medium": Part(_medium, slow=True),
    "lightning": Part(_lightning),
    "quality": Part(_quality, slow=True),
    "sweeps": Part(_sweeps, slow=True),
    "widths": Part(_widths, slow=True),
    "compiled": Part(_compiled, slow=True),
    "huge_pages": Part(_huge_pages, slow=True),
    "threads": Part(_threads, one_core=False, slow=True),
}


if __name__ == "__main__":
    main(__file__, __doc__ or "", "train", PARTS, LIBRARIES)
