"""kill -9 at random instants of pretrain, data and init; the same command again, until it is done."""

import json
import random
import signal
from collections import Counter
from pathlib import Path

from scripts.bench_rows import Rows, at_most, row
from scripts.soak_parts.lab import (
    CONFIG,
    Lab,
    Life,
    after,
    expected_tokens,
    import_seconds,
    inside,
    lab,
    outputs,
    warm_up,
)

HEARTBEAT_SECONDS = 5.0
AIMS = ("instant", "instant", "instant", "save", "export")


def pretrain(kills: int) -> Rows:
    """Kills at random instants, inside saves and inside exports, until there were `kills` of them."""
    draw, tally, worst = random.Random(8), Counter[str](), {"lost": 0.0, "hours": 0.0, "over": 0.0, "start": 0.0}
    warm_up()
    with lab() as place:
        place.warm = True
        whole = place.finish("pretrain")
        undisturbed = place.outcome()
        step_seconds = 256 / undisturbed.manifest["tokens_per_second"]
        differing = 0
        while tally["kills"] < kills:
            place.forget("pretrain")
            lives = _until_done(place, draw, whole.seconds, kills - tally["kills"], tally, worst, step_seconds)
            differing += bool(place.outcome().differences(undisturbed))
            tally["runs"] += 1
            _account(place, lives, worst)
        expected = expected_tokens(place, undisturbed.manifest["steps"])
        imports = import_seconds()
    interval = 0.4
    return [
        row("kill -9 in pretrain", tally["kills"], "kills"),
        row("of them inside a save", tally["save"], "kills"),
        row("of them inside an export", tally["export"], "kills"),
        row("runs that they fell on", tally["runs"], "runs"),
        row("one undisturbed run", round(whole.seconds, 1), "s"),
        at_most("runs whose weights, losses, rows or tokens differ", differing, "runs", 0),
        at_most("undisturbed token record differs from the data's own", expected != undisturbed.tokens, "", 0),
        at_most("steps of training lost to one kill, worst, as time", worst["lost"], "s", interval + 2.0),
        at_most("start-up to the first step on resume, worst", worst["start"], "s", max(10.0, 2 * imports)),
        row("importing torch and lightning alone", round(imports, 1), "s"),
        at_most("hours that the ledger lacks, per kill, worst", worst["hours"], "s", HEARTBEAT_SECONDS + 1.0),
        at_most("hours that the ledger has too many, worst", worst["over"], "s", 0.5),
    ]


def _until_done(
    place: Lab, draw: random.Random, typical: float, left: int, tally: Counter, worst: dict, step_seconds: float
) -> list[Life]:
    lives: list[Life] = []
    while True:
        if len([life for life in lives if life.code < 0]) >= left:
            lives.append(place.finish("pretrain"))
            break
        aim = draw.choice(AIMS)
        when = inside(place, aim, draw, draw.randint(1, 4) if aim == "save" else 1)
        if aim == "instant":
            when = after(draw.uniform(0.1, 1.2 * typical))
        life = place.killed("pretrain", when)
        lives.append(life)
        if life.code == 0:
            break
        if life.code != -signal.SIGKILL:
            raise RuntimeError(f"pretrain ended with {life.code}:\n{life.said[-3000:]}")
        tally["kills"] += 1
        tally[life.inside] += 1
        life.last_row = place.last_row() if _began(place) else 0  # type: ignore[attr-defined]
    if _began(place):
        starts = [record["step"] for record in place.records("life")]
        ends = [life.last_row for life in lives if getattr(life, "last_row", 0)]  # type: ignore[attr-defined]
        # A kill before the first row left no life to compare with; the others pair up in order.
        for end in ends:
            resumed = max((s for s in starts if s <= end), default=0)
            worst["lost"] = max(worst["lost"], (end - resumed) * step_seconds)
    return lives


def _began(place: Lab) -> bool:
    folder = place.folder / "artifacts" / "pretrain"
    return folder.is_dir() and any(folder.glob("*/decisions.jsonl"))


def _account(place: Lab, lives: list[Life], worst: dict) -> None:
    """The ledger against the wall clock, and how long the last life took to its first step."""
    manifest = place.outcome().manifest
    ledger = [json.loads(line) for line in (place.pretrain / "ledger.jsonl").read_text().splitlines()]
    known = {line["pid"] for line in ledger}
    spent: dict[int, float] = {}
    for line in ledger:
        spent[line["pid"]] = max(spent.get(line["pid"], 0.0), line["seconds"])
    counted = [life for life in lives if life.seconds > 0]
    missing = sum(life.seconds for life in counted) - sum(spent.values())
    kills = max(1, sum(life.code < 0 for life in counted))
    worst["hours"] = max(worst["hours"], missing / kills)
    worst["over"] = max(worst["over"], -missing)
    if len(known) > 1 and manifest["lives"] > 1:
        worst["start"] = max(worst["start"], manifest["start_seconds"])


def data(kills: int) -> Rows:
    """Kills at random instants of the data stage; its shards byte by byte."""
    draw, done, runs, differing = random.Random(9), 0, 0, 0
    with lab(prepared=False) as place:
        whole = place.finish("data")
        expected = outputs(_manifest(place, "data"))
        while done < kills:
            place.forget("data")
            while done < kills:
                life = place.killed("data", after(draw.uniform(0.5, 0.9 * whole.seconds)))
                if life.code == 0:
                    break
                done += 1
            place.finish("data")
            found = outputs(_manifest(place, "data"))
            differing += {k: v for k, v in found.items() if "report" not in k} != {
                k: v for k, v in expected.items() if "report" not in k
            }
            runs += 1
    return [
        row("kill -9 in data", done, "kills"),
        row("runs that they fell on", runs, "runs"),
        row("one undisturbed run", round(whole.seconds, 1), "s"),
        at_most("runs with a byte of output that differs", differing, "runs", 0),
    ]


SOURCE = CONFIG.replace("name: soak", "name: soak-source").replace("20_480", "10_240")


def init(kills: int) -> Rows:
    """Kills of `hornbook init` while it trains the model to grow from, and while it grows it."""
    draw, done, runs, differing = random.Random(10), 0, 0, 0
    config = CONFIG.replace("hidden_size: 32", "hidden_size: 48").replace("attention_heads: 4", "attention_heads: 6")
    config += "init: {method: exact, source: soak-source.yaml, train_source: true}\n"
    with lab(config) as place:
        (place.folder / "soak-source.yaml").write_text(SOURCE)
        whole = place.finish("init")
        expected = outputs(_manifest(place, "init"))
        while done < kills:
            place.forget("init", "pretrain")
            while done < kills:
                life = place.killed("init", after(draw.uniform(0.5, 0.9 * whole.seconds)))
                if life.code == 0:
                    break
                done += 1
            place.finish("init")
            differing += outputs(_manifest(place, "init")) != expected
            runs += 1
    return [
        row("kill -9 in init, its source's training included", done, "kills"),
        row("runs that they fell on", runs, "runs"),
        row("one undisturbed run", round(whole.seconds, 1), "s"),
        at_most("grown models that differ", differing, "runs", 0),
    ]


def _manifest(place: Lab, stage: str) -> dict:
    path: Path = place.folder / "runs" / "soak" / stage / "manifest.json"
    return json.loads(path.read_text())
