"""Peak memory of a piece of work."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch

_MIB = 2**20
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


class PeakMemory:
    """Peak memory above the level at which this object was made.

    On a GPU this is what PyTorch's allocator handed out. On a CPU it is the resident memory of the
    process, by the high-water mark that Linux keeps and lets a process reset; elsewhere there is no
    such figure.

    Make it before the model, so that the weights are counted; :meth:`reset` after what should not
    count, such as initialisation; read :meth:`mib` after the work.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._baseline = self._level()

    def _level(self) -> int | None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            return torch.cuda.memory_allocated(self._device)
        _trim_heap()
        return _status_bytes("VmRSS")

    def reset(self) -> None:
        """Forgets earlier peaks; the level to compare with stays."""
        self._level()  # gives back what is free, which would count as resident otherwise
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        elif self._baseline is not None and not _reset_high_water_mark():
            self._baseline = None

    def mib(self) -> float | None:
        """Peak since :meth:`reset`, in MiB; None where this machine cannot tell."""
        if self._device.type == "cuda":
            peak: int | None = torch.cuda.max_memory_allocated(self._device)
        else:
            peak = _status_bytes("VmHWM")
        if peak is None or self._baseline is None:
            return None
        return max(0, peak - self._baseline) / _MIB


def _trim_heap() -> None:
    """Returns freed heap to the system, where the C library can (glibc)."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        return


def _status_bytes(key: str) -> int | None:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    return None


def _reset_high_water_mark() -> bool:
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True
