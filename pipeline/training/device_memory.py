"""Memory of a device as it is held and as it was held at most: of a card, or of this process on a CPU."""

import os
import resource
import sys
from pathlib import Path

import torch


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

    def restart_peak(self) -> bool:
        """From here on `newest_peak_bytes` counts anew; False where the system cannot."""
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
