"""The mistakes of a first hour, each typed as a person types it: one message that names the fix, no traceback."""

import json
import os
import shutil
import subprocess
import sys
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import yaml
from loopback import serve

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


RECORD = json.dumps({"text": "the words of a document that has some " * 20})
FILES: dict[str, str | bytes] = {
    "wide.yaml": f"name: x\n{SMALL_MODEL}".encode("utf-16"),
    "twice.yaml": f"name: x\nseed: 1\nseed: 2\n{SMALL_MODEL}",
    "windows.yaml": f'name: x\ndata: {{sources: {{d: {{type: text, path: "C:\\docs"}}}}}}\n{SMALL_MODEL}',
    "indent.yaml": f"name: x\n seed: 1\n{SMALL_MODEL}",
    "colon.yaml": f"name: x\ndata: {{sources: {{d: {{path: my docs: all}}}}}}\n{SMALL_MODEL}",
    "quote.yaml": "name: 'x\nseed: 1\n",
    "array.jsonl": f"[{RECORD}, {RECORD}]",
    "lines-of-array.jsonl": f"[\n {RECORD},\n {RECORD}\n]\n",
    "wide.jsonl": f"{RECORD}\n{RECORD}\n".encode("utf-16"),
    "tab.yaml": "name: x\n\tseed: 1\n",
    "empty.yaml": "",
    "list.yaml": "- a\n- b\n",
    "level.yaml": f"name: x\nlearning_rate: 0.003\n{SMALL_MODEL}",
    "no-budget.yaml": f"name: x\n{SMALL_MODEL}",
}


def source(kind: str, path: str) -> list[str]:
    """The words of a data stage that reads one source."""
    words = [f"data.sources.own.{word}" for word in (f"type={kind}", f"path={path}", "license=own")]
    return ["data", TINY, "data.sources.python_library=null", "data.sources.exercises=null", *words]


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
    "a verb misspelt": (["pretran", TINY], ["'pretran' is no verb", "did you mean 'pretrain'"]),
    "the verb behind the config": ([TINY, "data"], ["the verb comes first: hornbook data ", TINY]),
    "no verb": ([], ["hornbook data configs/tiny.yaml", "--help"]),
    "a flag misspelt": (["data", TINY, "--limt", "5"], ["'--limt'", "did you mean '--limit'"]),
    "a key as a flag": (["data", TINY, "--seed", "1"], ["'--seed'", "write seed=1"]),
    "a key as a flag with its value": (["data", TINY, "--train.seed=1"], ["'--train.seed=1'", "data --help"]),
    "a table misspelt": (["list", "filter"], ["'filter'", "did you mean 'filters'"]),
    "an override with a colon": (["data", TINY, "seed: 1"], ["'seed: 1'", "write seed=1"]),
    "two configs": (["data", TINY, "other.yaml"], ["'other.yaml'", "one config"]),
    "a path with spaces, without quotes": (
        [*source("text", "my"), "docs"], ["'docs' is not an override", "in quotes: 'data.sources.docs.path=my docs'"],
    ),
    "a config in UTF-16": (["data", "wide.yaml"], ["wide.yaml is UTF-16", "iconv -f UTF-16 -t UTF-8 wide.yaml"]),
    "a key twice": (["data", "twice.yaml"], ["twice.yaml", "duplicate key seed at line 3", "keep one"]),
    "a Windows path in double quotes": (["data", "windows.yaml"], ["windows.yaml", "line 2", "single quotes"]),
    "a key too far to the right": (["data", "indent.yaml"], ["indent.yaml", "line 2", "in one column"]),
    "a text with a colon": (["data", "colon.yaml"], ["colon.yaml", "line 2", "needs quotes"]),
    "a quote that is not closed": (["data", "quote.yaml"], ["quote.yaml", "line 1", "not closed"]),
    "a decimal comma": (["data", TINY, "train.learning_rate=0,003"], ["'0,003'", "write 0.003"]),
    "a percent sign": (["data", TINY, "data.validation.share=5%"], ["'5%'", "write 0.05"]),
    "a length with a unit": (["data", TINY, "train.sequence_length=2k"], ["'2k'", "write 2_000"]),
    "billions of tokens": (["pretrain", TINY, "budget.max_tokens=2B"], ["'2B'", "write 2_000_000_000"]),
    "days": (["pretrain", TINY, "budget.max_gpu_hours=1 day"], ["'1 day'", "write 24"]),
    "an unknown card": (["plan", TINY, "--card", "rtx9999"], ["'rtx9999'", "did you mean", "rtx-4090"]),
    "a device of another name": (["pretrain", TINY, "train.device=gpu"], ["train.device is 'gpu'", "cuda"]),
    "a filter misspelt": (["data", TINY, "data.filters.gopher={}"], ["did you mean 'gopher_quality'", "list filters"]),
    "a source without a type": (
        ["data", TINY, "data.sources.own={path: folder}"], ["data.sources.own", "without a type", "type: text"],
    ),
    "a source that is not there": (source("text", "nowhere"), ["data.sources.own.path", "nowhere", "matches"]),
    "a home folder that is not there": (source("text", "~/nowhere/docs"), ["~/nowhere/docs", "expected a folder"]),
    "an address as path": (source("text", "https://x.org/a.txt"), ["https://x.org/a.txt", "download it"]),
    "records as a text": (source("text", "array.jsonl"), ["array.jsonl", "expected type: jsonl"]),
    "a JSON array instead of lines": (source("jsonl", "array.jsonl"), ["array.jsonl", "mv array.jsonl array.json"]),
    "a JSON array over several lines": (
        source("jsonl", "lines-of-array.jsonl"), ["data.sources.own", "mv lines-of-array.jsonl lines-of-array.json"],
    ),
    "records in UTF-16": (source("jsonl", "wide.jsonl"), ["wide.jsonl is UTF-16", "iconv -f UTF-16 -t UTF-8 wide"]),
    "a hub name of one word": (["init", TINY, "init.source=smollm2"], ["'smollm2'", "neither a folder", "hub name"]),
    "an export before there is one": (["push", TINY, "me/model"], ["no finished export", "run: hornbook export"]),
    "drops before there are any": (["drops", TINY], ["no finished data stage", "run: hornbook data"]),
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
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
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
    assert not any(word in said for word in ("Traceback", "usage:", "<unicode string>"))
    assert all(word in said for word in expected), said
    assert len([line for line in said.splitlines() if line.startswith("hornbook")]) == 1


