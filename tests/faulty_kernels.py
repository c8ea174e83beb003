"""What tests of host execution run the kernels of tests/kernels/faulty.cu with: float32 matrices, a block a row."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

from jpu_cuda import host

THREADS = 64
SCHEDULES = [(0, True), (0, False), (1, True), (7, False)]

watched = pytest.mark.skipif(host._CHECK == "address", reason="AddressSanitizer watches, not the runtime")


def matrix(rows: int, columns: int, stride: int | None = None, offset: int = 0) -> np.ndarray:
    """Random [rows, columns], ``offset`` floats past a multiple of 64 bytes, in a larger array of NaN."""
    stride = columns if stride is None else stride
    memory = np.full(rows * stride + 64, np.nan, np.float32)
    start = (-memory.ctypes.data // 4) % 16 + 16 + offset
    view = memory[start : start + rows * stride].reshape(rows, stride)[:, :columns]
    view[:] = np.random.default_rng(rows * columns).standard_normal((rows, columns))
    return view


def run(library: ModuleType, name: str, columns: int = THREADS, rows: int = 3, **options: Any) -> np.ndarray:
    """What the kernel makes of matrix(rows, columns), all rows with gaps between them."""
    stride = columns + 8 - columns % 4
    output = matrix(rows, THREADS, THREADS + 4)
    output[:] = np.nan
    library.run(name, matrix(rows, columns, stride), output, matrix(rows, columns, stride), **options)
    return output


def counted(library: ModuleType, name: str, *arrays: np.ndarray, option: int = 0) -> dict[str, Any]:
    with host.record(library) as launches:
        library.run(name, *arrays, option=option)
    (launch,) = launches
    assert (launch.kernel, launch.threads) == (name, THREADS)
    return launch.counters
