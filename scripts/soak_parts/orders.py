"""Orders from outside: signals, a second process, a suspended one; and decisions that are replayed."""

import random
import shutil
import signal
import tempfile
import time
from pathlib import Path

from scripts.bench_rows import Rows, at_most, row
from scripts.soak_parts.lab import CONFIG, after, core_seconds, core_seconds_of, lab

MOST_SECONDS = 15.0
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# 150M parameters in fp32 with Adam's moments: 1.8 GB.
LARGE = (
    CONFIG.replace("vocab_size: 512, hidden_size: 32, intermediate_size: 128, num_hidden_layers: 2",
                   "vocab_size: 30000, hidden_size: 768, intermediate_size: 3072, num_hidden_layers: 15")
    .replace("num_attention_heads: 4", "num_attention_heads: 12")
    .replace("global_batch_tokens: 256, micro_batch: 2", "global_batch_tokens: 64, micro_batch: 1")
    .replace("checkpoint_every_seconds: 0.4", "checkpoint_every_seconds: 1000")
    .replace("20_480", "1_000_000_000")
    .replace("name: soak", "name: large\ntokenizer: {vocab_size: 512}")
)  # fmt: skip


def signals(quick: bool) -> Rows:
    """Each of the three signals at random instants of each stage: gone soon, with 75, and the result is the same."""
    draw, slowest, wrong, count = random.Random(12), {"data": 0.0, "init": 0.0, "pretrain": 0.0}, 0, 0
    with lab(prepared=False) as place:
        seconds = {stage: place.finish(stage).seconds for stage in slowest}
        expected = {stage: place.content(stage) for stage in slowest}
        undisturbed = place.outcome()
        for stage in slowest:
            for number in SIGNALS:
                place.forget(stage)
                process = place.start(stage)
                after(draw.uniform(0.3, 0.9) * seconds[stage])(process)
                process.send_signal(number)
                asked = time.monotonic()
                life = place.wait(process, asked)
                slowest[stage] = max(slowest[stage], life.seconds)
                wrong += life.code not in (75, 0)
                count += 1
                place.finish(stage)
                wrong += place.content(stage) != expected[stage]
        wrong += bool(place.outcome().differences(undisturbed))
    return [
        row("SIGTERM, SIGINT, SIGUSR1 at random instants of data, init, pretrain", count, "times"),
        at_most("exit codes other than 75, or another result afterwards", wrong, "times", 0),
        *(
            at_most(f"from a signal to gone, {name}, slowest", took, "s", MOST_SECONDS)
            for name, took in slowest.items()
        ),
    ]


def large_state(quick: bool) -> Rows:
    """SIGTERM to a run of 150M parameters after three steps."""
    with lab(LARGE) as place:
        place.finish("data")  # the others': it knows nothing of the model
        place.finish("init")
        started, process = time.monotonic(), place.start("pretrain")
        place.wait_until(process, lambda: place.last_row() >= 3)
        asked, before, ended = time.monotonic(), core_seconds_of(process), core_seconds()
        process.send_signal(signal.SIGTERM)
        life = place.wait(process, started)
        took, of_a_core = time.monotonic() - asked, core_seconds() - ended - before
        saved = list(place.pretrain.glob("checkpoints/step-*/*"))
        size = sum(path.stat().st_size for path in saved) / 1e9
    return [
        row("a state of 150M parameters: bytes saved", round(size, 2), "GB"),
        at_most("from SIGTERM to saved and gone", took, "s", MOST_SECONDS),
        at_most("  seconds of a core from SIGTERM on, the rest of a step included", of_a_core, "s", MOST_SECONDS),
        at_most("exit code other than 75", int(life.code != 75), "", 0),
    ]


def two_at_once(quick: bool) -> Rows:
    """A second trainer goes and writes nothing, also while the first stands still; a second data stage waits."""
    with lab() as place:
        place.finish("pretrain")
        undisturbed = place.outcome()
        place.forget("pretrain")
        started, first = time.monotonic(), place.start("pretrain")
        place.wait_until(first, lambda: place.records("life"))
        ended = core_seconds()
        seconds = [place.run("pretrain")]
        of_a_core = core_seconds() - ended
        first.send_signal(signal.SIGSTOP)
        seconds.append(place.run("pretrain"))
        first.send_signal(signal.SIGCONT)
        life = place.wait(first, started)
        wrong = sum(second.code != 1 or f"process {first.pid}" not in second.said for second in seconds)
        wrong += sum("Traceback" in second.said for second in seconds)
        strangers = set(place.spent("pretrain")) - {first.pid}
        differing = place.outcome().differences(undisturbed)
        place.forget("data", "init", "pretrain")
        one, two = place.start("data"), place.start("data")
        codes = one.wait(timeout=300), two.wait(timeout=300)
    return [
        at_most("second trainer: not turned away with the owner's name, the owner at work and stopped", wrong, "", 0),
        at_most("second trainer: seconds until it was gone", max(second.seconds for second in seconds), "s", 5.0),
        at_most("  seconds of a core until then", of_a_core, "s", 5.0),
        at_most("second trainer: lines that it wrote into the ledger", len(strangers), "", 0),
        at_most("first trainer: exit code, differences", abs(life.code) + len(differing), "", 0),
        at_most("two data stages at once: bad exit codes", sum(code != 0 for code in codes), "", 0),
    ]


def replay(quick: bool) -> Rows:
    """A run under a cap of hours, killed three times; its decisions replayed undisturbed."""
    cap = 60.0 if not quick else 40.0
    config = CONFIG.replace("budget: {max_tokens: 20_480}", f"budget: {{max_gpu_hours: {cap / 3600:.6f}}}")
    draw, kills = random.Random(13), 0
    with lab(config) as place, tempfile.TemporaryDirectory() as aside:
        place.warm = True
        while kills < 3:
            life = place.killed("pretrain", after(draw.uniform(3, cap / 5)))
            kills += life.code != 0
        place.finish("pretrain")
        disturbed = place.outcome()
        record = Path(aside) / "decisions.jsonl"
        shutil.copyfile(place.pretrain / "decisions.jsonl", record)
        place.forget("pretrain")
        place.finish("pretrain", "--replay", str(record))
        differing = disturbed.differences(place.outcome())
    return [
        row("a run under a cap of hours, killed; steps", f"{kills}, {disturbed.manifest['steps']:,}", ""),
        at_most(f"its decisions replayed: differences {', '.join(differing)}".strip(), len(differing), "", 0),
    ]
