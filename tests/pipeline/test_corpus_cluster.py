"""Shards here and on a real Ray cluster of three nodes on this machine: a step is done when every shard has its mark,
else one error names the shards and a log. (Slurm: test_slurm.py.)

The nodes share one address and one disk. What differs between machines, a missing folder or checkout, is asked for
under names that no node has.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from data_corpus import made, make_config, write_corpus
from shard_faults import DOCUMENTS, FiveTexts

from pipeline.corpus import ray_cluster
from pipeline.corpus.execute import Executor, unfinished_shards
from pipeline.corpus.text.documents import document_writer, read_lines, shard_name
from pipeline.system.errors import Failure, UserError
from pipeline.system.processes import process_lives

TASKS = 3
REPOSITORY = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 240
on_ray = [
    pytest.mark.ray,
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'hornbook[ray]'"),
]


class Step:
    """A step of three shards of five documents, and what its shards do at their third."""

    def __init__(self, path: Path, options: dict[str, Any] | None):
        self.path, self.options = path, options
        self.folder: Any = SimpleNamespace(path=path, logs=path / "logs")
        path.mkdir()

    def order(self, *names: str) -> "Step":
        for name in names:
            (self.path / name).touch()
        return self

    def release(self, *names: str) -> None:
        for name in names:
            (self.path / name).unlink()

    def run(self, **options: Any) -> dict[str, int]:
        """Documents by file, after a run."""
        kind = "local" if self.options is None else "ray"
        executor = Executor(TASKS, 2, kind, {**(self.options or {}), **options})
        executor.run(self.folder, [FiveTexts(self.path), document_writer(self.path / "documents")], description="read")
        found = [self.path / "documents" / shard_name(shard) for shard in range(TASKS)]
        return {path.name: sum(1 for _ in read_lines(path)) for path in found}

    def held(self, shard: int) -> tuple[int, str]:
        """The process and the node that hold a shard, once they do."""
        wait_for((self.path / f"held-{shard}").exists)
        pid, _, node = (self.path / f"held-{shard}").read_text().partition(" ")
        return int(pid), node

    def log(self, shard: int) -> str:
        return str(self.folder.logs / "logs" / f"task_{shard:05d}.log")

    def times(self) -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in (self.folder.logs / "completions").glob("*")}


ALL = dict.fromkeys(map(shard_name, range(TASKS)), DOCUMENTS)


def wait_for(what: Callable[[], object]) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while not what():
        assert time.monotonic() < until
        time.sleep(0.05)


def in_background(step: Step, **options: Any):
    """The run of a step in a thread; `()` waits for it and returns what it returned or raised."""
    import threading

    result: list[Any] = []

    def run() -> None:
        try:
            result.append(step.run(**options))
        except BaseException as error:
            result.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def ended() -> Any:
        thread.join(PATIENCE_SECONDS)
        return result[0]

    return ended


@pytest.fixture
def step(tmp_path: Path) -> Step:
    return Step(tmp_path / "step", None)


def test_a_shard_that_raises_here_is_one_error_with_its_log(step: Step) -> None:
    step.order("damaged-1")
    with pytest.raises(
        Failure, match=r"shards did not finish \(shard 1.*: ValueError: damaged input .* of shard 1"
    ) as e:
        step.run()
    assert step.log(1) in str(e.value)
    assert isinstance(e.value.__cause__, ValueError)
    step.release("damaged-1")
    assert step.run() == ALL


def test_wrong_input_that_a_shard_finds_stays_wrong_input(step: Step) -> None:
    step.order("wrong-2")
    with pytest.raises(UserError, match=r"^the file of shard 2 is wrong\. read: 1 of 3 shards .*shard 2") as e:
        Executor.run(Executor(TASKS, 1), step.folder, [FiveTexts(step.path)], description="read")
    assert step.log(2) in str(e.value)


def test_a_process_that_is_killed_here_is_one_error_with_a_log(step: Step) -> None:
    step.order("deadly-1")
    with pytest.raises(Failure, match=r"read: \d of 3 shards did not finish \(shard .*was killed.*memory") as e:
        step.run()
    assert str(step.folder.logs) in str(e.value)
    step.release("deadly-1")
    assert step.run() == ALL


# ---- Ray ----------------------------------------------------------------------------


class Nodes:
    """A head without CPUs, and two nodes of one CPU each."""

    def __init__(self, folder: str):
        from ray.cluster_utils import Cluster

        store = {"object_store_memory": 80 * 2**20}
        head = {"num_cpus": 0, "include_dashboard": False, **store}
        self.folder, self.cluster, self.store = folder, Cluster(initialize_head=True, head_node_args=head), store
        self.nodes = [self.add(), self.add()]
        self.cluster.wait_for_nodes()
        self.address: str = self.cluster.address

    def add(self) -> Any:
        return self.cluster.add_node(num_cpus=1, memory=2**30, **self.store)

    def lose(self, name: str) -> None:
        """A node ends as when its machine loses power."""
        node = next(node for node in self.nodes if node.node_id == name)
        self.nodes.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    import ray  # noqa: F401 - its handler of SIGTERM is not this process's

    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    folder = tempfile.mkdtemp(prefix="ray-")  # short, for names of sockets
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))  # without the checkout: a worker has to find it
        patch.setenv("TMPDIR", folder)  # of the workers
        patch.delenv("RAY_ADDRESS", raising=False)
        made_nodes = Nodes(folder)
        try:
            yield made_nodes
        finally:
            ray_cluster._disconnect()
            made_nodes.cluster.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def far(tmp_path: Path, nodes: Nodes) -> Step:
    return Step(tmp_path / "far", {"address": nodes.address, "mem_per_cpu_gb": 0.1})


class TestRay:
    pytestmark = on_ray

    def test_the_whole_data_stage_gives_the_same_content(self, nodes: Nodes, tmp_path: Path, monkeypatch) -> None:
        corpus = write_corpus(tmp_path / "in")
        hashes = []
        for executor in ("local", "ray"):
            monkeypatch.setenv("HORNBOOK_ROOT", str(tmp_path / executor))
            config = make_config(corpus, data__executor=executor)
            config.data.executor_options = {"address": nodes.address, "mem_per_cpu_gb": 0.1}
            hashes.append(made(config)["content_hash"])
        assert hashes[0] == hashes[1]
        for name in ("data-read", "data-repair", "data-rules", "data-near-dedup", "data-encode"):
            assert list((tmp_path / "ray" / "artifacts" / name).glob("*/logs/logs/task_00002.log")), name
        assert not list(Path(nodes.folder).glob("ray_logs"))  # datatrove's place for everybody's logs

    def test_a_damaged_shard_is_one_error_and_the_next_run_resumes(self, far: Step) -> None:
        far.order("damaged-1")
        with pytest.raises(Failure, match=r"read: 1 of 3 shards did not finish \(shard 1\): ValueError: damaged") as e:
            far.run()
        assert far.log(1) in str(e.value)
        assert "ValueError: damaged input" in Path(far.log(1)).read_text()
        far.release("damaged-1")
        before = far.times()
        assert set(before) == {"00000", "00002"}
        assert far.run() == ALL
        assert before.items() <= far.times().items()  # the finished shards did not run again

    def test_wrong_input_that_a_shard_finds_stays_wrong_input(self, far: Step) -> None:
        with pytest.raises(UserError, match=r"^the file of shard 2 is wrong\. read: 1 of 3"):
            far.order("wrong-2").run()

    def test_a_killed_process_is_replaced_and_one_that_dies_again_is_an_error(self, far: Step, capsys) -> None:
        ended = in_background(far.order("hold-1"))
        pid, _ = far.held(1)
        os.kill(pid, signal.SIGKILL)
        far.release("hold-1")
        assert ended() == ALL
        assert f"shard 1 was killed (process {pid} on " in capsys.readouterr().out
        shutil.rmtree(far.folder.logs)
        with pytest.raises(Failure, match=r"\(shard 0\): shard 0 was killed .* 2 times; .*mem_per_cpu_gb=0.2") as e:
            far.order("deadly-0").run(attempts=2)
        assert far.log(0) in str(e.value)
        assert set(far.times()) == {"00001", "00002"}

    def test_a_task_larger_than_the_largest_node_is_refused_with_both_numbers(self, far: Step) -> None:
        with pytest.raises(UserError, match=r"asks for 2 CPUs and 0\.2 GiB, and the largest of 3 nodes has 1 CPU and"):
            far.run(cpus_per_task=2)
        with pytest.raises(
            UserError, match=r"asks for 1 CPU and 8 GiB, and the largest of 3 nodes .* and 1 GiB; .*mem_"
        ):
            far.run(mem_per_cpu_gb=8)
        assert unfinished_shards(far.folder.logs, TASKS) == [0, 1, 2]

    def test_a_shard_may_have_a_time_limit(self, far: Step) -> None:
        # on a busy machine the other shards may be over it too
        with pytest.raises(Failure, match=r"\(shard 0.*: shard 0 ran for more than .*time=2 \(process"):
            far.order("hold-0").run(time=2)
        pid = int((far.path / "held-0").read_text().split()[0]) if (far.path / "held-0").exists() else 0
        wait_for(lambda: not pid or not process_lives(pid))

    def test_a_process_that_stands_still_ends_the_step(self, far: Step) -> None:
        ended = in_background(far.order("hold-1"), watchdog_seconds=5)
        pid, _ = far.held(1)
        os.kill(pid, signal.SIGSTOP)
        wait_for(lambda: len(far.times()) == TASKS - 1)
        error = ended()
        assert isinstance(error, Failure)
        assert f"alive for 5 s: shard 1 (process {pid} on" in str(error)
        assert far.log(1) in str(error)
        wait_for(lambda: not process_lives(pid))  # the cluster's work ends with the step

    def test_two_steps_at_once_keep_their_logs_apart_and_busy_nodes_are_waited_for(
        self, nodes: Nodes, far: Step, tmp_path: Path, capsys
    ) -> None:
        other = tmp_path / "other"
        other.mkdir()
        for shard in (0, 1):
            (other / f"hold-{shard}").touch()
        with user(other, nodes) as process:
            wait_for(lambda: (other / "held-0").exists() and (other / "held-1").exists())
            assert len({(other / f"held-{shard}").read_text().split()[1] for shard in (0, 1)}) == 2  # both nodes
            ended = in_background(far, watchdog_seconds=5)
            told = ""

            def waits() -> bool:
                nonlocal told
                told += capsys.readouterr().out
                return "waiting: other work uses the 2 nodes" in told

            wait_for(waits)
            for shard in (0, 1):
                (other / f"hold-{shard}").unlink()
            assert process.wait(PATIENCE_SECONDS) == 0
            assert ended() == ALL
        for folder, count in ((far.folder.logs, 3), (other / "logs", 2)):
            logs = list((folder / "logs").iterdir())
            assert len(logs) == count
            assert all(str(folder) in path.read_text() or "Processing done" in path.read_text() for path in logs)

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda n: n.name)
    def test_a_stop_ends_the_work_on_the_cluster(self, nodes: Nodes, tmp_path: Path, number) -> None:
        for shard in (0, 1):
            (tmp_path / f"hold-{shard}").touch()
        with user(tmp_path, nodes) as process:
            wait_for(lambda: (tmp_path / "held-0").exists() and (tmp_path / "held-1").exists())
            pids = [int((tmp_path / f"held-{shard}").read_text().split()[0]) for shard in (0, 1)]
            process.send_signal(number)
            assert process.wait(PATIENCE_SECONDS) != 0
        for pid in pids:
            wait_for(lambda pid=pid: not process_lives(pid))

    def test_a_node_that_lacks_the_folder_or_the_code_says_so_in_a_sentence(self, far: Step, monkeypatch) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(os, "getcwd", lambda: "/only/here")
            with pytest.raises(
                UserError, match=r"^the node [\d.]+ cannot use /only/here \(No such file.*HORNBOOK_ROOT"
            ):
                far.run()
        with monkeypatch.context() as patch:
            patch.setattr(ray_cluster, "REPOSITORY", Path("/only/here"))
            patch.setenv("PYTHONPATH", str(REPOSITORY))
            with pytest.raises(UserError, match=r"^the node [\d.]+ cannot load hornbook from /only/here .*there is "):
                far.run()
        with monkeypatch.context() as patch:
            patch.setattr(ray_cluster.metadata, "version", lambda name: "9.9")
            with pytest.raises(UserError, match=r"^the node .* datatrove is 0\.10\.\d there and 9\.9 here"):
                far.run()
        assert far.run() == ALL

    def test_a_cluster_that_was_not_named_is_not_joined(self, nodes: Nodes, far: Step, tmp_path: Path) -> None:
        for address in (None, "auto", "local"):
            with pytest.raises(UserError, match=r"executor_options\.address is .*expected the address of the cluster"):
                far.run(address=address)
        with pytest.raises(UserError, match=r"address=127\.0\.0\.1:1 gives no Ray cluster .*refused"):
            far.run(address="127.0.0.1:1")

    def test_the_work_of_a_lost_node_is_done_by_another_and_without_nodes_the_step_ends(
        self, nodes: Nodes, far: Step, capsys
    ) -> None:
        """The last one: it takes the nodes away."""
        ended = in_background(far.order("hold-0", "hold-1"))
        (_, first), (_, second) = far.held(0), far.held(1)
        assert first != second
        far.release("hold-0")
        wait_for(lambda: len(far.times()) == TASKS - 1)
        (far.path / "held-1").unlink()
        nodes.lose(second)
        assert far.held(1)[1] == first
        assert "shard 1 was lost with its node" in capsys.readouterr().out
        nodes.lose(first)
        error = ended()
        assert isinstance(error, Failure)
        assert "(shard 1)" in str(error)
        assert far.log(1) in str(error)
        assert "no node is left that holds a task of 1 CPU" in str(error)


def user(orders: Path, nodes: Nodes) -> "subprocess.Popen[bytes]":
    """Another process with two shards."""
    path = os.pathsep.join([str(REPOSITORY), str(Path(__file__).parent)])
    words = f"from shard_faults import run_held; run_held({str(orders)!r}, {nodes.address!r})"
    return subprocess.Popen([sys.executable, "-P", "-c", words], env={**os.environ, "PYTHONPATH": path}, cwd=orders)
