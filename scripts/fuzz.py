"""Does anything that a stranger's file, a typing error or a broken disk can hold stop hornbook in the wrong way?

    scripts/with_env.sh scripts/fuzz.py --cases 20000 --json docs/results/fuzz.json
    scripts/with_env.sh scripts/fuzz.py --kind jsonl --seed 7 --cases 1     # one case again

Every case draws from its seed alone: a good example of its kind, damaged, with good ones beside it. It must end within
20 s of processor time, in 2 GB, with exit code 0, or 1 or 2 and one message; what is lost must be counted, and what is
good must be kept. Case n of a run with seed S is the case of seed S + n. What went wrong is printed with the
command that repeats it.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.update(TOKENIZERS_PARALLELISM="false", WANDB_MODE="offline", HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")

from tests.fuzz.command import main  # loads torch, which reads the variables above

if __name__ == "__main__":
    main(__doc__ or "")
