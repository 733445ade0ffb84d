"""A folder at a URL, with the names that files have under HORNBOOK_ROOT, and who owns a run in it.

In: `HORNBOOK_REMOTE`, any URL that fsspec knows. Out: a `Place` that reads and writes files. What vouches for a folder
(its manifest, a checkpoint's index) is written last and removed first, and what is read back must fit the hashes in it,
so half of anything is never taken for the whole. Messages never show the user, the password or the query of a URL.
"""

import contextlib
import json
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

from pipeline.storage.files import fits_seal, root
from pipeline.storage.run_files import CHECKPOINTS, INDEX, checkpoint_name, checkpoint_step, index_in
from pipeline.storage.steps import MANIFEST
from pipeline.system.disk import writing
from pipeline.system.errors import Busy, Failure, UserError
from pipeline.system.processes import process_lives

REMOTE = "HORNBOOK_REMOTE"
CHUNK_BYTES = 8 << 20
AGAIN_SECONDS = 60.0  # after a wait in vain, so that a stage of many steps does not wait at each
OWNER = "owner.json"
OWNER_SECONDS = 60.0  # an owner that has not signed for that long is gone

HOST, TOKEN = socket.gethostname(), secrets.token_hex(8)


class Unreachable(Failure):
    """The remote does not answer, or answers with an error."""


class _Kept(threading.local):
    """The file systems of a thread: many a connection serves one thread only. A fork leaves its parent's as they are,
    since to close one would end it for the parent."""

    def __init__(self) -> None:
        self.opened: dict[int, tuple[Any, str]] = {}  # process -> file system, path in it
        self.asked_again_at = float("-inf")


