"""The calls that a model makes again and again: ``make bench`` times them, a test run makes each once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

import jpu_cuda
from jpu_cuda import functional, mmseg

WIDTH = 128
# Strides 4, 8, 16 and 32 of a 256×256 image.
LEVELS = {4: (64, 64), 8: (128, 32), 16: (256, 16), 32: (512, 8)}

Call = Callable[[list[Tensor]], Tensor]


@pytest.fixture
def levels(device: torch.device) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, channels, size, size, device=device) for channels, size in LEVELS.values()]


@pytest.fixture(params=["JPU", "JPU_X", "mmseg.JPU"])
def module_and_call(request: pytest.FixtureRequest, device: torch.device) -> tuple[nn.Module, Call]:
    """A module and how it is called with the levels of strides 4 to 32."""
    torch.manual_seed(0)
    channels = [channels for channels, _ in LEVELS.values()][1:]
    if request.param == "mmseg.JPU":
        neck = mmseg.JPU(channels, mid_channels=WIDTH).to(device)
        return neck, lambda levels: neck(levels[1:])[-1]
    kind = jpu_cuda.JPU if request.param == "JPU" else jpu_cuda.JPU_X
    module = kind(channels, width=WIDTH).to(device)
    return module, lambda levels: module(*levels)[-1]


def _timed(benchmark: BenchmarkFixture, device: torch.device, call: Callable[[], Tensor]) -> Tensor:
    """Benchmarks a call up to the point where its work is done."""

    def work() -> Tensor:
        result = call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return result

    result: Tensor = benchmark(work)
    return result


def _assert_sound(result: Tensor, shape: tuple[int, ...]) -> None:
    assert result.shape == shape
    assert torch.isfinite(result).all()


def test_forward(
    benchmark: BenchmarkFixture,
    device: torch.device,
    levels: list[Tensor],
    module_and_call: tuple[nn.Module, Call],
) -> None:
    module, call = module_and_call
    module.eval()
    with torch.inference_mode():
        result = _timed(benchmark, device, lambda: call(levels))
    _assert_sound(result, (2, 4 * WIDTH, 32, 32))


def test_forward_and_backward(
    benchmark: BenchmarkFixture,
    device: torch.device,
    levels: list[Tensor],
    module_and_call: tuple[nn.Module, Call],
) -> None:
    module, call = module_and_call
    # As below a backbone that trains: gradients of the levels too.
    inputs = [level.requires_grad_() for level in levels]
    wanted = [*inputs[1:], *module.parameters()]

    def step() -> Tensor:
        result = call(inputs)
        gradients = torch.autograd.grad(result.square().mean(), wanted)
        return torch.cat([gradient.flatten() for gradient in gradients])

    result = _timed(benchmark, device, step)
    _assert_sound(result, (sum(tensor.numel() for tensor in wanted),))
    assert result.count_nonzero() > 0


def test_upsample_concat(benchmark: BenchmarkFixture, device: torch.device, levels: list[Tensor]) -> None:
    features = [level[:, :64] for level in levels[1:]]
    result = _timed(benchmark, device, lambda: functional.upsample_concat(features, align_corners=True))
    _assert_sound(result, (2, 3 * 64, 32, 32))


def test_separable_pyramid(benchmark: BenchmarkFixture, device: torch.device) -> None:
    torch.manual_seed(0)
    dilations = (1, 2, 4, 8)
    features = [torch.randn(2, WIDTH, 32, 32, device=device) for _ in range(3)]
    depthwise = torch.randn(len(dilations), 3 * WIDTH, 3, 3, device=device)
    pointwise = torch.randn(len(dilations), WIDTH, 3 * WIDTH, device=device)
    with torch.inference_mode():
        result = _timed(
            benchmark,
            device,
            lambda: functional.separable_pyramid(features, depthwise, pointwise, dilations),
        )
    _assert_sound(result, (2, len(dilations) * WIDTH, 32, 32))
