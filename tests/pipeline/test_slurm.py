"""`hornbook submit` on a real Slurm of two nodes (scripts/slurm-up): real stages, preemption, requeues, time limits.

One cluster and one corpus for the module; every chain starts at once and runs beside the others. What has to do with
time limits follows from how long hornbook's start takes here, as measured by the first jobs. It needs root and
Debian's Slurm packages; elsewhere the tests skip and say why.
"""

import contextlib
import io
import json
import math
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import hub_server
import pytest
from data_corpus import made, make_config, write_corpus
from test_hub_reading import SOURCE, hub, texts  # noqa: F401 - a fixture

from pipeline import config as configs
from pipeline import submit
from pipeline.__main__ import run_guarded
from pipeline.config.arguments import parse
from pipeline.corpus import execute
from pipeline.run_stage import step_of
from pipeline.slurm import Options
from pipeline.storage.files import read_json_lines
from pipeline.storage.steps import read_manifest

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPTS = REPOSITORY / "scripts"
WANTED = "HORNBOOK_TEST_SLURM"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not os.environ.get(WANTED), reason=f"starts a Slurm cluster and takes minutes: set {WANTED}=1"),
]
TRAIN = {
    "sequence_length": 64,
    "global_batch_tokens": 512,
    "warmup_steps": 5,
    "log_every_steps": 1,
    "validate_every_share": 0.5,
    "device": "cpu",
}
GPU = "--sbatch=--gres=gpu:1"  # the one (false) GPU, over which jobs of several partitions quarrel
ALWAYS = ["--until=pretrain", "--cpus-per-task=1"]
STEPS, NOTICE_SECONDS = 30, 25
NODE_CPUS = 16
ONE_A_NODE = NODE_CPUS // 2 + 1  # CPUs of a task, of which a node holds one
PATIENCE_SECONDS = 1200  # of a wait; a machine that is shared starts many times slower than an idle one
TOKENS = f"budget.max_tokens={512 * STEPS}"


