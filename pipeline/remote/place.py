"""`HORNBOOK_REMOTE`: where copies lie, at any URL that fsspec knows, so that a run outlives the disk it began on.

In: a URL. Out: a `Place` that reads and writes files by the same names as under HORNBOOK_ROOT
(`artifacts/<step>/<fingerprint>/`, `runs/<experiment>/`). What vouches for a folder (its manifest, a checkpoint's
index) is written last and removed first, and what is read back must fit the hashes in it: half of anything is never
taken for the whole. pushing.py writes in the background, pulling.py reads before a stage starts. Messages never name
the user, the password or the query of a URL.
"""

import contextlib
import json
import os
import re
import secrets
import socket
import time
from collections.abc import Callable
from functools import cache, cached_property
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

from pipeline.storage.files import fits_seal, root
from pipeline.storage.run_files import CHECKPOINTS, INDEX, checkpoint_step, index_in
from pipeline.storage.steps import MANIFEST
from pipeline.system.disk import writing
from pipeline.system.errors import Busy, Failure, UserError
from pipeline.system.processes import process_lives

REMOTE = "HORNBOOK_REMOTE"
CHUNK_BYTES = 8 << 20
OWNER = "owner.json"
OWNER_SECONDS = 60.0  # an owner that did not sign for that long is gone

HOST, TOKEN = socket.gethostname(), secrets.token_hex(8)


class Unreachable(Failure):
    """The remote does not answer, or answers with an error."""


class Place:
    """A folder at a URL. Every method raises `Unreachable` with a reason that holds no credentials.

    `name`: the URL as it may be shown. Raises `UserError` (at first use) where fsspec knows no such URL, or lacks the
    library for it.
    """

    def __init__(self, url: str):
        self.url, self.name = url, shown(url)

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        from fsspec.core import url_to_fs

        try:
            fs, base = url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise UserError(
                f"{REMOTE}={self.name} cannot be used ({self.hide(str(error))}); expected a URL that fsspec knows "
                "(s3://bucket/folder needs `pip install s3fs`, gs:// needs gcsfs, sftp:// needs paramiko), or unset it"
            ) from None
        return fs, base.rstrip("/")

    def open(self) -> None:
        """Loads the library behind the URL, and reaches out where that does so by itself."""
        with self._reaching():
            _ = self._opened

    def read(self, path: str) -> bytes | None:
        """The whole file, or None where there is none."""
        with self._reaching():
            fs, base = self._opened
            with contextlib.suppress(FileNotFoundError):
                return fs.cat_file(f"{base}/{path}")
        return None

    def names(self, path: str) -> list[str]:
        """Of what lies in a folder; none where there is no such folder."""
        with self._reaching():
            fs, base = self._opened
            fs.invalidate_cache()
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                return sorted(name.rstrip("/").rsplit("/", 1)[-1] for name in fs.ls(f"{base}/{path}", detail=False))
        return []

    def write(self, path: str, content: bytes) -> None:
        """The whole file or nothing of it: under another name, then moved."""
        with self._reaching():
            fs, base = self._opened
            target = f"{base}/{path}"
            self._in_its_folder(target, lambda: fs.pipe_file(f"{target}.part", content))
            fs.mv(f"{target}.part", target)

    def send(self, file: BinaryIO, path: str, between: Callable[[], None] = lambda: None) -> None:
        """A large file, piece by piece with `between()` after each; what names it must be written after it."""
        with self._reaching():
            fs, base = self._opened
            target = f"{base}/{path}"
            with self._in_its_folder(target, lambda: fs.open(target, "wb")) as out:
                while chunk := file.read(CHUNK_BYTES):
                    out.write(chunk)
                    between()

    def fetch(self, path: str, target: Path) -> bool:
        """Brings a file here, synced; whether there is one."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._reaching():
            fs, base = self._opened
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
        with self._reaching():
            fs, base = self._opened
            with contextlib.suppress(FileNotFoundError):
                fs.rm(f"{base}/{path}", recursive=True)

    def hide(self, text: str) -> str:
        """`text` without what this URL or another would give away."""
        parts = urlsplit(self.url.rsplit("::", 1)[-1])
        for secret in {parts.username, parts.password, parts.query} - {None, ""}:
            text = text.replace(str(secret), "***").replace(unquote(str(secret)), "***")
        return shown(text)

    def _in_its_folder(self, target: str, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except FileNotFoundError:  # object stores have no folders; disks do
            self._opened[0].makedirs(target.rsplit("/", 1)[0], exist_ok=True)
            return act()

    @contextlib.contextmanager
    def _reaching(self) -> Any:
        try:
            yield
        except Failure:
            raise
        except UserError:
            raise
        except Exception as error:  # every library behind fsspec has errors of its own
            reason = (str(error).strip().splitlines() or [""])[0]
            raise Unreachable(f"{type(error).__name__}: {self.hide(reason)}") from None


def place() -> Place | None:
    """What HORNBOOK_REMOTE names, or None where it is not set."""
    url = os.environ.get(REMOTE, "").strip()
    return _place(url) if url else None


@cache
def _place(url: str) -> Place:
    return Place(url)


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
    """Says at the remote that this process owns a run, from now on for `OWNER_SECONDS`."""
    me = {"host": HOST, "pid": os.getpid(), "job": os.environ.get("SLURM_JOB_ID"), "token": _token()}
    me["time"] = round(time.time(), 1)
    place.write(f"{run}/{OWNER}", json.dumps(me).encode())


def _token() -> str:
    return f"{TOKEN}-{os.getpid()}"  # a fork is another owner


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
    if other is not None and _lives(other):
        seconds = max(0.0, time.time() - other.get("time", 0.0))
        raise Busy(
            f"process {other.get('pid')} on {other.get('host')} is training this run: it signed at {place.name} "
            f"{seconds:.0f} s ago. Two machines must never train one run: stop it there; if that machine is gone, "
            f"wait {max(1.0, OWNER_SECONDS - seconds):.0f} s and run the same command again"
        )
    sign(place, run)


def _lives(other: dict[str, Any]) -> bool:
    """By its last signature; on this host by its process."""
    if abs(time.time() - other.get("time", 0.0)) >= OWNER_SECONDS:
        return False
    if other.get("host") != HOST:
        return True
    return other.get("pid") != os.getpid() and process_lives(other.get("pid"))


# ---- what vouches for a folder's files


def manifest_of(place: Place, folder: str) -> dict[str, Any] | None:
    """The manifest of a finished folder at the remote, or None."""
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(place.read(f"{folder}/{MANIFEST}") or b"null")
        if isinstance(found, dict) and isinstance(found.get("outputs"), dict) and fits_seal(found):
            return found
    return None


def indexes_of(place: Place, run: str) -> dict[int, dict[str, Any]]:
    """Step -> index, of the checkpoints at the remote that were pushed to their end."""
    found = {}
    for name in place.names(f"{run}/{CHECKPOINTS}"):
        step = checkpoint_step(name)
        index = None if step is None else index_in(place.read(f"{run}/{CHECKPOINTS}/{name}/{INDEX}"))
        if step is not None and index is not None:
            found[step] = index
    return found
