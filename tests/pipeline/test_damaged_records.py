"""What hornbook itself keeps, damaged: it says so in one message, makes it anew or passes over the line. Found by
scripts/fuzz.py."""

import argparse
import json
from pathlib import Path

import pytest
from making import build, made_step

from pipeline import __main__ as hornbook
from pipeline import clean, runs
from pipeline.remote.place import Place, manifest_of
from pipeline.storage.files import read_json_lines, read_metrics
from pipeline.storage.ledger import cards, spent_hours
from pipeline.storage.run_files import INDEX
from pipeline.storage.steps import Folder, Step, read_manifest, read_output
from pipeline.system.errors import UserError
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.decisions import Decisions

pytestmark = pytest.mark.usefixtures("root")
LINE = {"stage": "data", "fingerprint": "f", "life": 1, "device": "cpu", "devices": 1, "pid": 1, "seconds": 36.0}


def _made(folder: Folder) -> dict:
    (folder.path / "report.json").write_text('{"figure": 1}')
    return {"documents": {"kept": 7}}


@pytest.fixture
def step(root) -> Step:
    """A finished folder that the experiment `mine` links to, beside another's."""
    made = made_step("data", 1, _made, {"seed": 1})
    build(made, experiment="mine")
    for name in ("mine", "other"):
        folder = root / "runs" / name
        folder.mkdir(parents=True)
        (folder / "ledger.jsonl").write_text(json.dumps(LINE) + "\n")
    (root / "runs" / "mine" / "data").symlink_to(made.path)
    return made


