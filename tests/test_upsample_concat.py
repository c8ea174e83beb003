"""The kernels of upsample_concat, executed on the CPU, against the truth and against PyTorch's own path."""

import math

import numpy as np
import pytest
import torch
from helpers import max_error
from hypothesis import given, settings
from strategies import (
    DTYPES,
    LAYOUTS,
    PATHS,
    Case,
    cases,
    check_backward,
    check_forward,
    concat,
    needs_host,
    plain,
    true_upsample,
)
from torch import Tensor

from jpu_cuda import functional, host, use_backend

pytestmark = needs_host

ops = torch.ops.jpu_cuda

# The same examples on every run, so that a failure is one of the change and not of the day.
bounded = settings(derandomize=True, deadline=None, max_examples=60)


@pytest.fixture(scope="module", autouse=True)
def _kernels() -> None:
    host.load()


@bounded
@given(cases())
def test_resizing_and_concatenation_are_as_exact_as_pytorchs(case: Case) -> None:
    check_forward(case)


@bounded
@given(cases())
def test_gradients_are_as_exact_as_pytorchs(case: Case) -> None:
    check_backward(case)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("path", PATHS)
def test_every_path_is_as_exact_as_pytorchs(path: str, align_corners: bool, dtype: torch.dtype) -> None:
    case = PATHS[path]
    case = Case(2, case.channels, case.sizes, case.layouts, dtype, align_corners, reverse=True)
    check_forward(case)
    check_backward(case)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_result(layout: str) -> None:
    case = plain((8, 16), ((9, 16), (5, 3)), batch=2, layout=layout, dtype=torch.float64)
    levels = case.levels()
    contiguous = [x.contiguous() for x in levels]
    expected = ops.upsample_concat(contiguous, True, False)
    assert torch.equal(ops.upsample_concat(levels, True, False), expected)
    gradients = case.gradients()
    plain_gradients = [g.contiguous() for g in gradients]
    for got, want in zip(
        ops.upsample_backward(gradients, (9, 5), (16, 3), True),
        ops.upsample_backward(plain_gradients, (9, 5), (16, 3), True),
        strict=True,
    ):
        # Of the paths one sums rows first and one columns first.
        np.testing.assert_allclose(got.numpy(), want.numpy(), rtol=0, atol=64 * np.finfo(np.float64).eps)


def test_thirty_levels_take_two_launches() -> None:
    sizes = [(9, 16), *((1 + i % 5, 1 + i % 7) for i in range(29))]
    case = plain([1 + i % 3 for i in range(30)], sizes, batch=2, align_corners=True, reverse=True)
    with host.record() as launches:
        check_forward(case)
        ops.upsample_backward(case.gradients(), *zip(*sizes, strict=True), True)
    assert len(launches) == 6  # upsample_concat, upsample and upsample_backward
    check_backward(case)


@pytest.mark.parametrize(("levels", "launches"), [(1, 1), (2, 1), (16, 1), (17, 2), (32, 2), (33, 3)])
def test_one_launch_serves_up_to_16_levels(levels: int, launches: int) -> None:
    case = plain((1,) * levels, ((3, 4),) * levels)
    with host.record() as recorded:
        ops.upsample_concat(case.levels(), True, False)
    assert [launch.kernel for launch in recorded] == ["upsample_concat forward"] * launches
    with host.record() as recorded:
        ops.upsample_backward(case.gradients(), (3,) * levels, (4,) * levels, True)
    assert [launch.kernel for launch in recorded] == ["upsample_concat backward"] * launches


def test_levels_without_elements_are_skipped() -> None:
    case = plain((0, 3, 0), ((4, 5), (2, 3), (7, 7)))
    with host.record() as launches:
        out = ops.upsample_concat(case.levels(), False, False)
        assert ops.upsample_concat(plain((2, 3), ((4, 5), (2, 3)), batch=0).levels(), False, False).shape[0] == 0
    assert len(launches) == 1
    assert out.shape == (1, 3, 4, 5)


