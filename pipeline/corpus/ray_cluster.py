"""Runs a function over shard numbers as tasks of a Ray cluster that the user named.

In: the function, pickled, and the shards. Out: what failed, by shard. Not datatrove's Ray executor: that one returns
without an error when a shard has failed, waits forever for a killed process and for a task that no node can hold,
joins any cluster that it finds, and writes the logs of all steps and users to one folder of /tmp.

Ray lives in a process of its own (`_serve`), one for all steps of the stage. It installs signal handlers, keeps
threads that a fork would break, and ends its process when the cluster's head dies. Ending that process ends the tasks:
the cluster stops the work of a client that is gone, after kill -9 too. Ray says which workers died. That the others are
alive they show themselves, by touching a file in the step's folder, which also proves that the folder is shared.
"""

import itertools
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
import uuid
import warnings
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from importlib.util import find_spec
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

from pipeline.system import processes, signals
from pipeline.system.errors import Failure, UserError
from pipeline.system.progress import Progress

REPOSITORY = Path(__file__).resolve().parents[2]
KEY = "data.executor_options"
CONNECT_SECONDS = 60.0
TOUCH_SECONDS = 2.0  # at most, between two signs of life of a shard
POLL_SECONDS = 0.5
MOST_QUEUED_TASKS = 1_000
MOST_FAILED_SHARDS = 10  # then no further shard begins: the input is wrong as a whole
LIBRARIES = ("datatrove", "ftfy", "numpy", "orjson", "py3langid", "rensa", "tokenizers", "trafilatura")
SECRETS = re.compile(r"(HORNBOOK|HF|HUGGING_FACE|AWS|FSSPEC)_|[A-Z_]*(API_KEY|PROXY)$|(https?|no)_proxy$")


@dataclass(frozen=True)
class RayOptions:
    """`data.executor_options` of `data.executor: ray`. `address`: of the cluster, HOST:PORT; default RAY_ADDRESS.
    `time`: seconds, or HH:MM:SS, that a shard may take. `attempts`: for a shard whose process or node dies.
    `watchdog_seconds`: without a shard that ends or shows that it is alive, after which the stage ends.
    `ray_remote_kwargs`: more options of a task, such as `{resources: {text: 1}}`."""

    address: str | None = None
    cpus_per_task: float = 1
    mem_per_cpu_gb: float = 2
    time: float | str | None = None
    attempts: int = 3
    watchdog_seconds: float = 25
    ray_remote_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("cpus_per_task", "mem_per_cpu_gb", "attempts", "watchdog_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number above 0")
        if isinstance(self.time, str) and not re.fullmatch(r"(\d+:){0,2}\d+", self.time):
            raise ValueError(f"time is {self.time!r}; expected seconds or HH:MM:SS")

    @property
    def memory_gb(self) -> float:
        return self.cpus_per_task * self.mem_per_cpu_gb

    @property
    def limit_seconds(self) -> float | None:
        if not isinstance(self.time, str):
            return self.time
        return float(sum(int(part) * 60**i for i, part in enumerate(reversed(self.time.split(":")))))

    def named_address(self) -> str:
        """The cluster that the user named; `UserError` for none: hornbook neither looks for one nor starts one."""
        address = self.address or os.environ.get("RAY_ADDRESS") or ""
        if not re.fullmatch(r"(ray://)?[^/\s]+:\d+", address):
            found = f"'{address}'" if address else "not set"
            raise UserError(
                f"data.executor is ray and {KEY}.address is {found}; expected the address of the cluster's head, "
                f"such as {KEY}.address=10.0.0.1:6379 (`ray start --head` prints it), or RAY_ADDRESS"
            )
        return address


def check(options: RayOptions) -> None:
    """`UserError` where Ray is not installed, or no cluster is named. Connects to nothing."""
    if find_spec("ray") is None:
        raise UserError("data.executor is ray, which is not installed; pip install 'hornbook[ray]'")
    options.named_address()


@dataclass(frozen=True)
class _Job:
    """What the process beside Ray needs for one step."""

    work: bytes
    shards: Sequence[int]
    options: RayOptions
    logs: Path
    workers: int
    place: Mapping[str, Any]  # what `_on_node` looks for


_client: tuple[subprocess.Popen, Connection] | None = None


