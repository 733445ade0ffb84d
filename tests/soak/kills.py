"""kill -9 at random instants of pretrain, data and init, and the same command again until it is done.

Also checkpoints under attack (a TMPDIR on another filesystem, every file of one torn, flipped, deleted in turn), and
machines that vanish with their disks: the same command on an empty one resumes from the remote.
"""

import os
import random
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from pipeline.storage.run_files import INDEX, TRAINER, WEIGHTS
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.decisions import Decisions
from scripts.bench_rows import Rows, at_least, at_most, row
from tests.soak.lab import (
    CONFIG,
    SAVE_SECONDS,
    Lab,
    Life,
    after,
    expected_tokens,
    import_seconds,
    inside,
    lab,
)

HEARTBEAT_SECONDS = 5.0
START_SECONDS = 10.0  # to the first step on resume, or twice what importing torch and lightning takes
AIMS = ("instant", "instant", "instant", "save", "export")
COLD_SHARE = 0.15  # of the lives begin as a user's do, with the imports: kills fall into those too
SOURCE = CONFIG.replace("name: soak", "name: soak-source").replace("20_480", "10_240")
GROWN = (
    CONFIG.replace("hidden_size: 32", "hidden_size: 48").replace("attention_heads: 4", "attention_heads: 6")
    + "init: {method: exact, source: soak-source.yaml, train_source: true}\n"
)


@dataclass
class Tally:
    """What the kills of a pretraining were, and the worst that they cost."""

    kills: int = 0
    runs: int = 0
    differing: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    lost_steps: int = 0
    hours_lacking: float = 0.0
    hours_too_many: float = 0.0


def pretrain(kills: int) -> Rows:
    """Kills at random instants, inside saves and inside exports, until there were `kills` of them."""
    draw, tally = random.Random(8), Tally()
    with lab() as place:
        place.warm = True
        whole = place.finish("pretrain")
        undisturbed = place.outcome()
        place.warm = False
        cold_seconds = whole.seconds + import_seconds()[0]
        while tally.kills < kills:
            place.forget("pretrain")
            lives = _until_done(place, draw, (whole.seconds, cold_seconds), kills - tally.kills, tally)
            tally.differing += bool(place.outcome().differences(undisturbed))
            tally.runs += 1
            _account(place, lives, tally)
        expected = expected_tokens(place, undisturbed.manifest["steps"])
    step_seconds = 256 / undisturbed.manifest["tokens_per_second"]
    return [
        row("kill -9 in pretrain", tally.kills, "kills"),
        row("of them inside a save", tally.kinds["save"], "kills"),
        row("of them inside an export", tally.kinds["export"], "kills"),
        row("of them in a process that imported torch itself", tally.kinds["cold"], "kills"),
        row("of them before the first step of the life", tally.kinds["starting"], "kills"),
        row("runs that they fell on", tally.runs, "runs"),
        row("one undisturbed run, imports left out", round(whole.seconds, 1), "s"),
        at_most("runs whose weights, losses, rows or tokens differ", tally.differing, "runs", 0),
        at_most("undisturbed token record differs from the data's own", expected != undisturbed.tokens, "", 0),
        row("steps of training lost to one kill, worst", tally.lost_steps, "steps"),
        at_most("the same as time, at the undisturbed run's speed", tally.lost_steps * step_seconds, "s", 2.0),
        row("the interval between two saves, as set", SAVE_SECONDS, "s"),
        at_most("hours that the ledger lacks of one life, worst", tally.hours_lacking, "s", HEARTBEAT_SECONDS + 1.0),
        at_most("hours that the ledger has too many of one life, worst", tally.hours_too_many, "s", 0.5),
    ]


def _until_done(place: Lab, draw: random.Random, seconds: tuple[float, float], left: int, tally: Tally) -> list[Life]:
    """One run, killed until it is done or there were `left` kills. `seconds`: of a warm run and of a cold one."""
    lives: list[Life] = []
    while True:
        place.warm = not draw.random() < COLD_SHARE
        if len(lives) >= left:
            return [*lives, place.finish("pretrain")]
        aim = draw.choice(AIMS)
        when = inside(place, aim, draw, draw.randint(1, 4) if aim == "save" else 1)
        if aim == "instant":
            when = after(draw.uniform(0.1, 1.2 * seconds[not place.warm]))
        began = len(place.records("life"))
        life = place.killed("pretrain", when)
        lives.append(life)
        if life.code == 0:
            return lives
        if life.code != -signal.SIGKILL:
            raise RuntimeError(f"pretrain ended with {life.code}:\n{life.said[-3000:]}")
        life.reached, life.lives = place.last_row(), len(place.records("life"))
        tally.kills += 1
        tally.kinds[life.inside] += 1
        tally.kinds["cold"] += not place.warm
        tally.kinds["starting"] += life.lives == began