def test_two_configs_of_one_name_are_told_before_one_takes_the_others_place(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HORNBOOK_ROOT", "")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("Words of a text.")
    for name, seed in (("first.yaml", 1), ("second.yaml", 2)):
        values = yaml.safe_load(Path(TINY).read_text())
        values |= {"seed": seed, "init": {"method": "random"}}
        values["data"]["sources"] = {"d": {"type": "text", "path": "docs", "license": "own"}}
        (tmp_path / name).write_text(yaml.safe_dump(values))

    def data(config: str) -> str:
        assert command.run_guarded(command.parse(["data", config])) == 2  # one text is too little
        return capsys.readouterr().err

    assert "two configs" not in data("first.yaml")
    assert "two configs" not in data("first.yaml")
    said = data("second.yaml")
    assert "first.yaml and second.yaml are two configs with one name (tiny)" in said
    assert "write another name: in second.yaml" in said
    assert said.count("\n") == 1
    (tmp_path / "first.yaml").unlink()  # it was renamed
    assert "two configs" not in data("second.yaml")


class _Refusing(BaseHTTPRequestHandler):
    """A hub that knows no model, and one that is gated."""

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        gated = "gated" in self.path
        self.send_response(403 if gated else 404)
        self.send_header("X-Error-Code", "GatedRepo" if gated else "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET


@pytest.mark.parametrize(
    ("name", "reach", "expected"),
    [
        ("someone/smolm", "answers", ["'someone/smolm'", "none of this name", "https://huggingface.co/someone/smolm"]),
        ("someone/gated", "answers", ["'someone/gated'", "is gated", "export HF_TOKEN="]),
        ("someone/model", "no network", ["'someone/model'", "there is no network", "curl -I https://huggingface.co"]),
        ("someone/model", "offline", ["'someone/model'", "unset HF_HUB_OFFLINE"]),
    ],
)
def test_what_keeps_the_hub_from_giving_a_model_is_named(tmp_path, name, reach, expected):
    server = serve(_Refusing)
    try:
        address = f"http://127.0.0.1:{server.server_port if reach == 'answers' else 9}"
        offline = {"HF_HUB_OFFLINE": "1" if reach == "offline" else "0", "HF_HOME": str(tmp_path / "hf")}
        done = hornbook(tmp_path, "grow", name, "out", "model.hidden_size=64", HF_ENDPOINT=address, **offline)
    finally:
        server.shutdown()
        server.server_close()
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert all(word in done.stderr for word in expected), done.stderr


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
