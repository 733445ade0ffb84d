"""The shards of a step on a cluster, through datatrove's Slurm or Ray executor: the same steps, the same result.

In: an `Executor` with `data.executor` and `data.executor_options`, a step's pipeline and folder. Out: every shard
done, or an error that names the shards and their logs. The stage's own process waits: it joins what the shards found,
which takes seconds. A stopped stage cancels its jobs; the same command resumes with the shards that are left.
datatrove's Ray executor waits for ever for a process that was killed and for a task that no node can hold. So every
shard shows here that it is alive, and a silence ends the step. Tried on one machine: Slurm, and Ray 2.60.
"""

import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from pipeline.corpus.execute import unfinished_message, unfinished_shards
from pipeline.storage.steps import Folder
from pipeline.system.errors import Failure, Stopped, UserError
from pipeline.system.progress import Progress, progress

if TYPE_CHECKING:
    from pipeline.corpus.execute import Executor

POLL_SECONDS = 3.0
ALIVE_SECONDS = 5.0  # between two signs of life of a shard
SILENT_SECONDS = 300.0  # without any sign of life: a parser in C may keep a shard's other threads waiting for a minute
QUEUE_SILENCES = 12  # so many of them are spent waiting for a busy node
GONE_POLLS = 5  # a job that left the queue may still have marks on their way over a network file system


def check(kind: str, options: dict[str, Any]) -> None:
    """`UserError` for options that datatrove's executor does not have or needs, before any work starts."""
    import inspect

    from pipeline.config import nearest

    if kind == "slurm" and shutil.which("sbatch") is None:
        raise UserError("data.executor is slurm, and there is no sbatch on this machine; data.executor=local")
    known = inspect.signature(_executor_class(kind).__init__).parameters
    ours = {"self", "pipeline", "tasks", "logging_dir", "workers", "skip_completed", "depends", "depends_job_id"}
    for name in options:
        if name not in known or name in ours:
            hint = nearest(name, set(known) - ours)
            raise UserError(f"data.executor_options.{name} is not an option of datatrove's {kind} executor{hint}")
    missing = [n for n in ("partition", "time") if kind == "slurm" and n not in options]
    if missing:
        raise UserError(
            f"data.executor is slurm and data.executor_options.{missing[0]} has no value; "
            "set it, such as data.executor_options.partition=cpu data.executor_options.time=02:00:00"
        )


def _executor_class(kind: str) -> Any:
    if kind == "slurm":
        from datatrove.executor import SlurmPipelineExecutor

        return SlurmPipelineExecutor
    try:
        from datatrove.executor import RayPipelineExecutor
    except ImportError as error:
        raise UserError(f"data.executor is ray, which is not installed ({error}); pip install ray") from None
    return RayPipelineExecutor


def run(executor: "Executor", folder: Folder, pipeline: Sequence[Any], description: str) -> None:
    """Runs what is left of the shards and returns when all are done."""
    cls = _executor_class(executor.kind)
    shared = {
        "pipeline": list(pipeline),
        "tasks": executor.tasks,
        "logging_dir": str(folder.logs.resolve()),
        "workers": executor.workers or -1,
    }
    if executor.kind == "ray":
        shared["pipeline"].append(SignsOfLife(folder.logs.resolve()))
        _run_ray(cls(**shared, **executor.options), folder.logs, executor, description)
        return
    job = _slurm(cls, shared, description, dict(executor.options))
    with progress(description, executor.tasks, "shards") as bar:
        try:
            job.launch_job()
        except subprocess.CalledProcessError:
            raise UserError(
                "sbatch refused the job, and says above why; data.executor_options holds what it was given "
                f"({', '.join(f'{k}={v}' for k, v in executor.options.items())})"
            ) from None
        try:
            _wait(job, folder, executor.tasks, bar)
        except (Stopped, KeyboardInterrupt):
            subprocess.run(["scancel", str(job.job_id)], capture_output=True, check=False)
            raise


class SignsOfLife(PipelineStep):
    """The last step of a shard's pipeline on Ray: touches `alive/<shard>` in the logs as long as the shard runs."""

    name, type = "signs of life", "💓 - WATCH"

    def __init__(self, logs: Path):
        super().__init__()
        self.folder = logs / "alive"

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:  # type: ignore[override]
        path, ended = self.folder / f"{rank:05d}", threading.Event()
        self.folder.mkdir(parents=True, exist_ok=True)
        path.touch()

        def show() -> None:
            while not ended.wait(ALIVE_SECONDS):
                path.touch()

        thread = threading.Thread(target=show, daemon=True)
        thread.start()
        try:
            yield from data or ()
        finally:
            ended.set()
            thread.join()
            path.unlink(missing_ok=True)


def _run_ray(job: Any, logs: Path, executor: "Executor", description: str) -> None:
    """Returns when the executor does. `Failure` after `SILENT_SECONDS` in which no shard showed that it is alive; where
    all may be waiting for a node that could hold them, after `QUEUE_SILENCES` of these."""
    shutil.rmtree(logs / "alive", ignore_errors=True)  # of a run before
    raised: list[BaseException] = []

    def call() -> None:
        try:
            job.run()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    seen, since, silences = _signs(logs), time.monotonic(), 0
    with progress(description, executor.tasks, "shards") as bar:
        try:
            while thread.is_alive():
                thread.join(min(POLL_SECONDS, SILENT_SECONDS / 4))
                bar.to(executor.tasks - len(unfinished_shards(logs, executor.tasks)))
                signs = _signs(logs)
                if signs != seen:
                    seen, since, silences = signs, time.monotonic(), 0
                elif time.monotonic() - since > SILENT_SECONDS:
                    silences += 1
                    _check_silence(logs, executor, description, silences)
                    since = time.monotonic()
        finally:
            if thread.is_alive():
                _leave_ray()
    if raised:
        raise raised[0]


