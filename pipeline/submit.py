"""`hornbook submit`: sends the stages that are left to do to Slurm, as a chain of jobs.

In: a config. Out: `runs/<name>/jobs/<time>/` with the resolved config, one sbatch file per job, `submitted.json`
(commit, command, ids), and later the logs. Data and init need no GPU, pretrain takes one; the stages of a source
experiment come first where they are needed. Finished stages are not sent, nor are those that a queued job already has,
whichever experiment sent it: a job's name ends with a key over everything that decides its result.
"""

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline import config as configs
from pipeline import slurm
from pipeline.config import Config
from pipeline.evaluate import evaluate_step
from pipeline.growing.grow import check_method
from pipeline.slurm import Job, Options, Queued
from pipeline.stages import (
    check_source,
    data_step,
    init_identity,
    init_step,
    is_trained,
    pretrain_identity,
    source_config,
    source_is_experiment,
    untrained_source,
)
from pipeline.storage.files import code_state, hash_json, root, write_json, write_text
from pipeline.storage.hub import content_of_model
from pipeline.storage.locks import FolderLock
from pipeline.system.errors import UserError

LAST = "evaluate"  # the stage that a chain ends with
JOBS = "jobs"  # runs/<experiment>/jobs/<time>/
RESOLVED = "resolved.yaml"  # not config.yaml, by which an experiment is known


@dataclasses.dataclass(frozen=True)
class Task:
    """One stage of one experiment. `key`: 12 hex digits over what decides its result, known before its source is
    trained. `needs`: the stages before it."""

    config: Config
    stage: str
    key: str
    done: bool
    needs: tuple["Task", ...] = ()

    @property
    def limit(self) -> str:
        """What a pretraining trains to: a raised limit is another job for the same run."""
        budget = self.config.budget
        limits = [f"{budget.max_gpu_hours:g}h"] if budget.max_gpu_hours else []
        limits += [f"{budget.max_tokens}t"] if budget.max_tokens else []
        return "-".join(limits) if self.stage == "pretrain" else ""

    @property
    def mark(self) -> str:
        """By which a job for this is found in the queue."""
        return ".".join([self.key, *filter(None, [self.limit])])

    @property
    def gpu(self) -> bool:
        return self.stage in ("pretrain", "evaluate") and self.config.train.device in ("auto", "cuda")


def run(config: Config, command: str, options: Options, *, until: str = LAST, dry_run: bool = False) -> None:
    """Sends what is left of one experiment up to the stage `until`. `command`: config and overrides as typed. Raises
    `UserError` for what is wrong in the config or refused by Slurm; then nothing of this call stays queued."""
    with _sending(config.name, command, options, dry_run) as sending:
        chain = tasks(config, until)
        sending.check_sources(chain)
        for task in chain:
            sending.single(task)


def run_array(
    name: str,
    members: Sequence[Config],
    command: str,
    options: Options,
    *,
    at_once: int | None = None,
    until: str = LAST,
    last: tuple[str, Path] | None = None,
    dry_run: bool = False,
) -> None:
    """Sends what is left of many experiments: data and sources as single jobs, each once, then init and pretrain of the
    members as one job array, `at_once` of them at a time. `name`: the experiment whose run folder keeps the files.
    `last`: a verb and its file, as one job after the array has ended, however its members ended."""
    with _sending(name, command, options, dry_run) as sending:
        array = sending.array(name, [tasks(member, until) for member in members], at_once)
        if last is not None:
            gpu = any(member.train.device in ("auto", "cuda") for member in members)
            sending.last(name, *last, after=array, gpu=gpu)


def tasks(config: Config, until: str = LAST) -> list[Task]:
    """Every stage that the experiment needs, in order, up to `until`. Raises `UserError` for a config that is wrong."""
    check_method(config)
    check_source(config)
    configs.check_end(config.train, config.budget)
    step = data_step(config)
    data = Task(config, "data", _key(_place(), step.fingerprint), step.finished)
    source: tuple[Task, ...] = ()
    content: str | None = None
    ready = True
    if source_is_experiment(config):
        source = tuple(task for task in tasks(source_config(config), "pretrain") if task.stage != "data")
        ready, content = is_trained(source_config(config)), source[-1].key
    elif config.init.source is not None:
        content = content_of_model(config.init.source, "init.source")
    init_key = _key(init_identity(config), data.key, content)
    init = Task(config, "init", init_key, ready and init_step(config).finished, (data, *source[-1:]))
    pretrain_key = _key(pretrain_identity(config), init.key)
    pretrain = Task(config, "pretrain", pretrain_key, ready and is_trained(config), (init,))
    evaluate_key = _key(configs.identity(config.evaluate), pretrain.key, pretrain.limit)
    evaluated = pretrain.done and evaluate_step(config, "").finished
    chain = [data, *source, init, pretrain, Task(config, "evaluate", evaluate_key, evaluated, (pretrain,))]
    ends = [i for i, task in enumerate(chain) if task.config is config and task.stage == until]
    return chain[: ends[0] + 1] if ends else chain


