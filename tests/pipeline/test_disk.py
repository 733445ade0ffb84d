"""A full disk is recognised in whatever words a library says it, and an append is whole or not there."""

import contextlib
import errno
import pickle
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models

from pipeline.system.disk import DiskFull, append_synced, check_free, full_disk, writing
from pipeline.system.errors import UserError
from pipeline.system.processes import refuse_unsafe_loading


@contextlib.contextmanager
def small_files() -> Iterator[None]:
    """Around the write alone: the test session writes its own report."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def torch_save(path: Path) -> None:
    with open(path, "wb") as file:
        torch.save(torch.zeros(10_000), file)


WRITERS = {
    "python": lambda path: path.write_bytes(b"x" * 10_000),
    "numpy": lambda path: np.save(path, np.zeros(10_000)),
    "safetensors": lambda path: save_file({"a": torch.zeros(10_000)}, path),
    "torch": torch_save,
    "tokenizers": lambda path: Tokenizer(models.BPE({str(i): i for i in range(5_000)}, [])).save(str(path)),
}


@pytest.mark.parametrize("library", WRITERS)
def test_every_library_that_writes_for_us_is_understood(library: str, tmp_path: Path) -> None:
    path = tmp_path / "big.npy"
    message = rf"{tmp_path}.*needs 40,000 bytes, [\d,]+ are free"
    with pytest.raises(DiskFull, match=message), small_files(), writing(path, 40_000):
        WRITERS[library](path)


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), writing(tmp_path, 1):
        (tmp_path / "no" / "folder").write_text("x")
    assert full_disk(ValueError("no space in this name")) is None
    assert full_disk(OSError(errno.EDQUOT, "over quota")) is not None


def test_a_log_that_cannot_grow_is_not_taken_for_the_disk_that_has_room(tmp_path: Path) -> None:
    said = pytest.raises(DiskFull, match=r"standard output.*this write needs 10 bytes")
    with said, writing(tmp_path, 10), open("/dev/full", "w") as log:
        log.write("step 1")


def test_of_a_copy_the_file_that_was_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "read").write_bytes(b"x" * 10_000)
    with pytest.raises(DiskFull, match=rf": {tmp_path}/written: this"), small_files(), writing(tmp_path, 10_000):
        shutil.copyfile(tmp_path / "read", tmp_path / "written")


def test_the_message_travels_between_processes(tmp_path: Path) -> None:
    error = DiskFull(str(tmp_path), 5, 3, "not enough room")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    with pytest.raises(DiskFull, match="not enough room"):
        check_free(tmp_path / "not" / "there", 2**62)


def test_a_line_that_does_not_fit_leaves_nothing_of_itself(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    append_synced(path, b"a" * 899 + b"\n")
    with pytest.raises(DiskFull, match=r"needs 200 bytes"), small_files():
        append_synced(path, b"b" * 200)
    assert path.read_bytes() == b"a" * 899 + b"\n"


@pytest.mark.parametrize("value", ["1", "true", "YES", "on"])
def test_the_switch_that_lets_files_run_code_stops_every_command(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", value)
    with pytest.raises(UserError, match="unset TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"):
        refuse_unsafe_loading()
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "0")
    refuse_unsafe_loading()
