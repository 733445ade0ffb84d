"""What the tests of the stages share: helpers beside them can be imported, and one finished data stage."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from data_corpus import make_config, write_corpus

from pipeline import data
from pipeline.artifacts import build


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
        step = data.data_step(config)
        yield step.path, build(step, experiment="test")
    finally:
        os.environ.pop("HORNBOOK_ROOT") if before is None else os.environ.update(HORNBOOK_ROOT=before)
