"""The op on the GPU, and PyTorch's three launches for the same: ``make bench`` times them after comparing results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from jpu_cuda import functional, use_backend

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

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


def _forward(levels: list[Tensor]) -> Tensor:
    return functional.upsample_concat(levels, align_corners=True, reverse=True)


def _assert_close(actual: Tensor, expected: Tensor) -> None:
    """Up to the roundings of both: those of float32 coordinates along an axis of 64, and the results' own.

    A pixel of a gradient is a sum of up to 64, of which PyTorch's may be rounded one by one.
    """
    eps = max(torch.finfo(actual.dtype).eps, 64 * torch.finfo(torch.float32).eps)
    peak = float(expected.detach().abs().max())
    torch.testing.assert_close(actual, expected, rtol=0, atol=8 * eps * peak)


def _timed(benchmark: BenchmarkFixture, call: Callable[[], object]) -> None:
    """Benchmarks a call up to the point where its work is done."""

    def work() -> None:
        call()
        torch.cuda.synchronize()

    benchmark(work)


def test_forward(
    benchmark: BenchmarkFixture, shape: Shape, memory_format: torch.memory_format, dtype: torch.dtype, backend: str
) -> None:
    levels = shape.levels(dtype, memory_format)
    with torch.inference_mode():
        with use_backend("reference"):
            expected = _forward(levels)
        with use_backend(backend):
            result = _forward(levels)
            assert result.shape == (shape.batch, 3 * CHANNELS, shape.side // 8, shape.side // 8)
            _assert_close(result, expected)
            _timed(benchmark, lambda: _forward(levels))


def test_backward(
    benchmark: BenchmarkFixture, shape: Shape, memory_format: torch.memory_format, dtype: torch.dtype, backend: str
) -> None:
    levels = shape.levels(dtype, memory_format)
    with use_backend("reference"):
        out = _forward(levels)
        gradient = torch.randn_like(out)
        # In float32, since PyTorch may sum in the dtype of the levels, one rounding after the other.
        wide = [level.detach().float().requires_grad_() for level in levels]
        expected = torch.autograd.grad(_forward(wide), wide, gradient.float())
    if backend == "cuda":
        with use_backend(backend):
            out = _forward(levels)
        for actual, wanted in zip(torch.autograd.grad(out, levels, gradient, retain_graph=True), expected, strict=True):
            _assert_close(actual, wanted.to(actual.dtype))
    _timed(benchmark, lambda: torch.autograd.grad(out, levels, gradient, retain_graph=True))
