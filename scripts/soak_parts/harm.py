"""Checkpoints under attack: a TMPDIR on another filesystem, and every file of one torn, flipped, deleted in turn."""

import os
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from pipeline.storage.run_files import INDEX, TRAINER, WEIGHTS
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.decisions import Decisions
from scripts.bench_rows import Rows, at_least, at_most, row
from scripts.soak_parts.lab import Lab, inside, lab

SHARED_MEMORY = Path("/dev/shm")
KILLS = 10


def other_tmpdir(quick: bool) -> Rows:
    """Kills inside saves with TMPDIR in memory and the run on a disk."""
    if not SHARED_MEMORY.is_dir() or os.stat(SHARED_MEMORY).st_dev == os.stat(tempfile.gettempdir()).st_dev:
        return [row("TMPDIR on another filesystem: there is none here", 0, "kills", ">= 1", False)]
    draw, kills, looked_at, unreadable, in_saves = random.Random(11), 0, 0, 0, 0
    with lab() as place, tempfile.TemporaryDirectory(dir=SHARED_MEMORY) as elsewhere:
        place.warm = True
        place.finish("pretrain")
        undisturbed = place.outcome()
        place.environment["TMPDIR"] = elsewhere
        place.forget("pretrain")
        while kills < (2 if quick else KILLS):
            life = place.killed("pretrain", inside(place, "save", draw, draw.randint(1, 2)))
            if life.code == 0:
                place.forget("pretrain")
                continue
            kills, in_saves = kills + 1, in_saves + (life.inside == "save")
            found = _checkpoints(place)
            looked_at, unreadable = looked_at + len(found), unreadable + sum(problem is not None for problem in found)
        place.finish("pretrain")
        differing = place.outcome().differences(undisturbed)
    return [
        row("TMPDIR on another filesystem: kill -9, inside a save", f"{kills}, {in_saves}", ""),
        row("checkpoints looked at after the kills", looked_at, ""),
        at_most("of them unreadable", unreadable, "", 0),
        at_most("differences to the undisturbed run", len(differing), "", 0),
    ]


def _checkpoints(place: Lab) -> list[str | None]:
    """What is wrong with each checkpoint under its final name."""
    store = Checkpoints(place.pretrain / "checkpoints", 2, Decisions(None))
    return [store.damage(path) for path in place.checkpoints()]


def every_file(quick: bool) -> Rows:
    """Each file of the newest checkpoint torn, flipped and deleted: noticed, and the one before it used."""
    harms: dict[str, Callable[[Path], object]] = {
        "torn": lambda path: os.truncate(path, path.stat().st_size // 2),
        "flipped": _flip,
        "deleted": Path.unlink,
    }
    tried, noticed, before_used, differing = 0, 0, 0, 0
    with lab() as place, tempfile.TemporaryDirectory() as aside:
        place.warm = True
        place.finish("pretrain")
        undisturbed = place.outcome()
        # The state of a run that was killed while exporting, with the manifest and the export gone.
        shutil.rmtree(place.pretrain / "model")
        (place.pretrain / "manifest.json").unlink()
        kept = Path(aside) / "kept"
        shutil.copytree(place.pretrain, kept)
        fingerprint = place.pretrain
        for name in (WEIGHTS, TRAINER, INDEX):
            for harm in harms.values():
                shutil.rmtree(fingerprint)
                shutil.copytree(kept, fingerprint)
                newest, before = sorted(fingerprint.glob("checkpoints/step-*"), reverse=True)[:2]
                harm(newest / name)
                life = place.finish("pretrain")
                tried += 1
                noticed += f"{newest.name} is damaged" in life.said
                before_used += place.records("life")[-1]["step"] == int(before.name.removeprefix("step-"))
                differing += bool(place.outcome().differences(undisturbed))
    return [
        row("files of a checkpoint harmed: 3 files, torn, flipped, deleted", tried, "times"),
        at_least("noticed and named", noticed / tried, "share", 1),
        at_least("went on from the checkpoint before", before_used / tried, "share", 1),
        at_most("ended otherwise than the undisturbed run", differing, "times", 0),
    ]


def _flip(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
