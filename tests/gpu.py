"""What tests on a GPU share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from jpu_cuda import use_backend


@contextmanager
def on_cuda() -> Iterator[None]:
    """Kernels or an error; beside them PyTorch in full precision, and the same on every run."""
    precise = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
    with precise, use_backend("cuda"):  # raises where the binary is missing: a GPU without kernels is no success
        yield


@contextmanager
def products_in_tf32(allowed: bool) -> Iterator[None]:
    """Those of PyTorch's matrices, not of its convolutions."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


# What takes a large part of a GPU's memory: one after the other, where several processes share the GPU.
one_at_a_time = pytest.mark.xdist_group("large")


def needs_memory(gib: int) -> None:
    """Skips a test that is :data:`one_at_a_time` where that much is not there, beside what other processes have."""
    torch.cuda.empty_cache()  # what earlier tests left in the allocator is free too
    if torch.cuda.mem_get_info()[0] < gib * 2**30:
        pytest.skip(f"needs {gib} GiB of free GPU memory")


def captured(step: Callable[[], list[Tensor]]) -> tuple[torch.cuda.CUDAGraph, list[Tensor]]:
    """A graph of what a step launches, and where each replay leaves its results."""
    warm_up = torch.cuda.Stream()
    warm_up.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm_up):
        step()
    torch.cuda.current_stream().wait_stream(warm_up)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    return graph, results


def on_a_late_stream(fill: Callable[[], None], step: Callable[[], list[Tensor]]) -> list[Tensor]:
    """The results of a step whose inputs are filled late, on a side stream.

    Kernels on another stream would read what was there before.
    """
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)  # cycles: about a tenth of a second
        fill()
        results = step()
    side.synchronize()
    return results


def requested_bytes(step: Callable[[], object]) -> tuple[int, int]:
    """What a step asks the allocator for beyond what was there: at its peak, and after its results are gone."""

    def stat(name: str) -> int:
        return torch.cuda.memory_stats()[f"requested_bytes.all.{name}"]

    step()  # libraries keep workspaces of their own from the first time on
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = stat("current")
    step()
    return stat("peak") - before, stat("current") - before