def run_on_ray(
    work: Callable[[int], Exception | None],
    shards: Sequence[int],
    options: RayOptions,
    *,
    logs: Path,
    workers: int,
    bar: Progress,
) -> dict[int, Exception]:
    """Calls `work(shard)` on the cluster; returns the errors that it returned, by shard. `workers`: most tasks at a
    time, 0 for no limit. Raises `UserError` where no node can hold a task or a node lacks code or folder, `Failure`
    where the work cannot continue. However it ends, nothing runs on the cluster afterwards."""
    import dill

    if not shards:
        return {}
    logs.mkdir(parents=True, exist_ok=True)
    place = {
        "folder": os.getcwd(),  # paths of a config are relative to it
        "repository": str(REPOSITORY),
        "environment": {name: value for name, value in os.environ.items() if SECRETS.match(name)},
        "versions": {name: metadata.version(name) for name in LIBRARIES},
        "touch_seconds": min(TOUCH_SECONDS, options.watchdog_seconds / 5),
    }
    options = replace(options, address=options.named_address())
    job = _Job(dill.dumps(work), shards, options, logs.resolve(), workers, place)
    try:
        channel = _connected()
        channel.send(job)
        return _follow(channel, job, bar)
    except BaseException:
        _disconnect()
        raise


def _connected() -> Connection:
    """The pipe to the process that speaks to Ray."""
    global _client
    if _client is None or _client[0].poll() is not None:
        ours, theirs = Pipe()
        code = f"from pipeline.corpus.ray_cluster import _serve; _serve({theirs.fileno()})"
        path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
        process = processes.start(
            [sys.executable, "-P", "-c", code],
            pass_fds=[theirs.fileno()], env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        theirs.close()
        _client = process, ours
    return _client[1]


def _disconnect() -> None:
    global _client
    if _client is not None:
        _client[0].kill()
        _client[0].wait()
        _client[1].close()
    _client = None


def _follow(channel: Connection, job: _Job, bar: Progress) -> dict[int, Exception]:
    """Shows what the process beside Ray reports until the step ends."""
    import dill

    errors: dict[int, Exception] = {}
    heard, patience = time.monotonic(), CONNECT_SECONDS
    while True:
        signals.check()
        try:
            if not channel.poll(POLL_SECONDS):
                if time.monotonic() - heard > patience:
                    raise Failure(f"the Ray cluster has not answered for {patience:.0f} s")
                continue
            kind, *rest = channel.recv()
        except (EOFError, ConnectionError):
            raise Failure(
                f"the connection to the Ray cluster at {job.options.address} broke (its "
                f"messages are in {job.logs / 'ray.log'})"
            ) from None
        heard, patience = time.monotonic(), job.options.watchdog_seconds + 2
        if kind == "done":
            bar.advance()
        elif kind == "failed":
            shard, error = rest
            errors[shard] = dill.loads(error) if isinstance(error, bytes) else Failure(error)
        elif kind == "says":
            print(f"  {bar.description}: {rest[0]}", flush=True)
        elif kind == "wrong":
            raise UserError(rest[0])
        elif kind == "ended":
            if rest[0] is None:
                return errors
            raise Failure(rest[0])


# ---- the process beside Ray ---------------------------------------------------------


def _serve(descriptor: int) -> None:
    """Takes jobs from the pipe until it closes. Every message is `(kind, ...)`, as `_follow` reads them."""
    warnings.simplefilter("ignore")
    channel, connected = Connection(descriptor), ""
    while True:
        try:
            job: _Job = channel.recv()
        except EOFError:
            return
        with open(job.logs / "ray.log", "ab") as file:  # what Ray prints in Python and in C++
            os.dup2(file.fileno(), 2)
        try:
            address = str(job.options.address)
            if address != connected:
                _connect(address)
                connected = address
            _Dispatch(job, channel).run()
            channel.send(("ended", None))
        except UserError as error:
            channel.send(("wrong", str(error)))
        except Failure as error:
            channel.send(("ended", str(error)))
        except Exception as error:
            traceback.print_exc()
            channel.send(("ended", f"{type(error).__name__}: {error} (the rest is in {job.logs / 'ray.log'})"))


def _connect(address: str) -> None:
    host, port = address.removeprefix("ray://").rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), timeout=10).close()  # Ray itself would try for a minute
        os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
        import ray

        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Ray's handler waits for the cluster
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING, namespace="hornbook")
    except Exception as error:
        said = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{KEY}.address={address} gives no Ray cluster ({said}); expected one that `ray status "
            f"--address={address}` shows, and this command on one of its machines"
        ) from None


