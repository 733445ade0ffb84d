"""What safety costs: copies to HORNBOOK_REMOTE, and saves, here and in a thread of their own."""

import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from pipeline.remote.place import REMOTE, Place
from pipeline.remote.upload import Pusher
from pipeline.storage.run_files import CHECKPOINTS, DECISIONS
from pipeline.training.budget import SAVE_SHARE, save_interval_seconds
from pipeline.training.checkpoint import Checkpoints, State
from pipeline.training.decisions import Decisions
from scripts.bench_rows import Rows, at_least, at_most, row
from scripts.soak_parts.lab import CONFIG, SAVE_SECONDS, Lab, core_seconds, lab

INTERVALS = (SAVE_SECONDS, 5.0)  # seconds between two saves; without a word in the config it is 30 at least
LONGER = CONFIG.replace("20_480", "40_960")
WIDTH, LAYERS = 1024, (1, 9, 36)  # of 4 WIDTH^2 parameters: 4M, 38M, 151M


def remote(quick: bool) -> Rows:
    """Runs with copies to a folder and without, in pairs whose order alternates."""
    rows: Rows = []
    for interval in INTERVALS:
        config = LONGER.replace(f"checkpoint_every_seconds: {SAVE_SECONDS}", f"checkpoint_every_seconds: {interval}")
        with lab(config) as place, tempfile.TemporaryDirectory(prefix="hornbook-remote-") as there:
            place.warm = True
            pairs = [_pair(place, f"file://{there}/{n}", n % 2 == 1) for n in range(2 if quick else 5)]
            copied = sum(1 for _ in Path(there).glob("*/artifacts/pretrain/*/checkpoints/*/checkpoint.json"))
        name = f"copies to a folder, a save every {interval:g} s"
        ratios = {kind: [with_[kind] / without[kind] for without, with_ in pairs] for kind in ("steps", "cpu", "wall")}
        share = median((with_["cpu"] - without["cpu"]) / with_["wall"] for without, with_ in pairs)
        rows += [
            row(f"{name}: pairs of runs, seconds of one without", f"{len(pairs)}, {pairs[0][0]['wall']:.0f}", ""),
            at_least("  checkpoints found at the remotes afterwards", copied, "", len(pairs)),
            at_most("  time of the steps with over without, median", median(ratios["steps"]), "x", 1.02),
            row("  the same, least and most", _range(ratios["steps"]), "x"),
            at_most("  seconds of a core that copies cost, of the wall time, median", share, "", 0.02),
            row("  core time of the whole process with its last copies, median", round(median(ratios["cpu"]), 4), "x"),
            row("  wall time of the whole process with its last copies, median", round(median(ratios["wall"]), 4), "x"),
        ]
    return rows


def copying(quick: bool) -> Rows:
    """What the copying thread takes of a core while checkpoints come far too often: the bound that it sets itself."""
    seconds = 10.0 if quick else 60.0
    with tempfile.TemporaryDirectory() as here, tempfile.TemporaryDirectory() as there:
        os.environ["HORNBOOK_ROOT"], os.environ[REMOTE] = here, f"file://{there}"
        run = Path(here) / "artifacts" / "pretrain" / "0123456789ab"
        decisions = Decisions(run / DECISIONS)
        decisions.add("life", 0)
        store, state = Checkpoints(run / CHECKPOINTS, 2, decisions), _state(1)
        pusher = Pusher(Place(os.environ[REMOTE]))
        pusher.run, pusher.keep = run, 2
        thread = next(thread for thread in threading.enumerate() if thread.name == "remote")
        step, until = 0, time.monotonic() + seconds
        while time.monotonic() < until:
            step += 1
            store.save(_at(state, step))
            time.sleep(SAVE_SECONDS)
        fields = Path(f"/proc/self/task/{thread.native_id}/stat").read_text().rsplit(")", 1)[1].split()
        used = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        there_now = len(list(Path(there).glob("artifacts/pretrain/*/checkpoints/step-*/checkpoint.json")))
        pusher.finish(5.0)
    return [
        row(
            "a checkpoint of 50 MB each time, saved and copied for a while; seconds, saves",
            f"{seconds:.0f}, {step}",
            "",
        ),
        at_least("  whole checkpoints at the remote then", there_now, "", 1),
        at_most("  seconds of a core that the copying thread took, of the wall time", used / seconds, "", 0.02),
    ]