def _key(*decides: object) -> str:
    return hash_json(list(decides))[:12]


def _place() -> str:
    """Two roots have nothing in common, so the queue must not mix them up."""
    return str(root().resolve())


@contextlib.contextmanager
def _sending(name: str, command: str, options: Options, dry_run: bool) -> Iterator["_Sending"]:
    """One call of submit: nobody else submits for this root meanwhile. Prints what was sent, in the end."""
    options.check()
    if not dry_run and not slurm.available():
        raise UserError(
            f"there is no sbatch on this machine; without Slurm: hornbook data {command} && hornbook init "
            f"{command} && hornbook pretrain {command}"
        )
    with contextlib.ExitStack() as stack:
        if not dry_run:
            (root() / "runs").mkdir(parents=True, exist_ok=True)
            stack.enter_context(FolderLock(root() / "runs", wait=True))
        queue: list[Queued] = []
        try:  # under the lock: what another submit has just sent is in the queue
            queue = slurm.queued() if slurm.available() else []
        except UserError as error:
            if not dry_run:
                raise
            print(f"# the queue was not asked: {error}")
        sending = _Sending(options, command, dry_run, queue)
        yield sending
    if not dry_run:
        print(f"submit: {name}", *(f"  {line}" for line in sending.lines), sep="\n")
        if sending.sent:
            squeue = f"squeue --jobs={','.join(sending.sent)}"
            print(f"  files: {sending.folder(name)}\n  watch: hornbook watch {name}, or {squeue}", flush=True)
        else:
            print("  nothing to send", flush=True)


