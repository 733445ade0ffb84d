"""Runs a datatrove pipeline over the fixed shards of a step, a few processes at a time.

In: pipeline steps and the step's folder. Out: whatever the steps wrote, plus datatrove's logs, statistics and
completion marks under `folder.logs`, so that a killed stage resumes at the first unfinished shard. datatrove resumes
by shard number alone, which is why its marks live inside the fingerprinted folder and nowhere else. A step is done
when every shard has its mark, whatever the executor says: datatrove's Ray executor returns without an error when a
shard has failed.

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
from pathlib import Path
from typing import Any

from loguru import logger

from pipeline.storage.steps import Folder
from pipeline.system import signals
from pipeline.system.errors import Failure
from pipeline.system.processes import end_with_parent
from pipeline.system.progress import progress

SHARDS_NAMED, LOG_LINE_CHARACTERS = 10, 300


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
            from pipeline.corpus import cluster

            cluster.run(self, folder, pipeline, description)
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
