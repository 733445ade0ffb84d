"""Is an hour ever wasted? Caps under random kills, and what a pretraining said beforehand beside what happened.

    scripts/with_env.sh scripts/bench_hours.py --only kills --json docs/results/hours/bench_hours.json
    scripts/with_env.sh scripts/bench_hours.py --only memory,time --json docs/results/hours/forecast.json
    scripts/with_env.sh scripts/bench_hours.py --quick

A 0.4M model on a slice of configs/tiny.yaml's corpus, one thread, caps of about a minute in which starting the process
counts. `JOBS=2` in the environment runs two killed runs, or the memory of two settings, at a time.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.bench_rows import Part, main
from tests.soak import hours

PARTS = {
    "kills": Part(hours.kills, one_core=False),
    "memory": Part(hours.memory, one_core=False, slow=True),
    "time": Part(hours.forecast_time, slow=True),
}

if __name__ == "__main__":
    main(__file__, __doc__ or "", "hours", PARTS, ("torch", "lightning"))
