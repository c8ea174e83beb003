"""A training step of all that follows a JPU's stages, on the GPU, norms of fixed statistics: kernels and PyTorch.

Inference is measured by ``python -m benchmarks inference``.
"""

from __future__ import annotations

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