class _Dispatch:
    """Hands the shards of one job to the cluster."""

    def __init__(self, job: _Job, channel: Connection):
        import ray
        from ray import cloudpickle

        self.ray, self.job, self.options, self.say = ray, job, job.options, lambda *message: channel.send(message)
        for old in job.logs.glob("running-*"):
            shutil.rmtree(old, ignore_errors=True)
        self.running = job.logs / f"running-{uuid.uuid4().hex[:8]}"
        self.running.mkdir()
        self.tasks: dict[Any, int] = {}
        self.attempts: Counter[int] = Counter()
        self.failed = 0
        self.waiting = deque(job.shards)
        self.began: dict[int, float] = {}
        self.signs: dict[int, int] = {}
        """When a shard last touched its file."""
        cloudpickle.register_pickle_by_value(sys.modules[__name__])  # a node may lack this module
        # No retries by Ray: it retries a task that has too little memory without end, and says nothing.
        ours = {"num_cpus": self.options.cpus_per_task, "memory": int(self.options.memory_gb * 2**30)}
        ours |= {"max_retries": 0, "scheduling_strategy": "SPREAD"}
        self.task = ray.remote(_on_node).options(**{**self.options.ray_remote_kwargs, **ours})

    def run(self) -> None:
        self._check_size()
        try:
            self._run()
        finally:
            shutil.rmtree(self.running, ignore_errors=True)

    def _run(self) -> None:
        job, since = self.job, time.monotonic()
        place = {**job.place, "running": str(self.running)}
        work = self.ray.put(job.work)
        while self.waiting or self.tasks:
            while self.waiting and len(self.tasks) < (job.workers or MOST_QUEUED_TASKS):
                shard = self.waiting.popleft()
                self.attempts[shard] += 1
                self.tasks[self.task.remote(work, shard, place)] = shard
            ready, _ = self.ray.wait(list(self.tasks), timeout=POLL_SECONDS)
            for reference in ready:
                self._take(reference, self.tasks.pop(reference))
            if self.failed >= MOST_FAILED_SHARDS:
                self.waiting.clear()
            if self._look() or ready:
                since = time.monotonic()
            elif time.monotonic() - since > self.options.watchdog_seconds:
                self._stuck()
                since = time.monotonic()
            self.say("alive")

    def _take(self, reference: Any, shard: int) -> None:
        """What became of a task that is over."""
        errors = self.ray.exceptions
        self.began.pop(shard, None)
        try:
            kind, value = self.ray.get(reference)
        except errors.RayTaskError as error:
            return self._fail(shard, str(error).strip().splitlines()[-1])
        except errors.RayError as error:
            return self._lost(shard, error)
        if kind == "missing":
            raise UserError(value)
        if value is None:
            self.say("done", shard)
        else:
            self._fail(shard, value)

    def _fail(self, shard: int, error: bytes | str) -> None:
        self.failed += 1
        self.say("failed", shard, error)

    def _lost(self, shard: int, error: Exception) -> None:
        """The worker died. What died with its node runs again without end, the rest `attempts` times."""
        where = self._where(shard)
        (self.running / str(shard)).unlink(missing_ok=True)
        why = {"OutOfMemoryError": "ended by Ray for want of memory", "NodeDiedError": "lost with its node"}
        what = f"shard {shard} was {why.get(type(error).__name__, 'killed')}{where}"
        if type(error).__name__ == "NodeDiedError":
            self.attempts[shard] -= 1
        if self.attempts[shard] >= self.options.attempts:
            more = f"{KEY}.mem_per_cpu_gb={2 * self.options.mem_per_cpu_gb:g}"
            self._fail(shard, f"{what}, {self.attempts[shard]} times; most often for want of memory ({more})")
        else:
            self.say("says", f"{what}; it runs again")
            self.waiting.append(shard)

    def _where(self, shard: int) -> str:
        try:
            node, pid = (self.running / str(shard)).read_text().split()
        except (OSError, ValueError):
            return ""
        return f" (process {pid} on {node})"

    def _look(self) -> bool:
        """Reads the signs of life: whether there is a new one. Ends shards that run for too long."""
        signs: dict[int, int] = {}
        for entry in os.scandir(self.running):
            try:
                signs[int(entry.name)] = entry.stat().st_mtime_ns
            except FileNotFoundError:  # it has just ended
                continue
        new, self.signs, limit = signs != self.signs, signs, self.options.limit_seconds
        for reference, shard in list(self.tasks.items()):
            if shard in signs:
                self.began.setdefault(shard, time.monotonic())
            if limit is not None and time.monotonic() - self.began.get(shard, float("inf")) > limit:
                self.ray.cancel(reference, force=True)
                self._fail(shard, f"shard {shard} ran for more than {KEY}.time={self.options.time}{self._where(shard)}")
                del self.tasks[reference], self.began[shard]
        return new

    def _stuck(self) -> None:
        """Nothing ended and nobody was alive for `watchdog_seconds`: raises `Failure`, unless others use the nodes."""
        silence = f"no shard has ended or shown that it is alive for {self.options.watchdog_seconds:g} s"
        if begun := sorted(set(self.tasks.values()) & set(self.signs)):
            shown = ", ".join(f"{shard}{self._where(shard)}" for shard in itertools.islice(begun, MOST_FAILED_SHARDS))
            raise Failure(f"{silence}: shard {shown}. Longer waiting: {KEY}.watchdog_seconds=300")
        nodes = self._nodes()
        holding = {name for name, node in nodes.items() if self._fits(node)}
        if not holding:
            raise Failure(f"{silence}: no node is left that holds a task of {self._wanted()} ({self._largest(nodes)})")
        from ray._private.state import available_resources_per_node

        free = available_resources_per_node()
        if any(self._fits(free.get(name, {})) for name in holding):
            raise Failure(f"{silence}, though a node has room for a task of {self._wanted()}")
        self.say("says", f"waiting: other work uses the {len(holding)} nodes that hold a task of {self._wanted()}")

    def _check_size(self) -> None:
        nodes = self._nodes()
        if not any(self._fits(node) for node in nodes.values()):
            raise UserError(
                f"a task asks for {self._wanted()}, and {self._largest(nodes)}; expected less in {KEY}.cpus_per_task "
                f"and {KEY}.mem_per_cpu_gb, or a larger node"
            )

    def _nodes(self) -> dict[str, dict[str, float]]:
        return {node["NodeID"]: node["Resources"] for node in self.ray.nodes() if node["Alive"]}

    def _fits(self, node: Mapping[str, float]) -> bool:
        wanted = {"CPU": self.options.cpus_per_task, "memory": self.options.memory_gb * 2**30}
        wanted |= self.options.ray_remote_kwargs.get("resources", {})
        return all(node.get(name, 0) >= amount for name, amount in wanted.items())

    def _wanted(self) -> str:
        own = self.options.ray_remote_kwargs.get("resources", {})
        more = "".join(f" and {amount:g} {name}" for name, amount in own.items())
        return f"{_cpus(self.options.cpus_per_task)} and {self.options.memory_gb:g} GiB{more}"

    def _largest(self, nodes: Mapping[str, Mapping[str, float]]) -> str:
        if not nodes:
            return "the cluster has no node"
        cpus, memory = max((node.get("CPU", 0), node.get("memory", 0)) for node in nodes.values())
        return f"the largest of {len(nodes)} nodes has {_cpus(cpus)} and {memory / 2**30:.3g} GiB"