def _account(place: Lab, lives: list[Life], tally: Tally) -> None:
    """What each kill cost: the steps that were done again, and the seconds that are not in the ledger."""
    starts = [record["step"] for record in place.records("life")]
    spent = place.spent("pretrain")
    for life in lives:
        if life.code < 0 and life.lives < len(starts):  # the next life that came so far
            tally.lost_steps = max(tally.lost_steps, life.reached - starts[life.lives])
        lacking = life.seconds - spent.get(life.pid, 0.0)
        tally.hours_lacking = max(tally.hours_lacking, lacking)
        tally.hours_too_many = max(tally.hours_too_many, -lacking)


def starts(quick: bool) -> Rows:
    """A killed run's next life as a user starts it: from the command to the first new row of metrics."""
    took, imports = [], []
    with lab() as place:
        place.warm = True
        typical = place.finish("pretrain").seconds
        for _ in range(2 if quick else 10):
            place.forget("pretrain")
            place.warm = True
            while not place.checkpoints():
                if place.killed("pretrain", after(0.6 * typical)).code == 0:
                    place.forget("pretrain")  # done already: again
            place.warm = False
            imports.append(import_seconds())
            took.append(place.seconds_to_first_step())
    walls = [(start[0], alone[0]) for start, alone in zip(took, imports, strict=True)]
    late = sum(start >= START_SECONDS and start >= 2 * alone for start, alone in walls)
    cores = [start[1] / alone[1] for start, alone in zip(took, imports, strict=True)]
    return [
        row("resumes as a user starts them, torch and lightning imported again", len(took), "starts"),
        row("start-up to the first step on resume, median", round(median(start for start, _ in walls), 1), "s"),
        row("start-up to the first step on resume, worst", round(max(start for start, _ in walls), 1), "s"),
        row("importing torch and lightning alone, beside each, median", round(median(a for _, a in walls), 1), "s"),
        at_most("of them over 10 s and over twice the imports beside them", late, "starts", 0),
        row("seconds of a core that a start-up takes, median", round(median(start for _, start in took), 2), "s"),
        row("  over those of the imports alone, median", round(median(cores), 2), "x"),
    ]


def data(kills: int) -> Rows:
    """Kills at random instants of the data stage; its shards byte by byte."""
    with lab(prepared=False) as place:
        return _stage(place, "data", kills, random.Random(9))


def init(kills: int) -> Rows:
    """Kills of `hornbook init` while it trains the model to grow from, and while it grows it."""
    with lab(GROWN) as place:
        (place.folder / "soak-source.yaml").write_text(SOURCE)
        return _stage(place, "init", kills, random.Random(10), "pretrain")


def _stage(place: Lab, stage: str, kills: int, draw: random.Random, *forgotten: str) -> Rows:
    """A stage killed until it is done, over and over, until there were `kills`. `forgotten`: what it makes besides."""
    place.forget(stage)
    whole = place.finish(stage)
    expected = place.content(stage)
    done, runs, differing = 0, 0, 0
    while done < kills:
        place.forget(stage, *forgotten)
        while done < kills and place.killed(stage, after(draw.uniform(0.1, whole.seconds))).code != 0:
            done += 1
        place.finish(stage)
        differing += place.content(stage) != expected
        runs += 1
    return [
        row(f"kill -9 in {stage}", done, "kills"),
        row("runs that they fell on", runs, "runs"),
        row("one undisturbed run", round(whole.seconds, 1), "s"),
        at_most("runs with a byte of output that differs", differing, "runs", 0),
    ]


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
        at_least("resumed from the checkpoint before", before_used / tried, "share", 1),
        at_most("ended otherwise than the undisturbed run", differing, "times", 0),
    ]


def _flip(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


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
        at_least("processes that resumed from the remote's state", from_remote, "lives", 1),
        row("newest step at the remote when one vanished", reached, "steps"),
        at_most(f"differences to the undisturbed run {', '.join(differing)}".strip(), len(differing), "", 0),
    ]


def _empty(place: Lab) -> None:
    for name in ("artifacts", "runs"):
        shutil.rmtree(place.folder / name, ignore_errors=True)


def _newest(there: Path) -> int:
    indexes = there.glob("artifacts/pretrain/*/checkpoints/step-*/checkpoint.json")
    return max((int(path.parent.name.removeprefix("step-")) for path in indexes), default=0)
