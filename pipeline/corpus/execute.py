"""Runs a datatrove pipeline over the fixed shards of a step: in processes of this machine, on Slurm, or on Ray.

In: pipeline steps and the step's folder. Out: whatever the steps wrote, plus datatrove's logs, statistics and
completion marks under `folder.logs`, so that a stopped stage resumes at the first unfinished shard. datatrove resumes
by shard number alone, which is why its marks lie inside the fingerprinted folder. A step is done when every shard has
its mark, whatever the executor says; else one error names the shards and a log.

Local: our own loop instead of `LocalPipelineExecutor.run`. It ends with a message when the kernel kills a worker (a
`multiprocessing.Pool` waits forever), needs no manager process, and shows the remaining time. Slurm: datatrove's
executor; the stage's own process waits, and cancels the job when it is stopped. Ray: `ray_cluster`.
"""

import contextlib
import inspect
import multiprocessing
import os
import pickle
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from loguru import logger

from pipeline.config import nearest
from pipeline.corpus.ray_cluster import REPOSITORY, RayOptions, run_on_ray
from pipeline.corpus.ray_cluster import check as check_ray
from pipeline.corpus.text.source import make
from pipeline.storage.steps import Folder
from pipeline.system import signals
from pipeline.system.errors import Failure, UserError
from pipeline.system.processes import end_with_parent
from pipeline.system.progress import Progress, progress

SHARDS_NAMED, ERROR_CHARACTERS = 10, 600
OF_NO_SHARD = -1  # the key of an error that belongs to no single shard

POLL_SECONDS = 3.0
SIGNAL_SECONDS = 0.5  # between two looks for a signal that a callback of Python lost
GONE_POLLS = 5  # a job that left the queue may still have marks on their way over a network file system


def worker_count(workers: int) -> int:
    """`data.workers`; 0 means one per core that this process may use."""
    return workers or len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Executor:
    """Where the shards of a step are worked on. `kind`: "local" (processes of this machine), "slurm" (`options` are
    keywords of datatrove's executor) or "ray" (of `RayOptions`). The result is the same for all three."""

    tasks: int
    workers: int = 0
    kind: str = "local"
    options: Mapping[str, Any] = field(default_factory=dict)

    def run(self, folder: Folder, pipeline: Sequence[Any], *, description: str) -> None:
        """Runs `pipeline` for the shards that are not finished yet. Where some are unfinished at the end, raises one
        error with their numbers and a log: `UserError` if a shard raised that, else `Failure`."""
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # processes are the parallelism; threads do not survive a fork
        quiet(folder)
        left, errors = unfinished_shards(folder.logs, self.tasks), {}
        for shard in left:
            task_log(folder.logs, shard).unlink(missing_ok=True)  # of an earlier run, it would explain nothing
        with progress(description, self.tasks, "shards", done=self.tasks - len(left)) as bar:
            try:
                errors = self._run(folder, pipeline, left, description, bar)
            except Failure as error:
                errors = {OF_NO_SHARD: error}
        left = unfinished_shards(folder.logs, self.tasks)
        if left:
            raise unfinished(description, folder.logs, left, self.tasks, errors)

    def _run(
        self, folder: Folder, pipeline: Sequence[Any], left: Sequence[int], description: str, bar: Progress
    ) -> dict[int, Exception]:
        """Runs the shards in `left`; returns what they raised, by shard."""
        if self.kind == "slurm":
            return _run_on_slurm(self, folder, pipeline, description, bar) if left else {}
        work = partial(run_shard, list(pipeline), self.tasks, folder.logs.resolve())
        if self.kind == "ray":
            options = RayOptions(**self.options)
            return run_on_ray(work, left, options, logs=folder.logs, workers=self.workers, bar=bar)
        errors: dict[int, Exception] = {}

        def done(result: tuple[int, Exception | None]) -> None:
            shard, error = result
            if error is not None:
                errors[shard] = error
                raise _ShardFailed  # ends the others
            bar.advance()

        with contextlib.suppress(_ShardFailed):
            map_processes(lambda shard: (shard, work(shard)), left, workers=self.workers, done=done)
        return errors


class _ShardFailed(Exception):
    """Ends `map_processes`."""


def task_log(logs: Path, shard: int) -> Path:
    """Where datatrove writes what a shard does."""
    return logs / "logs" / f"task_{shard:05d}.log"


def run_shard(pipeline: Sequence[Any], tasks: int, logs: Path, shard: int) -> Exception | None:
    """Runs one shard in this process; returns what it raised, as something that can be pickled."""
    from datatrove.executor import LocalPipelineExecutor

    quiet_logs()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # a copy, because writers and statistics hold what the shard before left in them
    executor = LocalPipelineExecutor(pipeline=deepcopy(list(pipeline)), tasks=tasks, logging_dir=str(logs))
    try:
        executor._run_for_rank(shard)
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            return RuntimeError(f"{type(error).__name__}: {error}")
        return error
    return None


def unfinished_shards(logs: Path, tasks: int) -> list[int]:
    """The shards without datatrove's completion mark."""
    return [shard for shard in range(tasks) if not (logs / "completions" / f"{shard:05d}").is_file()]


