"""One writer per folder: a lock that the kernel drops when its owner dies, with the owner's name inside."""

import contextlib
import fcntl
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from pipeline.errors import Busy

POLL_SECONDS = 0.5

_held: set[int] = set()


def _drop_in_child() -> None:
    """A forked worker must not keep its dead parent's lock alive: it closes what it inherited."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_drop_in_child)


class FolderLock:
    """`with FolderLock(folder, wait=True):` holds `folder/.lock`.

    `wait=True`: another owner is waited for, said once (two experiments that share a data section).
    `wait=False`: raises `Busy` naming the owner (two trainers on one run), unless the owner is an earlier life of the
    same Slurm job that has not ended yet. `waited_seconds`: how long this process waited.
    """

    def __init__(self, folder: Path, *, wait: bool):
        self.path = folder / ".lock"
        self.wait = wait
        self.waited_seconds = 0.0
        self._descriptor: int | None = None

    def __enter__(self) -> "FolderLock":
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        said, started = False, time.monotonic()
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                owner = self._owner()
                if not self.wait and not self._owner_is_this_job():
                    os.close(descriptor)
                    raise Busy(
                        f"{self.path.parent} is being written by {owner}. Two processes must never train one run: "
                        "wait for it to end, or stop it."
                    ) from None
                if not said:
                    print(f"waiting for {owner}, which is making {self.path.parent}", flush=True)
                    said = True
                time.sleep(POLL_SECONDS)
        self.waited_seconds = time.monotonic() - started if said else 0.0
        me: dict[str, Any] = {"pid": os.getpid(), "host": socket.gethostname(), "job": os.environ.get("SLURM_JOB_ID")}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(me).encode(), 0)
        self._descriptor = descriptor
        _held.add(descriptor)
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor in _held:
            _held.discard(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None

    def _owner(self) -> str:
        owner = self._read_owner()
        job = f", Slurm job {owner['job']}" if owner.get("job") else ""
        return f"process {owner['pid']} on {owner['host']}{job}" if owner else "another process"

    def _owner_is_this_job(self) -> bool:
        requeued = os.environ.get("SLURM_RESTART_COUNT", "0") != "0"
        return requeued and self._read_owner().get("job") == os.environ.get("SLURM_JOB_ID")

    def _read_owner(self) -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError):
            return json.loads(self.path.read_text())
        return {}
