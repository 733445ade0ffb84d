"""The memory of a training: how many windows a forward pass takes, what is held, and where a CPU's blocks come from.

In: the `train` section, a model's shape, a device. Out: windows a pass, as the config says, as a CPU's caches like it,
or as the memory plan (model/estimate.py) allows; bytes held now and at most, of a card or of this process.
Imports no lightning: `hornbook plan` asks the same questions.

On a CPU the allocator is set up first. By default glibc gives big blocks back to the kernel and gets them again 4 KiB
at a time: 1.2x to 1.7x of a small model's step went into page faults, so big blocks are kept in its heap. There most
are not found again: torch asks for aligned blocks, and glibc's `memalign` (2.36) looks for more than the block that it
got back, so the heap grows to 1.2 to 1.5 times what a step needs. THP_MEM_ALLOC_ENABLE=1 (torch's own switch, read when
its first tensor is made) is for machines without that memory: each big block is mapped by itself in huge pages and
given back. A process then holds what it needs, but a step takes up to 1.3x as long (docs/training), because every block
is cleared again.
"""

import ctypes
import json
import os
import platform
import re
import resource
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from model.config import ModelConfig
from pipeline.config import TrainConfig

if TYPE_CHECKING:
    from model.estimate import Plan, TrainSettings

CPU_MICRO_TOKENS = 8192  # activations of a larger step fall out of the caches and into gigabytes
GPU_MICRO_WINDOWS = 8
GPU_ENOUGH_TOKENS = 32768  # a pass of more keeps no card busier (unmeasured: products of 16k rows fill an H100)
PINNED_BYTES = 2**26  # of the buffer between card and disk: large enough for the bus's full speed
_PLANS: dict[Any, "Plan"] = {}
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
HUGE_PAGE_BYTES = 2**21
PROBE_BYTES = 16 * HUGE_PAGE_BYTES


