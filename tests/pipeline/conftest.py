"""What the tests of the stages share: helpers beside them can be imported, and one finished data stage."""

import os
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import after_model
from data_corpus import made, make_config, write_corpus
from making import build

from pipeline import config as configs
from pipeline import stages
from pipeline.run_stage import run_stage
from pipeline.system import signals


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HORNBOOK_ROOT", str(tmp_path))
    return tmp_path


@pytest.fixture
def folder(tmp_path) -> Path:
    """For the input of a source; beside it lies the rest of the machine."""
    path = tmp_path / "in"
    path.mkdir()
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One finished stage that several tests look at: (its folder, its manifest)."""
    folder = tmp_path_factory.mktemp("stage")
    before = os.environ.get("HORNBOOK_ROOT")
    os.environ["HORNBOOK_ROOT"] = str(folder)
    try:
        config = make_config(write_corpus(folder / "in"))
        step = stages.data_step(config)
        yield step.path, made(config)
    finally:
        os.environ.pop("HORNBOOK_ROOT") if before is None else os.environ.update(HORNBOOK_ROOT=before)


@pytest.fixture(scope="session")
def pretrained_root(tmp_path_factory) -> Path:
    """A root with one finished pretraining of `after_model.CONFIG`, which costs seconds; nobody changes it."""
    folder = tmp_path_factory.mktemp("pretrained")
    before = os.environ.get("HORNBOOK_ROOT")
    os.environ["HORNBOOK_ROOT"] = str(folder)
    inputs = stages.input_steps
    stages.input_steps = after_model.input_steps
    try:
        config = configs.load(after_model.write_config(folder))
        build(after_model.input_steps(config)["init"], experiment="small")
        run_stage("pretrain", config, "small.yaml")
    finally:
        stages.input_steps = inputs
        signals.defer(False)
        os.environ.pop("HORNBOOK_ROOT") if before is None else os.environ.update(HORNBOOK_ROOT=before)
    return folder


@pytest.fixture
def pretrained(pretrained_root, tmp_path, monkeypatch):
    """`load(*overrides)` of that experiment's config, under a root of the test's own that holds the finished stages."""
    for name in ("artifacts", "runs"):
        shutil.copytree(pretrained_root / name, tmp_path / name, symlinks=True)
    monkeypatch.setenv("HORNBOOK_ROOT", str(tmp_path))
    monkeypatch.setattr(stages, "input_steps", after_model.input_steps)
    monkeypatch.setattr(stages, "data_step", lambda config: after_model.input_steps(config)["data"])
    path = after_model.write_config(tmp_path)
    return lambda *overrides: configs.load(path, overrides)
