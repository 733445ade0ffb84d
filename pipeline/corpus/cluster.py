"""The shards of a step on a cluster, through datatrove's Slurm or Ray executor: the same steps, the same result.

In: an `Executor` with `data.executor` and `data.executor_options`, a step's pipeline and folder. Out: every shard
done, or an error that names the logs. The stage's own process waits: it joins what the shards found, which takes
seconds. A stopped stage cancels its jobs; the same command goes on with the shards that are left.
Slurm was tried on a one-node cluster; Ray is handed through as datatrove has it and has not been tried.
"""

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.artifacts import Folder
from pipeline.errors import Stopped, UserError
from pipeline.progress import Progress, progress

if TYPE_CHECKING:
    from pipeline.corpus.execute import Executor

POLL_SECONDS = 3.0
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
        cls(**shared, **executor.options).run()
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
            raise RuntimeError(
                f"Slurm job {job.job_id} ended with {left} of {tasks} shards unfinished; its logs are in "
                f"{folder.logs / 'slurm_logs'}. The same command goes on with the unfinished shards; more memory: "
                "data.executor_options.mem_per_cpu_gb=4, more time: data.executor_options.time=08:00:00"
            )
        time.sleep(POLL_SECONDS)


def _in_queue(job_id: str) -> bool:
    done = subprocess.run(["squeue", "-h", "-j", str(job_id), "-o", "%T"], capture_output=True, text=True, check=False)
    return done.returncode == 0 and bool(done.stdout.strip())
