"""Runs a datatrove pipeline over the fixed shards of a step: in processes of this machine, on Slurm, or on Ray.

In: pipeline steps and the step's folder. Out: whatever the steps wrote, plus datatrove's logs, statistics and
completion marks under `folder.logs`, so that a stopped stage resumes at the first unfinished shard. datatrove resumes
by shard number alone, which is why its marks lie inside the fingerprinted folder. A step is done when every shard has
its mark, whatever the executor returns: datatrove's Ray executor returns without an error when a shard has failed.

Local: our own loop instead of `LocalPipelineExecutor.run`. It ends with a message when the kernel kills a worker (a
`multiprocessing.Pool` waits forever), needs no manager process, and shows the remaining time. Slurm and Ray: the
stage's own process waits and joins the results. A stopped stage cancels its jobs. datatrove's Ray executor waits
forever for a process that was killed and for a task that no node can hold, so every shard signals that it is alive,
and a silence ends the step. Tried on one machine: Slurm, and Ray 2.60.
"""

import contextlib
import multiprocessing
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from datatrove.data import Document
from loguru import logger

from pipeline.corpus.text.documents import ShardStep
from pipeline.storage.steps import Folder
from pipeline.system import signals
from pipeline.system.errors import Failure, Stopped, UserError
from pipeline.system.processes import end_with_parent
from pipeline.system.progress import Progress, progress

SHARDS_NAMED, LOG_LINE_CHARACTERS = 10, 300

POLL_SECONDS = 3.0
SIGNAL_SECONDS = 0.5  # between two looks for a signal that a callback of Python lost
ALIVE_SECONDS = 5.0  # between two signs of life of a shard
SILENT_SECONDS = 300.0  # without any sign of life: a parser in C may keep a shard's other threads waiting for a minute
QUEUE_SILENCES = 12  # so many of them are spent waiting for a busy node
GONE_POLLS = 5  # a job that left the queue may still have marks on their way over a network file system


def worker_count(workers: int) -> int:
    """`data.workers`; 0 means one per core that this process may use."""
    return workers or len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Executor:
    """Where the shards of a step are worked on. `kind`: "local" (processes of this machine), "slurm" or "ray"
    (datatrove's own executors; `options` are their keywords). The result is the same for all three."""

    tasks: int
    workers: int = 0
    kind: str = "local"
    options: Mapping[str, Any] = field(default_factory=dict)

    def run(self, folder: Folder, pipeline: Sequence[Any], *, description: str) -> None:
        """Runs `pipeline` for the shards that are not finished yet. Raises what a local worker raises, after stopping
        the others; `Failure` where a worker was killed (most often: out of memory), or a shard has no completion mark
        when the executor returns."""
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # processes are the parallelism; threads do not survive a fork
        quiet(folder)
        if self.kind == "local":
            self._run_local(folder, pipeline, description)
        else:
            _run_on_cluster(self, folder, pipeline, description)
        left = unfinished_shards(folder.logs, self.tasks)
        if left:
            raise Failure(f"{description}: {unfinished_message(folder.logs, left, self.tasks)}")

    def _run_local(self, folder: Folder, pipeline: Sequence[Any], description: str) -> None:
        from datatrove.executor import LocalPipelineExecutor

        def run_rank(rank: int) -> None:
            executor.pipeline = deepcopy(fresh)  # writers and statistics hold what the shard before left in them
            executor._run_for_rank(rank)

        fresh = list(pipeline)
        executor = LocalPipelineExecutor(pipeline=list(fresh), tasks=self.tasks, logging_dir=str(folder.logs))
        ranks = executor.get_incomplete_ranks()
        with progress(description, self.tasks, "shards") as bar:
            bar.to(self.tasks - len(ranks))
            map_processes(run_rank, ranks, workers=self.workers, done=lambda _: bar.advance())


def unfinished_shards(logs: Path, tasks: int) -> list[int]:
    """The shards without datatrove's completion mark."""
    return [shard for shard in range(tasks) if not (logs / "completions" / f"{shard:05d}").is_file()]


