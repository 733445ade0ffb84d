"""A folder with a small experiment in it, processes that are started, killed and run again, and what came out.

Everything is the `hornbook` command as a user runs it, one thread each. Data and init are made once and copied. A warm
process is forked from one that has torch and lightning loaded: the same command without the seconds of importing, so
that a hundred kills fall into training and not into `import torch`.
"""

import gc
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipeline.storage import ledger
from pipeline.storage.files import read_json_lines
from pipeline.storage.steps import read_manifest

ROOT = Path(__file__).resolve().parents[2]
SAVE_SECONDS = 0.4
LONGEST_SECONDS = 1800.0  # of one process; more, and it hangs
PREPARED = "HORNBOOK_SOAK_PREPARED"  # a folder, set by scripts/soak.py, in which data and init are made once
CONFIG = """
name: soak
seed: 7
data:
  sources:
    code: {type: text, path: HERE/data_filters, license: own}
    exercises: {type: exercises, count: 40}
  filters: {length: {}, letters: {}, quality: {min_score: 0.1}}
  validation: {max_bytes: 4_000, share: 0.1}
  tokenizer_train_bytes: 200_000
  tasks: 2
  workers: 1
model: {vocab_size: 512, hidden_size: 32, intermediate_size: 128, num_hidden_layers: 2, num_attention_heads: 4,
        max_position_embeddings: 128}
train: {sequence_length: 64, global_batch_tokens: 256, micro_batch: 2, learning_rate: 3.0e-3, warmup_steps: 20,
        device: cpu, log_every_steps: 1, checkpoint_every_seconds: SAVE_SECONDS, validate_every_share: 0.5}
budget: {max_tokens: 20_480}
tracking: {to: none}
sample: {prompts: ["def "], max_new_tokens: 8}
""".replace("HERE", str(ROOT)).replace("SAVE_SECONDS", str(SAVE_SECONDS))
WARM = ("lightning.pytorch", "tokenizers", "pipeline.pretrain", "pipeline.init", "pipeline.training.finish",
        "pipeline.training.control", "pipeline.training.decisions", "pipeline.training.branching",
        "pipeline.corpus.text.shards", "pipeline.corpus.sources.document_files")  # fmt: skip


@dataclass
class Life:
    """One process: its exit code (negative: the signal that killed it), what it said, its seconds by the wall clock.

    Of a killed pretraining: `inside` a save or an export, the step that it had `reached`, the `lives` on record then.
    """

    code: int
    said: str
    seconds: float
    pid: int = 0
    inside: str = ""
    reached: int = 0
    lives: int = 0


@dataclass
class Outcome:
    """What must be the same, bit by bit, whatever happened on the way."""

    weights: str
    tokens: str
    rows: list[dict[str, Any]]
    manifest: dict[str, Any] = field(repr=False)

    def differences(self, other: "Outcome") -> list[str]:
        """Names of what is not the same; the rows must be one a step as well."""
        found = [name for name in ("weights", "tokens") if getattr(self, name) != getattr(other, name)]
        if [row["step"] for row in self.rows] != list(range(self.manifest["steps"] + 1)):
            found.append("rows")
        keys = ("step", "train/loss", "train/lr", "train/grad_norm")
        if [[r.get(k) for k in keys] for r in self.rows] != [[r.get(k) for k in keys] for r in other.rows]:
            found.append("losses")
        return found


class Forked:
    """A `hornbook` command in a fork of this process, as far as `subprocess.Popen` is needed here."""

    def __init__(self, arguments: list[str], environment: dict[str, str], said: int):
        from pipeline import __main__ as command

        gc.freeze()  # what the fork shares stays shared
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.dup2(said, 1)
                os.dup2(said, 2)
                os.environ.clear()
                os.environ.update(environment)
                ledger._PROCESS_START = time.monotonic()  # of this process; the import was another one's
                command.main(arguments)
            finally:
                os._exit(120)  # never reached: the command ends the process

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float) -> int:
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("hornbook", timeout)
            time.sleep(0.002)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def _warm_up() -> None:
    """Loads what `Forked` shares. One thread, as everywhere here: torch was loaded before anybody could tell it so by
    the environment, and other sums are other bits."""
    for name in WARM:
        import_module(name)
    import_module("torch").set_num_threads(1)


Process = subprocess.Popen | Forked


