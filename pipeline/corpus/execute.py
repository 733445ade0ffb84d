"""Runs a datatrove pipeline over the fixed shards of a step, a few processes at a time.

In: pipeline steps and the step's folder. Out: whatever the steps wrote, plus datatrove's logs, statistics and
completion marks under `folder.logs`, so that a killed stage goes on at the first unfinished shard. datatrove resumes
by shard number alone, which is why its marks live inside the fingerprinted folder and nowhere else.

Ours instead of `LocalPipelineExecutor.run`: a worker that the kernel killed ends the step with a message (a
`multiprocessing.Pool` waits for it for ever), no manager process, progress with remaining time.
"""

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from loguru import logger

from pipeline import signals
from pipeline.artifacts import Folder
from pipeline.family import end_with_parent
from pipeline.progress import progress


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
        """Runs `pipeline` for the shards that are not finished yet. Raises what a worker raises, after stopping the
        others; `RuntimeError` where a worker was killed (most often: out of memory) or a job ended early."""
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # processes are the parallelism; threads do not survive a fork
        quiet(folder)
        if self.kind == "local":
            self._run_local(folder, pipeline, description)
        else:
            from pipeline.corpus import cluster

            cluster.run(self, folder, pipeline, description)

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


def map_processes(
    function: Callable[[Any], Any], items: Sequence[Any], *, workers: int, done: Callable[[Any], None] = lambda _: None
) -> list[Any]:
    """`[function(item) for item in items]` in forked worker processes; `done(result)` as each one ends.

    Fork, because workers then start in milliseconds with everything in place; safe here because the data stage never
    imports torch and keeps no threads running in this process.
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
        for future in as_completed(futures):
            results[futures[future]] = future.result()
            done(results[futures[future]])
    except BrokenProcessPool:
        raise RuntimeError(
            "a worker process of the data stage was killed, most likely for want of memory; the same command goes on "
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
    """Ends the workers at once: what they were writing is unfinished and will be written anew."""
    for process in list((getattr(pool, "_processes", None) or {}).values()):
        process.terminate()
    pool.shutdown(wait=True, cancel_futures=True)  # its own thread sees the dead workers and cleans up


def quiet(folder: Folder) -> None:
    """Sends datatrove's chatter to a file: its task logger adds the terminal again for every task."""
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
        with contextlib.suppress(OSError):  # a full disk is said once, by what could not be written, not by its log
            logfile.write(text)

    import datatrove.executor.base as executor_base

    executor_base.add_task_logger = add_task_logger
    executor_base.close_task_logger = close_task_logger
    datatrove_logging.setup_default_logger = logger.remove
