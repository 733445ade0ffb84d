"""Where the big blocks of a training step come from on a CPU.

As glibc comes, it gives big blocks back to the kernel and gets them again 4 KiB at a time: 1.2x to 1.7x of a small
model's step went into page faults. So they are kept in its heap. There most are not found again: torch asks for aligned
blocks, and glibc's `memalign` (2.36) looks for more than the block that it got back, so the heap grows to 1.2 to 1.5
times what a step needs. THP_MEM_ALLOC_ENABLE=1 (torch's own switch, read when its first tensor is made) is for those
who lack the memory: each big block is mapped by itself in huge pages and given back. What is held is then what is
needed; a step takes up to 1.3x as long (docs/training), because every block is cleared anew.
"""

import ctypes
import os
import platform
import resource

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
HUGE_PAGE_BYTES = 2**21
PROBE_BYTES = 16 * HUGE_PAGE_BYTES


def set_up() -> str:
    """Sets this process' allocator up for training on a CPU; what was chosen, for the user."""
    if platform.libc_ver()[0] != "glibc":
        return "allocator as it comes (no glibc)"
    if os.environ.get("THP_MEM_ALLOC_ENABLE") == "1":
        _tell_glibc(map_from_bytes=HUGE_PAGE_BYTES)
        if _huge_pages():
            return "big blocks in huge pages"
    return "glibc keeps big blocks" if _tell_glibc(map_from_bytes=2**30) else "allocator as it comes"


def _tell_glibc(map_from_bytes: int) -> bool:
    """Both thresholds are needed; either alone did nothing."""
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(M_MMAP_THRESHOLD, map_from_bytes) and libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def _huge_pages() -> bool:
    """Whether a big block really comes in them: the kernel may have none, or torch have made its choice before."""
    block = torch.empty(PROBE_BYTES, dtype=torch.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block.zero_()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return faults < PROBE_BYTES // os.sysconf("SC_PAGE_SIZE") // 4
