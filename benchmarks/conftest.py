"""Fixtures of the benchmarks that run under pytest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU, and the GPU where there is one."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device(request.param)


# What the JPU resizes: 512 channels at strides 8, 16 and 32 of an image.
CHANNELS = 512


@dataclass(frozen=True)
class Shape:
    """Images of one size."""

    batch: int
    side: int  # of the image, in pixels

    def levels(self, dtype: torch.dtype, memory_format: torch.memory_format) -> list[Tensor]:
        torch.manual_seed(0)
        return [
            torch.randn(self.batch, CHANNELS, side, side, device="cuda", dtype=dtype)
            .contiguous(memory_format=memory_format)
            .requires_grad_()
            for side in (self.side // 8, self.side // 16, self.side // 32)
        ]


SHAPES = {"1x512": Shape(1, 512), "16x480": Shape(16, 480)}
FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest) -> Shape:
    return SHAPES[request.param]


@pytest.fixture(params=FORMATS)
def memory_format(request: pytest.FixtureRequest) -> torch.memory_format:
    found: torch.memory_format = FORMATS[request.param]
    return found


@pytest.fixture(params=DTYPES)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return DTYPES[request.param]


@pytest.fixture(params=["cuda", "reference"])
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def timed(benchmark: BenchmarkFixture, call: Callable[[], object]) -> None:
    """Benchmarks a call up to the point where its work is done."""

    def work() -> None:
        call()
        torch.cuda.synchronize()

    benchmark(work)
