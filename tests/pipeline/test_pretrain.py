"""Pretraining as a user sees it: inside its cap, always annealed, going on after signals, kills and raised caps."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from processes import Command, run

from pipeline import config as configs
from pipeline import stages
from pipeline.run_stage import run_stage
from pipeline.stages import pretrain_step
from pipeline.storage import ledger
from pipeline.storage.files import read_json_lines
from pipeline.storage.locks import FolderLock
from pipeline.storage.steps import read_manifest
from pipeline.system import signals
from pipeline.system.errors import Busy, UserError
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.control import Control
from pipeline.training.decisions import Decisions

REPOSITORY = Path(__file__).resolve().parents[2]
DRIVER = Path(__file__).with_name("pretrain_driver.py")
METRICS = {
    "train/loss",
    "train/lr",
    "train/grad_norm",
    "perf/tokens_per_second",
    "perf/mfu",
    "perf/peak_memory_bytes",
    "budget/gpu_hours",
    "budget/tokens",
    "budget/fraction",
}
FACTS = [
    "tokens_seen",
    "steps",
    "epochs",
    "max_gpu_hours",
    "gpu_hours_total",
    "stopped_by",
    "annealed",
    "bits_per_byte",
    "tokens_per_second",
    "mfu",
    "peak_memory_bytes",
    "lives",
    "forecast",
    "initial_bits_per_byte",
    "samples",
    "model",
    "packing",
    "mix",
]
SOURCES = ("data.sources.code.type=made", "data.sources.more.type=made")  # shares are given by name

_spec = importlib.util.spec_from_file_location("pretrain_driver", DRIVER)
assert _spec is not None
assert _spec.loader is not None
driver = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(driver)


class Small:
    """A small experiment under a root of its own; runs it in this process or as a command."""

    def __init__(self, root: Path):
        self.root, self.path = root, driver.config_file(root)
        self.mix: tuple[str, ...] = ()  # overrides that belong to the folder's name
        driver.make_inputs(self.config())

    def config(self, *overrides: str) -> configs.Config:
        return configs.load(self.path, overrides)

    @property
    def folder(self) -> Path:
        return pretrain_step(self.config(*self.mix)).path

    def batches(self, *overrides: str):
        """The text that a run under these overrides reads."""
        from pipeline.corpus.text.shards import TokenShards
        from pipeline.training.batches import TokenBatches

        config = self.config(*overrides)
        data = pretrain_step(config).inputs["data"]
        return TokenBatches(TokenShards.open(data.path).train, config)

    def run_here(self, *overrides: str) -> dict:
        run_stage("pretrain", self.config(*overrides), str(self.path))
        return read_manifest(self.folder)

    def start(self, *overrides: str) -> Command:
        return Command([str(DRIVER), str(self.path), *overrides], self._environment())

    def _environment(self) -> dict[str, str]:
        environment = {**os.environ, "HORNBOOK_ROOT": str(self.root), "PYTHONPATH": str(REPOSITORY)}
        environment["OMP_NUM_THREADS"] = "1"  # two spinning threads on a busy machine are ten times slower than one
        return {k: v for k, v in environment.items() if not k.startswith("WANDB")}

    def command(self, *overrides: str, without_torch: bool = False) -> tuple[int, str, float]:
        """Exit code, output, seconds of wall time."""
        started, words = time.monotonic(), [str(DRIVER), str(self.path), *overrides]
        if without_torch:
            done = subprocess.run([sys.executable, "-P", *words], env=self._environment() | {"WITHOUT_TORCH": "1"},
                                  capture_output=True, text=True)  # fmt: skip
        else:
            done = run(words, self._environment())
        return done.returncode, done.stdout + done.stderr, time.monotonic() - started

    def rows(self) -> list[dict]:
        return read_json_lines(self.folder / "metrics.jsonl")

    def losses(self) -> list[float]:
        return [row["train/loss"] for row in self.rows()[1:]]

    def wait_for_step(self, step: int, process: Command) -> None:
        path = self.folder / "metrics.jsonl"
        self.wait_for(lambda: path.is_file() and any(row["step"] >= step for row in read_json_lines(path)), process)

    def wait_for(self, condition: Callable[[], object], process: Command) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.05)


def _record_inputs(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Collects the input ids of every training step from here on (one micro-batch per step)."""
    from model.transformer import Transformer

    read: list[torch.Tensor] = []
    plain = Transformer.loss

    def recording(self: Transformer, ids: torch.Tensor, *args: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if torch.is_grad_enabled():
            read.append(ids.clone())
        return plain(self, ids, *args)

    monkeypatch.setattr(Transformer, "loss", recording)
    return read


def _seconds_from_now(seconds: float) -> str:
    """A cap for a run inside this process, whose age counts."""
    return hours(ledger.process_age_seconds() + seconds)


@pytest.fixture
def cap_seconds(fork_seconds: float) -> float:
    """Room for one life."""
    return 8 + 5 * fork_seconds


def hours(seconds: float) -> str:
    return f"budget.max_gpu_hours={seconds / 3600:.6f}"


@pytest.fixture(autouse=True)
def small_inputs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:

    monkeypatch.setattr(stages, "input_steps", driver.input_steps)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    signals._deferred = False


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Small:
    monkeypatch.setenv("HORNBOOK_ROOT", str(tmp_path))
    return Small(tmp_path)


def test_a_run_under_a_cap_ends_inside_it_annealed_exported_and_is_then_up_to_date(
    small: Small, cap_seconds: float
) -> None:
    code, output, seconds = small.command(hours(cap_seconds))
    assert code == 0, output
    assert seconds <= cap_seconds, output
    assert "annealed" in output
    assert "NOT" not in output
    assert "Warning" not in output, output
    manifest = read_manifest(small.folder)
    assert set(FACTS) <= set(manifest)
    assert manifest["annealed"]
    assert manifest["stopped_by"] == "gpu_hours"
    assert manifest["gpu_hours_total"] * 3600 <= cap_seconds
    assert manifest["bits_per_byte"]["code"] < manifest["initial_bits_per_byte"]["code"] - 1
    assert set(manifest["outputs"]) >= {"model/config.json", "model/model.safetensors", "model/tokenizer.json"}
    assert all(path.startswith("model/") for path in manifest["outputs"])

    rows = small.rows()
    assert [row["step"] for row in rows] == list(range(manifest["steps"] + 1))
    assert set(rows[5]) == METRICS | {"step"} or "val/bits_per_byte" in rows[5]
    assert {"val/code/bits_per_byte", "val/more/bits_per_byte", "val/bits_per_byte"} <= set(rows[0])
    assert set(rows[-1]) == METRICS | {"step", "val/code/bits_per_byte", "val/more/bits_per_byte", "val/bits_per_byte"}
    assert rows[-1]["train/lr"] <= 0.01 * 2.0e-3 * (1 + 1e-9)  # the limit itself, rounded
    spent = ledger.spent_hours(small.root / "runs/small/ledger.jsonl")["pretrain"] * 3600
    assert spent <= seconds + 0.1
    assert (small.root / "runs/small/pretrain").resolve() == small.folder.resolve()

    code, output, _ = small.command(hours(cap_seconds - 5), without_torch=True)
    assert (code, "up to date" in output) == (0, True), output
    assert read_manifest(small.folder) == manifest


def test_the_exported_folder_gives_transformers_the_same_logits(small: Small) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from model.hf import load_network

    manifest = small.run_here("budget.max_tokens=10_240")
    folder = small.folder / manifest["model"]
    theirs, ours = AutoModelForCausalLM.from_pretrained(folder), load_network(folder)
    ids = AutoTokenizer.from_pretrained(folder)("def f(x):\n    return x", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=1e-4, atol=1e-4)


def test_after_the_last_step_the_network_stays_where_it_is(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning ends by moving it to the CPU, where the last validation of a card's model would take minutes."""
    from pipeline.training.module import PretrainModule

    monkeypatch.setattr(PretrainModule, "cpu", lambda self: pytest.fail("the network was moved"))
    manifest = small.run_here("budget.max_tokens=5120")
    assert manifest["annealed"]
    assert manifest["validated_share"] == 1


def test_max_tokens_ends_a_run_and_raising_it_goes_on_from_before_the_decay(small: Small) -> None:
    first = small.run_here("budget.max_tokens=20_480", "train.precision=32-true")
    assert (first["steps"], first["stopped_by"], first["annealed"]) == (40, "tokens", True)
    old = small.rows()
    longer = small.run_here("budget.max_tokens=40_960", "train.precision=32-true")
    assert (longer["steps"], longer["annealed"]) == (80, True)
    rows = small.rows()
    assert [row["step"] for row in rows] == list(range(81))
    same = [row["train/loss"] for row in rows[1:29]] == [row["train/loss"] for row in old[1:29]]
    assert same
    assert rows[35]["train/lr"] == 2.0e-3 > old[35]["train/lr"]
    assert read_json_lines(small.folder / "metrics-before-28.jsonl") == old
    records = [json.loads(line) for line in (small.folder / "decisions.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if r["kind"] == "extend"] == [28]
    again = small.run_here("budget.max_tokens=20_480", "train.precision=32-true")
    assert again == longer, "lowering a finished one does nothing"


def test_an_extended_run_equals_the_one_that_had_the_larger_limit_from_the_start(small: Small, tmp_path: Path) -> None:
    small.run_here("budget.max_tokens=20_480", "train.precision=32-true")
    extended = small.run_here("budget.max_tokens=30_720", "train.precision=32-true")
    rows = small.rows()
    other = Small(_made(tmp_path / "other"))
    os.environ["HORNBOOK_ROOT"] = str(other.root)  # the fixture puts the old value back
    driver.make_inputs(other.config())
    direct = other.run_here("budget.max_tokens=30_720", "train.precision=32-true")
    assert [r["train/loss"] for r in other.rows()[1:]] == [r["train/loss"] for r in rows[1:]]
    assert direct["content_hash"] == extended["content_hash"]


def test_saving_behind_the_steps_changes_nothing_and_leaves_whole_checkpoints(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    often = ("budget.max_tokens=10_240", "train.checkpoint_every_seconds=0.001", "train.precision=32-true")
    expected = small.run_here("budget.max_tokens=10_240", "train.precision=32-true")
    losses = [row["train/loss"] for row in small.rows()[1:]]
    shutil.rmtree(small.folder)
    threads: list[str] = []
    write = Checkpoints._write
    monkeypatch.setattr(Control, "_may_save_behind", lambda *_: True)
    monkeypatch.setattr(
        Checkpoints, "_write", lambda *words: threads.append(threading.current_thread().name) or write(*words)
    )
    behind = small.run_here(*often)
    assert threads.count("checkpoint") > 3
    assert behind["content_hash"] == expected["content_hash"]
    assert [row["train/loss"] for row in small.rows()[1:]] == losses
    kept = Checkpoints(small.folder / "checkpoints", 2, Decisions(small.folder / "decisions.jsonl"))
    assert kept.steps()
    assert [kept.damage(kept.path(step)) for step in kept.steps()] == [None] * len(kept.steps())


def test_a_second_mix_begins_with_the_decay_and_holds_after_a_resume_and_after_a_raised_cap(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = _record_inputs(monkeypatch)
    often = ("train.checkpoint_every_seconds=0.001", "train.keep_checkpoints=50", "train.precision=32-true")
    mix = (*SOURCES, "train.mix.code=0.75", "train.mix.more=0.25", "train.decay_mix.more=1.0", *often)
    small.mix = mix
    first = small.run_here("budget.max_tokens=20_480", *mix)
    assert (first["steps"], first["stopped_by"], first["annealed"]) == (40, "tokens", True)
    assert first["mix"]["decay"] == {"code": 0.0, "more": 1.0}
    assert first["mix"]["stable"]["code"] == pytest.approx(0.75, abs=0.06)
    expected = small.batches("budget.max_tokens=20_480", *mix)
    expected.decay_from(28)
    assert first["epochs"] == {k: round(v, 4) for k, v in expected.epochs(320).items()}
    assert [torch.equal(ids, expected.batch(k).input_ids_BT) for k, ids in enumerate(read)] == [True] * 40
    losses = [row["train/loss"] for row in small.rows()[1:]]

    (small.folder / "manifest.json").unlink()
    for path in (small.folder / "checkpoints").glob("step-*"):
        if int(path.name.split("-")[1]) > 33:
            shutil.rmtree(path)
    read.clear()
    second = small.run_here("budget.max_tokens=20_480", *mix)
    assert len(read) == 7
    assert [row["train/loss"] for row in small.rows()[1:]] == losses
    assert second["content_hash"] == first["content_hash"]

    read.clear()
    longer = small.run_here("budget.max_tokens=30_720", *mix)
    expected.decay_from(42)
    assert [torch.equal(ids, expected.batch(28 + k).input_ids_BT) for k, ids in enumerate(read)] == [True] * 32
    assert (longer["steps"], longer["mix"]["decay"]) == (60, {"code": 0.0, "more": 1.0})


def test_the_clock_decides_the_decay_and_the_very_next_batch_is_of_the_second_mix(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = _record_inputs(monkeypatch)
    mix = (*SOURCES, "train.mix.code=1.0", "train.decay_mix.more=1.0", "train.precision=32-true")
    small.mix = mix
    manifest = small.run_here(_seconds_from_now(20), *mix)
    assert manifest["stopped_by"] == "gpu_hours"
    records = [json.loads(line) for line in (small.folder / "decisions.jsonl").read_text().splitlines()]
    start = next(record["step"] for record in records if record["kind"] == "decay")
    assert 0 < start < manifest["steps"]
    expected = small.batches(*mix)
    expected.decay_from(start)
    assert all(torch.equal(ids, expected.batch(step).input_ids_BT) for step, ids in enumerate(read))
    assert manifest["mix"] == {"stable": {"code": 1.0, "more": 0.0}, "decay": {"code": 0.0, "more": 1.0}}


def test_a_cap_on_epochs_ends_the_run_annealed_and_raising_the_tokens_reopens_nothing(
    small: Small, capsys: pytest.CaptureFixture
) -> None:
    small.mix = ("train.max_epochs=2", "train.packing=best_fit", "train.mask_documents=true")
    manifest = small.run_here("budget.max_tokens=1_000_000", *small.mix)
    said = capsys.readouterr().out
    assert "train.max_epochs ends the text after" in said
    assert "fewer than budget.max_tokens=1,000,000" in said
    assert "  sources: code " in said
    assert (manifest["stopped_by"], manifest["annealed"]) == ("tokens", True)
    assert all(1.5 < epochs <= 2 for epochs in manifest["epochs"].values())
    assert manifest["packing"]["kind"] == "best_fit"
    assert 0 <= manifest["packing"]["padding_share"] < 0.05
    assert small.run_here("budget.max_tokens=2_000_000", *small.mix) == manifest
    assert small.run_here(*small.mix) == manifest
    with pytest.raises(UserError, match=r"the config sets no end: train\.max_epochs"):
        small.run_here(*SOURCES, "train.max_epochs.code=1")
    with pytest.raises(UserError, match=r"leaves less text than one step"):
        small.run_here("train.max_epochs=0.01")


def test_full_activation_checkpointing_gives_the_same_losses(small: Small, tmp_path: Path) -> None:
    small.run_here("budget.max_tokens=2_560", "train.precision=32-true")
    plain = [row["train/loss"] for row in small.rows()[1:]]
    other = Small(_made(tmp_path / "other"))
    os.environ["HORNBOOK_ROOT"] = str(other.root)
    driver.make_inputs(other.config())
    other.run_here("budget.max_tokens=2_560", "train.precision=32-true", "train.activation_checkpointing=full")
    assert [row["train/loss"] for row in other.rows()[1:]] == pytest.approx(plain, rel=1e-6)


def test_micro_batches_give_the_same_losses(small: Small, tmp_path: Path) -> None:
    small.run_here("budget.max_tokens=2_560", "train.precision=32-true")
    whole = [row["train/loss"] for row in small.rows()[1:]]
    other = Small(_made(tmp_path / "other"))
    os.environ["HORNBOOK_ROOT"] = str(other.root)
    driver.make_inputs(other.config())
    other.run_here("budget.max_tokens=2_560", "train.precision=32-true", "train.micro_batch=2")
    assert [row["train/loss"] for row in other.rows()[1:]] == pytest.approx(whole, rel=1e-5)


def test_missing_inputs_name_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HORNBOOK_ROOT", str(tmp_path))
    path = driver.config_file(tmp_path)
    with pytest.raises(UserError, match=r"hornbook data some\.yaml"):
        run_stage("pretrain", configs.load(path, ["budget.max_gpu_hours=1"]), "some.yaml")


def test_a_config_without_an_end_is_refused(small: Small) -> None:
    with pytest.raises(UserError, match=r"budget\.max_gpu_hours"):
        small.run_here()


def test_a_cap_too_small_for_anything_is_refused_with_its_numbers(small: Small) -> None:
    code, output, _ = small.command(hours(1.5), without_torch=True)
    assert code == 2
    assert "budget.max_gpu_hours=0.000417 is 1.5 s" in output


def test_a_second_trainer_is_turned_away_and_writes_nothing(small: Small) -> None:
    small.folder.mkdir(parents=True)
    with FolderLock(small.folder, wait=False), pytest.raises(Busy, match="process"):
        small.run_here("budget.max_tokens=2_560")
    assert [path.name for path in small.folder.iterdir()] == [".lock"]
    assert not (small.root / "runs/small/ledger.jsonl").exists()


def test_ten_gradients_in_a_row_that_are_not_finite_end_the_run(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    from model.transformer import Transformer
    from pipeline.training.spikes import Diverged

    plain = Transformer.loss

    def broken(self: Transformer, *args: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        loss, n = plain(self, *args)
        return (loss * float("nan") if torch.is_grad_enabled() else loss), n

    monkeypatch.setattr(Transformer, "loss", broken)
    with pytest.raises(Diverged, match="10 steps in a row"):
        small.run_here("budget.max_tokens=20_480")
    kinds = [json.loads(line)["kind"] for line in (small.folder / "decisions.jsonl").read_text().splitlines()]
    assert kinds.count("skip") == 10


def test_a_life_that_begins_too_late_exports_what_there_is_and_says_so(
    small: Small, capsys: pytest.CaptureFixture
) -> None:
    small.run_here("budget.max_tokens=10_240")
    (small.folder / "manifest.json").unlink()
    path = small.folder / "decisions.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(r) + "\n" for r in lines if r["kind"] == "life"))
    manifest = small.run_here(hours(1.0))
    assert not manifest["annealed"]
    assert manifest["steps"] == 20
    assert "NOT annealed" in capsys.readouterr().out


def test_a_run_killed_while_exporting_only_exports(small: Small) -> None:
    first = small.run_here("budget.max_tokens=10_240")
    rows = small.rows()
    (small.folder / "manifest.json").unlink()
    second = small.run_here("budget.max_tokens=10_240")
    assert small.rows() == rows
    assert second["content_hash"] == first["content_hash"]
    assert second["bits_per_byte"] == first["bits_per_byte"]
    assert second["lives"] == 2


@pytest.mark.slow
def test_sigterm_while_starting_up_exits_75_soon(small: Small) -> None:
    process = small.start(hours(60))
    small.wait_for(lambda: (small.root / "runs/small/ledger.jsonl").is_file(), process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 75, output
    assert small.run_here("budget.max_tokens=10_240")["annealed"]


@pytest.mark.slow
def test_sigterm_saves_exits_75_and_the_same_command_finishes_with_one_row_per_step(
    small: Small, cap_seconds: float
) -> None:
    cap = 2.5 * cap_seconds
    process = small.start(hours(cap))
    small.wait_for_step(20, process)
    process.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 75, output
    assert time.monotonic() - asked < 5
    code, output, _ = small.command(hours(cap))
    assert code == 0, output
    manifest = read_manifest(small.folder)
    assert manifest["lives"] == 2
    assert manifest["annealed"]
    assert manifest["gpu_hours_total"] * 3600 <= cap
    assert [row["step"] for row in small.rows()] == list(range(manifest["steps"] + 1))


@pytest.mark.slow
def test_a_killed_run_goes_on_under_the_same_cap_and_in_the_same_offline_wandb_run(
    small: Small, cap_seconds: float
) -> None:
    cap, tracked = 2.2 * cap_seconds, "tracking.to=wandb"
    process = small.start(hours(cap), tracked)
    small.wait_for(lambda: list((small.folder / "checkpoints").glob("step-*")), process)
    small.wait_for(lambda: list((small.root / "runs/small/wandb").glob("offline-run-*")), process)
    process.kill()
    process.communicate()
    run_id = (small.folder / "wandb-id").read_text()
    code, output, _ = small.command(hours(cap), tracked)
    assert code == 0, output
    manifest = read_manifest(small.folder)
    assert manifest["annealed"]
    assert manifest["gpu_hours_total"] * 3600 <= cap
    assert [row["step"] for row in small.rows()] == list(range(manifest["steps"] + 1))
    assert (small.folder / "wandb-id").read_text() == run_id
    assert len(list((small.root / "runs/small/wandb").glob(f"offline-run-*-{run_id.strip()}"))) == 2


@pytest.mark.slow
def test_raising_the_gpu_hours_goes_on_from_before_the_decay_inside_the_new_cap(
    small: Small, cap_seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("START_SECONDS", "3")
    cap_seconds += 3
    code, output, _ = small.command(hours(cap_seconds))
    assert code == 0, output
    first = read_manifest(small.folder)
    code, output, _ = small.command(hours(cap_seconds + 0.1), without_torch=True)
    assert code == 2, output
    assert "took that long last time" in output
    code, output, _ = small.command(hours(2.2 * cap_seconds))
    assert code == 0, output
    longer = read_manifest(small.folder)
    assert longer["annealed"]
    assert longer["steps"] > first["steps"]
    assert longer["gpu_hours_total"] * 3600 <= 2.2 * cap_seconds
    assert [row["step"] for row in small.rows()] == list(range(longer["steps"] + 1))
    assert longer["bits_per_byte"]["code"] != first["bits_per_byte"]["code"]


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
