"""Writing where the disk may be full: said the same way by every stage, and never half of a line left behind.

In: a write and what it needs. Out: the write, or `DiskFull` with the path and the bytes. Libraries written in other
languages say "no space" in words of their own, without an error number; they are recognised here and nowhere else.
"""

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from pipeline.system.errors import Failure

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Rust (safetensors, tokenizers), torch's zip writer, and NumPy's short writes.
WORDS = re.compile(
    r"No space left on device|File too large|Disk quota exceeded|os error (28|27|122)\b|\d+ requested and \d+ written"
)


class DiskFull(Failure):
    """There is no room for `path`: what is finished is kept, and the same command goes on once there is."""

    def __init__(self, path: str, needed_bytes: int, free_bytes: int, why: str):
        super().__init__(path, needed_bytes, free_bytes, why)  # all of them: it travels between processes
        self.path, self.needed_bytes = path, needed_bytes
        self.free_bytes, self.why = free_bytes, why

    def __str__(self) -> str:
        return (
            f"{self.why}: {self.path}: this write needs {self.needed_bytes:,} bytes, {self.free_bytes:,} are free. "
            "What is finished is kept; make room, and the same command goes on (HORNBOOK_ROOT is where artifacts/ lie, "
            "TMPDIR where short-lived files do, train.keep_checkpoints how many checkpoints stay)"
        )


@contextlib.contextmanager
def writing(path: Path, needed_bytes: int) -> Iterator[None]:
    """Around a write to `path` of about `needed_bytes`. Raises `DiskFull` where it fails for want of room."""
    try:
        yield
    except DiskFull:
        raise  # said more exactly by whoever wrote
    except Exception as error:
        cause = full_disk(error)
        if cause is None:
            raise
        known = cause if isinstance(cause, OSError) else OSError()
        name = known.filename2 or known.filename  # of a copy: the file that was written, not the one that was read
        where = Path(os.fsdecode(name)) if name else path
        reason, free = known.strerror or "No space left on device", free_bytes(where)
        if known.errno == errno.ENOSPC and not name and free > needed_bytes:
            reason += " (perhaps where standard output goes: there is room here)"
        raise DiskFull(str(where), needed_bytes, free, reason) from error


def check_free(path: Path, needed_bytes: int) -> None:
    """Raises `DiskFull` where the disk of `path` has not that many bytes left."""
    free = free_bytes(path)
    if free < needed_bytes:
        raise DiskFull(str(path), needed_bytes, free, "not enough room")


def free_bytes(path: Path) -> int:
    """Of the disk on which `path` lies, or would lie."""
    for place in (path, *path.parents):
        with contextlib.suppress(OSError):
            return shutil.disk_usage(place).free
    return 0


def full_disk(error: BaseException | None) -> BaseException | None:
    """The error in a chain of causes that says that a disk is full, or None."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return error
        if WORDS.search(str(error)):
            return error
        error = error.__cause__ or error.__context__
    return None


def append_synced(path: Path, line: bytes) -> None:
    """Appends and syncs: the whole line, or nothing of it where the disk is full (`DiskFull`)."""
    with writing(path, len(line)):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            written = os.write(descriptor, line)
            if written < len(line):
                with contextlib.suppress(OSError):  # another writer's line may follow by now
                    if os.lseek(descriptor, 0, os.SEEK_CUR) == os.fstat(descriptor).st_size:
                        os.ftruncate(descriptor, os.fstat(descriptor).st_size - written)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Makes the names in a folder last."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
