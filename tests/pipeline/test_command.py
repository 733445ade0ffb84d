"""The command a person types: quick help, one message per mistake, exit codes that scripts rely on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import Command, hornbook

from pipeline.system import signals
from pipeline.system.errors import STOPPED, WRONG_INPUT, Stopped

ROOT = Path(__file__).resolve().parents[2]
TINY = str(ROOT / "configs" / "tiny.yaml")


def test_help_loads_no_heavy_library():
    code = (
        "import sys, pipeline.__main__; from pipeline.config.arguments import make_parser\n"
        "make_parser().format_help(); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "lightning", "datatrove", "wandb", "omegaconf", "numpy"} & set(done.stdout.split())


@pytest.mark.parametrize(
    "words", [["--help"], ["pretrain", "--help"], ["data", "--help"], ["finetune", "--help"], ["list", "--help"]]
)
def test_every_level_has_help(words, tmp_path):
    done = hornbook(*words, root=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "hornbook" in done.stdout


@pytest.mark.parametrize("table", ["filters", "sources", "growth", "optimizers", "decays", "tasks", "kinds", "keys"])
def test_every_table_of_names_is_printed(table, tmp_path):
    done = hornbook("list", table, root=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 2


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["data", "nowhere.yaml"], "does not exist"),
        (["data", TINY, "train.lerning_rate=1"], "learning_rate"),
        (["data", TINY, "data.sources.python_library.type=nothing"], "python_library"),
        (["data", TINY, "data.sources.extra.type=jsonl", "data.sources.extra.path=nowhere.jsonl"], "nowhere.jsonl"),
        (["data", TINY, "data.filters.lenght.min_characters=3"], "length"),
        (["data", TINY, "data.filters.length.min_charakters=3"], "min_characters"),
        (["init", TINY], "hornbook data"),
        (["pretrain", TINY], "hornbook"),
        (["init", TINY, "init.method=exakt"], "exact"),
        (["init", TINY, "init.options.noize=1"], "noize"),
        (["init", TINY, "init.method=random"], "init.source"),
        (["sample", TINY], "run init first"),
        (["init", TINY, "--dry-run", "train.optimizer=adam"], "adamw"),
        (["init", TINY, "--dry-run", "train.decay=lineer"], "linear"),
        (["data", TINY, "data.filters.lenght={}", "--dry-run"], "length"),
        (["report", TINY, "name=never"], "nothing is finished"),
        (["grow", "nowhere", "target"], "nowhere"),
        (["where", "init", TINY], "not trained"),
        (["evaluate", TINY, "evaluate.tasks=[cloce]"], "cloze"),
        (["export", TINY, "export.gguf=[q5_0]"], "q4_0"),
        (["export", TINY, "export.model=nowhere"], "no model at nowhere"),
        (["finetune", TINY, "finetune.method=lorra"], "did you mean 'lora'"),
        (["quantize", TINY, "quantize.kinds=[int9]"], "did you mean 'int8'"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(words, expected, tmp_path):
    done = hornbook(*words, root=tmp_path)
    assert done.returncode == WRONG_INPUT, done.stderr
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_model_that_cannot_be_read_is_one_message_and_exit_code_2(tmp_path):
    folder = tmp_path / "broken"
    folder.mkdir()
    shape = "'vocab_size': 300, 'hidden_size': 8, 'intermediate_size': 8, 'num_hidden_layers': 1"
    config = "{'model_type': 'phi', " + shape + ", 'num_attention_heads': 1}"
    (folder / "config.json").write_text(config.replace("'", '"'))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"\x08\x00")
    for words in (["sample", TINY, f"sample.model={folder}"], ["grow", str(folder), "target", "model.hidden_size=16"]):
        done = hornbook(*words, root=tmp_path)
        assert done.returncode == WRONG_INPUT, done.stderr
        assert "Traceback" not in done.stderr
        assert "safetensors" in done.stderr


@pytest.mark.parametrize("config", ["tiny", "phi1", "phi2"])
def test_a_dry_run_says_parameters_tokens_and_stages_without_a_network(config, tmp_path):
    done = hornbook(
        "pretrain", str(ROOT / "configs" / f"{config}.yaml"), "--dry-run", root=tmp_path, HF_HUB_OFFLINE="1"
    )
    assert done.returncode == 0, done.stderr
    for word in ("parameters", "tokens per step", "data", "init", "pretrain", "to do"):
        assert word in done.stdout
    assert not (tmp_path / "runs").exists()


def test_the_resolved_config_is_printed_and_can_be_used_again(tmp_path):
    printed = hornbook("data", TINY, "seed=7", "--print-config", root=tmp_path).stdout
    (tmp_path / "again.yaml").write_text(printed)
    assert hornbook("data", "again.yaml", "--print-config", root=tmp_path).stdout == printed
    assert "seed: 7" in printed


def test_memory_that_runs_out_anywhere_is_one_message_with_what_to_set(capsys):
    import argparse

    import torch

    from pipeline.__main__ import run_guarded

    def save(_: argparse.Namespace) -> None:
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 23.52 GiB of which 9 MiB "
            "is free. Of the allocated memory 22 GiB is allocated by PyTorch, see documentation for Memory Management"
        )

    assert run_guarded(argparse.Namespace(verb="sample"), save) == 2
    said = capsys.readouterr().err
    assert said.startswith("hornbook: CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has")
    assert "train.activation_checkpointing=full" in said
    assert "Traceback" not in said


def test_segments_grow_before_torch_is_loaded_unless_the_environment_says_otherwise(monkeypatch):
    from pipeline.system.processes import let_segments_grow

    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "backend:cudaMallocAsync")
    let_segments_grow()
    assert "PYTORCH_ALLOC_CONF" not in os.environ
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF")
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "")  # so that it is put back
    monkeypatch.delenv("PYTORCH_ALLOC_CONF")
    let_segments_grow()
    assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"


def test_a_signal_stops_at_once_or_is_deferred_to_the_end_of_the_step():
    code = (
        "import os, signal, sys\nfrom pipeline.system import signals\nfrom pipeline.system.errors import Stopped\n"
        "signals.install()\nsignals.defer(True)\nos.kill(os.getpid(), signal.SIGTERM)\n"
        "assert signals.stop_requested() == 'SIGTERM'\n"
        "try:\n    signals.defer(False)\nexcept Stopped as stop:\n    assert str(stop) == 'SIGTERM'\n"
        "else:\n    sys.exit(3)\n"
    )
    assert subprocess.run([sys.executable, "-P", "-c", code]).returncode == 0


def test_near_the_end_the_first_signal_stops_nothing_and_the_second_at_once():
    code = (
        "import os, signal, sys, time\nfrom pipeline.system import signals\n"
        "from pipeline.system.errors import Stopped\n"
        "signals.install()\nsignals.end_is_near()\nos.kill(os.getpid(), signal.SIGTERM)\nsignals.defer(False)\n"
        "assert signals.stop_requested() is None\ntime.sleep(signals.SAME_REQUEST_SECONDS)\n"
        "try:\n    os.kill(os.getpid(), signal.SIGUSR1)\nexcept Stopped as stop:\n    assert str(stop) == 'SIGUSR1'\n"
        "else:\n    sys.exit(3)\n"
    )
    assert subprocess.run([sys.executable, "-P", "-c", code]).returncode == 0


def test_a_stage_stopped_by_a_signal_exits_with_75(tmp_path):
    environment = {**os.environ, "HORNBOOK_ROOT": str(tmp_path), "PYTHONPATH": str(ROOT)}
    process = Command(["-m", "pipeline", "data", TINY], environment)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("artifacts/*/*/.lock")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert process.returncode == STOPPED, err
    assert "the same command resumes" in out


def test_a_signal_that_python_drops_in_a_callback_still_stops_the_work():
    code = (
        "import os, signal, sys\n"
        "from pipeline.system import signals\n"
        "from pipeline.system.errors import Stopped\n"
        "class Ends:\n"
        "    def __del__(self):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        sum(range(10_000))\n"
        "signals.install()\n"
        "signals.check()\n"
        "Ends()\n"  # what the handler raises there is printed and dropped
        "try:\n"
        "    signals.check()\n"
        "except Stopped:\n"
        "    sys.exit(75)\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert "Exception ignored in" in done.stderr
    assert done.returncode == 75


def test_signals_are_the_three_that_schedulers_and_people_send():
    assert set(signals.SIGNALS) == {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1}
    assert issubclass(Stopped, BaseException)
    assert not issubclass(Stopped, Exception)


def test_a_place_that_cannot_hold_folders_is_said_with_the_variable_that_moves_it(tmp_path):
    (tmp_path / "artifacts").touch()
    done = hornbook("data", TINY, "data.sources.python_library=null", root=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "HORNBOOK_ROOT" in done.stderr