def _cpus(count: float) -> str:
    return "1 CPU" if count == 1 else f"{count:g} CPUs"


# ---- the worker ---------------------------------------------------------------------


def _on_node(work: bytes, shard: int, place: Mapping[str, Any]) -> tuple[str, Any]:
    """Runs one shard on a node of the cluster: `("ran", None or the pickled error)`, or `("missing", a sentence)`.

    Pickled by value, so it uses nothing of this module: that the node has hornbook is what it finds out."""
    import os
    import sys
    import threading
    from importlib import metadata
    from importlib.util import find_spec
    from pathlib import Path

    import ray

    node, running, repository = ray.util.get_node_ip_address(), Path(place["running"]), place["repository"]
    sign = running / str(shard)
    try:
        sign.write_text(f"{node} {os.getpid()}")
        os.chdir(place["folder"])
    except OSError as error:
        return "missing", (
            f"the node {node} cannot use {error.filename} ({error.strerror}); expected the working folder and "
            f"artifacts/ (HORNBOOK_ROOT) under the same path on every node"
        )
    ended = threading.Event()

    def touch() -> None:
        while not ended.wait(place["touch_seconds"]):
            if sign.exists():
                os.utime(sign)

    threading.Thread(target=touch, daemon=True).start()
    try:
        if repository not in sys.path:
            sys.path.insert(0, repository)
        os.environ.update(place["environment"])
        try:
            import dill

            spec = find_spec("pipeline")
            if spec is None or not Path(str(spec.origin)).is_relative_to(repository):
                raise ImportError("there is none" if spec is None else f"there is another in {spec.origin}")
            for name, version in place["versions"].items():
                if (found := metadata.version(name)) != version:
                    raise ImportError(f"{name} is {found} there and {version} here")
            function = dill.loads(work)
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            return "missing", (
                f"the node {node} cannot load hornbook from {repository} with {sys.executable} ({said}); expected the "
                "checkout under the same path on every node, and the same packages"
            )
        error = function(shard)
        return "ran", None if error is None else dill.dumps(error)
    finally:
        ended.set()
        sign.unlink(missing_ok=True)
