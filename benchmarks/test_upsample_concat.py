"""The op on the GPU, and PyTorch's three launches for the same: ``make bench`` times them after comparing results."""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from jpu_cuda import functional, use_backend

from .conftest import CHANNELS, Shape, timed

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def _forward(levels: list[Tensor]) -> Tensor:
    return functional.upsample_concat(levels, align_corners=True, reverse=True)


def _assert_close(actual: Tensor, expected: Tensor) -> None:
    """Up to the roundings of both: those of float32 coordinates along an axis of 64, and the results' own.

    A pixel of a gradient is a sum of up to 64, of which PyTorch's may be rounded one by one.
    """
    eps = max(torch.finfo(actual.dtype).eps, 64 * torch.finfo(torch.float32).eps)
    peak = float(expected.detach().abs().max())
    torch.testing.assert_close(actual, expected, rtol=0, atol=8 * eps * peak)


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
            timed(benchmark, lambda: _forward(levels))


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
    timed(benchmark, lambda: torch.autograd.grad(out, levels, gradient, retain_graph=True))