DAMAGES = {
    "another figure": lambda text: text.replace('"kept": 7', '"kept": 70'),
    "another type": lambda text: text.replace('"inputs": {}', '"inputs": []'),
    "no JSON": lambda text: text[: len(text) // 2],
    "a list": lambda text: "[1]",
    "100,000 levels": lambda text: "[" * 100_000,
    "no UTF-8": lambda text: text.replace("data", "d\udcffta"),
    "of an earlier version, without inputs": lambda text: '{"outputs": {}, "config": {}}',
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_manifest_is_named_shown_and_made_anew(name, step, root):
    path = step.path / "manifest.json"
    path.write_bytes(DAMAGES[name](path.read_text()).encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=r"manifest\.json is damaged .*Delete the file and run that stage again"):
        read_manifest(step.path)
    assert runs.facts("mine")["stages"]["data"]["state"] == "damaged"
    assert "other" in runs.show([runs.facts(name) for name in runs.names()])
    with pytest.raises(UserError, match="is damaged"):  # what it was made from would be taken for unneeded
        clean.plan()
    assert not step.finished
    assert build(step, experiment="mine")["documents"] == {"kept": 7}
    assert read_manifest(step.path)["documents"] == {"kept": 7}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_manifest_elsewhere_is_none(name, step, root):
    there = Place(f"file://{root}/artifacts")
    path = step.path / "manifest.json"
    assert manifest_of(there, f"data/{step.fingerprint}") == json.loads(path.read_text())
    path.write_bytes(DAMAGES[name](path.read_text()).encode(errors="surrogateescape"))
    if name != "of an earlier version, without inputs":
        assert manifest_of(there, f"data/{step.fingerprint}") is None


def test_a_manifest_of_an_earlier_version_has_no_seal_and_is_read(step):
    path = step.path / "manifest.json"
    content = json.loads(path.read_text())
    del content["sha256"]
    path.write_text(json.dumps(content))
    assert step.finished


def test_an_output_that_is_not_what_the_manifest_says_is_not_read(step):
    assert read_output(step.path, "report.json") == {"figure": 1}
    (step.path / "report.json").write_text('{"figure": 2}')
    assert read_output(step.path, "report.json") is None
    assert read_output(step.path, "nothing.json") is None


ODD_LINES = [
    "12", "null", "[]", '"text"', "{}", '{"stage": "data"}', "[" * 100_000, "{", "\udcff",
    *(json.dumps({**LINE, key: value}) for key in LINE for value in (None, [1], {"a": 1})),
    *(json.dumps({**LINE, "seconds": value}) for value in (-5, float("nan"), float("inf"), 10**400, "9")),
    json.dumps({**LINE, "host": []}),
]  # fmt: skip


@pytest.mark.parametrize("odd", ODD_LINES, ids=range(len(ODD_LINES)))
def test_a_damaged_line_of_a_ledger_is_passed_over_and_the_others_count(odd, tmp_path):
    path = tmp_path / "ledger.jsonl"
    lines = [json.dumps(LINE), odd, json.dumps({**LINE, "life": 2})]
    path.write_bytes("\n".join(lines).encode(errors="surrogateescape") + b"\n")
    assert spent_hours(path) == {"data": 0.02}
    assert cards(path, "data", "f")[0]["lives"] == 2


def test_rows_of_metrics_keep_their_figures_only(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [
        {"step": 1, "train/loss": 2.5, "val/web/bits_per_byte": None},
        {"step": "2"},
        5,
        {"step": 3, "train/loss": "x"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 4, "train/loss": Infinity}\n')
    assert read_metrics(path) == [rows[0], {"step": 3}, {"step": 4}]
    assert read_json_lines(path, step=int) == [rows[0], rows[3], {"step": 4, "train/loss": float("inf")}]


@pytest.mark.parametrize("odd", [
    "12", "{}", '{"kind": "decay"}', '{"kind": "decay", "step": 5, "end_step": "9", "progress": 0}',
    '{"kind": "decay", "step": 5, "end_step": NaN, "progress": 0}', '{"kind": [], "step": 1}',
    '{"kind": "extend", "step": -1}', '{"kind": "decay", "step": 5, "end_step": 9, "progress": 0, "hold_until": "7"}',
    '{"kind": "validated", "step": 1, "bits_per_byte": null}', "[" * 100_000, "{",
])  # fmt: skip
def test_a_damaged_decision_is_named_with_its_line(odd, tmp_path):
    path = tmp_path / "decisions.jsonl"
    path.write_text('{"kind": "life", "step": 0}\n' + odd + '\n{"kind": "skip", "step": 3}\n')
    with pytest.raises(UserError, match=r"decisions\.jsonl, line 2 is damaged"):
        Decisions(path)


def test_a_checkpoint_whose_index_names_no_branch_is_damaged_and_the_one_before_is_used(tmp_path):
    from test_training_checkpoint import state

    decisions = Decisions(tmp_path / "decisions.jsonl")
    decisions.add("extend", 9)
    kept = Checkpoints(tmp_path / "c", 2, decisions, say=lambda _: None)
    kept.save(state(1))
    path = kept.save(state(2)) / INDEX
    path.write_text(json.dumps({**json.loads(path.read_text()), "branch": "1"}))
    loaded = kept.load()
    assert loaded is not None
    assert loaded.step == 1


@pytest.mark.parametrize("content", ["[1]", '{"a": 1}', "[" * 100_000, "{"])
def test_a_damaged_cache_of_hashes_and_a_damaged_lock_stop_nothing(content, step, root, tmp_path):
    from pipeline.storage.files import hash_files

    file = tmp_path / "input.txt"
    file.write_text("x")
    before = hash_files([file], tmp_path)
    cache = root / "artifacts" / ".input-hashes.json"
    for damaged in (content, json.dumps({key: content for key in json.loads(cache.read_text())})):
        cache.write_text(damaged)
        assert hash_files([file], tmp_path) == before
    (step.path / "manifest.json").unlink()
    (step.path / ".lock").write_text(content)
    assert runs.facts("mine")["stages"]["data"]["state"] == "stopped"
    (step.path / ".lock").write_text('{"life": "x"}')
    assert build(step, experiment="mine")["documents"] == {"kept": 7}


def test_a_message_is_of_bounded_length_and_holds_nothing_that_a_terminal_obeys(capfd):
    def stop(_: argparse.Namespace) -> None:
        raise UserError(f"unknown key '\x1b[2J\x07{'x' * 200_000}'; expected some\nother key")

    assert hornbook.run_guarded(argparse.Namespace(verb="runs"), stop) == 2
    said = capfd.readouterr().err
    assert len(said) < 2_000
    assert said.startswith(r"hornbook: unknown key '\x1b[2J\x07xxx")
    assert said.endswith("xxx'; expected some\nother key\n")
    assert "characters left out" in said


def test_a_name_that_no_file_can_have_is_a_message(capfd):
    assert hornbook.run_guarded(argparse.Namespace(verb="runs"), lambda _: Path("x" * 5_000).stat()) == 2
    assert "File name too long: xxx" in capfd.readouterr().err


def test_a_shape_that_cannot_be_is_a_message_wherever_it_is_found(capfd):
    from model.config import ImpossibleShape

    def stop(_: argparse.Namespace) -> None:
        raise ImpossibleShape("model.hidden_size is -1; it must be greater than 0.")

    assert hornbook.run_guarded(argparse.Namespace(verb="runs"), stop) == 2
    assert capfd.readouterr().err == "hornbook: model.hidden_size is -1; it must be greater than 0.\n"
