"""The mistakes of a first hour, each typed as a person types it: one message that names the fix, no traceback."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import __main__ as command
from pipeline.system import signals

ROOT = Path(__file__).resolve().parents[1]
TINY = str(ROOT / "configs" / "tiny.yaml")
SMALL_MODEL = "model: {vocab_size: 512, hidden_size: 64, num_hidden_layers: 2, num_attention_heads: 4}\n"


def hornbook(folder: Path, *words: str, **environment: str | None) -> subprocess.CompletedProcess[str]:
    """Runs the command in `folder`; an environment variable given as None is taken away."""
    merged = {**os.environ, "PYTHONPATH": str(ROOT), "HORNBOOK_ROOT": "", **environment}
    return subprocess.run(
        [sys.executable, "-P", "-m", "pipeline", *words],
        cwd=folder,
        env={name: value for name, value in merged.items() if value is not None},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=100,
    )


FILES = {
    "tab.yaml": "name: x\n\tseed: 1\n",
    "empty.yaml": "",
    "list.yaml": "- a\n- b\n",
    "level.yaml": f"name: x\nlearning_rate: 0.003\n{SMALL_MODEL}",
    "no-budget.yaml": f"name: x\n{SMALL_MODEL}",
}

# what was typed -> words that the one message must hold: what was found, and how to fix it
MISTAKES = {
    "a config that is not there": (["data", "nowhere.yaml"], ["does not exist", "configs/tiny.yaml"]),
    "a folder as config": (["data", "folder"], ["is a folder", "configs/tiny.yaml"]),
    "a tab in YAML": (["data", "tab.yaml"], ["tab.yaml", "tab character", "line 2"]),
    "an empty config": (
        ["data", "empty.yaml"],
        ["'name' has no value", "'model.hidden_size' has no value", "'model.num_attention_heads' has no value",
         "'data.sources' is empty", "'budget.max_gpu_hours' is not set", "`hornbook new FOLDER", "configs/tiny.yaml"],
    ),
    "a list as config": (["data", "list.yaml"], ["no sections"]),
    "a key at the wrong level": (["data", "level.yaml"], ["'learning_rate'", "train.learning_rate"]),
    "a key misspelt": (["data", TINY, "trian.seed=1"], ["'trian'", "did you mean 'train'"]),
    "an override without a value": (["data", TINY, "seed"], ["'seed' is not an override", "key=value"]),
    "no config": (["data"], ["required: config"]),
    "an unknown verb": (["train", TINY], ["'train'", "pretrain"]),
    "a budget of nothing": (["pretrain", TINY, "budget.max_gpu_hours=0"], ["max_gpu_hours is 0", "more than 0"]),
    "a negative budget": (["pretrain", TINY, "budget.max_gpu_hours=-1"], ["max_gpu_hours is -1", "more than 0"]),
    "a budget with a unit": (["pretrain", TINY, "budget.max_gpu_hours=24h"], ["'24h'", "write 24"]),
    "tokens as a float": (["pretrain", TINY, "budget.max_tokens=1e9"], ["whole number", "1_000_000_000"]),
    "an empty source folder": (
        ["data", TINY, *(f"data.sources.notes.{word}" for word in ("type=text", "path=folder", "license=own"))],
        ["data.sources.notes.path", "no text file", ".md"],
    ),
    "init before data": (["init", TINY], ["not made yet", "hornbook data"]),
    "pretrain before init": (["pretrain", TINY, "init.method=random", "init.source=null"], ["run: hornbook data"]),
    "a card that is not there": (
        ["pretrain", TINY, "train.device=cuda", "init.method=random", "init.source=null"],
        ["not made yet", "hornbook data"],  # the first thing to fix
    ),
    "heads that do not divide the width": (["data", TINY, "model.num_attention_heads=7"], ["hidden_size", "=7"]),
    "windows longer than the model's": (["data", TINY, "train.sequence_length=9999"], ["9999", "max_position"]),
    "a name that climbs out": (["data", TINY, "name=../x"], ["'../x'", "a word such as"]),
    "a model folder that is none": (["init", TINY, "init.source=folder"], ["folder", "tokenizer"]),
    "a run that is none": (["compare", "a", "b"], ["no experiment 'a'", "none yet"]),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_one_message_names_the_fix(mistake, tmp_path, monkeypatch, capsys):
    """In this process, which spares a second of start-up for each."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HORNBOOK_ROOT", "")
    monkeypatch.setattr(signals, "install", lambda: None)  # they belong to the test session
    words, expected = MISTAKES[mistake]
    try:
        code = command.run_guarded(command.parse(words))
    except SystemExit as stop:  # argparse's own
        code = stop.code
    said = capsys.readouterr().err
    assert code == 2, said
    assert "Traceback" not in said
    assert all(word in said for word in expected), said
    assert len([line for line in said.splitlines() if line.startswith("hornbook")]) == 1


def test_a_mistake_ends_the_process_with_2(tmp_path):
    done = hornbook(tmp_path, "data", "nowhere.yaml")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr


@pytest.mark.parametrize("where", ["a file", "nowhere to write"])
def test_a_root_that_cannot_be_written_is_named(where, tmp_path):
    root = tmp_path / "taken"
    root.write_text("")
    root = root if where == "a file" else Path("/proc/hornbook")
    done = hornbook(tmp_path, "data", TINY, HORNBOOK_ROOT=str(root))
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert "HORNBOOK_ROOT" in done.stderr
    assert str(root) in done.stderr


@pytest.mark.parametrize(
    "environment", [{"HOME": None}, {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0"}, {"COLUMNS": "40"}]
)
def test_odd_surroundings_change_nothing(environment, tmp_path):
    """A folder with spaces and letters beyond ASCII, no HOME, an ASCII locale, a narrow terminal."""
    folder = tmp_path / "été avec espaces"
    folder.mkdir()
    shutil.copy(TINY, folder / "wörter.yaml")
    shutil.copy(ROOT / "configs" / "tiny-source.yaml", folder)
    done = hornbook(folder, "data", "wörter.yaml", "--dry-run", **environment)
    assert done.returncode == 0, done.stderr
    assert "to do" in done.stdout
    assert hornbook(folder, "pretrain", "--help", **environment).returncode == 0


def test_a_python_that_is_too_old_is_named(tmp_path):
    old = tmp_path / "python"
    old.write_text("#!/bin/sh\nexit 1\n")  # fails every question, as Python 3.8 fails the one for its version
    old.chmod(0o755)
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / "with_env.sh"), "-c", "pass"],
        env={**os.environ, "HORNBOOK_PYTHON": str(old)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "3.11" in done.stderr
    assert "pip install" in done.stderr
