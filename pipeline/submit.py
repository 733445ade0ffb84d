"""`hornbook submit`: the stages that are left to do, as a chain of Slurm jobs.

In: a config. Out: `runs/<name>/jobs/<time>/` with the resolved config, one sbatch file a job, and `submitted.json`
(commit, command, ids); their logs come to lie there. Data and init need no GPU, pretrain takes one; a source
experiment's stages come first where they are needed. What is finished is not sent, nor what is queued already, under
whichever experiment's name: a job's name ends with a key over all that decides its result.
"""

import contextlib
import dataclasses
import importlib
import importlib.util
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline import config as configs
from pipeline.config import Config
from pipeline.growing.grow import check_method
from pipeline.slurm import jobs as slurm
from pipeline.slurm.jobs import Job, Options, Queued
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
    trained; `limit`: what it trains to. `needs`: the stages before it."""

    config: Config
    stage: str
    key: str
    done: bool
    needs: tuple["Task", ...] = ()

    @property
    def limit(self) -> str:
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
    `UserError` for what is wrong in the config or refused by Slurm; nothing of this call stays queued then."""
    sending = _Sending(options, command, dry_run)
    with sending.alone():
        sending.chain(tasks(config, until))
    sending.say(config.name)


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
    sending = _Sending(options, command, dry_run)
    with sending.alone():
        array = sending.array(name, [tasks(member, until) for member in members], at_once)
        if last is not None:
            gpu = any(member.train.device in ("auto", "cuda") for member in members)
            sending.last(name, *last, after=array, gpu=gpu)
    sending.say(name)


def tasks(config: Config, until: str = LAST) -> list[Task]:
    """Every stage that the experiment needs, in order, up to `until`. Raises `UserError` for a config that is wrong."""
    check_method(config)
    check_source(config)
    if config.budget.max_gpu_hours is None and config.budget.max_tokens is None and config.train.max_epochs is None:
        raise UserError("the config sets no end: set budget.max_gpu_hours (or budget.max_tokens)")
    step = data_step(config)
    data = Task(config, "data", hash_json([_place(), step.fingerprint])[:12], step.finished)
    source: tuple[Task, ...] = ()
    content: str | None = None
    ready = True
    if source_is_experiment(config):
        source = tuple(task for task in tasks(source_config(config), "pretrain") if task.stage != "data")
        ready, content = is_trained(source_config(config)), source[-1].key
    elif config.init.source is not None:
        content = content_of_model(config.init.source, "init.source")
    init_key = hash_json([init_identity(config), data.key, content])[:12]
    init = Task(config, "init", init_key, ready and init_step(config).finished, (data, *source[-1:]))
    pretrain_key = hash_json([pretrain_identity(config), init.key])[:12]
    pretrain = Task(config, "pretrain", pretrain_key, ready and is_trained(config), (init,))
    chain = [data, *source, init, pretrain, *_evaluation(config, pretrain)]
    ends = [i for i, task in enumerate(chain) if task.config is config and task.stage == until]
    return chain[: ends[0] + 1] if ends else chain


def _evaluation(config: Config, pretrain: Task) -> Iterator[Task]:
    """The `evaluate` stage, where this version has one."""
    if importlib.util.find_spec("pipeline.evaluate") is None:
        return
    stage = importlib.import_module("pipeline.evaluate")
    key = hash_json([configs.identity(getattr(config, LAST)), pretrain.key, pretrain.limit])[:12]
    done = pretrain.done and stage.evaluate_step(config, "").finished
    yield Task(config, "evaluate", key, done, (pretrain,))


def _place() -> str:
    """Two roots have nothing in common, so the queue must not mix them up."""
    return str(root().resolve())


