"""Does a run survive anything? Kills, torn files, full disks, signals and second writers, compared bit by bit.

    scripts/with_env.sh scripts/soak.py --json docs/results/soak.json
    scripts/with_env.sh scripts/soak.py --quick

A 0.2M model on two libraries' sources, one thread, the `hornbook` command as a user runs it. Whatever happens to a
run, its weights, the loss of every step and the record of the text it read must equal those of an undisturbed one.
"""

import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.bench_rows import Part, main
from tests.soak import faults, kills
from tests.soak.lab import PREPARED

PARTS = {
    "pretrain": Part(lambda quick: kills.pretrain(10 if quick else 100)),
    "starts": Part(kills.starts, slow=True),
    "data": Part(lambda quick: kills.data(2 if quick else 20), slow=True),
    "init": Part(lambda quick: kills.init(1 if quick else 10), slow=True),
    "tmpdir": Part(kills.other_tmpdir, slow=True),
    "checkpoints": Part(kills.every_file, slow=True),
    "limits": Part(faults.limits, slow=True),
    "disks": Part(faults.small, slow=True),
    "writers": Part(faults.two_at_once, slow=True),
    "signals": Part(faults.signals, slow=True),
    "large": Part(faults.large_state, slow=True),
    "replay": Part(faults.replay, slow=True),
    "machines": Part(kills.to_empty_machines, slow=True),
    "clocks": Part(faults.jumping, slow=True),
    "suspended": Part(faults.suspended, slow=True),
}

if __name__ == "__main__":
    if PREPARED in os.environ:
        main(__file__, __doc__ or "", "soak", PARTS, ("torch", "lightning", "datatrove"))
    else:
        with tempfile.TemporaryDirectory(prefix="hornbook-soak-data-") as folder:
            os.environ[PREPARED] = str(Path(folder) / "prepared")
            main(__file__, __doc__ or "", "soak", PARTS, ("torch", "lightning", "datatrove"))
