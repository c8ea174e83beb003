"""Peak memory of a piece of work, and what autograd keeps of a forward pass."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

_MIB = 2**20
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


# Of glibc's mallopt: sizes in bytes from which a block comes from the system and goes back to it at
# once, and of free heap from which it does.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


class PeakMemory:
    """Peak memory above the level at the beginning of a ``with`` block.

    On a GPU this is what PyTorch's allocator handed out. On a CPU it is the resident memory of the
    process, by the high-water mark that Linux keeps and lets a process reset; elsewhere there is no
    such figure. Within the block freed memory goes back to the system at once, so that the figure is
    what is in use and not what earlier work left behind; this makes allocation slow: time nothing here.

    Make the model within the block, so that its weights are counted; call :meth:`reset` after what
    should not count, such as initialisation, and :meth:`mib` after the work. The first work of a process
    also maps code and buffers that stay; let something else do that.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._baseline: int | None = None

    def __enter__(self) -> PeakMemory:
        _set_heap(mmap_threshold=2**16, trim_threshold=2**17)
        self._baseline = self._level()
        return self

    def __exit__(self, *_: object) -> None:
        # To where glibc's adaptive thresholds get by themselves once large blocks have been freed. The
        # adaptation cannot be switched on again.
        _set_heap(mmap_threshold=2**25, trim_threshold=2**26)

    def _level(self) -> int | None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            return torch.cuda.memory_allocated(self._device)
        return _status_bytes("VmRSS")

    def reset(self) -> None:
        """Forgets earlier peaks; the level to compare with stays."""
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


class SavedMemory:
    """What a forward pass, made within a ``with`` block, keeps for the backward pass.

    Counted is what autograd saves, compiled code's and that of operators of this package too: every storage once and
    whole, as a view keeps all of it, as long as it lives when :meth:`mib` is asked.

    Args:
        inputs: tensors that are there anyway: parameters, buffers, inputs. They are counted apart.
    """

    def __init__(self, inputs: Iterable[Tensor]) -> None:
        self._inputs = {tensor.untyped_storage()._cdata for tensor in inputs}
        # A weak reference keeps an address from being given to another storage.
        self._found: dict[StorageWeakRef, int] = {}
        self._hooks: Any = torch.autograd.graph.saved_tensors_hooks(self._note, lambda tensor: tensor)

    def __enter__(self) -> SavedMemory:
        self._hooks.__enter__()
        return self

    def __exit__(self, *arguments: object) -> None:
        self._hooks.__exit__(*arguments)

    def _note(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self._found[StorageWeakRef(storage)] = storage.nbytes()
        return tensor.detach()  # itself it would be part of a cycle, and never freed

    def mib(self) -> float:
        """Of all but the inputs."""
        return self._sum(of_inputs=False)

    def inputs_mib(self) -> float:
        """Of the inputs."""
        return self._sum(of_inputs=True)

    def _sum(self, of_inputs: bool) -> float:
        alive = {ref: size for ref, size in self._found.items() if not ref.expired()}
        return sum(size for ref, size in alive.items() if (ref.cdata in self._inputs) == of_inputs) / _MIB


def _set_heap(mmap_threshold: int, trim_threshold: int) -> None:
    """Sets from which size on memory goes back to the system, where the C library is glibc."""
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, mmap_threshold)
        libc.mallopt(_M_TRIM_THRESHOLD, trim_threshold)
        libc.malloc_trim(0)
    except (AttributeError, OSError, TypeError):  # another C library: the figure has its habits in it
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