class _Sending:
    """The jobs of one call. `ids`: key of a task -> the job that does it, sent now or before."""

    def __init__(self, options: Options, command: str, dry_run: bool, queue: Sequence[Queued]):
        self.options, self.command, self.dry_run, self.queue = options, command, dry_run, queue
        self.stamp = time.strftime("%Y-%m-%dT%H-%M-%S")
        self.ids: dict[str, str] = {}
        self.sent: list[str] = []
        self.lines: list[str] = []

    def check_sources(self, chain: Sequence[Task]) -> None:
        """Training a source costs hours that `init.train_source` must have allowed."""
        for task in chain:
            sources = [need for need in task.needs if task.stage == "init" and need.stage == "pretrain"]
            if sources and not task.config.init.train_source and not self._in_hand(sources[0]):
                raise untrained_source(task.config)

    def single(self, task: Task) -> None:
        """One job for one stage, unless the stage is done or a job has it."""
        title = f"{task.stage:<9} {task.config.name}"
        if task.done or task.key in self.ids or self._in_hand(task):
            self.lines.append(f"{title}: {f'job {self.ids[task.key]} has it' if task.key in self.ids else 'done'}")
            return
        # Two must not train one run at once, so another limit waits for the job that is queued with the old one.
        after = self._after(task.needs) + [f"afterany:{job.job_id}" for job in self.queue if job.key == task.key]
        config = self._keep_config(task.config)
        name = f"{_flat(task.config.name)}.{task.stage}.{task.mark}"
        self.ids[task.key] = self._send(Job(name, config.parent, task.stage, (task.stage,), (config,), task.gpu, after))

    def array(self, name: str, chains: Sequence[Sequence[Task]], at_once: int | None) -> str | None:
        """One job for the members' own stages. Returns its id, None where nothing is left for one."""
        once = {_pretraining(chain).mark: chain for chain in reversed(chains)}  # what two members share is trained once
        left = [c for mark, c in reversed(once.items()) if not self._in_hand(_pretraining(c))]
        for chain in left:
            self.check_sources(chain)
        before = [task for chain in left for task in chain if not _is_own(task, chain)]
        for task in before:
            self.single(task)
        self.lines.append(f"{len(once) - len(left)} of {len(once)} members are done or queued already")
        if not left:
            return None
        trained = [_pretraining(chain) for chain in left]
        verbs = [task.stage for task in left[0] if _is_own(task, left[0])]
        paths = [self._keep_config(task.config) for task in trained]
        gpu, after, marks = any(task.gpu for task in trained), self._after(before), [task.mark for task in trained]
        return self._send(
            Job(f"{_flat(name)}.array", self.folder(name), "array", verbs, paths, gpu, after, marks, at_once)
        )

    def last(self, name: str, verb: str, path: Path, *, after: str | None, gpu: bool) -> None:
        """One job of `verb` once the array `after` has ended."""
        key = _key(_place(), verb, str(path))
        if any(job.key == key for job in self.queue):
            self.lines.append(f"{verb:<9} {name}: queued already")
            return
        waits = [f"afterany:{after}"] if after else []
        self._send(Job(f"{_flat(name)}.{verb}.{key}", self.folder(name), verb, (verb,), (path,), gpu, waits))

    def folder(self, experiment: str) -> Path:
        folder = root().resolve() / "runs" / experiment / JOBS / self.stamp
        if not self.dry_run:
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _in_hand(self, task: Task) -> bool:
        """Whether the task is done, or a job has it that was sent now or before."""
        for job in self.queue:
            if (job.key, job.limit) == (task.key, task.limit):
                self.ids[task.key] = job.job_id
        return task.done or task.key in self.ids

    def _after(self, needs: Sequence[Task]) -> list[str]:
        return list(dict.fromkeys(f"afterok:{self.ids[task.key]}" for task in needs if task.key in self.ids))

    def _send(self, job: Job) -> str:
        """The job's id, or in a dry run a word in its place. Where sbatch refuses a job, those that were sent before it
        are cancelled."""
        made_by, state = f"hornbook submit {self.command}", code_state()
        dirty = ", with changes that are in no commit" if state["dirty"] else ""
        text = slurm.script(job, self.options, [made_by, f"of hornbook at commit {state['commit']}{dirty}"])
        experiment = job.folder.parent.parent.relative_to(root().resolve() / "runs").as_posix()
        if self.dry_run:
            print(f"# {job.path}\n{text}")
            return f"<{job.label} of {experiment}>"
        write_text(job.path, text)
        try:
            job_id = slurm.send(job.path)
        except UserError:
            slurm.cancel(self.sent)
            raise
        self.sent.append(job_id)
        after = f" {', '.join(job.after)}" if job.after else ""
        kind = f"{len(job.configs)} members, " if job.members else ""
        self.lines.append(f"{job.label:<9} {experiment}: {kind}job {job_id}{after}{', one GPU' if job.gpu else ''}")
        path = job.folder / "submitted.json"
        jobs = json.loads(path.read_text(encoding="utf-8"))["jobs"] if path.exists() else []
        jobs.append({"id": job_id, "file": job.path.name, "name": job.name, "after": list(job.after)})
        write_json(path, {"command": made_by, "working_folder": str(Path.cwd()), **state, "jobs": jobs})
        return job_id

    def _keep_config(self, config: Config, name: str = RESOLVED, folder: Path | None = None) -> Path:
        """The resolved config, and its source's, in the folder of this submission: editing a submitted file changes no
        queued job."""
        folder = folder or self.folder(config.name)
        if source_is_experiment(config):
            source = source_config(config)
            path = self._keep_config(source, f"{_flat(source.name)}.yaml", folder)
            kept = dataclasses.replace(config.init, source=str(path), source_overrides={})
            config = dataclasses.replace(config, init=kept)
        if not self.dry_run:
            write_text(folder / name, configs.to_yaml(config))
        return folder / name


def _is_own(task: Task, chain: Sequence[Task]) -> bool:
    """Whether it is for a member's array task to run: not the data, which members share, and not its source's."""
    return task.stage != "data" and task.config is chain[0].config


def _pretraining(chain: Sequence[Task]) -> Task:
    return next(task for task in chain if task.stage == "pretrain" and _is_own(task, chain))


def _flat(name: str) -> str:
    """An experiment's name where slashes mean something."""
    return name.replace("/", "-")