class Lab:
    """The experiment under one HORNBOOK_ROOT. What its processes say goes to another folder, which no part fills up."""

    def __init__(self, folder: Path, said: Path, config: str = CONFIG):
        self.folder, self.config = folder, folder / "soak.yaml"
        self.config.write_text(config, encoding="utf-8")
        self._said_in, self._said = said, dict[int, Path]()
        self.environment: dict[str, str] = {}
        self._warm = False

    @property
    def warm(self) -> bool:
        """Whether pretrainings are forked from here; what they share is loaded when it is set, so that the first one
        takes no longer than the others."""
        return self._warm

    @warm.setter
    def warm(self, warm: bool) -> None:
        if warm:
            _warm_up()
        self._warm = warm

    def start(self, stage: str, *words: str, before: Callable[[], None] | None = None) -> Process:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "SLURM"))}
        environment |= {"HORNBOOK_ROOT": str(self.folder), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        environment |= self.environment
        arguments = [stage, str(self.config), *words]
        path = self._said_in / f"{len(self._said)}.txt"
        with open(path, "w") as said:  # a pipe nobody reads would fill up and hold the process
            process: Process
            if self.warm and stage == "pretrain" and before is None:
                process = Forked(arguments, environment, said.fileno())
            else:
                command = [sys.executable, "-P", "-m", "pipeline", *arguments]
                process = subprocess.Popen(command, env=environment, stdout=said, stderr=said, preexec_fn=before)
        self._said[process.pid] = path
        return process

    def run(self, stage: str, *words: str, before: Callable[[], None] | None = None) -> Life:
        """To its end."""
        started, process = time.monotonic(), self.start(stage, *words, before=before)
        return self.wait(process, started)

    def wait(self, process: Process, started: float) -> Life:
        try:
            code = process.wait(timeout=LONGEST_SECONDS)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)  # or it would hold the disk that is taken away
            process.wait(timeout=60)
            raise
        said = self._said[process.pid].read_text(errors="replace")
        return Life(code, said, time.monotonic() - started, process.pid)

    def wait_until(self, process: Process, holds: Callable[[], object]) -> None:
        """Returns as soon as `holds()`; a process that ends before is an error."""
        while not holds():
            if (code := process.poll()) is not None:
                said = self._said[process.pid].read_text(errors="replace")
                raise RuntimeError(f"it ended with {code} before what was waited for:\n{said[-3000:]}")
            time.sleep(0.005)

    def finish(self, stage: str, *words: str) -> Life:
        """To its end, which must be a good one."""
        life = self.run(stage, *words)
        if life.code != 0:
            raise RuntimeError(f"hornbook {stage} {' '.join(words)} ended with {life.code}:\n{life.said[-3000:]}")
        return life

    def killed(self, stage: str, when: Callable[[Process], None], *words: str) -> Life:
        """`kill -9` as soon as `when` returns, unless it has ended by then."""
        started, process = time.monotonic(), self.start(stage, *words)
        when(process)
        with_part = self.parts()
        process.send_signal(signal.SIGKILL)
        life = self.wait(process, started)
        left = self.parts() if life.code == -signal.SIGKILL else {}
        life.inside = next((kind for kind in left if kind in with_part), "")
        return life

    def parts(self) -> dict[str, Path]:
        """Half-made folders of a pretraining at this moment: inside a save, inside an export."""
        found = {}
        for kind, pattern in (("save", "checkpoints/.step-*.part"), ("export", ".model.part")):
            for path in (self.folder / "artifacts" / "pretrain").glob(f"*/{pattern}"):
                found[kind] = path
        return found

    @property
    def pretrain(self) -> Path:
        """The one pretraining of this lab."""
        return next((self.folder / "artifacts" / "pretrain").iterdir())

    def forget(self, *stages: str) -> None:
        """Takes a stage away, ledgers of the experiment included: what comes is a first run."""
        for folder in (self.folder / "artifacts").glob("*"):
            if any(folder.name == stage or folder.name.startswith(f"{stage}-") for stage in stages):
                shutil.rmtree(folder)
        shutil.rmtree(self.folder / "runs", ignore_errors=True)

    def seconds_to_first_step(self) -> tuple[float, float]:
        """From the command to the first step that a resumed life has done, and of a core until then; it is killed."""
        known, started, process = len(self.records("life")), time.monotonic(), self.start("pretrain")

        def has_trained() -> bool:
            lives = self.records("life")
            return len(lives) > known and self.last_row() > lives[-1]["step"]

        self.wait_until(process, has_trained)
        took, before = time.monotonic() - started, core_seconds()
        process.send_signal(signal.SIGKILL)
        self.wait(process, started)
        return took, core_seconds() - before

    def spent(self, stage: str) -> dict[int, float]:
        """Process -> seconds that the experiment's ledger has of it."""
        seconds: dict[int, float] = {}
        for line in read_json_lines(self.folder / "runs" / "soak" / ledger.LEDGER):
            if line["stage"] == stage:
                seconds[line["pid"]] = max(seconds.get(line["pid"], 0.0), line["seconds"])
        return seconds

    def content(self, stage: str) -> dict[str, str]:
        """Hash of every output of a finished stage; what is for reading only (it holds hours and dates) left out."""
        manifest = read_manifest(self.folder / "runs" / "soak" / stage)
        outputs = {path: output["sha256"] for path, output in manifest["outputs"].items()}
        return {path: sha for path, sha in outputs.items() if "report" not in path and "README" not in path}

    def outcome(self) -> Outcome:
        manifest = json.loads((self.pretrain / "manifest.json").read_text())
        rows = [json.loads(line) for line in (self.pretrain / "metrics.jsonl").read_text().splitlines()]
        weights = manifest["outputs"]["model/model.safetensors"]["sha256"]
        return Outcome(weights, manifest["tokens_sha256"], rows, manifest)

    def last_row(self) -> int:
        """Step of the newest whole row of metrics, 0 where there is none."""
        try:
            lines = (self.pretrain / "metrics.jsonl").read_bytes().split(b"\n")[:-1]
        except (OSError, StopIteration):
            return 0
        return json.loads(lines[-1])["step"] if lines else 0

    def checkpoints(self) -> list[Path]:
        """Of the pretraining, under their final names."""
        return list(self.folder.glob("artifacts/pretrain/*/checkpoints/step-????????"))

    def records(self, kind: str) -> list[dict[str, Any]]:
        """Decisions of one kind that are on record whole; none where there is no run."""
        try:
            lines = (self.pretrain / "decisions.jsonl").read_bytes().split(b"\n")[:-1]
        except (OSError, StopIteration):
            return []
        return [record for record in map(json.loads, lines) if record["kind"] == kind]