def micro_batch_windows(train: TrainConfig, device_type: str, model: ModelConfig, precision: str) -> int:
    """Windows per forward pass: `train.micro_batch`; else on a card the most that the memory plan allows, on a CPU what
    stays in its caches. With the optimizer in the backward pass it is the whole step.
    """
    if train.optimizer_in_backward:
        return train.global_batch_tokens // train.sequence_length
    if train.micro_batch:
        return train.micro_batch
    windows = _smallest_step(train)
    if device_type == "cpu":
        return min(windows, max(1, CPU_MICRO_TOKENS // train.sequence_length))
    if device_type != "cuda":
        return min(windows, GPU_MICRO_WINDOWS)
    return planned_windows(train, model, precision, _card_bytes())


def planned_windows(train: TrainConfig, model: ModelConfig, precision: str, device_memory_bytes: int) -> int:
    """The largest divisor of the step's windows whose traced peak fits; 1 where none does (trying will tell)."""
    found = memory_plan(model, train_settings(train, precision)).largest(choices(train), device_memory_bytes)
    return found.windows if found else 1


def memory_plan(model: ModelConfig, settings: "TrainSettings") -> "Plan":
    """The traces of a model under its settings, made once a process: they take seconds."""
    from model.estimate import Plan

    key = (json.dumps(model.identity(), sort_keys=True), settings)
    if key not in _PLANS:
        _PLANS[key] = Plan(model, settings)
    return _PLANS[key]


def choices(train: TrainConfig) -> list[int]:
    """The micro-batches that a plan may choose from."""
    return [windows for windows in divisors(train) if windows * train.sequence_length <= GPU_ENOUGH_TOKENS] or [1]


def train_settings(train: TrainConfig, precision: str) -> "TrainSettings":
    """What of the `train` section the memory plan needs."""
    from model.estimate import TrainSettings  # fake tensors take a second to import; a CPU run needs none

    return TrainSettings(
        sequence_length=train.sequence_length,
        precision=precision,
        optimizer=train.optimizer,
        activation_checkpointing=train.activation_checkpointing,
        optimizer_in_backward=train.optimizer_in_backward,
        accumulate=not train.optimizer_in_backward,
    )


def divisors(train: TrainConfig) -> list[int]:
    """Micro-batches that every step can be cut into."""
    windows = _smallest_step(train)
    return [count for count in range(1, windows + 1) if windows % count == 0]


def _smallest_step(train: TrainConfig) -> int:
    """Windows; all steps of a batch-size warm-up are multiples of it, so no pass is cut short and compiled again."""
    return (train.batch_start_tokens or train.global_batch_tokens) // train.sequence_length


def on_host(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """The same tensors on the CPU, for writing; one of a card in pieces of its rows, all through one pinned buffer, so
    that neither the card nor the host holds a copy of the model. A piece is overwritten by the next one."""
    buffer: Tensor | None = None
    for name, tensor in tensors:
        if not _is_on_card(tensor):
            yield name, tensor.detach().cpu()
            continue
        row_bytes = tensor.nbytes // max(1, len(tensor))
        for piece in tensor.detach().split(max(1, PINNED_BYTES // max(1, row_bytes))):
            if buffer is None or buffer.nbytes < piece.nbytes:
                size = max(PINNED_BYTES, piece.nbytes)
                buffer = torch.empty(size, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
            yield name, buffer[: piece.nbytes].view(piece.dtype).view(piece.shape).copy_(piece)


def copy_to_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU, in the same dtype, that nothing changes; a card's come through one pinned buffer. The copies
    themselves are pageable: pinning as many bytes as a model's state takes longer than copying them."""
    copies = {name: torch.empty(tensor.shape, dtype=tensor.dtype) for name, tensor in tensors.items()}
    filled = dict.fromkeys(copies, 0)  # elements
    for name, piece in on_host(tensors.items()):
        copies[name].view(-1)[filled[name] : filled[name] + piece.numel()].copy_(piece.reshape(-1))
        filled[name] += piece.numel()
    return copies


def host_free_bytes() -> int:
    """What this process can still take of the host's memory: what Linux calls available, at most what its control
    groups (a Slurm job's, a container's) leave; 0 where nothing says."""
    found = [1024 * int(kib) for kib in re.findall(r"MemAvailable:\s+(\d+)", _text(Path("/proc/meminfo")))]
    for line in _text(Path("/proc/self/cgroup")).splitlines():
        _, controllers, name = line.split(":", 2)
        place, most, now = {
            "": (Path("/sys/fs/cgroup"), "memory.max", "memory.current"),  # version 2 has one tree for all controllers
            "memory": (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"),
        }.get(controllers, (None, "", ""))
        for group in [place / name.lstrip("/"), *(place / name.lstrip("/")).parents] if place else []:
            limit, used = _text(group / most).strip(), _text(group / now).strip()
            if limit.isdigit() and used.isdigit():
                found.append(int(limit) - int(used))
    return max(0, min(found, default=0))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def _is_on_card(tensor: Tensor) -> bool:
    return tensor.device.type == "cuda"


def _card_bytes() -> int:
    """What this process holds of the card and what is free, at most its share: a desktop holds the rest."""
    free, total = torch.cuda.mem_get_info()
    return int(min(free + torch.cuda.memory_reserved(), total * torch.cuda.get_per_process_memory_fraction()))


class DeviceMemory:
    """Bytes: on a card what torch's allocator counts, on a CPU the process' resident set."""

    def __init__(self, device: torch.device):
        self.device = device
        self._earlier_peaks: list[int] = []

    def peak_bytes(self) -> int:
        """Most that was held so far."""
        return max([self.newest_peak_bytes(), *self._earlier_peaks])

    def newest_peak_bytes(self) -> int:
        """The same, since `restart_peak`."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return _process_peak_bytes()

    def of_allocator(self) -> dict[str, int]:
        """What a card's tools show beside the peak: what torch has reserved of it at most, what is free now, and how
        often an allocation had to wait for unused blocks to be given back. Empty on a CPU."""
        if self.device.type != "cuda":
            return {}
        return {
            "peak_reserved_bytes": torch.cuda.max_memory_reserved(self.device),
            "free_bytes": torch.cuda.mem_get_info(self.device)[0],
            "allocation_retries": torch.cuda.memory_stats(self.device)["num_alloc_retries"],
        }

    def restart_peak(self) -> bool:
        """From here on `newest_peak_bytes` counts from what is held now; False where the system cannot."""
        self._earlier_peaks.append(self.newest_peak_bytes())
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return True
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the high-water mark, proc(5)
        except OSError:
            return False
        return True

    def held_bytes(self) -> int | None:
        """Held now; None on a CPU where the system does not say."""
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device)
        try:
            pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
        except OSError:
            return None
        return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _process_peak_bytes() -> int:
    """Of the program that runs: getrusage, where it must be asked, also counts what the parent held when it started
    this one."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def set_up_allocator() -> str:
    """Sets up this process' allocator for training on a CPU; returns what was chosen, for the user."""
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