def _signs(logs: Path) -> dict[str, int]:
    """When each running shard was last alive, and which are done."""
    found = {}
    for path in [*(logs / "alive").glob("*"), *(logs / "completions").glob("*")]:
        try:
            found[f"{path.parent.name}/{path.name}"] = path.stat().st_mtime_ns
        except FileNotFoundError:  # it has just ended
            continue
    return found


def _check_silence(logs: Path, executor: "Executor", description: str, silences: int) -> None:
    """`Failure` for shards that began and are silent, where no node can hold a task, and after a long wait for one."""
    begun = sorted(int(path.name) for path in (logs / "alive").glob("*"))
    silence = f"no sign of life for {silences * SILENT_SECONDS:.0f} s"
    if begun:
        raise Failure(
            f"{description}: {silence} from shard {', '.join(map(str, begun))}: its process was killed, most likely "
            f"for want of memory (data.executor_options.mem_per_cpu_gb=4); "
            f"{unfinished_message(logs, unfinished_shards(logs, executor.tasks), executor.tasks)}"
        )
    cpus = executor.options.get("cpus_per_task", 1)
    memory_gb = cpus * executor.options.get("mem_per_cpu_gb", 2)
    nodes = _ray_nodes()
    if any(node.get("CPU", 0) >= cpus and node.get("memory", 0) >= memory_gb * 2**30 for node in nodes):
        if silences < QUEUE_SILENCES:
            print(f"  {description}: no shard is running; the nodes of the Ray cluster are busy", flush=True)
            return
        left = unfinished_message(logs, unfinished_shards(logs, executor.tasks), executor.tasks)
        raise Failure(
            f"{description}: {silence}; the nodes of the Ray cluster are busy, or a process was killed. {left}"
        )
    largest = ", ".join(f"{n.get('CPU', 0):g} CPUs and {n.get('memory', 0) / 2**30:.1f} GiB" for n in nodes) or "none"
    raise Failure(
        f"{description}: {silence}. A task asks for {cpus} CPUs and {memory_gb:g} "
        f"GiB, and no node of the Ray cluster has them (nodes: {largest}); expected less in "
        "data.executor_options.cpus_per_task and data.executor_options.mem_per_cpu_gb, or a larger node"
    )


def _ray_nodes() -> list[dict[str, float]]:
    """The resources of every living node; none where there is no cluster."""
    try:
        import ray  # type: ignore[import-not-found]

        return [node["Resources"] for node in ray.nodes() if node["Alive"]]
    except Exception:  # not installed, not connected: there is no node then
        return []


def _leave_ray() -> None:
    """Ends this process's part in the cluster, and with it the tasks: threads of the executor wait for them."""
    ray = sys.modules.get("ray")
    if ray is not None:
        ray.shutdown()


def _slurm(cls: Any, shared: dict[str, Any], description: str, options: dict[str, Any]) -> Any:
    """datatrove's executor, with our interpreter and checkout in the job, and no second job to add up statistics."""
    root = Path(__file__).resolve().parents[2]
    inside = (
        f"export PATH={shlex.quote(os.path.dirname(sys.executable))}:$PATH "
        f"PYTHONPATH={shlex.quote(str(root))}:$PYTHONPATH TOKENIZERS_PARALLELISM=false"
    )
    environment = options.pop("env_command", None)
    name = options.pop("job_name", f"hornbook-{description.replace(' ', '-')}")
    job = cls(
        **shared,
        **{"qos": None, "mem_per_cpu_gb": 2, **options},
        job_name=name,
        env_command=inside if environment is None else f"{environment}\n{inside}",
    )
    job.launch_merge_stats = _no_second_job
    return job


def _no_second_job() -> None:
    """datatrove would launch one more job a step; nobody reads what it makes."""


def _wait(job: Any, folder: Folder, tasks: int, bar: Progress) -> None:
    gone = 0
    while True:
        left = len(job.get_incomplete_ranks())
        bar.to(tasks - left)
        if not left:
            return
        gone = 0 if _in_queue(job.job_id) else gone + 1
        if gone >= GONE_POLLS:
            shards = unfinished_shards(folder.logs, tasks)
            raise Failure(
                f"Slurm job {job.job_id} ended, and {unfinished_message(folder.logs, shards, tasks)}; Slurm's logs are "
                f"in {folder.logs / 'slurm_logs'}. More memory: data.executor_options.mem_per_cpu_gb=4, more time: "
                "data.executor_options.time=08:00:00"
            )
        time.sleep(POLL_SECONDS)


def _in_queue(job_id: str) -> bool:
    done = subprocess.run(["squeue", "-h", "-j", str(job_id), "-o", "%T"], capture_output=True, text=True, check=False)
    return done.returncode == 0 and bool(done.stdout.strip())