def unfinished_message(logs: Path, left: Sequence[int], tasks: int) -> str:
    """Which shards did not finish, where their logs are, and the last line of the first log that there is."""
    named = ", ".join(map(str, left[:SHARDS_NAMED])) + (" and more" if len(left) > SHARDS_NAMED else "")
    found = [path for shard in left if (path := logs / "logs" / f"task_{shard:05d}.log").is_file()]
    if found:
        lines = [line.strip() for line in found[0].read_text(encoding="utf-8", errors="replace").splitlines()]
        last = next((line for line in reversed(lines) if line), "it is empty")
        log = f"the log of the first is {found[0]}, which ends with: {last[:LOG_LINE_CHARACTERS]}"
    else:
        log = f"they left no log in {logs / 'logs'}"
    return (
        f"{len(left)} of {tasks} shards did not finish (shard {named}); {log}. The same command resumes with the "
        "unfinished shards"
    )


def map_processes(
    function: Callable[[Any], Any], items: Sequence[Any], *, workers: int, done: Callable[[Any], None] = lambda _: None
) -> list[Any]:
    """`[function(item) for item in items]` in forked worker processes; `done(result)` as each one ends.

    Fork, because workers then start in milliseconds with everything in place; safe here because the data stage never
    imports torch and keeps no threads running in this process. Raises `Failure` where a worker process died.
    """
    if not items:
        return []
    results: dict[int, Any] = {}
    pool = ProcessPoolExecutor(
        min(worker_count(workers), len(items)),
        mp_context=multiprocessing.get_context("fork"),
        initializer=_start_worker,
        initargs=(function, os.getpid()),  # inherited by the fork, never pickled
    )
    try:
        futures = {pool.submit(_call, item): i for i, item in enumerate(items)}
        pending = set(futures)
        while pending:
            ended, pending = wait(pending, timeout=SIGNAL_SECONDS, return_when=FIRST_COMPLETED)
            signals.check()
            for future in ended:
                results[futures[future]] = future.result()
                done(results[futures[future]])
    except BrokenProcessPool:
        raise Failure(
            "a worker process of the data stage was killed, most likely for want of memory; the same command resumes "
            "with the unfinished shards, data.workers=1 needs the least memory"
        ) from None
    except BaseException:
        _end(pool)
        raise
    pool.shutdown()
    return [results[i] for i in range(len(items))]


_function: Callable[[Any], Any] | None = None  # of this worker


def _start_worker(function: Callable[[Any], Any], parent: int) -> None:
    global _function
    signals.release_in_worker()
    end_with_parent(signal.SIGKILL, parent)
    _function = function


def _call(item: Any) -> Any:
    assert _function is not None
    return _function(item)


def _end(pool: ProcessPoolExecutor) -> None:
    """Ends the workers at once: what they were writing is unfinished and will be written again."""
    for process in list((getattr(pool, "_processes", None) or {}).values()):
        process.terminate()
    pool.shutdown(wait=True, cancel_futures=True)  # its own thread sees the dead workers and cleans up


def quiet(folder: Folder) -> None:
    """Sends datatrove's log lines to a file. Its own task logger writes to the terminal too."""
    import datatrove.utils.logging as datatrove_logging

    folder.logs.mkdir(parents=True, exist_ok=True)
    logger.remove()

    def add_task_logger(logging_dir: Any, rank: int, local_rank: int = 0, node_rank: int = -1) -> Any:
        logger.remove()
        logfile = logging_dir.open(f"logs/task_{rank:05d}.log", "w")
        logger.add(lambda text: write_quietly(logfile, text), colorize=False, level="DEBUG")
        return logfile

    def close_task_logger(logfile: Any) -> None:
        logger.complete()
        logger.remove()
        with contextlib.suppress(OSError):
            logfile.close()

    def write_quietly(logfile: Any, text: str) -> None:
        with contextlib.suppress(OSError):  # a full disk is reported by the step, not by its log
            logfile.write(text)

    import datatrove.executor.base as executor_base

    executor_base.add_task_logger = add_task_logger
    executor_base.close_task_logger = close_task_logger
    datatrove_logging.setup_default_logger = logger.remove


def check_cluster(kind: str, options: dict[str, Any]) -> None:
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


