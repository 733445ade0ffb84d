"""One writer per folder: a lock that the kernel drops when its owner dies, with the owner's name inside."""

import contextlib
import fcntl
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from pipeline.system.disk import writing
from pipeline.system.errors import Busy, UserError

POLL_SECONDS = 0.5
LOCK = ".lock"

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
    The owner is written into it: process, host, Slurm job, and how many owners the folder has had (`life`). What is
    written is for people: the kernel alone says whether the owner lives, so that a dead one's lock is free at once
    and a live one's never. Raises `UserError` where the file system has no locks.
    """

    def __init__(self, folder: Path, *, wait: bool):
        self.path = folder / LOCK
        self.wait = wait
        self.waited_seconds = 0.0
        self._descriptor: int | None = None

    def __enter__(self) -> "FolderLock":
        descriptor, said, started = self._open(), False, time.monotonic()
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_the_file(descriptor):
                    break
                os.close(descriptor)  # someone deleted the file that we waited for; its name is another file's now
                descriptor = self._open()
            except BlockingIOError:
                owner = self._owner()
                requeued = os.environ.get("SLURM_RESTART_COUNT", "0") != "0"
                is_this_job = requeued and self._read().get("job") == os.environ.get("SLURM_JOB_ID")
                if not self.wait and not is_this_job:
                    os.close(descriptor)
                    raise Busy(
                        f"{self.path.parent} is being written by {owner}. Two processes must never train one run: "
                        "wait for it to end, or stop it."
                    ) from None
                if not said:
                    print(f"waiting for {owner}, which is making {self.path.parent}", flush=True)
                    said = True
                time.sleep(POLL_SECONDS)
            except OSError as error:
                os.close(descriptor)
                raise UserError(
                    f"{self.path} cannot be locked ({error.strerror}), so two processes could write one "
                    "folder; expected a file system with locks: mount this one so, or set HORNBOOK_ROOT elsewhere"
                ) from None
        self.waited_seconds = time.monotonic() - started if said else 0.0
        try:
            self._sign(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        _held.add(descriptor)
        return self

    def _open(self) -> int:
        return os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def _is_the_file(self, descriptor: int) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(descriptor), os.stat(self.path))
        return False

    def _sign(self, descriptor: int) -> None:
        me: dict[str, Any] = {"pid": os.getpid(), "host": socket.gethostname(), "job": os.environ.get("SLURM_JOB_ID")}
        before = self._read().get("life")
        me["life"] = before + 1 if isinstance(before, int) else 1
        content = json.dumps(me).encode()
        with writing(self.path, len(content)):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, content, 0)

    def __exit__(self, *_: object) -> None:
        if self._descriptor in _held:
            _held.discard(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None

    def _owner(self) -> str:
        owner = self._read()
        if "pid" not in owner:
            return "another process"
        job = f", Slurm job {owner['job']}" if owner.get("job") else ""
        return f"process {owner['pid']} on {owner.get('host')}{job} (attempt {owner.get('life')} in this folder)"

    def _read(self) -> dict[str, Any]:
        return lock_owner(self.path.parent)


def lock_owner(folder: Path) -> dict[str, Any]:
    """What the lock of a folder says of its owner; nothing where there is none, or it is damaged."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        found = json.loads((folder / LOCK).read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}
