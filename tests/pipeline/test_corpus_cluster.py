"""Shards on a cluster: whatever the executor says, a step is done when every shard has its completion mark.

The stand-ins behave as datatrove's Ray executor was seen to: it returns without an error when a shard has failed, and
waits for ever for a process that was killed and for a task that no node can hold.
"""

import contextlib
import os
import signal
import threading
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datatrove.data import Document
from datatrove.executor.base import PipelineExecutor
from datatrove.pipeline.base import PipelineStep

from pipeline.corpus import execute
from pipeline.corpus.execute import Executor, unfinished_shards
from pipeline.corpus.text.documents import document_writer, read_lines, shard_name
from pipeline.system.errors import Failure

TASKS, DOCUMENTS = 3, 5


class RaySays(PipelineExecutor):
    """All that `cluster` uses of datatrove's: `run` over the shards without a mark, errors swallowed."""

    def __init__(self, pipeline, tasks, logging_dir, workers, **options):
        super().__init__(pipeline, logging_dir)
        self.tasks = tasks

    @property
    def world_size(self) -> int:
        return self.tasks

    def get_distributed_env(self, node_rank: int = -1):
        names = ("node_ips", "cpus_per_task", "mem_per_cpu", "gpus_on_node", "executor")
        return {f"datatrove_{name}": "" for name in names}

    def run(self) -> None:
        fresh = self.pipeline
        for rank in self.get_incomplete_ranks():
            self.pipeline = deepcopy(fresh)  # a Ray task gets a copy
            self.run_rank(rank)

    def run_rank(self, rank: int) -> None:
        with contextlib.suppress(ValueError):
            self._run_for_rank(rank)


class WaitsForEver(RaySays):
    """For the process of shard 1, which was killed; or for a place for any."""

    began = True

    def run_rank(self, rank: int) -> None:
        if not self.began:
            threading.Event().wait()
        if rank == 1:
            child = os.fork()
            if child == 0:
                self._run_for_rank(rank)
            os.waitpid(child, 0)
            threading.Event().wait()
        super().run_rank(rank)


class NeverBegins(WaitsForEver):
    began = False


class FiveTexts(PipelineStep):
    """Shard 1 fails after two documents, or is killed there, as long as the file `broken` exists."""

    name, type = "five texts", "reader"

    def __init__(self, broken: Path, kill: bool = False):
        super().__init__()
        self.broken, self.kill = broken, kill

    def run(self, data=None, rank: int = 0, world_size: int = 1):
        for i in range(DOCUMENTS):
            if rank == 1 and i == 2 and self.broken.exists():
                if self.kill:
                    os.kill(os.getpid(), signal.SIGKILL)
                raise ValueError("damaged input in the middle of shard 1")
            yield Document(text=f"{rank} {i}", id=f"{rank}/{i}")


@pytest.fixture
def step(tmp_path, monkeypatch):
    """A step's folder, and the options of an executor whose class is the given one."""
    folder: Any = SimpleNamespace(path=tmp_path, logs=tmp_path / "logs")
    broken = tmp_path / "broken"
    broken.touch()

    def run(kind: str, stand_in: type | None = None, **source) -> dict[str, int]:
        monkeypatch.setattr(execute, "_executor_class", lambda _: stand_in)
        pipeline = [FiveTexts(broken, **source), document_writer(tmp_path / "documents")]
        Executor(tasks=TASKS, workers=2, kind=kind).run(folder, pipeline, description="read web")
        found = [tmp_path / "documents" / shard_name(shard) for shard in range(TASKS)]
        return {path.name: sum(1 for _ in read_lines(path)) for path in found}

    return run, broken, folder


def test_a_failed_shard_is_an_error_with_its_log_even_where_the_executor_returns_without_one(step):
    run, broken, folder = step
    with pytest.raises(Failure, match=r"read web: 1 of 3 shards did not finish \(shard 1\)") as found:
        run("ray", RaySays)
    assert f"{folder.logs}/logs/task_00001.log" in str(found.value)
    assert "ValueError: damaged input in the middle of shard 1" in str(found.value)
    assert "resumes" in str(found.value)
    broken.unlink()
    marks = {path.name: path.stat().st_mtime_ns for path in (folder.logs / "completions").iterdir()}
    assert run("ray", RaySays) == dict.fromkeys(map(shard_name, range(TASKS)), DOCUMENTS)
    for name, time in marks.items():  # the finished shards were not run again
        assert (folder.logs / "completions" / name).stat().st_mtime_ns == time


def test_a_shard_that_raises_here_is_raised_here(step):
    run, broken, _ = step
    with pytest.raises(ValueError, match="in the middle of shard 1"):
        run("local")
    broken.unlink()
    assert set(run("local").values()) == {DOCUMENTS}


@pytest.mark.parametrize(
    ("stand_in", "message"),
    [(WaitsForEver, r"no sign of life for 1 s from shard 1: its process was killed"),
     (NeverBegins, r"no sign of life for 1 s. A task asks for 1 CPUs and 2 GiB, and no node")],
)  # fmt: skip
def test_a_silent_cluster_ends_the_step_and_the_next_run_resumes(step, monkeypatch, stand_in, message):
    run, broken, folder = step
    monkeypatch.setattr(execute, "SILENT_SECONDS", 1.0)
    monkeypatch.setattr(execute, "ALIVE_SECONDS", 0.05)
    with pytest.raises(Failure, match=message):
        run("ray", stand_in, kill=True)
    assert 1 in unfinished_shards(folder.logs, TASKS)
    broken.unlink()
    assert set(run("ray", RaySays).values()) == {DOCUMENTS}


def test_a_cluster_that_is_busy_is_waited_for(step, monkeypatch, capsys):
    run, broken, _ = step
    broken.unlink()
    told = threading.Event()

    class Busy(RaySays):
        def run(self) -> None:
            told.wait()
            super().run()

    def nodes():
        told.set()
        return [{"CPU": 4.0, "memory": 8.0 * 2**30}]

    monkeypatch.setattr(execute, "SILENT_SECONDS", 0.1)
    monkeypatch.setattr(execute, "_ray_nodes", nodes)
    assert set(run("ray", Busy).values()) == {DOCUMENTS}
    assert "the nodes of the Ray cluster are busy" in capsys.readouterr().out