class Cluster:
    """What this module asks of Slurm and of the jobs' root."""

    def __init__(self, state: Path, root: Path):
        self.state, self.root = state, root
        self.limit_minutes, self.cap_seconds = 1, 0

    def measure(self, init: str) -> None:
        """Sets a time limit in which a life can start and train, and a cap that needs more than one such life, also
        where a start takes twice as long as this job did. Slurm warns up to 30 s before the notice."""
        job = self.wait(init, lambda job: job["JobState"] == "COMPLETED")
        start, end = (datetime.fromisoformat(job[key]) for key in ("StartTime", "EndTime"))
        seconds = max(8.0, (end - start).total_seconds())
        self.limit_minutes = math.ceil((2 * seconds + NOTICE_SECONDS + 15) / 60)
        self.cap_seconds = 60 * self.limit_minutes - NOTICE_SECONDS + 5 * seconds + 30

    def ask(self, *words: str) -> str:
        done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def submit(self, config: Path, *words: str) -> str:
        """`hornbook submit` in this process (torch need not be loaded for each): what it said."""
        arguments = parse(["submit", str(config), *words, *ALWAYS])
        with contextlib.redirect_stdout(io.StringIO()) as said:
            assert run_guarded(arguments) == 0
        return said.getvalue()

    def config(self, name: str, **changes) -> Path:
        """A small experiment on the module's corpus."""
        web = {"type": "jsonl", "path": str(self.root / "in" / "texts.jsonl"), "group_key": "domain", "license": "MIT"}
        values: dict = {"data__tasks": 2, "data__workers": 1}
        values |= {"train": dict(TRAIN), "tracking": {"to": "none"}, "model__max_position_embeddings": 64}
        values["sample"] = {"prompts": ["The "], "max_new_tokens": 4}
        values |= {"data__sources": {"web": web}, **changes}
        config = make_config(self.root / "in" / "texts.jsonl", name=name, **values)
        path = self.root / f"{name}.yaml"
        path.write_text(configs.to_yaml(config), encoding="utf-8")
        return path

    def ids(self, name: str, which: int = -1) -> dict[str, str]:
        """Label of a job (data, pretrain, ...) -> its id, as a submission of an experiment recorded it."""
        path = sorted((self.root / "runs" / name / "jobs").glob("*/submitted.json"))[which]
        return {Path(job["file"]).stem: job["id"] for job in json.loads(path.read_text())["jobs"]}

    def job(self, job_id: str) -> dict[str, str]:
        return dict(re.findall(r"(\w+)=(\S*)", self.ask("scontrol", "show", "job", "-o", job_id)))

    def wait(self, job_id: str, what: Callable[[dict[str, str]], object]) -> dict[str, str]:
        """The job, once `what` is so."""
        until = time.monotonic() + PATIENCE_SECONDS
        while not what(job := self.job(job_id)):
            assert time.monotonic() < until, (job, self.logs(job_id))
            time.sleep(0.2)
        return job

    @contextlib.contextmanager
    def set(self, what: str, now: str, later: str) -> Iterator[None]:
        """A node or partition in another state."""
        self.ask("scontrol", "update", what, now, *(["reason=test"] if what.startswith("node") else []))
        try:
            yield
        finally:
            self.ask("scontrol", "update", what, later)

    def drained(self, node: str) -> contextlib.AbstractContextManager[None]:
        """The node starts nothing new; what runs there runs on."""
        return self.set(f"nodename={node}", "state=drain", "state=resume")

    def ended(self) -> list[dict[str, str]]:
        """The controller's own record of every life of every job."""
        lines = (self.state / "log" / "jobcomp.txt").read_text().splitlines()
        return [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in lines]

    def end(self, job_id: str) -> tuple[str, str]:
        job = self.wait(job_id, lambda job: job["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"))
        return job["JobState"], job["ExitCode"]

    def logs(self, job_id: str) -> str:
        return "\n".join(path.read_text() for path in self.root.glob(f"runs/**/*-{job_id}.log"))

    def lives_seconds(self, *job_ids: str) -> list[float]:
        """Seconds of every life, by the controller's own record."""
        spans = {}
        for facts in self.ended():
            if facts["JobId"] in job_ids and facts["NodeCnt"] != "0":
                start, end = (datetime.fromisoformat(facts[key]) for key in ("StartTime", "EndTime"))
                spans[start] = (end - start).total_seconds()
        return [spans[start] for start in sorted(spans)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    state = tmp_path_factory.mktemp("slurm") / "cluster"
    root = tmp_path_factory.mktemp("root") / "with a space"
    root.mkdir()
    # CPUs for all chains at once, or one would preempt another; time for a save where the machine is slow.
    lab = {**os.environ, "SLURM_LAB_NO_INSTALL": "1", "SLURM_LAB_NODES": "2", "SLURM_LAB_CPUS": str(NODE_CPUS)}
    lab |= {"SLURM_LAB_KILL_WAIT": "60", "SLURM_LAB_GRACE": "60"}
    up = subprocess.run(
        [SCRIPTS / "slurm-up", state], env=lab, capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )
    if up.returncode:
        pytest.skip(f"no Slurm can be started here: {up.stderr.strip().splitlines()[-1]}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(state / "slurm.conf"))
        patch.setenv("HORNBOOK_ROOT", str(root))
        patch.setenv("PYTHONPATH", str(REPOSITORY))
        patch.setenv("OMP_NUM_THREADS", "1")
        write_corpus(root / "in")
        try:
            yield Cluster(state, root)
        finally:
            subprocess.run([SCRIPTS / "slurm-down", state], check=True, capture_output=True, timeout=PATIENCE_SECONDS)


@pytest.fixture(scope="module")
def begun(cluster: Cluster) -> dict[str, str]:
    """Every chain of the module, sent at once: what each submission said."""
    plain = cluster.config("plain")
    cluster.config("source", budget={"max_tokens": 512 * STEPS}, train__learning_rate=2e-3)
    wider = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    init = {"method": "exact", "source": "source.yaml", "train_source": True}
    grown = cluster.config("grown", init=init, **{f"model__{key}": value for key, value in wider.items()})
    second = [TOKENS, "train.learning_rate=1e-3", "--partition=high"]
    said = {
        "lives": cluster.submit(plain, "name=lives", "budget.max_tokens=1_000_000_000", "--partition=low", GPU),
        "first": cluster.submit(grown, "name=first", TOKENS, "--partition=high"),
        "again": cluster.submit(grown, "name=first", TOKENS, "--partition=high"),
        "second": _command_elsewhere(cluster, "../grown.yaml", "name=second", *second),
    }
    cluster.measure(cluster.ids("lives")["init"])
    budget = f"budget.max_gpu_hours={cluster.cap_seconds / 3600}"
    limit = [f"--time={cluster.limit_minutes}", f"--notice={NOTICE_SECONDS}", "--srun", "--partition=high"]
    said["limit"] = cluster.submit(plain, "name=limit", "train.learning_rate=4e-3", budget, *limit)
    return said


def _command_elsewhere(cluster: Cluster, *words: str) -> str:
    """The command as a person types it, in another folder."""
    command = [sys.executable, "-P", "-m", "pipeline", "submit", *words, *ALWAYS]
    done = subprocess.run(command, cwd=cluster.root / "in", capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Lives:
    """One pretraining that is interrupted again and again."""

    def __init__(self, cluster: Cluster, job_id: str):
        self.cluster, self.job_id = cluster, job_id
        self.saved: list[int] = []
        """The last step of every life that is over."""

    @property
    def folder(self) -> Path:
        return self.cluster.root / "runs" / "lives" / "pretrain"

    def steps(self) -> list[int]:
        path = self.folder / "metrics.jsonl"
        return [row["step"] for row in read_json_lines(path)] if path.is_file() else []

    def train(self) -> None:
        """Until this life has trained a step of its own."""
        last = self.saved[-1] if self.saved else 0
        self.cluster.wait(self.job_id, lambda job: job["JobState"] == "RUNNING" and self.steps()[-1:] > [last + 5])

    def requeued_by_hand(self) -> None:
        self.cluster.ask("scontrol", "requeue", self.job_id)
        self._over()

    def preempted(self, partition: str) -> None:
        """By a job that keeps the GPU until this one waits in the partition of its next life."""
        go_on = self.cluster.root.parent / f"go-on-{len(self.saved)}"
        wait = f"--wrap=until [ -e {go_on} ]; do sleep 0.2; done"
        rival = self.cluster.ask("sbatch", "--parsable", "--partition=high", GPU[9:], "--output=/dev/null", wait)
        self.cluster.wait(rival, lambda job: job["JobState"] == "RUNNING")
        self._over()
        self.cluster.wait(self.job_id, lambda job: job["JobState"] == "PENDING")
        self.cluster.ask("scontrol", "update", f"jobid={self.job_id}", f"partition={partition}")
        go_on.touch()

    def _over(self) -> None:
        count = len(self.saved) + 1
        self.cluster.wait(self.job_id, lambda job: self.cluster.logs(self.job_id).count(": exit code ") == count)
        self.saved.append(self.steps()[-1])


def test_requeue_preemption_with_and_without_grace_and_cancel_lose_no_step(cluster: Cluster, begun: dict) -> None:
    lives = Lives(cluster, cluster.ids("lives", 0)["pretrain"])
    lives.train()
    lives.requeued_by_hand()
    lives.train()
    lives.preempted("grace")  # no grace in the partition that it is in: TERM at once
    lives.train()
    lives.preempted("grace")  # USR1 first, and the script asks for the next life itself
    lives.train()
    cluster.ask("scancel", lives.job_id)
    assert cluster.end(lives.job_id) == ("CANCELLED", "75:0")
    lives.saved.append(lives.steps()[-1])

    said = cluster.logs(lives.job_id)
    assert said.count("exit code 75") == 4, said
    assert said.count("left to Slurm") == 3, said  # the hand's requeue, no grace, cancel
    assert said.count("SIGUSR1") >= 1
    assert said.count(": requeued\n") == 1

    end = f"budget.max_tokens={512 * (3 * lives.saved[-1] // 2)}"
    told = cluster.submit(cluster.root / "plain.yaml", "name=lives", end, "--partition=low", "--srun")
    assert "data      lives: done" in told
    assert "init      lives: done" in told
    assert list(cluster.ids("lives")) == ["pretrain"]
    last = cluster.ids("lives")["pretrain"]
    assert cluster.end(last) == ("COMPLETED", "0:0"), cluster.logs(last)
    manifest = read_manifest(lives.folder)
    assert (manifest["lives"], manifest["annealed"]) == (5, True)
    assert lives.steps() == list(range(manifest["steps"] + 1))
    decisions = read_json_lines(lives.folder / "decisions.jsonl")
    assert [record["step"] for record in decisions if record["kind"] == "life"] == [0, *lives.saved]
    _hours_agree(cluster, "lives", lives.job_id, last)


def test_a_time_limit_shorter_than_the_budget_is_simply_many_lives(cluster: Cluster, begun: dict) -> None:
    job_id = cluster.ids("limit")["pretrain"]
    assert cluster.end(job_id) == ("COMPLETED", "0:0"), cluster.logs(job_id)
    manifest = read_manifest(cluster.root / "runs/limit/pretrain")
    said = cluster.logs(job_id)
    limit = 60 * cluster.limit_minutes
    assert re.search(rf"time left ({limit - 1}|{limit}) s", said), said  # read from squeue
    assert said.count("SIGUSR1, time left") >= said.count(": requeued\n") == manifest["lives"] - 1 >= 1
    assert (manifest["stopped_by"], manifest["annealed"]) == ("gpu_hours", True), said
    assert manifest["gpu_hours"] * 3600 <= cluster.cap_seconds
    steps = [row["step"] for row in read_json_lines(cluster.root / "runs/limit/pretrain/metrics.jsonl")]
    assert steps == list(range(manifest["steps"] + 1))
    _hours_agree(cluster, "limit", job_id)


def test_a_chain_with_its_source_and_a_second_experiment_that_shares_it(cluster: Cluster, begun: dict) -> None:
    first, source, second = (cluster.ids(name) for name in ("first", "source", "second"))
    assert list(cluster.ids("lives", 0)) == ["data", "init", "pretrain"]  # it made the data for all
    assert list(source) == ["pretrain"]  # its fresh weights are those of two other experiments
    assert list(first) == ["init", "pretrain"]
    assert "nothing to send" in begun["again"]
    assert list(second) == ["pretrain"]
    assert f"afterok:{first['init']}" in begun["second"]
    for job_id in (*source.values(), *first.values(), *second.values()):
        assert cluster.end(job_id) == ("COMPLETED", "0:0"), cluster.logs(job_id)
    manifests = [read_manifest(cluster.root / "runs" / name / "pretrain") for name in ("first", "second")]
    assert [manifest["steps"] for manifest in manifests] == [STEPS, STEPS]
    assert manifests[0]["inputs"] == manifests[1]["inputs"]
    _hours_agree(cluster, "first", first["pretrain"])
    _hours_agree(cluster, "source", source["pretrain"])
    assert "nothing to send" in cluster.submit(cluster.root / "grown.yaml", "name=first", TOKENS)
    record = json.loads(next((cluster.root / "runs/first/jobs").glob("*/submitted.json")).read_text())
    assert record["command"].startswith("hornbook submit ")
    assert record["commit"] == manifests[0]["commit"]


def test_an_array_on_two_nodes_of_which_one_is_drained_trains_the_members_that_are_left(
    cluster: Cluster, begun: dict
) -> None:
    rates = [f"train.learning_rate={rate}" for rate in ("1e-3", "2e-3", "5e-3")]
    members = [
        configs.load(cluster.root / "grown.yaml", [f"name=study/{i}", TOKENS, rate]) for i, rate in enumerate(rates)
    ]
    options = Options(partition="high", cpus_per_task=ONE_A_NODE)
    with cluster.set("partitionname=high", "state=down", "state=up"):  # the tasks wait until this test looks at them
        submit.run_array("study", members, "study.yaml", options, at_once=2, until="pretrain")
        array = cluster.ids("study")["array"]
        submit.run_array("study", members, "study.yaml", options, until="pretrain")
    assert len(list(cluster.root.glob("runs/study/jobs/*"))) == 1  # the second call sent nothing
    tasks = [f"{array}_{i}" for i in range(2)]
    assert _script(cluster, "study").count("/resolved.yaml") == 2
    assert "#SBATCH --array=0-1%2" in _script(cluster, "study")
    nodes = [cluster.wait(task, lambda job: job["JobState"] == "RUNNING")["NodeList"] for task in tasks]
    assert sorted(nodes) == ["n1", "n2"]
    moved = tasks[nodes.index("n2")]
    cluster.wait(moved, lambda _: "hornbook init" in cluster.logs(moved))
    with cluster.drained("n2"):
        cluster.ask("scontrol", "requeue", moved)
        for task in tasks:
            assert cluster.end(task) == ("COMPLETED", "0:0"), cluster.logs(task)
        assert cluster.job(moved)["NodeList"] == "n1"
    assert "attempt 2" in cluster.logs(moved)
    for member in members:
        assert read_manifest(step_of(member, "pretrain").path)["steps"] == STEPS


def test_the_shards_on_two_nodes_of_which_one_is_drained_give_the_same_content(
    cluster: Cluster, begun: dict, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(execute, "POLL_SECONDS", 0.5)
    config = configs.load(cluster.root / "plain.yaml", ["data.tasks=4"])
    monkeypatch.setenv("HORNBOOK_ROOT", str(tmp_path / "local"))
    expected = made(config)["content_hash"]
    monkeypatch.setenv("HORNBOOK_ROOT", str(tmp_path / "slurm"))
    config.data.executor = "slurm"
    config.data.executor_options = {"partition": "high", "time": "00:10:00", "cpus_per_task": ONE_A_NODE}
    config.data.workers = 0
    moments: list[datetime] = []

    def drain_once_both_work(over: threading.Event) -> None:
        while not over.wait(0.1):
            running = cluster.ask("squeue", "--noheader", "--states=RUNNING", "--format=%N %j").splitlines()
            if {line.split()[0] for line in running if " hornbook-read" in line} == {"n1", "n2"}:
                with cluster.drained("n2"):
                    moments.append(datetime.now())
                    over.wait()
                return

    over = threading.Event()
    watcher = threading.Thread(target=drain_once_both_work, args=(over,))
    watcher.start()
    try:
        assert made(config)["content_hash"] == expected
    finally:
        over.set()
        watcher.join()
    shards = [life for life in cluster.ended() if life["Name"].startswith("hornbook-")]
    assert {shard["NodeList"] for shard in shards} == {"n1", "n2"}
    assert moments, "the two nodes never worked at once"
    later = [shard for shard in shards if datetime.fromisoformat(shard["StartTime"]) > moments[0]]
    assert {shard["NodeList"] for shard in later} == {"n1"}


def _script(cluster: Cluster, name: str) -> str:
    return next((cluster.root / "runs" / name / "jobs").glob("*/*.sbatch")).read_text()


def _hours_agree(cluster: Cluster, name: str, *job_ids: str) -> None:
    """The ledger's hours of every life of a pretraining against Slurm's: 2% or 10 s."""
    lines = read_json_lines(cluster.root / "runs" / name / "ledger.jsonl")
    lives: dict[int, float] = {}
    for line in lines:
        if line["stage"] == "pretrain":
            lives[line["life"]] = max(line["seconds"], lives.get(line["life"], 0))
    slurms = cluster.lives_seconds(*job_ids)
    assert len(lives) == len(slurms)
    assert all(abs(a - b) <= max(10, 0.02 * b) for a, b in zip(lives.values(), slurms, strict=True)), (lives, slurms)


def test_jobs_read_the_commit_that_main_was_when_they_were_sent(
    cluster: Cluster,
    hub: hub_server.Hub,  # noqa: F811
) -> None:
    first = hub.commit("datasets", "people/texts", texts())
    source = {**SOURCE, "group_key": "site", "license": "own"}
    filters = {"gopher_quality": None, "quality": None}
    path = cluster.config("hubby", data__sources={"web": source}, data__filters=filters)
    assert f"people/texts@main is commit {first[:12]}" in cluster.submit(path, TOKENS, "--sbatch=--hold")
    hub.commit("datasets", "people/texts", texts("New. "))
    jobs = cluster.ids("hubby")
    cluster.ask("scontrol", "release", jobs["data"])
    try:
        assert cluster.end(jobs["data"]) == ("COMPLETED", "0:0"), cluster.logs(jobs["data"])
    finally:
        cluster.ask("scancel", *jobs.values())
    assert read_manifest(cluster.root / "runs" / "hubby" / "data")["sources"]["web"]["revision"] == first
