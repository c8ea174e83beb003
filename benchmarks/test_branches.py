"""All that follows a JPU's stages on the GPU, norms of fixed statistics: by the kernels, and by PyTorch's modules."""

from __future__ import annotations

import copy

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

from jpu_cuda import JPU, use_backend

from .conftest import CHANNELS, Shape, timed

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def _branches(dtype: torch.dtype, memory_format: torch.memory_format) -> JPU:
    torch.manual_seed(0)
    jpu = JPU((CHANNELS,) * 3, width=CHANNELS)
    jpu.conv3, jpu.conv4, jpu.conv5 = (nn.Sequential(nn.Identity()) for _ in range(3))
    module: JPU = jpu.to("cuda", dtype).to(memory_format=memory_format).eval()
    return module


def _assert_no_worse(actual: Tensor, baseline: Tensor, truth: Tensor) -> None:
    error, allowed = (float((x.double() - truth).abs().max()) for x in (actual, baseline))
    assert error <= 1.25 * allowed + torch.finfo(actual.dtype).eps / 2 * float(truth.abs().max()), (error, allowed)


def test_forward(
    benchmark: BenchmarkFixture, shape: Shape, memory_format: torch.memory_format, dtype: torch.dtype, backend: str
) -> None:
    jpu, levels = _branches(dtype, memory_format), shape.levels(dtype, memory_format)
    with torch.inference_mode():
        with use_backend("reference"):  # one image: float64 takes its time
            truth = copy.deepcopy(jpu).double().pyramid([x[:1].double() for x in levels])
            baseline = jpu.pyramid([x[:1] for x in levels])
        with use_backend(backend):
            _assert_no_worse(jpu.pyramid(levels)[:1], baseline, truth)
            timed(benchmark, lambda: jpu.pyramid(levels))


def test_forward_and_backward(
    benchmark: BenchmarkFixture, shape: Shape, memory_format: torch.memory_format, dtype: torch.dtype, backend: str
) -> None:
    jpu, levels = _branches(dtype, memory_format), shape.levels(dtype, memory_format)
    wanted = [*levels, *jpu.parameters()]

    def step() -> tuple[Tensor, ...]:
        out = jpu.pyramid(levels)
        return torch.autograd.grad(out, wanted, out.detach())

    with use_backend(backend):
        assert all(torch.isfinite(gradient).all() for gradient in step())
        timed(benchmark, step)