class _Sending:
    """One call of submit: what is in hand, what was sent, and the files of it. Where sbatch refuses a job, those that
    were sent before it are cancelled."""

    def __init__(self, options: Options, command: str, dry_run: bool):
        options.check()
        if not dry_run and not slurm.available():
            raise UserError(
                f"there is no sbatch on this machine; without Slurm: hornbook data {command} && hornbook init "
                f"{command} && hornbook pretrain {command}"
            )
        self.options, self.command, self.dry_run = options, command, dry_run
        self.stamp = time.strftime("%Y-%m-%dT%H-%M-%S")
        self.queue: list[Queued] = []
        self.ids: dict[str, str] = {}
        """Key of a task -> the job that does it, sent now or before."""
        self.sent: list[str] = []
        self.lines: list[str] = []

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else submits for this root meanwhile; the queue is read once that is so."""
        runs = root() / "runs"
        with contextlib.ExitStack() as stack:
            if not self.dry_run:
                runs.mkdir(parents=True, exist_ok=True)
                stack.enter_context(FolderLock(runs, wait=True))
            self.queue = self._read_queue()
            yield

    def _read_queue(self) -> list[Queued]:
        try:
            return slurm.queued() if slurm.available() else []
        except UserError as error:
            if not self.dry_run:
                raise
            print(f"# the queue was not asked: {error}")
            return []

    def chain(self, chain: Sequence[Task]) -> None:
        self._check_sources(chain)
        for task in chain:
            self._single(task)

    def array(self, name: str, chains: Sequence[Sequence[Task]], at_once: int | None) -> str | None:
        """The array's id, None where nothing is left for one."""
        once = {_pretraining(chain).mark: chain for chain in reversed(chains)}  # what two members share is trained once
        left = [c for mark, c in reversed(once.items()) if not self._in_hand(_pretraining(c))]
        for chain in left:
            self._check_sources(chain)
        before = [task for chain in left for task in chain if not _is_members_own(task, chain)]
        for task in before:
            self._single(task)
        self.lines.append(f"{len(once) - len(left)} of {len(once)} members are done or queued already")
        if not left:
            return None
        verbs = ("init", "pretrain", *(task.stage for task in left[0] if task.stage == "evaluate"))
        paths = [self._keep_config(_pretraining(chain).config) for chain in left]
        marks = [_pretraining(chain).mark for chain in left]
        gpu = any(_pretraining(chain).gpu for chain in left)
        after, folder = self._after(before), self._folder(name)
        return self._send(
            Job(f"{_flat(name)}.array", folder, "array", verbs, paths, gpu, after, marks, at_once, self._notes())
        )

    def last(self, name: str, verb: str, path: Path, *, after: str | None, gpu: bool) -> None:
        """One job of `verb` once the array `after` has ended."""
        waits = [f"afterany:{after}"] if after else []
        title = f"{_flat(name)}.{verb}.{hash_json([_place(), verb, str(path)])[:12]}"
        if any(title.endswith(job.key) for job in self.queue):
            self.lines.append(f"{verb:<9} {name}: queued already")
            return
        self._send(Job(title, self._folder(name), verb, (verb,), (path,), gpu, waits, notes=self._notes()))

    def say(self, name: str) -> None:
        """What was sent, for a person."""
        if self.dry_run:
            return
        print(f"submit: {name}", *(f"  {line}" for line in self.lines), sep="\n")
        if self.sent:
            jobs = ",".join(self.sent)
            print(f"  files: {self._folder(name)}\n  watch: squeue --jobs={jobs}", flush=True)
        else:
            print("  nothing to send", flush=True)

    def _single(self, task: Task) -> None:
        """One job for one stage, unless the stage is done or a job has it."""
        title = f"{task.stage:<9} {task.config.name}"
        if task.done or task.key in self.ids or self._in_hand(task):
            self.lines.append(f"{title}: {f'job {self.ids[task.key]} has it' if task.key in self.ids else 'done'}")
            return
        name = f"{_flat(task.config.name)}.{task.stage}.{task.mark}"
        # Two must not train one run at once, so another limit waits for the job that is queued with the old one.
        after = self._after(task.needs) + [f"afterany:{job.job_id}" for job in self.queue if job.key == task.key]
        config = self._keep_config(task.config)
        job = Job(name, config.parent, task.stage, (task.stage,), (config,), task.gpu, after, notes=self._notes())
        self.ids[task.key] = self._send(job)

    def _in_hand(self, task: Task) -> bool:
        """Whether the task is done, or a job that was queued before has it."""
        for job in self.queue:
            if (job.key, job.limit) == (task.key, task.limit):
                self.ids[task.key] = job.job_id
        return task.done or task.key in self.ids

    def _after(self, needs: Sequence[Task]) -> list[str]:
        return list(dict.fromkeys(f"afterok:{self.ids[task.key]}" for task in needs if task.key in self.ids))

    def _check_sources(self, chain: Sequence[Task]) -> None:
        """Training a source costs hours that `init.train_source` must have allowed."""
        for task in chain:
            sources = [need for need in task.needs if task.stage == "init" and need.stage == "pretrain"]
            if sources and not task.config.init.train_source and not self._in_hand(sources[0]):
                raise untrained_source(task.config)

    def _send(self, job: Job) -> str:
        """The job's id, or in a dry run a word in its place."""
        text = slurm.script(job, self.options)
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
        kind = f"{len(job.configs)} members, " if job.is_array else ""
        self.lines.append(f"{job.label:<9} {experiment}: {kind}job {job_id}{after}{', one GPU' if job.gpu else ''}")
        self._record(job, job_id)
        return job_id

    def _record(self, job: Job, job_id: str) -> None:
        path = job.folder / "submitted.json"
        jobs = json.loads(path.read_text(encoding="utf-8"))["jobs"] if path.exists() else []
        jobs.append({"id": job_id, "file": job.path.name, "name": job.name, "after": list(job.after)})
        made_by = {"command": f"hornbook submit {self.command}", "working_folder": str(Path.cwd()), **code_state()}
        write_json(path, {**made_by, "jobs": jobs})

    def _notes(self) -> list[str]:
        code = code_state()
        dirty = ", with changes that are in no commit" if code["dirty"] else ""
        return [f"hornbook submit {self.command}", f"of hornbook at commit {code['commit']}{dirty}"]

    def _folder(self, experiment: str) -> Path:
        folder = root().resolve() / "runs" / experiment / JOBS / self.stamp
        if not self.dry_run:
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _keep_config(self, config: Config) -> Path:
        """The resolved config, and its source's, in the folder of this submission: editing a file that is submitted
        changes no queued job."""
        return self._write_config(config, self._folder(config.name), RESOLVED)

    def _write_config(self, config: Config, folder: Path, name: str) -> Path:
        if source_is_experiment(config):
            source = source_config(config)
            path = self._write_config(source, folder, f"{_flat(source.name)}.yaml")
            kept = dataclasses.replace(config.init, source=str(path), source_overrides={})
            config = dataclasses.replace(config, init=kept)
        if not self.dry_run:
            write_text(folder / name, configs.to_yaml(config))
        return folder / name


def _pretraining(chain: Sequence[Task]) -> Task:
    """The member's own, not its source's."""
    return [task for task in chain if task.stage == "pretrain"][-1]


def _is_members_own(task: Task, chain: Sequence[Task]) -> bool:
    return task.stage != "data" and task.config is chain[0].config


def _flat(name: str) -> str:
    """An experiment's name where slashes mean something."""
    return name.replace("/", "-")