def unfinished(
    description: str, logs: Path, left: Sequence[int], tasks: int, errors: Mapping[int, Exception]
) -> UserError | Failure:
    """The error of a step with unfinished shards: which, why, and where a log is. `errors`: what shards raised, by
    number."""
    failed = sorted(shard for shard in errors if shard >= 0)
    left = failed + [shard for shard in left if shard not in errors]
    named = ", ".join(map(str, left[:SHARDS_NAMED])) + (" and more" if len(left) > SHARDS_NAMED else "")
    logged = [(shard, path) for shard in left if (path := task_log(logs, shard)).is_file()]
    first = errors[failed[0]] if failed else errors.get(OF_NO_SHARD)
    log = f"they left no log in {logs / 'logs'}"
    if logged:
        log = f"the log of shard {logged[0][0]} is {logged[0][1]}"
        if first is None:
            lines = [line.strip() for line in logged[0][1].read_text(encoding="utf-8", errors="replace").splitlines()]
            log += f", which ends with: {next((line for line in reversed(lines) if line), 'it is empty')}"
    what = f"{description}: {len(left)} of {tasks} shards did not finish (shard {named})"
    error: UserError | Failure
    if isinstance(first, UserError):
        error = UserError(f"{first}. {what}; {log}")
    else:
        if first is not None:
            what += f": {first if isinstance(first, Failure) else f'{type(first).__name__}: {first}'}"[
                :ERROR_CHARACTERS
            ]
        error = Failure(f"{what}; {log}. The same command resumes with the unfinished shards")
    error.__cause__ = first
    return error


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
    """Sends datatrove's log lines to files of the step's folder."""
    folder.logs.mkdir(parents=True, exist_ok=True)
    quiet_logs()


def quiet_logs() -> None:
    """In this process datatrove's task logger writes to the shard's file, and no longer to the terminal too."""
    import datatrove.utils.logging as datatrove_logging

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


def check_cluster(kind: str, options: Mapping[str, Any]) -> None:
    """`UserError` for options that the executor does not have or needs, before any work starts."""
    if kind == "ray":
        check_ray(make(RayOptions, options, "data.executor_options"))
        return
    if shutil.which("sbatch") is None:
        raise UserError("data.executor is slurm, and there is no sbatch on this machine; data.executor=local")
    from datatrove.executor import SlurmPipelineExecutor

    known = inspect.signature(SlurmPipelineExecutor.__init__).parameters
    ours = {"self", "pipeline", "tasks", "logging_dir", "workers", "skip_completed", "depends", "depends_job_id"}
    for name in options:
        if name not in known or name in ours:
            hint = nearest(name, set(known) - ours)
            raise UserError(f"data.executor_options.{name} is not an option of datatrove's slurm executor{hint}")
    missing = [n for n in ("partition", "time") if n not in options]
    if missing:
        raise UserError(
            f"data.executor is slurm and data.executor_options.{missing[0]} has no value; "
            "set it, such as data.executor_options.partition=cpu data.executor_options.time=02:00:00"
        )


def _run_on_slurm(
    executor: Executor, folder: Folder, pipeline: Sequence[Any], description: str, bar: Progress
) -> dict[int, Exception]:
    """Returns when all shards are done, or the job is gone; then with why."""
    job = _slurm_job(executor, folder, pipeline, description)
    try:
        job.launch_job()
    except subprocess.CalledProcessError:
        raise UserError(
            "sbatch refused the job, and says above why; data.executor_options holds what it was given "
            f"({', '.join(f'{k}={v}' for k, v in executor.options.items())})"
        ) from None
    try:
        return _wait_for_slurm(job, folder, executor.tasks, bar)
    except BaseException:
        subprocess.run(["scancel", str(job.job_id)], capture_output=True, check=False)
        raise


def _slurm_job(executor: Executor, folder: Folder, pipeline: Sequence[Any], description: str) -> Any:
    """datatrove's executor, with our interpreter and checkout in the job, and no second job to add up statistics."""
    from datatrove.executor import SlurmPipelineExecutor

    inside = (
        f"export PATH={shlex.quote(os.path.dirname(sys.executable))}:$PATH "
        f"PYTHONPATH={shlex.quote(str(REPOSITORY))}:$PYTHONPATH TOKENIZERS_PARALLELISM=false"
    )
    options = dict(executor.options)
    environment = options.pop("env_command", None)
    name = options.pop("job_name", f"hornbook-{description.replace(' ', '-')}")
    job = SlurmPipelineExecutor(
        pipeline=list(pipeline),
        tasks=executor.tasks,
        logging_dir=str(folder.logs.resolve()),
        workers=executor.workers or -1,
        **{"qos": None, "mem_per_cpu_gb": 2, **options},
        job_name=name,
        env_command=inside if environment is None else f"{environment}\n{inside}",
    )
    job.launch_merge_stats = _no_second_job
    return job


def _no_second_job() -> None:
    """Instead of datatrove's job that adds up statistics. A function, because the job is pickled."""


def _wait_for_slurm(job: Any, folder: Folder, tasks: int, bar: Progress) -> dict[int, Exception]:
    gone = 0
    while left := unfinished_shards(folder.logs, tasks):
        bar.to(tasks - len(left))
        queue = subprocess.run(["squeue", "-h", "-j", str(job.job_id), "-o", "%T"], capture_output=True, check=False)
        gone = 0 if queue.returncode == 0 and queue.stdout.strip() else gone + 1
        if gone >= GONE_POLLS:
            why = f"Slurm job {job.job_id} ended, and its logs are in {folder.logs / 'slurm_logs'}. More memory: "
            more = "data.executor_options.mem_per_cpu_gb=4, more time: data.executor_options.time=08:00:00"
            return {OF_NO_SHARD: Failure(why + more)}
        time.sleep(POLL_SECONDS)
        signals.check()
    return {}