def test_the_first_level_is_copied_bit_for_bit() -> None:
    first = torch.tensor([1.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-45, 3.4e38, 2.0]).reshape(1, 2, 2, 2)
    out = ops.upsample_concat([first, torch.ones(1, 1, 3, 3)], False, False)
    assert torch.equal(out[:, :2].contiguous().view(torch.int32), first.view(torch.int32))


def test_an_infinite_pixel_stays_within_its_support() -> None:
    level = torch.zeros(1, 1, 3, 3)
    level[0, 0, 1, 1] = torch.inf
    out = ops.upsample([level], 5, 5, True)[0][0, 0]
    assert torch.isinf(out[1:4, 1:4]).all()
    assert torch.equal(out.isfinite().sum(), torch.tensor(16))


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_long_axes_lose_no_digits(dtype: torch.dtype, align_corners: bool) -> None:
    """Coordinates are exact, where float ones have lost a tenth of a pixel at the end of such an axis."""
    case = plain((1, 1), ((1, 50_021), (1, 37_003)), dtype=dtype, align_corners=align_corners)
    level = case.levels()[1]
    truth = true_upsample(level, (1, 50_021), align_corners)
    out = ops.upsample([level], 1, 50_021, align_corners)[0]
    roundings = 6 * torch.finfo(dtype).eps / 2  # two weights of two roundings, a product, a sum
    assert max_error(out, truth) <= roundings * float(level.abs().max())


@bounded
@given(cases(most_levels=2))
def test_backward_is_the_adjoint_of_forward(case: Case) -> None:
    """<R x, y> = <x, Rᵀ y> in float64, up to a bound on the roundings of both."""
    case = Case(case.batch, case.channels, case.sizes, case.layouts, torch.float64, case.align_corners, case.reverse)
    height, width = case.sizes[0]
    for x, y in zip(case.levels(), case.gradients(), strict=True):
        resized = ops.upsample([x], height, width, case.align_corners)[0]
        magnitude = ops.upsample([x.abs()], height, width, case.align_corners)[0]
        adjoint = ops.upsample_backward([y], [x.shape[2]], [x.shape[3]], case.align_corners)[0]
        left = math.fsum((resized * y).flatten().tolist())
        right = math.fsum((x * adjoint).flatten().tolist())
        # Forward: 3 roundings in each of two weights and 2 in each of two blends. Backward: as many, and a
        # sum over the support. Here: 2 products. All relative to the terms' magnitudes.
        roundings = 2 * (2 * 3 + 2 * 2) + (height + width) + 2
        scale = float((magnitude * y.abs()).sum())
        assert abs(left - right) <= 1.01 * roundings * 2.0**-53 * scale


def results_of(case: Case) -> list[Tensor]:
    heights, widths = zip(*case.sizes, strict=True)
    return [
        ops.upsample_concat(case.levels(), case.align_corners, case.reverse),
        *ops.upsample_backward(case.gradients(), heights, widths, case.align_corners),
    ]


@pytest.mark.parametrize("path", PATHS)
def test_results_are_bit_for_bit_the_same_on_every_run_and_schedule(path: str) -> None:
    expected = results_of(PATHS[path])
    for seed in (0, 1, 2, 3):
        with host.schedule(seed):
            assert all(map(torch.equal, results_of(PATHS[path]), expected))


def test_the_functions_of_this_package_are_served_by_the_kernels() -> None:
    case = plain((2, 3, 1), ((4, 5), (2, 3), (7, 2)), dtype=torch.float16)
    levels = case.levels()
    with use_backend("host"), host.record() as launches:
        out = functional.upsample_concat(levels, False, reverse=True)
        resized = functional.upsample(levels, False)
    assert len(launches) == 2
    assert resized[0] is levels[0]
    assert torch.equal(out, concat(resized, reverse=True))