def _pair(place: Lab, url: str, first: bool) -> tuple[dict[str, float], dict[str, float]]:
    found = {}
    for copies in (first, not first):
        place.environment = {"HORNBOOK_REMOTE": url} if copies else {}
        place.forget("pretrain")
        before = core_seconds()
        life = place.finish("pretrain")
        cpu = core_seconds() - before
        speed = place.outcome().manifest["tokens_per_second"]
        found[copies] = {"steps": 1 / speed, "cpu": cpu, "wall": life.seconds}
    return found[False], found[True]


def _range(ratios: list[float]) -> str:
    return f"{min(ratios):.3f} .. {max(ratios):.3f}"


def saves(quick: bool) -> Rows:
    """What a save costs, the interval that follows from it, and whether a thread would make it cheaper."""
    rows: Rows = []
    torch.set_num_threads(1)
    for layers in LAYERS[: 1 if quick else None]:
        with tempfile.TemporaryDirectory(prefix="hornbook-saves-") as folder:
            store, state = Checkpoints(Path(folder), 1, Decisions(None)), _state(layers)
            took, cores = [], []
            for step in range(3):
                started, used = time.monotonic(), time.process_time()
                store.save(_at(state, step))
                took.append(time.monotonic() - started)
                cores.append(time.process_time() - used)
            cost, name = median(took), f"{layers * 4 * WIDTH**2 / 1e6:.0f}M"
            interval = save_interval_seconds(None, cost)
            rows += [
                row(f"a save of {name} parameters, {state.bytes / 1e9:.2f} GB, median of 3", round(cost, 2), "s"),
                row("  seconds of a core for it", round(median(cores), 2), "s"),
                row("  the interval between two saves that follows", round(interval, 1), "s"),
                at_most("  share of the time that saving then takes", cost / interval, "", SAVE_SHARE),
            ]
            if layers < LAYERS[-1]:  # two copies of the largest may not fit beside each other
                rows += _in_a_thread(store, state, cost, 1 if quick else 5)
    return rows


def _state(layers: int) -> State:
    weights = {f"layer{n}": torch.randn(4 * WIDTH, WIDTH) for n in range(layers)}
    moments = {f"{kind}/{name}": w.square() for kind in ("m", "v") for name, w in weights.items()}
    return State(0, 0, weights, moments, {})


def _at(state: State, step: int) -> State:
    return State(step, 0, state.weights, state.optimizer, state.values)


def _in_a_thread(store: Checkpoints, state: State, cost: float, times: int) -> Rows:
    """Work of about three saves' length after each save, saved here and in a thread from a copy; in turns."""
    left, right = torch.randn(512, 512), torch.randn(512, 512)
    started = time.monotonic()
    for _ in range(20):
        torch.mm(left, right)
    work = max(20, round(3 * cost / ((time.monotonic() - started) / 20)))

    def here(step: int) -> Callable[[], None]:
        store.save(_at(state, step))
        return lambda: None

    def aside(step: int) -> Callable[[], None]:
        weights, moments = ({k: t.clone() for k, t in part.items()} for part in (state.weights, state.optimizer))
        thread = threading.Thread(target=store.save, args=(State(step, 0, weights, moments, {}),))
        thread.start()
        return thread.join

    ratios = []
    for number in range(times):
        took = {}
        for way in (here, aside) if number % 2 else (aside, here):
            started = time.monotonic()
            for step in range(2):
                saved = way(10 + 4 * number + 2 * (way is here) + step)
                for _ in range(work):
                    torch.mm(left, right)
                saved()
            took[way] = time.monotonic() - started
        ratios.append(took[aside] / took[here])
    gain = (1 - median(ratios)) * 4 * SAVE_SHARE  # of a run: here a save takes a fourth of the time, there its share
    return [
        row(
            "  saved in a thread from a copy over saved here, work between saves, median", round(median(ratios), 3), "x"
        ),
        row("  the same, least and most", _range(ratios), "x"),
        row("  what that would gain of a run's time at the interval above", round(100 * gain, 2), "%"),
    ]
