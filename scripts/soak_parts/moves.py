"""Machines that vanish: killed, everything on them gone; the same command on an empty one goes on from the remote."""

import random
import shutil
import tempfile
from pathlib import Path

from scripts.bench_rows import Rows, at_least, at_most, row
from scripts.soak_parts.lab import Lab, after, lab

MACHINES = 10


def to_empty_machines(quick: bool) -> Rows:
    """Kills at random instants; after each, nothing is left but the config and HORNBOOK_REMOTE."""
    draw, kills, from_remote = random.Random(14), 0, 0
    with lab() as place, tempfile.TemporaryDirectory(prefix="hornbook-remote-") as there:
        place.warm = True
        whole = place.finish("pretrain")
        undisturbed = place.outcome()
        place.environment["HORNBOOK_REMOTE"] = f"file://{there}"
        _empty(place)
        place.finish("data")
        place.finish("init")
        reached = 0
        while kills < (2 if quick else MACHINES):
            life = place.killed("pretrain", after(draw.uniform(0.3, 1.0) * whole.seconds))
            from_remote += "is ahead (step" in life.said
            kills += life.code != 0
            if life.code == 0:  # done before it was killed: a new run
                shutil.rmtree(Path(there) / "artifacts" / "pretrain")
            _empty(place)
            reached = max(reached, _newest(Path(there)))
        last = place.finish("pretrain")
        from_remote += "is ahead (step" in last.said
        found = place.outcome()
        differing = found.differences(undisturbed)
    return [
        row("machines that vanished in pretrain, with all that was on them", kills, "machines"),
        at_least("lives that went on from the remote's state", from_remote, "lives", 1),
        row("newest step at the remote when one vanished", reached, "steps"),
        at_most(f"differences to the undisturbed run {', '.join(differing)}".strip(), len(differing), "", 0),
    ]


def _empty(place: Lab) -> None:
    for name in ("artifacts", "runs"):
        shutil.rmtree(place.folder / name, ignore_errors=True)


def _newest(there: Path) -> int:
    indexes = there.glob("artifacts/pretrain/*/checkpoints/step-*/checkpoint.json")
    return max((int(path.parent.name.removeprefix("step-")) for path in indexes), default=0)
