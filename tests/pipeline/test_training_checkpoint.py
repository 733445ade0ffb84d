"""A checkpoint is whole or it is noticed: torn, flipped and deleted files, other branches, full disks."""

import random
import resource
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.storage.run_files import INDEX, TRAINER, WEIGHTS
from pipeline.system.disk import DiskFull
from pipeline.system.errors import UserError
from pipeline.training import checkpoint, memory
from pipeline.training.checkpoint import Checkpoints, NotFinite, State
from pipeline.training.decisions import Decisions


def state(step: int, value: float | None = None) -> State:
    weights = {"a.weight": torch.full((4, 3), float(step if value is None else value))}
    return State(step, 8 * step, weights, {"exp_avg/a.weight": torch.ones(4, 3)}, {"measured": {"x": 1.5}})


def store(folder: Path, keep: int = 2, decisions: Decisions | None = None, said: list | None = None) -> Checkpoints:
    say = (said if said is not None else []).append
    return Checkpoints(folder, keep, decisions or Decisions(folder.parent / "decisions.jsonl"), say)


def test_what_is_saved_is_loaded_and_random_numbers_go_on(tmp_path: Path) -> None:
    store(tmp_path / "c").save(state(3))
    expected = (random.random(), np.random.rand(), torch.rand(1).item())
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    loaded = store(tmp_path / "c").load()
    assert loaded is not None
    assert (loaded.step, loaded.sequence_index, loaded.values) == (3, 24, {"measured": {"x": 1.5}})
    assert torch.equal(loaded.weights["a.weight"], torch.full((4, 3), 3.0))
    assert torch.equal(loaded.optimizer["exp_avg/a.weight"], torch.ones(4, 3))
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected


