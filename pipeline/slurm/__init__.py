"""Job files for Slurm, and the commands that send and list them: what `submit` and `study --slurm` use.

In: `Options` from the command line and a `Job`. Out: an sbatch file that a person can read and send again by hand. Jobs
need neither srun nor accounting, only `squeue` and `scontrol`. The body of every job is `job.sh`; the variables that it
reads are set in front of it.
"""

import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.pages import html
from pipeline.storage.files import root
from pipeline.system.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[2]
BODY = Path(__file__).with_name("job.sh")
_NAME = re.compile(r"(?:^|\.)([0-9a-f]{12})(?:\.([\w.+-]+))?$")  # <experiment>.<stage>.<key>[.<limit>]
_MEMBERS = "hornbook:"  # opens the comment of an array, which names its members: <key>[.<limit>],...
COMPLETING_SECONDS = 30.0  # after KillWait a job that was ending is gone, or back in the queue


@dataclass(frozen=True)
class Options:
    """What the site and the user decide; None is the site's default.

    `time`: limit of one run of a job, in Slurm's form; a job whose budget is longer is requeued. `cpu_partition`: for
    jobs without a GPU. `notice_seconds`: between the warning and the time limit, for the save. `srun`: run hornbook as
    a job step. `setup`: shell lines before it. `extra`: more options of sbatch, such as `--constraint=a100`.
    """

    partition: str | None = None
    cpu_partition: str | None = None
    time: str | None = None
    account: str | None = None
    qos: str | None = None
    gpus_per_node: str = "1"
    cpus_per_task: int = 4
    mem: str | None = None
    notice_seconds: int = 120
    srun: bool = False
    setup: Sequence[str] = ()
    extra: Sequence[str] = ()

    def check(self) -> None:
        """Raises `UserError` for what hornbook cannot use."""
        if not re.fullmatch(r"([\w.-]+:)?1", self.gpus_per_node):
            raise UserError(
                f"--gpus-per-node is '{self.gpus_per_node}'; hornbook trains on one GPU: expected 1, or a type such "
                "as a100:1"
            )
        if self.cpus_per_task < 1 or self.notice_seconds < 1:
            raise UserError("--cpus-per-task and --notice must be at least 1")
        for word in self.extra:
            if not word.startswith("-"):
                raise UserError(
                    f"--sbatch '{word}' is no option of sbatch; expected such as --sbatch=--constraint=a100"
                )


@dataclass(frozen=True)
class Job:
    """One sbatch file: `verbs` of hornbook for a config, or for each of several in a job array.

    `name` ends with the key by which a job is found in the queue. `after`: dependencies such as `afterok:12`.
    `members`: of an array, the keys by which its tasks are found; `at_once`: how many of them run.
    """

    name: str
    folder: Path
    label: str
    verbs: Sequence[str]
    configs: Sequence[Path]
    gpu: bool
    after: Sequence[str] = ()
    members: Sequence[str] = ()
    at_once: int | None = None

    @property
    def path(self) -> Path:
        return self.folder / f"{self.label}.sbatch"


@dataclass(frozen=True)
class Queued:
    """A job in the queue: its id, the key in its name, and the limit that it trains to, if it trains."""

    job_id: str
    key: str
    limit: str


def script(job: Job, options: Options, notes: Sequence[str] = ()) -> str:
    """The whole sbatch file. `notes`: lines of comment."""
    partition = options.partition if job.gpu else options.cpu_partition or options.partition
    return html.render(
        "job.sbatch",
        job=job,
        options=options,
        site={"partition": partition, "time": options.time, "account": options.account, "qos": options.qos},
        comment=_MEMBERS + ",".join(job.members),
        log=str(job.folder / job.label).replace("%", "%%") + ("-%A_%a.log" if job.members else "-%j.log"),
        notes=notes,
        folder=str(Path.cwd()),
        root=str(root().resolve()),
        repository=str(REPOSITORY),
        python=sys.executable,
        quote=shlex.quote,
        quoted=_quoted,
    ) + BODY.read_text(encoding="utf-8")


def _quoted(value: str) -> str:
    return value if re.fullmatch(r"[\w@%+=:,./-]+", value) else '"' + re.sub(r'(["\\])', r"\\\1", value) + '"'


def available() -> bool:
    return shutil.which("sbatch") is not None


def queued() -> list[Queued]:
    """Hornbook's jobs that wait or run. Raises `UserError` where no Slurm answers."""
    until = time.monotonic() + COMPLETING_SECONDS
    while True:
        found, ending = [], False
        for line in _ask(["squeue", "--noheader", "--format=%F|%T|%j|%k"]).splitlines():
            job_id, state, name, comment = line.split("|", 3)
            words = comment.removeprefix(_MEMBERS).split(",") if comment.startswith(_MEMBERS) else [name]
            jobs = [Queued(job_id, match[1], match[2] or "") for word in words if (match := _NAME.search(word))]
            if state == "COMPLETING":
                ending = ending or bool(jobs)
            else:
                found += jobs
        if not ending or time.monotonic() > until:
            return found
        time.sleep(0.5)  # a job that is ending may be on its way back into the queue


def send(path: Path) -> str:
    """Hands a file to sbatch; returns the job's id. Raises `UserError` with sbatch's own words."""
    return _ask(["sbatch", "--parsable", str(path)]).strip().partition(";")[0]


def cancel(job_ids: Sequence[str]) -> None:
    if job_ids:
        subprocess.run(["scancel", *job_ids], capture_output=True, check=False)


def _ask(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"{command[0]} gave no answer ({error}); is this a machine that submits to Slurm?") from None
    if done.returncode:
        raise UserError(f"{shlex.join(command)} failed: {' '.join(done.stderr.split()) or done.returncode}")
    return done.stdout
