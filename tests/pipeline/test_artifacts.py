"""A step is built once per fingerprint, never half, never stale."""

import json
import subprocess
import sys

import pytest
from making import build, made_step

from pipeline.storage.files import hash_files
from pipeline.storage.locks import FolderLock
from pipeline.storage.steps import Folder, Step, content_hash, hash_outputs, read_manifest
from pipeline.system.errors import Busy


@pytest.fixture(autouse=True)
def _root(monkeypatch, tmp_path):
    monkeypatch.setenv("HORNBOOK_ROOT", str(tmp_path))


def _step(calls: list[str], name: str = "first", version: int = 1, config=None, inputs=None, text: str = "x") -> Step:
    def make(folder: Folder) -> dict:
        calls.append(name)
        (folder.path / "out.txt").write_text(text)
        return {"letters": len(text)}

    return made_step(name, version, make, config, inputs)


def test_a_finished_step_is_not_made_again():
    calls: list[str] = []
    first = build(_step(calls), experiment="e")
    assert build(_step(calls), experiment="e") == first
    assert calls == ["first"]
    assert first["letters"] == 1
    assert first["outputs"]["out.txt"]["bytes"] == 1


def test_config_version_and_inputs_each_lead_to_another_folder():
    calls: list[str] = []
    base = _step(calls)
    others = [_step(calls, version=2), _step(calls, config={"a": 1}), _step(calls, inputs={"x": base})]
    others.append(_step(calls, inputs={"x": "0123"}))
    assert len({s.fingerprint for s in [base, *others]}) == 5


def test_library_versions_are_part_of_the_fingerprint(monkeypatch):
    step = Step("s", 1, libraries=("numpy",))
    before = step.fingerprint
    monkeypatch.setattr("pipeline.storage.steps.metadata.version", lambda name: "999")
    assert Step("s", 1, libraries=("numpy",)).fingerprint != before


def test_a_changed_late_step_leaves_early_ones_alone():
    calls: list[str] = []
    early = _step(calls, "early")
    build(_step(calls, "late", config={"a": 1}, inputs={"early": early}), experiment="e")
    build(_step(calls, "late", config={"a": 2}, inputs={"early": early}), experiment="e")
    assert calls == ["early", "late", "late"]


def test_a_step_that_fails_is_unfinished_and_made_again():
    def fail(folder: Folder) -> dict:
        (folder.path / "half.txt").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        build(made_step("s", 1, fail), experiment="e")
    step = made_step("s", 1, lambda folder: {"ok": True})
    assert not step.finished
    assert build(step, experiment="e")["ok"]


def test_a_step_whose_output_was_deleted_or_cut_is_made_again_but_not_for_a_report(tmp_path):
    calls: list[str] = []
    step = _step(calls)
    build(step, experiment="e")
    (step.path / "report.html").write_text("page")
    assert step.finished
    (step.path / "out.txt").write_text("")
    assert not step.finished
    build(step, experiment="e")
    assert calls == ["first", "first"]
    (step.path / "report.html").unlink()
    assert step.finished


def test_a_forked_worker_does_not_keep_the_lock_of_its_dead_parent(tmp_path):
    code = HOLD.replace('print("held", flush=True)', 'import os; print(os.fork() or "held", flush=True)')
    with subprocess.Popen(
        [sys.executable, "-P", "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        parent.stdout.readline()  # both have spoken: the child, too, is past its fork
        parent.kill()
        parent.wait()
        with FolderLock(tmp_path, wait=False):
            pass


def test_reports_logs_and_hidden_files_stay_out_of_the_content_hash(tmp_path):
    (tmp_path / "logs").mkdir()
    for name in ("a.bin", "report.html", ".lock", "logs/x.log", "manifest.json"):
        (tmp_path / name).write_text(name)
    outputs = hash_outputs(tmp_path)
    assert set(outputs) == {"a.bin", "report.html"}
    assert content_hash(outputs, ["report.html"]) == content_hash({"a.bin": outputs["a.bin"]})


def test_input_files_are_hashed_by_content_and_not_by_place(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text("same")
    one, two = (hash_files([tmp_path / f / "a.txt"], tmp_path / f) for f in ("one", "two"))
    assert one == two
    (tmp_path / "two" / "a.txt").write_text("other")
    assert hash_files([tmp_path / "two" / "a.txt"], tmp_path / "two") != one


HOLD = """
import sys, time
from pathlib import Path
from pipeline.storage.locks import FolderLock
with FolderLock(Path(sys.argv[1]), wait=True):
    print("held", flush=True)
    time.sleep(1.5)
"""


def test_a_second_process_waits_or_is_told_who_owns_the_folder(tmp_path):
    words = [sys.executable, "-P", "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Busy, match=str(holder.pid)), FolderLock(tmp_path, wait=False):
            pass
        with FolderLock(tmp_path, wait=True):
            assert json.loads((tmp_path / ".lock").read_text())["pid"] != holder.pid


def test_the_manifest_says_where_things_come_from():
    calls: list[str] = []
    first = _step(calls)
    step = _step(calls, "second", inputs={"first": first, "outside": "cafe"})
    build(step, experiment="e")
    manifest = read_manifest(step.path)
    assert manifest["inputs"]["first"] == {
        "path": f"artifacts/first/{first.fingerprint}",
        "fingerprint": first.fingerprint,
    }
    assert manifest["inputs"]["outside"] == {"fingerprint": "cafe"}
    assert {
        "stage",
        "name",
        "fingerprint",
        "content_hash",
        "config",
        "outputs",
        "started",
        "finished",
        "seconds",
    } <= set(manifest)
    assert {"gpu_hours", "device", "commit", "dirty", "versions"} <= set(manifest)
