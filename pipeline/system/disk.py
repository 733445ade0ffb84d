"""Writing to a disk that may be full: one message for all stages, and never half a line left behind.

In: a write and the bytes it needs. Out: the write, or `DiskFull` with the path and the bytes. Libraries in other
languages report a full disk in words, without an error number. Only this module recognizes those words.
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
    """There is no room for `path`. What is finished is kept; the same command resumes once there is room."""

    def __init__(self, path: str, needed_bytes: int, free_bytes: int, why: str):
        super().__init__(path, needed_bytes, free_bytes, why)  # pickled between processes, so all arguments
        self.path, self.needed_bytes = path, needed_bytes
        self.free_bytes, self.why = free_bytes, why

    def __str__(self) -> str:
        return (
            f"{self.why}: {self.path}: this write needs {self.needed_bytes:,} bytes, {self.free_bytes:,} are free. "
            "What is finished is kept; make room, and the same command resumes (HORNBOOK_ROOT is where artifacts/ is, "
            "TMPDIR where temporary files are, train.keep_checkpoints how many checkpoints stay)"
        )


@contextlib.contextmanager
def writing(path: Path, needed_bytes: int) -> Iterator[None]:
    """Wraps a write of about `needed_bytes` to `path`. Raises `DiskFull` if it fails for lack of room."""
    try:
        yield
    except DiskFull:
        raise  # the inner one knows more
    except Exception as error:
        cause = full_disk(error)
        if cause is None:
            raise
        known = cause if isinstance(cause, OSError) else OSError()
        name = known.filename2 or known.filename  # the target of a copy, not its source
        where = Path(os.fsdecode(name)) if name else path
        reason, free = known.strerror or "No space left on device", free_bytes(where)
        if known.errno == errno.ENOSPC and not name and free > needed_bytes:
            reason += " (perhaps where standard output goes: there is room here)"
        raise DiskFull(str(where), needed_bytes, free, reason) from error


def check_free(path: Path, needed_bytes: int) -> None:
    """Raises `DiskFull` if the disk of `path` has fewer free bytes."""
    free = free_bytes(path)
    if free < needed_bytes:
        raise DiskFull(str(path), needed_bytes, free, "not enough room")


def free_bytes(path: Path) -> int:
    """Free bytes of the disk on which `path` is, or would be."""
    for place in (path, *path.parents):
        with contextlib.suppress(OSError):
            return shutil.disk_usage(place).free
    return 0


def full_disk(error: BaseException | None) -> BaseException | None:
    """The error in a chain of causes that reports a full disk, or None."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return error
        if WORDS.search(str(error)):
            return error
        error = error.__cause__ or error.__context__
    return None


def append_synced(path: Path, line: bytes) -> None:
    """Appends and syncs a line: all of it, or nothing if the disk is full (`DiskFull`)."""
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


def sync_entry(path: Path) -> None:
    """Syncs a file's content, or a folder's entries, so that names survive a crash."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