def test_a_card_s_tensors_reach_the_file_in_pieces_through_one_buffer(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(memory, "_is_on_card", lambda tensor: True)
    monkeypatch.setattr(memory, "PINNED_BYTES", 64)
    weights = {"a.weight": torch.randn(9, 7).bfloat16(), "a.bias": torch.randn(33), "b.weight": torch.randn(2, 50)}
    pieces = [(name, piece.data_ptr(), piece.nbytes) for name, piece in memory.on_host(weights.items())]
    assert [name for name, _, _ in pieces] == ["a.weight"] * 3 + ["a.bias"] * 3 + ["b.weight"] * 2
    assert len({place for _, place, size in pieces if size <= 64}) == 1
    saved = store(tmp_path / "c")
    saved.save(State(1, 8, weights, {"exp_avg/a.weight": torch.ones(4, 3)}, {}))
    loaded = saved.load()
    assert loaded is not None
    assert all(torch.equal(loaded.weights[name], tensor.float()) for name, tensor in weights.items())


def test_a_state_saved_behind_is_the_one_of_that_moment(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(memory, "_is_on_card", lambda tensor: True)
    monkeypatch.setattr(memory, "PINNED_BYTES", 64)
    may_write, write = threading.Event(), Checkpoints._write
    monkeypatch.setattr(Checkpoints, "_write", lambda *words: may_write.wait() and write(*words))
    saved, now = store(tmp_path / "c"), state(3)
    saved.save_behind(now)
    expected = (random.random(), torch.rand(1).item())
    assert saved.settle(wait=False) is None  # still being written
    for tensor in (*now.weights.values(), *now.optimizer.values()):  # the steps go on
        tensor.zero_()
    now.values["measured"]["x"] = 0.0
    may_write.set()
    assert saved.steps() == [3]  # waits
    assert saved.settle() is None
    loaded = saved.load()
    assert loaded is not None
    assert loaded.values == {"measured": {"x": 1.5}}
    assert torch.equal(loaded.weights["a.weight"], torch.full((4, 3), 3.0))
    assert torch.equal(loaded.optimizer["exp_avg/a.weight"], torch.ones(4, 3))
    assert (random.random(), torch.rand(1).item()) == expected


def test_what_goes_wrong_behind_reaches_the_loop_and_the_next_save_works(tmp_path: Path, monkeypatch) -> None:
    saved = store(tmp_path / "c")
    write = Checkpoints._write

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "x")

    monkeypatch.setattr(Checkpoints, "_write", full)
    saved.save_behind(state(3))
    with pytest.raises(DiskFull):
        saved.settle()
    monkeypatch.setattr(Checkpoints, "_write", write)
    with pytest.raises(NotFinite):
        saved.save_behind(state(4, float("nan")))
    saved.save_behind(state(5))
    saved.save(state(6))  # waits for the one before it
    assert saved.steps() == [6, 5]
    assert not list((tmp_path / "c").glob(".*"))


def test_free_memory_of_the_host_is_at_most_what_a_control_group_leaves(monkeypatch) -> None:
    files = {
        "/proc/meminfo": "MemTotal: 64 kB\nMemAvailable:    40 kB\n",
        "/proc/self/cgroup": "0::/job/step\n",
        "/sys/fs/cgroup/job/step/memory.max": "max\n", "/sys/fs/cgroup/job/step/memory.current": "9000\n",
        "/sys/fs/cgroup/job/memory.max": "30000\n", "/sys/fs/cgroup/job/memory.current": "10000\n",
    }  # fmt: skip
    monkeypatch.setattr(memory, "_text", lambda path: files.get(str(path), ""))
    assert memory.host_free_bytes() == 20000
    files["/proc/self/cgroup"] = "5:cpu:/x\n4:memory:/job\n"
    assert memory.host_free_bytes() == 40 * 1024
    files["/sys/fs/cgroup/memory/job/memory.limit_in_bytes"] = "12000"
    files["/sys/fs/cgroup/memory/job/memory.usage_in_bytes"] = "2000"
    assert memory.host_free_bytes() == 10000
    files.clear()
    assert memory.host_free_bytes() == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_number_that_is_not_finite_is_found_wherever_it_is(tmp_path: Path, dtype, value: float) -> None:
    tensors = {f"exp_avg/{name}": torch.ones(5, 7, dtype=dtype) for name in "abc"}
    tensors["exp_avg/b"][3, 2] = value
    codes = {"exp_avg_codes/a": torch.full((4,), 255, dtype=torch.uint8), "exp_avg/none": torch.ones(0)}
    with pytest.raises(NotFinite, match="exp_avg/b holds"):
        store(tmp_path / "c").save(State(1, 8, {"a": torch.full((3, 2), 3e38)}, tensors | codes, {}))


@pytest.mark.parametrize("name", [WEIGHTS, TRAINER, INDEX])
@pytest.mark.parametrize("harm", ["torn", "flipped", "deleted", "emptied"])
def test_every_harm_to_every_file_is_noticed_and_the_one_before_is_used(tmp_path: Path, name: str, harm: str) -> None:
    folder = tmp_path / "c"
    saved = store(folder)
    saved.save(state(1))
    file = saved.save(state(2)) / name
    content = bytearray(file.read_bytes())
    if harm == "deleted":
        file.unlink()
    elif harm == "flipped":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    else:
        file.write_bytes(content[: len(content) // 2 if harm == "torn" else 0])
    said: list[str] = []
    loaded = store(folder, said=said).load()
    assert loaded is not None
    assert loaded.step == 1
    assert "step-00000002 is damaged" in said[0]


def test_every_single_bit_of_the_index_is_guarded(tmp_path: Path) -> None:
    saved = store(tmp_path / "c")
    path = saved.save(state(1))
    whole = (path / INDEX).read_bytes()
    for place in range(0, len(whole) - 2):  # the last two bytes are the closing brace's line
        harmed = bytearray(whole)
        harmed[place] ^= 1
        (path / INDEX).write_bytes(harmed)
        blank = whole[place : place + 1].isspace() or bytes(harmed[place : place + 1]).isspace()
        assert saved.damage(path) is not None or blank, f"byte {place}: {whole[place : place + 1]!r}"
    (path / INDEX).write_bytes(whole)
    assert saved.damage(path) is None


def test_keeps_the_newest_and_the_one_from_before_the_decay(tmp_path: Path) -> None:
    decisions = Decisions(tmp_path / "decisions.jsonl")
    saved = store(tmp_path / "c", keep=2, decisions=decisions)
    for step in (10, 20):
        saved.save(state(step))
    decisions.add("decay", 20, end_step=60, progress=0.0)
    for step in (30, 40, 50):
        saved.save(state(step))
    assert saved.steps() == [50, 40, 20]


def test_after_an_extension_checkpoints_of_the_old_decay_do_not_count(tmp_path: Path) -> None:
    decisions = Decisions(tmp_path / "decisions.jsonl")
    saved = store(tmp_path / "c", decisions=decisions)
    saved.save(state(20))
    decisions.add("decay", 20, end_step=40, progress=0.0)
    saved.save(state(40))
    decisions.add("extend", 20)
    assert decisions.segments() == []
    reopened = store(tmp_path / "c", decisions=Decisions(tmp_path / "decisions.jsonl"))
    assert reopened.steps() == [20]
    reopened.save(state(40, value=7.0))
    loaded = reopened.load()
    assert loaded is not None
    assert loaded.weights["a.weight"][0, 0] == 7.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_state_that_is_not_finite_is_never_saved(tmp_path: Path, bad: float) -> None:
    saved = store(tmp_path / "c")
    saved.save(state(1))
    with pytest.raises(NotFinite, match=r"a\.weight"):
        saved.save(state(2, value=bad))
    assert saved.steps() == [1]


def test_a_full_disk_is_found_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = store(tmp_path / "c")
    saved.save(state(1))
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 100, 0))
    with pytest.raises(DiskFull, match=rf"{tmp_path}.*needs 192 bytes, 0 are free"):
        saved.save(state(2))
    assert saved.steps() == [1]


def test_orphans_of_killed_saves_are_removed(tmp_path: Path) -> None:
    orphan = tmp_path / "c" / ".step-00000009.77.part"
    orphan.mkdir(parents=True)
    (orphan / WEIGHTS).write_bytes(b"half")
    assert store(tmp_path / "c").load() is None
    assert not orphan.exists()


def test_the_switch_that_lets_a_checkpoint_run_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(UserError, match="TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"):
        store(tmp_path / "c")


def test_a_torn_line_of_the_decisions_is_dropped_and_later_records_replace_earlier_ones(tmp_path: Path) -> None:
    path = tmp_path / "decisions.jsonl"
    decisions = Decisions(path)
    decisions.add("decay", 10, end_step=30, progress=0.0)
    decisions.add("decay", 20, end_step=25, progress=0.5)
    with open(path, "a") as file:
        file.write('{"kind": "dec')
    again = Decisions(path)
    assert [(s.step, s.end_step) for s in again.segments()] == [(10, 30), (20, 25)]
    again.add("decay", 15, end_step=28, progress=0.25)
    assert [(s.step, s.end_step) for s in Decisions(path).segments()] == [(10, 30), (15, 28)]


def test_a_disk_that_fills_up_inside_a_save_is_said_with_path_and_bytes_and_leaves_nothing_behind(
    tmp_path: Path,
) -> None:
    saved = store(tmp_path / "c")
    saved.save(state(1))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in (100, 500, 2_000):  # inside the weights, the trainer's state, near its end
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            with pytest.raises(DiskFull, match=rf"File too large: {tmp_path}.*needs 192 bytes"):
                saved.save(state(2))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert [path.name for path in (tmp_path / "c").iterdir()] == ["step-00000001"]
    saved.save(state(2))
    assert saved.steps() == [2, 1]