def after(seconds: float) -> Callable[[Process], None]:
    """Returns that long after the start, or when the process has ended."""

    def wait(process: Process) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.002)

    return wait


def inside(lab: Lab, kind: str, draw: random.Random, nth: int) -> Callable[[Process], None]:
    """Returns in the middle of the `nth` save or export of this life."""

    def wait(process: Process) -> None:
        seen, there = 0, False
        pattern = "*/checkpoints/.step-*.part" if kind == "save" else "*/.model.part"
        folder = lab.folder / "artifacts" / "pretrain"
        while process.poll() is None:
            now = any(folder.glob(pattern))
            seen, there = seen + (now and not there), now
            if now and seen >= nth:
                time.sleep(draw.uniform(0, 0.02))
                return
            time.sleep(0.0005)

    return wait


@contextmanager
def lab(config: str = CONFIG, place: str | None = None, prepared: bool = True) -> Iterator[Lab]:
    """A lab in a folder of its own, with data and init of `CONFIG` in it, where it is `prepared`."""
    with (
        TemporaryDirectory(prefix="hornbook-soak-", dir=place) as folder,
        TemporaryDirectory(prefix="hornbook-said-") as said,
    ):
        made = Lab(Path(folder), Path(said), config)
        if prepared:
            shutil.copytree(_prepared() / "artifacts", made.folder / "artifacts")
        yield made


def _prepared() -> Path:
    folder = Path(os.environ[PREPARED])
    if not (folder / "done").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        made = Lab(folder, folder)
        made.finish("data")
        made.finish("init")
        (folder / "done").touch()
    return folder


def expected_tokens(lab: Lab, steps: int) -> str:
    """The record of the text computed from the data alone: what a run of `steps` steps must have read."""
    code = (
        "import hashlib, sys; from pathlib import Path\n"
        "from pipeline import config as configs\n"
        "from pipeline.corpus.text.shards import TokenShards\n"
        "from pipeline.training.batches import TokenBatches\n"
        "from pipeline.stages import pretrain_step\n"
        "config = configs.load(sys.argv[1]); folder = pretrain_step(config).inputs['data'].path\n"
        "batches, record = TokenBatches(TokenShards.open(folder).train, config), b''\n"
        "for step in range(int(sys.argv[2])):\n"
        "    ids = batches.batch(step).input_ids_BT.numpy().astype('<u4')\n"
        "    record = hashlib.sha256(record + hashlib.sha256(ids.tobytes()).digest()).digest()\n"
        "print(record.hex())"
    )
    environment = {**os.environ, "HORNBOOK_ROOT": str(lab.folder), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-c", code, str(lab.config), str(steps)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def import_seconds() -> tuple[float, float]:
    """What importing torch and lightning alone takes here and now, and of a core."""
    started, before = time.monotonic(), core_seconds()
    subprocess.run([sys.executable, "-P", "-c", "import torch, lightning.pytorch"], check=True)
    return time.monotonic() - started, core_seconds() - before


def core_seconds_of(process: Process) -> float:
    """Of one that still runs (Linux)."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def core_seconds() -> float:
    """Of all processes that were started here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