class Place:
    """A folder at a URL. Every method raises `Unreachable` with a reason that holds no credentials, and `UserError`
    where fsspec knows no such URL or lacks the library for it. `name`: the URL as messages may show it."""

    def __init__(self, url: str):
        self.url, self.name = url, shown(url)
        self._kept = _Kept()

    def open(self) -> None:
        """Loads the library behind the URL, which may already connect."""
        with self._reach():
            pass

    def read(self, path: str) -> bytes | None:
        """The whole file, or None where there is none."""
        with self._reach() as (fs, base), contextlib.suppress(FileNotFoundError):
            return fs.cat_file(f"{base}/{path}")
        return None

    def names(self, path: str) -> list[str]:
        """The names in a folder; none where there is no such folder."""
        with self._reach() as (fs, base), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            fs.invalidate_cache()
            return sorted(name.rstrip("/").rsplit("/", 1)[-1] for name in fs.ls(f"{base}/{path}", detail=False))
        return []

    def write(self, path: str, content: bytes) -> None:
        """The whole file or nothing of it: under another name, then moved."""
        with self._reach() as (fs, base):
            target = f"{base}/{path}"
            self._in_its_folder(target, lambda: fs.pipe_file(f"{target}.part", content))
            fs.mv(f"{target}.part", target)

    def send(self, file: BinaryIO, path: str, between: Callable[[], None]) -> None:
        """A large file, with `between()` after each piece. What vouches for it must be written after it."""
        with self._reach() as (fs, base):
            target = f"{base}/{path}"
            with self._in_its_folder(target, lambda: fs.open(target, "wb")) as out:
                while chunk := file.read(CHUNK_BYTES):
                    out.write(chunk)
                    between()

    def fetch(self, path: str, target: Path) -> bool:
        """Brings a file here and syncs it to disk; whether there is one."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._reach() as (fs, base):
            try:
                source = fs.open(f"{base}/{path}", "rb")
            except FileNotFoundError:
                return False
            with source, open(target, "wb") as file:
                while chunk := source.read(CHUNK_BYTES):
                    with writing(target, len(chunk)):
                        file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
        return True

    def remove(self, path: str) -> None:
        """A file, or a folder with all in it; nothing where there is none."""
        with self._reach() as (fs, base), contextlib.suppress(FileNotFoundError):
            fs.rm(f"{base}/{path}", recursive=True)

    def hide(self, text: str) -> str:
        """`text` without the secrets of this URL or another one in it."""
        parts = urlsplit(self.url.rsplit("::", 1)[-1])
        for secret in {parts.username, parts.password, parts.query} - {None, ""}:
            text = text.replace(str(secret), "***").replace(unquote(str(secret)), "***")
        return shown(text)

    def _in_its_folder(self, target: str, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except FileNotFoundError:  # object stores have no folders; disks do
            self._opened()[0].makedirs(target.rsplit("/", 1)[0], exist_ok=True)
            return act()

    @contextlib.contextmanager
    def _reach(self) -> Iterator[tuple[Any, str]]:
        if time.monotonic() < self._kept.asked_again_at:
            raise Unreachable("it did not answer before")
        try:
            yield self._opened()
        except (Failure, UserError):
            raise
        except Exception as error:  # every library behind fsspec has errors of its own
            self._close()
            if isinstance(error, TimeoutError):
                self._kept.asked_again_at = time.monotonic() + AGAIN_SECONDS
            reason = (str(error).strip().splitlines() or ["no answer"])[0]
            # What asks for no content gets no reason either: of an expired token S3 says "Bad Request" alone.
            refused = isinstance(error, PermissionError) or reason.endswith(("Bad Request", "Forbidden"))
            hint = "; its credentials may be wrong or expired" if refused else ""
            raise Unreachable(f"{type(error).__name__}: {self.hide(reason)}{hint}") from None

    def _opened(self) -> tuple[Any, str]:
        """The file system of this thread, connected, and the path of the URL in it."""
        if getattr(self._kept.opened.get(os.getpid(), (None, ""))[0], "closed", False):
            self._close()
        if os.getpid() not in self._kept.opened:
            self._kept.opened[os.getpid()] = self._connect()
        return self._kept.opened[os.getpid()]

    def _close(self) -> None:
        """What failed is opened again by the next call: its connection may be dead, its credentials old."""
        fs, _ = self._kept.opened.pop(os.getpid(), (None, ""))
        if hasattr(fs, "close"):
            fs.close()

    def _connect(self) -> tuple[Any, str]:
        from fsspec.core import url_to_fs

        try:
            if urlsplit(self.url).scheme in ("sftp", "ssh"):
                from pipeline.remote.sftp import Sftp

                fs, base = Sftp(**Sftp._get_kwargs_from_urls(self.url)), Sftp._strip_protocol(self.url)
            else:
                fs, base = url_to_fs(self.url, skip_instance_cache=True, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise UserError(
                f"{REMOTE}={self.name} cannot be used ({self.hide(str(error))}); expected a URL that fsspec knows "
                "(s3://bucket/folder needs `pip install s3fs`, gs:// needs gcsfs, sftp:// needs paramiko), or unset it"
            ) from None
        return fs, base.rstrip("/")


def place() -> Place | None:
    """What HORNBOOK_REMOTE names, or None where it is not set."""
    url = os.environ.get(REMOTE, "").strip()
    return _place(url) if url else None


_place = cache(Place)  # one for each URL, because opening it may connect


def shown(text: str) -> str:
    """A URL, or a message with URLs in it, without user, password and query."""
    return re.sub(r"(://[^\s?]*)\?\S*", r"\1", re.sub(r"://[^/\s]*@", "://", text))


def path_of(path: Path) -> str:
    """The name at the remote of a file or folder under HORNBOOK_ROOT."""
    return path.absolute().relative_to(root().absolute()).as_posix()


def say(line: str) -> None:
    print(f"  remote: {line}", flush=True)


# ---- one machine for one pretraining


def sign(place: Place, run: str) -> None:
    """Says at the remote that this process owns a run for the next `OWNER_SECONDS`."""
    me = {"host": HOST, "pid": os.getpid(), "job": os.environ.get("SLURM_JOB_ID"), "token": _token()}
    place.write(f"{run}/{OWNER}", json.dumps({**me, "time": round(time.time(), 1)}).encode())


def owner(place: Place, run: str) -> dict[str, Any] | None:
    """Another process that signed, however long ago, or None."""
    with contextlib.suppress(ValueError):
        found = json.loads(place.read(f"{run}/{OWNER}") or b"null")
        if isinstance(found, dict) and found.get("token") != _token():
            return found
    return None


def claim(place: Place, run: str) -> None:
    """Takes a run at the remote for this process. Raises `Busy` where another machine has it."""
    other = owner(place, run)
    if other is not None and _is_alive(other):
        seconds = max(0.0, time.time() - other.get("time", 0.0))
        raise Busy(
            f"process {other.get('pid')} on {other.get('host')} is training this run: it signed at {place.name} "
            f"{seconds:.0f} s ago. Two machines must never train one run: stop it there; if that machine is gone, "
            f"wait {max(1.0, OWNER_SECONDS - seconds):.0f} s and run the same command again"
        )
    sign(place, run)


def _token() -> str:
    return f"{TOKEN}-{os.getpid()}"  # a fork is another owner


def _is_alive(other: dict[str, Any]) -> bool:
    """By its last signature; on this host by its process."""
    if abs(time.time() - other.get("time", 0.0)) >= OWNER_SECONDS:
        return False
    return other.get("host") != HOST or (other.get("pid") != os.getpid() and process_lives(other.get("pid")))


# ---- what vouches for a folder's files


def manifest_of(place: Place, folder: str) -> dict[str, Any] | None:
    """The manifest of a finished folder at the remote, or None."""
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(place.read(f"{folder}/{MANIFEST}") or b"null")
        if isinstance(found, dict) and isinstance(found.get("outputs"), dict) and fits_seal(found):
            return found
    return None


def indexes_of(place: Place, run: str) -> dict[int, dict[str, Any]]:
    """Step -> index, of the checkpoints that are whole at the remote."""
    steps = [step for name in place.names(f"{run}/{CHECKPOINTS}") if (step := checkpoint_step(name)) is not None]
    paths = {step: f"{run}/{CHECKPOINTS}/{checkpoint_name(step)}/{INDEX}" for step in steps}
    return {step: index for step, path in paths.items() if (index := index_in(place.read(path))) is not None}