def _run_on_cluster(executor: Executor, folder: Folder, pipeline: Sequence[Any], description: str) -> None:
    """Runs what is left of the shards and returns when all are done."""
    cls = _executor_class(executor.kind)
    shared = {
        "pipeline": list(pipeline),
        "tasks": executor.tasks,
        "logging_dir": str(folder.logs.resolve()),
        "workers": executor.workers or -1,
    }
    if executor.kind == "ray":
        shared["pipeline"].append(ShardStep("signs of life", partial(_show_life, folder.logs.resolve() / "alive")))
        _run_ray(cls(**shared, **executor.options), folder.logs, executor, description)
        return
    job = _slurm_job(cls, shared, description, dict(executor.options))
    with progress(description, executor.tasks, "shards") as bar:
        try:
            job.launch_job()
        except subprocess.CalledProcessError:
            raise UserError(
                "sbatch refused the job, and says above why; data.executor_options holds what it was given "
                f"({', '.join(f'{k}={v}' for k, v in executor.options.items())})"
            ) from None
        try:
            _wait_for_slurm(job, folder, executor.tasks, bar)
        except (Stopped, KeyboardInterrupt):
            subprocess.run(["scancel", str(job.job_id)], capture_output=True, check=False)
            raise


def _show_life(folder: Path, documents: Iterable[Document], shard: int) -> Iterator[Document]:
    """The last step of a shard's pipeline on Ray: touches `<folder>/<shard>` as long as the shard runs."""
    path, ended = folder / f"{shard:05d}", threading.Event()
    folder.mkdir(parents=True, exist_ok=True)
    path.touch()

    def touch() -> None:
        while not ended.wait(ALIVE_SECONDS):
            path.touch()

    thread = threading.Thread(target=touch, daemon=True)
    thread.start()
    try:
        yield from documents
    finally:
        ended.set()
        thread.join()
        path.unlink(missing_ok=True)


def _run_ray(job: Any, logs: Path, executor: Executor, description: str) -> None:
    """Returns when the executor does. `Failure` after `SILENT_SECONDS` in which no shard showed that it is alive; where
    all may be waiting for a node that could hold them, after `QUEUE_SILENCES` of these."""
    shutil.rmtree(logs / "alive", ignore_errors=True)  # of an earlier run
    raised: list[BaseException] = []

    def call() -> None:
        try:
            job.run()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    seen, since, silences = _signs_of_life(logs), time.monotonic(), 0
    with progress(description, executor.tasks, "shards") as bar:
        try:
            while thread.is_alive():
                thread.join(min(POLL_SECONDS, SILENT_SECONDS / 4))
                signals.check()
                bar.to(executor.tasks - len(unfinished_shards(logs, executor.tasks)))
                signs = _signs_of_life(logs)
                if signs != seen:
                    seen, since, silences = signs, time.monotonic(), 0
                elif time.monotonic() - since > SILENT_SECONDS:
                    silences += 1
                    _check_silence(logs, executor, description, silences)
                    since = time.monotonic()
        finally:
            if thread.is_alive() and "ray" in sys.modules:  # its shutdown ends the tasks that the executor waits for
                sys.modules["ray"].shutdown()
    if raised:
        raise raised[0]


def _signs_of_life(logs: Path) -> dict[str, int]:
    """When each running shard was last alive, and which are done."""
    found = {}
    for path in [*(logs / "alive").glob("*"), *(logs / "completions").glob("*")]:
        try:
            found[f"{path.parent.name}/{path.name}"] = path.stat().st_mtime_ns
        except FileNotFoundError:  # it has just ended
            continue
    return found


def _check_silence(logs: Path, executor: Executor, description: str, silences: int) -> None:
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


def _slurm_job(cls: Any, shared: dict[str, Any], description: str, options: dict[str, Any]) -> Any:
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
    """Instead of datatrove's job that adds up statistics. A function, because the job is pickled."""


def _wait_for_slurm(job: Any, folder: Folder, tasks: int, bar: Progress) -> None:
    gone = 0
    while True:
        left = len(job.get_incomplete_ranks())
        bar.to(tasks - left)
        if not left:
            return
        queue = subprocess.run(["squeue", "-h", "-j", str(job.job_id), "-o", "%T"], capture_output=True, check=False)
        gone = 0 if queue.returncode == 0 and queue.stdout.strip() else gone + 1
        if gone >= GONE_POLLS:
            shards = unfinished_shards(folder.logs, tasks)
            raise Failure(
                f"Slurm job {job.job_id} ended, and {unfinished_message(folder.logs, shards, tasks)}; Slurm's logs are "
                f"in {folder.logs / 'slurm_logs'}. More memory: data.executor_options.mem_per_cpu_gb=4, more time: "
                "data.executor_options.time=08:00:00"
            )
        time.sleep(POLL_SECONDS)
        signals.check()
